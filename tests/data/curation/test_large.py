"""Gigabytes of text on the disk: what `curate` keeps in memory does not grow with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# HF_EXT_CURATE_BYTES makes the test smaller; the limit is that of the full size.
NUM_BYTES = int(os.environ.get("HF_EXT_CURATE_BYTES", "1000000000"))
SHARD_BYTES = NUM_BYTES // 10
LIMIT = 1.5 * 2**30

CHILD = """
import json, sys
from hf_ext.data.curation import ExactDeduplication, GopherQuality, GopherRepetition, LineRules, curate
from hf_ext.data.curation.workers import peak_bytes
steps = (GopherQuality(), GopherRepetition(), LineRules(), ExactDeduplication())
counts = curate(sys.argv[1], steps, output=sys.argv[2], show_progress=False)
print(json.dumps({"read": counts.rows_read, "kept": counts.rows_kept, "peak": peak_bytes()}))
"""


def write_shard(path, seed):
    """Documents of 20 to 1,000 words in lines of twelve, one in ten a copy of an earlier one; how many there are."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghiklmnoprstu"), length)) for length in rng.integers(3, 10, 5000)]
    words[:200] = ["the", "of", "and", "to", "with"] * 40
    vocabulary = np.array(words, dtype=object)
    texts = []
    size = 0
    while size < SHARD_BYTES:
        chosen = vocabulary[rng.integers(0, 5000, rng.integers(20, 1000))]
        lines = [" ".join(chosen[first : first + 12]) for first in range(0, len(chosen), 12)]
        is_copy = len(texts) > 0 and rng.random() < 0.1
        texts.append(texts[int(rng.integers(len(texts)))] if is_copy else "\n".join(lines))
        size += len(texts[-1])
    pq.write_table(pa.table({"text": texts}), path)  # one row group, as some write it
    return len(texts)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_one_gigabyte_of_text_then_two_are_curated_within_one_and_a_half_gibibytes(tmp_path):
    pages = tmp_path / "pages"
    pages.mkdir()
    num_rows = 0
    for num_shards in (10, 20):
        num_rows += sum(
            write_shard(pages / f"{seed:02d}.parquet", seed) for seed in range(num_shards - 10, num_shards)
        )
        # a process that is small when it begins
        command = [sys.executable, "-c", CHILD, str(pages), str(tmp_path / f"out {num_shards}")]
        outcome = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"\n{num_shards * SHARD_BYTES / 1e9:.1f} GB: {outcome}")
        assert outcome["read"] == num_rows
        assert 0.8 * num_rows < outcome["kept"] < num_rows
        assert outcome["peak"] < LIMIT
