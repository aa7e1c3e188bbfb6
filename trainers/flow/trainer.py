"""FLOW: score under the original model, weight, then train."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor

from hf_ext._columns import ROW_INDEX
from hf_ext.data.original_cache import Scores, cache_file, load_scores, rows_hash, save_scores
from hf_ext.data.provenance import model_hash
from hf_ext.data.trained_adapters import require_untouched_adapters
from hf_ext.data.weighting import (
    attach_scores,
    effective_sample_size_ratio,
    flow_weights_at,
    mean_losses,
    score_rows,
    temperature_of,
)
from hf_ext.trainers.flow import METHOD
from hf_ext.trainers.flow.config import FlowSFTConfig
from hf_ext.trainers.weighted_sft.trainer import TokenValues, WeightedSFTTrainer

logger = logging.getLogger(__name__)

ESS_WARNING = 0.95
SHARPER_SHARE = 0.8  # the effective sample size that its warning proposes


class FlowSFTTrainer(WeightedSFTTrainer):
    r"""
    FLOW: supervised fine-tuning with $w_i = \exp(-\ell_i(\theta^*) / \tau)$, fixed before the first step.

    $\ell_i(\theta^*)$ is the mean loss of document $i$'s supervised tokens under the original model $\theta^*$ (the
    model as passed in; adapters off under PEFT), scored after preparation, so on the very tokens that training sees.
    $\tau$ is the median over all processes' documents unless `args.tau` says otherwise. Where a weight would vanish in
    float32 all are divided by the largest.

    FLOW buys retention by giving up the hard rows of the target task: watch `loss/hardest_decile`.

    Args:
        model, args ([`FlowSFTConfig`]), train_dataset, ...:
            As in [`WeightedSFTTrainer`]. The training rows carry no `weight`: the trainer fills it.

    Requirements: a map-style dataset; a PEFT initialiser that leaves the base model as it is; no sharded model at
    start-up (FSDP, ZeRO-3): there, run `hf-ext data flow-weights` first and train with [`WeightedSFTTrainer`].

    Raises:
        ValueError: if one of these is not met, all weights but one vanish at `tau`, or a resumed run does not find the
            scores of the original model.

    Metrics: `flow/tau` (nats per token), `flow/ess_ratio` (effective sample size over documents; above 0.95 FLOW
    does next to nothing, and a warning says so), `flow/easiest_decile_share` (share of the weight held by the easiest
    tenth), `loss/hardest_decile` (unweighted nats per token on the tenth the original model found hardest).

    Reference: Sanyal et al. 2025, *Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting*, Algorithm 1 and
    Remark 4.2 (arXiv 2502.02797).
    """

    _tag_names: ClassVar[list[str]] = ["trl", "sft", "hf-ext", "flow"]
    _name = "FLOW"
    _paper: ClassVar[dict[str, str]] = METHOD.paper_words
    config_class = FlowSFTConfig
    method = "flow"
    weight_remedy = "Raise tau: the smaller it is, the more documents' weights vanish."
    args: FlowSFTConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hard_rows: Tensor = torch.empty(0, dtype=torch.int64)
        self.flow_statistics: dict[str, float] = {}
        if not isinstance(self.train_dataset, Dataset):
            raise ValueError(
                "FlowSFTTrainer does not support a streamed dataset: tau is a median over all rows. Materialise it, "
                "or fill 'weight' with FlowWeights(tau) for a tau of your own and use WeightedSFTTrainer."
            )
        if "weight" in self.train_dataset.column_names:
            raise ValueError(
                "The train dataset has a 'weight' column, and FlowSFTTrainer fills that column itself. Remove it, or "
                "train with the weights you have: WeightedSFTTrainer."
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "FlowSFTTrainer cannot score rows on a sharded model (FSDP, DeepSpeed). Run 'hf-ext data "
                "flow-weights' (or add_original_losses and add_flow_weights) first, and train with WeightedSFTTrainer."
            )

    def on_missing_weight(self) -> None:
        """Nothing to say: the column is this trainer's to fill."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Score the rows if that is still to do, then train. A resumed run takes the scores it was started with."""
        self.check_trainable()
        if "weight" not in self.train_dataset.column_names:
            resuming = resume_from_checkpoint not in (None, False)
            self.train_dataset = self._weighted(self.train_dataset, self._original_scores(resuming))
            for name, value in self.flow_statistics.items():
                self.add_metric(name, value)  # on the first log line
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # --- scores ----------------------------------------------------------------------------------------------------

    def _original_scores(self, resuming: bool) -> Scores:
        facts = {
            "model": model_hash(self.model),
            "dtype": str(next(self.model.parameters()).dtype),
            "autocast": self.accelerator.mixed_precision,
            "rows": rows_hash(self.train_dataset),
        }
        path = cache_file(self.args.original_cache_dir or self.args.output_dir, facts)
        is_cached = [path.exists()]
        broadcast_object_list(is_cached)  # one process must not score while another reads
        if is_cached[0]:
            logger.info(f"Losses under the original model read from {path}.")
            return load_scores(path)
        if resuming:
            raise ValueError(
                f"Resuming, but the losses under the original model are not in {self.args.original_cache_dir}: the "
                "model, its precision or the prepared rows differ from the first run's, or the folder is gone. "
                "Scoring now would use other weights. Pass the same model, data and settings (original_cache_dir can "
                "point to the first run's folder), or start again without resume_from_checkpoint."
            )
        require_untouched_adapters(self.model, self.accelerator.autocast)
        scores = self._score()
        if self.accelerator.is_main_process:
            save_scores(path, scores, facts)
        self.accelerator.wait_for_everyone()
        return scores

    def _score(self) -> Scores:
        rank = self.accelerator.process_index
        world = self.accelerator.num_processes
        shard = list(range(rank, len(self.train_dataset), world))
        scores = score_rows(
            self.model,
            self.train_dataset,
            pad_token_id=self.processing_class.pad_token_id,
            batch_size=self.args.per_device_eval_batch_size,
            autocast=self.accelerator.autocast,
            indices=shard,
            show_progress=self.accelerator.is_main_process and not self.args.disable_tqdm,
        )
        gathered = gather_object(list(zip(shard, scores, strict=True)))
        return [score for _, score in sorted(gathered)]

    # --- weights ---------------------------------------------------------------------------------------------------

    def _weighted(self, dataset: Dataset, scores: Scores) -> Dataset:
        scored = attach_scores(dataset, scores)
        means = mean_losses(scored)
        flow = flow_weights_at(means, self.args.tau_number or temperature_of(means, self.args.tau))
        weights = np.sort(flow.of_means(means))[::-1]
        tenth = max(1, len(weights) // 10)
        self.flow_statistics = {
            "flow/tau": flow.tau,
            "flow/ess_ratio": effective_sample_size_ratio(weights),
            "flow/easiest_decile_share": float(weights[:tenth].sum() / weights.sum()),
        }
        logger.info("FLOW weights: %s", self.flow_statistics)
        if self.flow_statistics["flow/ess_ratio"] > ESS_WARNING:
            is_median = self.args.tau == "median"
            can_be_sharper = float((means == means.min()).mean()) < SHARPER_SHARE  # else no tau gives that share
            logger.warning(
                "FLOW weights are nearly equal (effective sample size %.3f of the documents): the run will differ "
                "little from plain SFT, because %s.%s",
                self.flow_statistics["flow/ess_ratio"],
                "the rows' losses under the original model are alike" if is_median else
                f"tau={self.args.tau} is large against the differences of the rows' losses under the original model",
                f" tau='ess:{SHARPER_SHARE}' weighs them more sharply." if can_be_sharper else "",
            )  # fmt: skip
        self._hard_rows = self._hardest(scored, np.sort(means)[-tenth])
        return scored.map(flow, batched=True, desc="Weighting rows")

    @staticmethod
    def _hardest(scored: Dataset, threshold: float) -> Tensor:
        """Positions of the rows on which the original model's mean loss reaches the hardest tenth's, sorted."""
        columns = (scored[c] for c in (ROW_INDEX, "original_nll_sum", "original_num_tokens"))
        index, sums, counts = (np.hstack(list(column)) for column in columns)
        return torch.from_numpy(np.unique(index[(counts > 0) & (sums >= threshold * counts)]))

    def after_forward(self, values: TokenValues) -> None:
        """Log the plain loss on the hardest tenth: what FLOW gives up."""
        self._hard_rows = self._hard_rows.to(values.row_index.device)
        hard = torch.isin(values.row_index, self._hard_rows) & values.mask
        self.add_ratio("loss/hardest_decile", -(values.log_probs * hard).sum(), hard.sum())
