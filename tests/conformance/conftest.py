"""What several files of the suite read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import launch_once


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results of every job on two processes, whatever is trained: one launch."""

    def jobs(folder: Path) -> list[dict[str, Any]]:
        from tests.conformance import (
            test_classifiers,
            test_mixtures,
            test_pretrainers,
            test_retrievers,
            test_trainers,
        )

        # Encoders first: once the processes have joined, transformers saves what they are made from on one alone.
        files = (test_retrievers, test_trainers, test_classifiers, test_pretrainers, test_mixtures)
        return [job for file in files for job in file.two_process_jobs(folder)]

    return launch_once("two_processes", jobs, tmp_path_factory, processes=2)
