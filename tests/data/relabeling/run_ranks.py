"""Two processes relabel: with the same predictions, then with others in process 1. Prints what each saw."""

from __future__ import annotations

import sys

import torch.distributed as dist
from datasets import Dataset, disable_progress_bars

from hf_ext.data.relabeling import RRChannel, relabel


def main() -> None:
    disable_progress_bars()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    columns = {"label": [0, 1, 2, 0], "probs": [[0.6, 0.2, 0.2]] * 4}
    same = Dataset.from_dict(columns | {"pred": [0, 1, 1, 0]})
    print(f"rank {rank}: kept {len(relabel(same))}", flush=True)
    for mode, predictions, probs in (
        ("consensus", [0, 1, 1, rank], columns["probs"]),
        ("bayes_soft", [0, 1, 1, 0], [[0.6, 0.2 + 0.1 * rank, 0.2 - 0.1 * rank]] * 4),
    ):
        other = Dataset.from_dict(columns | {"pred": predictions, "probs": probs})
        try:
            relabel(other, mode, RRChannel(1.0, 3))
            print(f"rank {rank}: {mode} passed", flush=True)
        except RuntimeError as error:
            print(f"rank {rank}: {mode} {str(error).split(':')[0]}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
