"""Processes that train together keep the same rows, or all of them stop."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from datasets import Dataset

from hf_ext.data.relabeling import RRChannel, relabel
from tests.forks import run_together


@pytest.mark.skipif(sys.platform == "win32", reason="forks of POSIX")
def test_two_processes_with_unlike_predictions_stop_with_a_reason_and_like_ones_go_on(tmp_path: Path) -> None:
    """The same predictions, then others in process 1."""

    def work() -> None:
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        columns = {"label": [0, 1, 2, 0], "probs": [[0.6, 0.2, 0.2]] * 4}
        lines = [f"kept {len(relabel(Dataset.from_dict(columns | {'pred': [0, 1, 1, 0]})))}"]
        for mode, predictions, probs in (
            ("consensus", [0, 1, 1, rank], columns["probs"]),
            ("bayes_soft", [0, 1, 1, 0], [[0.6, 0.2 + 0.1 * rank, 0.2 - 0.1 * rank]] * 4),
        ):
            try:
                relabel(Dataset.from_dict(columns | {"pred": predictions, "probs": probs}), mode, RRChannel(1.0, 3))
                lines.append(f"{mode} passed")
            except RuntimeError as error:
                lines.append(f"{mode} {str(error).split(':')[0]}")
        dist.destroy_process_group()
        (tmp_path / os.environ["RANK"]).write_text("\n".join(lines))

    run_together(work)
    for rank in ("0", "1"):
        assert (tmp_path / rank).read_text().splitlines() == [
            "kept 3",
            "consensus the new labels differ between processes 0 and 1",
            "bayes_soft the new labels differ between processes 0 and 1",
        ]
