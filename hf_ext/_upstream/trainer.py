"""Hooks of every host trainer: metrics that are ratios, saved arguments without a pickle, pushes of checkpoints."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

TOUCHED = (
    ("transformers.Trainer", "_save", "training_args.bin, a pickle, would be saved beside the model"),
    ("transformers.Trainer", "_push_from_checkpoint", "hub_strategy would publish optimiser states, pickles"),
)


class BaseTrainerHooks(Trainer):
    """
    Public hooks of any host trainer; stands before it in the bases.

    - `push_checkpoint(checkpoint)`: the push of a checkpoint's folder while training goes on;
    - `add_ratio(name, numerator, denominator)`: a metric of an evaluation, or (where the host's hooks log it) of
      training, as a ratio of sums over micro-batches and processes;
    - saved arguments are JSON, not a pickle.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # By "train" or "eval", then by metric: numerator and denominator so far, shape `(2,)`.
        self.ratio_sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}
        super().__init__(*args, **kwargs)

    def push_checkpoint(self, checkpoint: str) -> None:
        """Push the folder of a checkpoint that was just saved; the default is the stock push, pickles and all."""
        super()._push_from_checkpoint(checkpoint)

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """Sum of `values` (any shape) over the processes, without counting tensor-parallel copies twice."""
        if self.accelerator.num_processes > 1:
            values = self.accelerator.gather(values[None]).sum(dim=0)
        return values / (self.get_tp_size() * self.get_cp_size() * self.get_sp_size())

    def add_ratio(self, name: str, numerator: Tensor, denominator: Tensor) -> None:
        """Add to a metric that is logged as a ratio of sums over micro-batches and processes (one gather a log)."""
        sums = self.ratio_sums["train" if self.model.training else "eval"]
        pair = torch.stack([numerator.detach().float().sum(), denominator.detach().float().sum()])
        sums[name] = sums[name] + pair if name in sums else pair

    def take_ratios(self, mode: str) -> dict[str, float]:
        """The ratios of `"train"` or `"eval"` since the last log, summed over processes; it empties them."""
        sums = self.ratio_sums[mode]
        totals = self.sum_over_processes(torch.stack(list(sums.values()))).tolist() if sums else []
        ratios = {name: top / bottom for name, (top, bottom) in zip(sums, totals, strict=True) if bottom > 0}
        sums.clear()
        return ratios

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate or predict, with the ratios among the metrics under the call's prefix."""
        self.ratio_sums["eval"].clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        ratios = self.take_ratios("eval")
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in ratios.items()})
        return output

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.push_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict=state_dict)
        output_dir = output_dir if output_dir is not None else self.args.output_dir
        pickled = os.path.join(output_dir, TRAINING_ARGS_NAME)
        if self.args.should_save and os.path.exists(pickled):
            # Nobody reads this pickle back, and the stock push would publish it: the same facts as JSON instead.
            os.remove(pickled)
            with open(os.path.join(output_dir, "training_args.json"), "w", encoding="utf-8") as file:
                json.dump(self.args.to_dict(), file, indent=2, sort_keys=True, default=str)
