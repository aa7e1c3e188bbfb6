"""What the tests of mixtures share."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest


@pytest.fixture
def vectors_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which cached vectors lie: one of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder
