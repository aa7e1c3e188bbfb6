"""FLOW: score under the original model, weight, then train."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor
from torch.nn import Module

from hf_ext._columns import ROW_INDEX, column_names
from hf_ext._upstream.rows import AnyDataset
from hf_ext._upstream.sharding import is_fsdp2, reshard, shard
from hf_ext.data.flow_arithmetic import FlowResult, effective_sample_size_ratio, weigh
from hf_ext.data.original_cache import Scores, cache_file, load_scores, rows_hash, save_scores
from hf_ext.data.provenance import model_hash
from hf_ext.data.scoring import attach_scores, documents_of_tokens, score_rows, score_tokens
from hf_ext.data.stream_sample import reservoir
from hf_ext.data.trained_adapters import require_untouched_adapters
from hf_ext.data.weighting import document_losses, sources_of, with_document_weights
from hf_ext.trainers.flow import METHOD
from hf_ext.trainers.flow.config import FlowSFTConfig
from hf_ext.trainers.flow.on_the_fly import (
    FLOW_WEIGHT,
    FlowCollator,
    StreamWeights,
    hard_threshold,
    kept_original,
    reweigh,
)
from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig
from hf_ext.trainers.weighted_sft.trainer import TokenValues, WeightedSFTTrainer

logger = logging.getLogger(__name__)

ESS_WARNING = 0.95
SHARPER_SHARE = 0.8  # the effective sample size that its warning proposes
SAMPLED_SHARE = 10  # a stream's first rows, for each that is scored: reading is cheap, and streams are often sorted


class FlowSFTTrainer(WeightedSFTTrainer):
    r"""
    FLOW: supervised fine-tuning with $w_i = \exp(-\ell_i(\theta^*) / \tau) / c$, fixed before the first step.

    $\ell_i(\theta^*)$ is the mean loss of document $i$'s supervised tokens under the original model $\theta^*$ (the
    model as passed in; adapters off under PEFT), scored after preparation, so on the very tokens that training sees.
    $\tau$ is the median over all processes' documents unless `args.tau` says otherwise; $c$ makes the weights' mean
    over the training set's tokens 1, and the loss is divided by tokens, so that FLOW acts alike at any batch size.

    FLOW buys retention by giving up the hard rows of the target task: watch `loss/hardest_decile`.

    Args:
        model, args ([`FlowSFTConfig`]), train_dataset, ...:
            As in [`WeightedSFTTrainer`]. The training rows carry no `weight`: the trainer fills it. Of a stream
            $\tau$ and $c$ are found on a sample of its beginning, then frozen; its rows are scored as they come, by a
            second forward (without adapters also a second copy of the model).

    Requirements: a PEFT initialiser that leaves the base model as it is. Under FSDP2 the model is sharded before rows
    are scored, each process a share of them. DeepSpeed, FSDP version 1 and a sharded model on a stream are refused:
    run `hf-ext data flow-weights` first, and train with [`WeightedSFTTrainer`] and `normalize="tokens"`.

    Raises:
        ValueError: if one of these is not met, all weights but one vanish at `tau`, `source_column` is missing or
            comes with a stream, or a resumed run does not find what the original model gave.

    Metrics: `flow/tau` (nats per token; with sources `flow/tau/SOURCE`), `flow/ess_ratio` (effective sample size over
    documents, or tokens with `flow_level="token"`; above 0.95 FLOW does next to nothing, and a warning says so),
    `flow/easiest_decile_share` (share of the weight held by the easiest tenth), `flow/negligible` (how many weigh less
    than 1e-3 of the mean), `flow/anneal` (how far weights have gone to 1), `loss/hardest_decile` (unweighted nats per
    token on the tenth of the documents that the original model found hardest).

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
        self._row_sources: list[Any] = []  # of the train rows as they were given; packing drops the column
        super().__init__(*args, **kwargs)
        self._hard_rows: Tensor = torch.empty(0, dtype=torch.int64)
        self._stream: StreamWeights | None = None
        self.flow_statistics: dict[str, float] = {}
        if "weight" in column_names(self.train_dataset):
            raise ValueError(
                "The train dataset has a 'weight' column, and FlowSFTTrainer fills that column itself. Remove it, or "
                "train with the weights you have: WeightedSFTTrainer."
            )
        self._refuse_parts()
        if self.args.flow_anneal > 0 and isinstance(self.train_dataset, Dataset):
            collator = self.data_collator
            self.data_collator = FlowCollator(collator.inner, collator.normalize, collator.reduction)

    def _refuse_parts(self) -> None:
        """Refuse a model that is sharded in a way in which it cannot score rows before its first step."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        refused = {
            "a model sharded by DeepSpeed": self.is_deepspeed_enabled,
            "a model sharded by FSDP version 1": self.is_fsdp_enabled and not is_fsdp2(self),
            "a stream with a sharded model": self.is_fsdp_enabled and not isinstance(self.train_dataset, Dataset),
            "torch_compile with a sharded model": self.is_fsdp_enabled and self.args.torch_compile,
            "fsdp_activation_checkpointing (set activation_checkpointing of the configuration instead)": (
                plugin is not None and plugin.activation_checkpointing
            ),
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(
                    f"FlowSFTTrainer does not score rows under {setting}. Run 'hf-ext data flow-weights' (or "
                    "add_original_losses and add_flow_weights) first, and train with WeightedSFTTrainer and "
                    "normalize='tokens'."
                )

    def check_rows(
        self, dataset: AnyDataset, args: WeightedSFTConfig, formatting_func: Callable | None, dataset_name: str
    ) -> AnyDataset:
        """Preflight of raw rows, as in [`WeightedSFTTrainer`]; the sources of train rows are kept."""
        source_column = getattr(args, "source_column", None)
        if dataset_name == "train" and source_column is not None:
            if not isinstance(dataset, Dataset):
                raise ValueError(
                    "source_column is for a Dataset: of a stream's sources too little is known before its first step. "
                    "Materialise the stream, or train without source_column."
                )
            self._row_sources = sources_of(dataset, source_column)
        return super().check_rows(dataset, args, formatting_func, dataset_name)

    def on_missing_weight(self) -> None:
        """Nothing to say: the column is this trainer's to fill."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Score the rows if that is still to do, then train. A resumed run takes the scores it was started with."""
        self.check_trainable()
        if isinstance(self.train_dataset, Dataset) and "weight" not in self.train_dataset.column_names:
            resuming = resume_from_checkpoint not in (None, False)
            self.train_dataset = self._weighted(self.train_dataset, self._original_scores(resuming))
            self._log_statistics()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # --- scores ----------------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """What scores depend on beside the rows."""
        facts = {
            "model": model_hash(self.model),
            "dtype": str(next(self.model.parameters()).dtype),
            "autocast": self.accelerator.mixed_precision,
        }
        return facts if self.args.flow_level == "row" else {**facts, "level": self.args.flow_level}

    def _original_scores(self, resuming: bool) -> Scores:
        facts = {**self._facts(), "rows": rows_hash(self.train_dataset)}
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
        share = self._share_of_rows()
        gathered = gather_object(list(zip(share, self._score(self.train_dataset, share), strict=True)))
        reshard(self.model)
        scores = [score for _, score in sorted(dict(gathered).items())]
        if self.accelerator.is_main_process:
            save_scores(path, scores, facts)
        self.accelerator.wait_for_everyone()
        return scores

    def _share_of_rows(self) -> list[int]:
        """The rows that this process scores; as many on each where all must call a sharded model together."""
        num_rows = len(self.train_dataset)
        world = self.accelerator.num_processes
        share = list(range(self.accelerator.process_index, num_rows, world))
        if is_fsdp2(self):
            self.model = self.model_wrapped = shard(self, self.model)
            share += [num_rows - 1] * (math.ceil(num_rows / world) - len(share))
        return share

    def _score(self, rows: Dataset, indices: list[int] | None = None) -> Scores:
        options: dict[str, Any] = {
            "pad_token_id": self.processing_class.pad_token_id,
            "batch_size": self.args.per_device_eval_batch_size,
            "autocast": self.accelerator.autocast,
            "indices": indices,
            "show_progress": self.accelerator.is_main_process and not self.args.disable_tqdm,
        }
        if self.args.flow_level == "token":
            return score_tokens(self.model, rows, **options)
        return score_rows(self.model, rows, **options)

    # --- weights ---------------------------------------------------------------------------------------------------

    def _weigh(self, rows: Dataset, scores: Scores) -> tuple[FlowResult, Dataset]:
        """Weights of the documents or tokens of prepared rows, and the rows with the scores of documents."""
        is_token = self.args.flow_level == "token"
        unit = "tokens" if is_token else "documents"
        scored = attach_scores(rows, documents_of_tokens(rows, scores) if is_token else scores)
        losses, counts = document_losses(scored)
        sources = self._document_sources(scored)
        document_size = counts.astype(np.int64)
        if self.args.reduction == "row":  # the loss's denominator then counts documents
            counts = np.ones(len(counts))
        if is_token:
            counts = np.repeat(counts / document_size, document_size)
            supervised = np.fromiter(chain.from_iterable(flags for _, flags in scores), dtype=bool)
            losses = np.fromiter(chain.from_iterable(values for values, _ in scores), dtype=np.float64)[supervised]
            sources = sources and [
                source for source, size in zip(sources, document_size, strict=True) for _ in range(size)
            ]
        result = weigh(
            losses, counts, self.args.tau_number or self.args.tau, sources=sources,
            weight_scale=self.args.weight_scale, floor=self.args.flow_floor, unit=unit,
        )  # fmt: skip
        self._set_statistics(result, losses)
        return result, scored

    def _weighted(self, dataset: Dataset, scores: Scores) -> Dataset:
        result, scored = self._weigh(dataset, scores)
        losses, _ = document_losses(scored)
        self._hard_rows = self._hardest(scored, hard_threshold(losses))
        if self.args.flow_level == "row":
            return with_document_weights(scored, result.weights)
        column = []
        start = 0
        for _, flags in scores:
            supervised = np.array(flags, dtype=bool)
            end = start + int(supervised.sum())
            row_weights = np.zeros(len(flags))
            row_weights[supervised] = result.weights[start:end]
            column.append(row_weights)
            start = end
        return scored.add_column("weight", column)

    def _document_sources(self, scored: Dataset) -> list[Any] | None:
        """The source of every document with supervised tokens, in the rows' order."""
        if self.args.source_column is None:
            return None
        if self.args.source_column in scored.column_names:
            return sources_of(scored, self.args.source_column)
        if getattr(self, "mixture", None) is not None or not self._row_sources:
            raise ValueError(
                f"Packing has dropped the column {self.args.source_column!r} of source_column, and of rows that were "
                "prepared before, or that a mixture draws, it is not known otherwise. Train without packing."
            )
        columns = (scored.with_format(None)[name] for name in (ROW_INDEX, "original_num_tokens"))
        documents = zip(*(chain.from_iterable(column) for column in columns), strict=True)
        return [self._row_sources[row] for row, num_tokens in documents if num_tokens]

    def _set_statistics(self, result: FlowResult, losses: np.ndarray) -> None:
        weights = np.sort(result.weights)[::-1]
        tenth = max(1, len(weights) // 10)
        self.flow_statistics = {
            **{"flow/tau" if name is None else f"flow/tau/{name}": rule.tau for name, rule in result.rules.items()},
            "flow/ess_ratio": effective_sample_size_ratio(weights),
            "flow/easiest_decile_share": float(weights[:tenth].sum() / weights.sum()),
            "flow/negligible": float(result.num_negligible),
        }
        logger.info("FLOW weights: %s", self.flow_statistics)
        if self.flow_statistics["flow/ess_ratio"] > ESS_WARNING:
            is_median = self.args.tau == "median"
            can_be_sharper = float((losses == losses.min()).mean()) < SHARPER_SHARE  # else no tau gives that share
            logger.warning(
                "FLOW weights are nearly equal (effective sample size %.3f of the documents): the run will differ "
                "little from plain SFT, because %s.%s",
                self.flow_statistics["flow/ess_ratio"],
                "the rows' losses under the original model are alike" if is_median else
                f"tau={self.args.tau} is large against the differences of the rows' losses under the original model",
                f" tau='ess:{SHARPER_SHARE}' weighs them more sharply." if can_be_sharper else "",
            )  # fmt: skip

    def _log_statistics(self) -> None:
        for name, value in self.flow_statistics.items():
            self.add_metric(name, value)  # on the first log line

    @staticmethod
    def _hardest(scored: Dataset, threshold: float) -> Tensor:
        """Positions of the rows on which the original model's mean loss reaches the hardest tenth's, sorted."""
        columns = (scored[c] for c in (ROW_INDEX, "original_nll_sum", "original_num_tokens"))
        index, sums, counts = (np.hstack(list(column)) for column in columns)
        return torch.from_numpy(np.unique(index[(counts > 0) & (sums >= threshold * counts)]))

    # --- streams ---------------------------------------------------------------------------------------------------

    def before_training(self, checkpoint: str | None) -> None:
        """Find the weights' rule for a stream on its beginning, or in the checkpoint that the run goes on from."""
        super().before_training(checkpoint)
        if isinstance(self.train_dataset, Dataset) or self._stream is not None:
            return
        names = ("tau", "weight_scale", "flow_floor", "flow_level", "reduction")
        facts = {**self._facts(), **{name: getattr(self.args, name) for name in names}}
        original = partial(kept_original, self.model)
        if checkpoint is not None:
            self._stream = StreamWeights.load(checkpoint, original, self.args.flow_level, facts)
            return
        require_untouched_adapters(self.model, self.accelerator.autocast)
        answer: list[Any] = [self._rule_of_sample()] if self.accelerator.is_main_process else [None]
        broadcast_object_list(answer)  # each process may see other rows of the stream
        rule, hard_loss, self.flow_statistics = answer[0]
        self._stream = StreamWeights(original(), rule, hard_loss, self.args.flow_level, facts)
        self._log_statistics()

    def _rule_of_sample(self) -> tuple[Any, float, dict[str, float]]:
        num_rows = SAMPLED_SHARE * self.args.tau_rows
        sample = reservoir(self.train_dataset, self.args.tau_rows, num_rows, self.args.seed)
        columns = [name for name in ("input_ids", "labels", "seq_lengths") if name in sample[0]]
        rows = Dataset.from_list([{name: row[name] for name in columns} for row in sample])
        result, scored = self._weigh(rows, self._score(rows))
        losses, _ = document_losses(scored)
        return result.rules[None], hard_threshold(losses), self.flow_statistics

    @contextmanager
    def writing_checkpoint(self, folder: str) -> Iterator[None]:
        """Around the host's writing of a checkpoint: a stream's weights go with it."""
        with super().writing_checkpoint(folder):
            yield
            if self._stream is not None and self.args.should_save:
                self._stream.save(folder)

    # --- steps -----------------------------------------------------------------------------------------------------

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor:
        """The loss's denominator for one optimiser step, once the micro-batches have their weights of this step."""
        share = self._share_of_ones()
        hard_rows = []
        for batch in batches:
            factor = batch.pop(FLOW_WEIGHT, None)
            if self._stream is not None:
                factor, rows = self._stream.weights(batch, self.accelerator.autocast)
                hard_rows.append(rows)
            if factor is not None:
                reweigh(batch, factor + share * (1 - factor), self.args.normalize)
        if hard_rows:
            self._hard_rows = torch.cat(hard_rows)
        if self.args.flow_anneal > 0:
            self.add_metric("flow/anneal", share)
        return super().count_items(batches, device)

    def _share_of_ones(self) -> float:
        """How far weights have gone to 1 in the step that comes: a function of the step alone, so nothing to save."""
        if self.args.flow_anneal == 0:
            return 0.0
        progress = self.state.global_step / self.state.max_steps
        return max(0.0, 1 - (1 - progress) / self.args.flow_anneal)

    def compute_loss(
        self,
        model: Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Weighted loss in training, plain loss in evaluation, as in [`WeightedSFTTrainer`]."""
        factor = inputs.pop(FLOW_WEIGHT, None)
        if factor is not None:  # of no training step, whose batches have passed `count_items`
            reweigh(inputs, factor, self.args.normalize)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def after_forward(self, values: TokenValues) -> None:
        """Log the plain loss on the hardest tenth: what FLOW gives up."""
        self._hard_rows = self._hard_rows.to(values.row_index.device)
        hard = torch.isin(values.row_index, self._hard_rows) & values.mask
        self.add_ratio("loss/hardest_decile", -(values.log_probs * hard).sum(), hard.sum())
