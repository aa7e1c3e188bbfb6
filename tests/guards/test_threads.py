"""Code that runs numba in parallel leaves torch's threads, and so its bits, alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, os
import numpy as np
import torch

torch.set_num_threads(1)
seen = {"before": torch.get_num_threads()}
rows = np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32)
WORK
seen["after"] = torch.get_num_threads()
print(json.dumps(seen))
"""
WORKS = {
    "matching": "from hf_ext.data.pruning import engines, gm_matching\n"
    "engines._SHARED_NUMBERS = 1\n"
    "gm_matching(rows, 5, engine='int8', num_threads=2, show_progress=False)",
    "matching on one thread": "from hf_ext.data.pruning import gm_matching\n"
    "gm_matching(rows, 5, engine='f32', num_threads=1, show_progress=False)",
    "search": "from hf_ext.data.exemplars import ExemplarStore, retrievers\n"
    "retrievers.NUMBA_FROM = 1\n"
    "texts = [f'question {i} about {i % 7}' for i in range(200)]\n"
    "assert ExemplarStore({'query': texts, 'document': texts}).search(['question 3'], 2)[0]",
}


@pytest.mark.parametrize("work", WORKS)
def test_torch_has_the_threads_it_had(work):
    pytest.importorskip("numba")
    environment = os.environ | {"NUMBA_NUM_THREADS": "2", "NUMBA_THREADING_LAYER": "omp"}
    command = [sys.executable, "-c", SCRIPT.replace("WORK", WORKS[work])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"before": 1, "after": 1}
