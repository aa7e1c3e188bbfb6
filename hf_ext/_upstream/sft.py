"""The only place that touches a private name of trl, transformers or sentence-transformers.

The preference trainers' part of it is `preference.py`, the retrieval trainers'
`retrieval.py`, the classifiers' `labels.py`; what is around a step, `steps.py`;
PEFT's switches, `adapters.py`.
Host libraries move every two weeks. Each private symbol used here or there is listed in `TOUCHED`; where one moved,
`tests/test_upstream.py` fails and names it.
"""

from __future__ import annotations

import copy
import json
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import AutoProcessor, PreTrainedTokenizerBase, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, get_training_chat_template
from trl.chat_template_utils import has_generation_markers
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head, create_model_from_path, get_config_model_id

from hf_ext._columns import NO_ROW, column_names

AnyDataset: TypeAlias = Dataset | IterableDataset

# (owner, private symbol, what breaks when it moves): read by the contract tests.
TOUCHED = (
    ("peft.tuners.tuners_utils.BaseTunerLayer", "_disable_adapters", "an adapter that was off could be on afterwards"),
    ("peft.tuners.tuners_utils.BaseTunerLayer", "_active_adapter", "another adapter could be active afterwards"),
    ("peft.utils.other.AuxiliaryTrainingWrapper", "_disable_adapters", "a saved module could be left off"),
    ("peft.utils.other.AuxiliaryTrainingWrapper", "_active_adapter", "another saved module could be active"),
    ("peft.PeftModel", "_adapters_disabled", "virtual tokens could be left off"),
    (
        "sentence_transformers.base.model.BaseModel",
        "_load_config_modules",
        "exemplars would not be read at the commit of the weights",
    ),
    ("trl.SFTTrainer", "_prepare_dataset", "weights would be lost while rows are tokenised and packed"),
    ("trl.SFTTrainer", "_set_signature_columns_if_needed", "the weight column would be dropped by the dataloader"),
    ("trl.SFTTrainer", "_metrics", "our metrics would not reach the log"),
    ("transformers.Trainer", "_get_num_items_in_batch", "the loss would be divided by tokens, not by weights"),
    ("transformers.Trainer", "_set_signature_columns_if_needed", "columns of a classifier's loss would be dropped"),
    ("transformers.Trainer", "get_batch_samples", "context-free batches could not be drawn"),
    ("transformers.Trainer", "_save_checkpoint", "a checkpoint could be half-written and taken for whole"),
    ("transformers.Trainer", "_get_output_dir", "the folder of a checkpoint would not be known"),
    ("transformers.Trainer", "_load_best_model", "a damaged best checkpoint could be loaded"),
    ("transformers.Trainer", "_clip_grad_norm", "gradients would be clipped before they are checked"),
    ("transformers.Trainer", "_get_grad_norm", "a gradient that is not finite would reach the optimiser"),
    ("transformers.Trainer", "_init_training_state", "a finished run that is resumed would train one step more"),
    ("transformers.Trainer", "_finalize_training", "the random state of a finished run would not be restored"),
    ("transformers.Trainer", "_load_rng_state", "the random state of a finished run would not be restored"),
    ("transformers.Trainer", "_save", "training_args.bin, a pickle, would be saved beside the model"),
    ("transformers.Trainer", "_push_from_checkpoint", "hub_strategy would publish optimiser states, pickles"),
    ("trl.trainer.utils", "add_fused_lm_head", "log-probabilities could not be had without logits"),
    ("trl.trainer.sft_trainer", "DataCollatorForLanguageModeling", "rows could not be collated outside the trainer"),
    ("trl.DPOTrainer", "_compute_loss", "a preference loss of ours could not be added to the host's"),
    ("trl.DPOTrainer", "_prepare_dataset", "preference rows would not be checked"),
    ("trl.DPOTrainer", "_precompute_ref_logps", "reference log-probabilities could not be checked or reused"),
    ("trl.DPOTrainer", "_set_signature_columns_if_needed", "the weight column would be dropped by the dataloader"),
    ("trl.DPOTrainer", "_metrics", "our metrics would not reach the log"),
    ("trl.KTOTrainer", "_compute_loss", "the unpaired loss could not take the place of the host's"),
    ("trl.KTOTrainer", "_prepare_dataset", "unpaired rows would not be checked"),
    ("trl.KTOTrainer", "_precompute_ref_logps", "reference log-probabilities could not be checked or reused"),
    ("trl.KTOTrainer", "_set_signature_columns_if_needed", "the weight column would be dropped by the dataloader"),
    ("trl.KTOTrainer", "_metrics", "our metrics would not reach the log"),
    ("sentence_transformers.SentenceTransformerTrainer", "_save", "training_args.bin, a pickle, would be saved"),
    ("sentence_transformers.SentenceTransformerTrainer", "_push_from_checkpoint", "pickles could be published"),
    ("sentence_transformers.SentenceTransformerTrainer", "_load_best_model", "a damaged checkpoint could be loaded"),
    ("sentence_transformers.SparseEncoderTrainer", "_save", "training_args.bin, a pickle, would be saved"),
    ("sentence_transformers.SparseEncoderTrainer", "_push_from_checkpoint", "pickles could be published"),
)


class CheckpointSeam(Trainer):
    """
    Public hooks around the checkpoints of any host trainer; stands before it in the bases.

    - `writing_checkpoint(folder)`: a context around the host's writing, on every process;
    - `rotate(run_dir, newest)`: removes older checkpoints, after that context: the host itself removes none;
    - `check_best(folder)`: before the best checkpoint is loaded at the end of training.
    """

    is_writing_checkpoint = False

    def writing_checkpoint(self, folder: str) -> AbstractContextManager[None]:
        """Around the writing of a checkpoint; the default does nothing."""
        return nullcontext()

    def rotate(self, run_dir: str, newest: str) -> None:
        """Remove older checkpoints beyond `save_total_limit`; the default is the host's way."""
        rotate_checkpoints(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)

    def check_best(self, folder: str) -> None:
        """Look at the best checkpoint before it is loaded; the default takes it as it is."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as the host does."""
        super().save_model(output_dir, _internal_call=_internal_call)
        if self.is_writing_checkpoint:
            # The host rotates at the end of its `_save_checkpoint`, when other processes may still write. Only here
            # and not before: the limit is among the arguments that were just saved.
            self.args.save_total_limit = None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir, limit = self._get_output_dir(trial=trial), self.args.save_total_limit
        folder = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        self.is_writing_checkpoint = True
        try:
            with self.writing_checkpoint(folder):
                super()._save_checkpoint(model, trial)
        finally:
            self.is_writing_checkpoint, self.args.save_total_limit = False, limit
        if self.args.should_save:
            self.rotate(run_dir, folder)

    def _load_best_model(self) -> None:
        self.check_best(self.state.best_model_checkpoint)
        super()._load_best_model()


class Seam(Trainer):
    """
    What the seams of every host share; stands before the host trainer in a seam's bases.

    - `push_checkpoint(checkpoint)`: the push of a checkpoint's folder while training goes on;
    - `add_ratio`, `add_metric`: metrics that join the host's next log line, or those of their evaluation;
    - saved arguments are JSON, not a pickle;
    - where nothing else holds its models they go with the trainer, at once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if has_adapted_head(self.model, "TrainableTokensWrapper"):  # else an AttributeError in the first step
            raise ValueError(
                "trainable_token_indices also trains the output head's tokens here (the head is tied to the "
                "embeddings, or is named), and the loss multiplies by the head's own weight (trl 1.16, peft 0.21). "
                "Take a model whose embeddings are not tied and name the embeddings alone, or train both whole: "
                "modules_to_save=['embed_tokens', 'lm_head'], ensure_weight_tying=True."
            )
        models: list[Any] = [self.model, getattr(self, "ref_model", None)]
        for model in models:
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            if base is not None:
                release_with(self, base)

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
        ratios: dict[str, dict[str, Tensor]] = self.__dict__.setdefault("_ratios", {"train": {}, "eval": {}})
        mode = "train" if self.model.training else "eval"
        pair = torch.stack([numerator.detach().float().sum(), denominator.detach().float().sum()])
        before = ratios[mode].get(name)
        ratios[mode][name] = pair if before is None else before + pair

    def add_metric(self, name: str, value: float) -> None:
        """Add a value, the same on every process, to the next training log line."""
        self._metrics["train"][name].append(value)

    def take_ratios(self, mode: str) -> dict[str, float]:
        """The ratios of `"train"` or `"eval"` since the last log, summed over processes; it empties them."""
        ratios = self.__dict__.get("_ratios", {"train": {}, "eval": {}})[mode]
        totals = self.sum_over_processes(torch.stack(list(ratios.values()))).tolist() if ratios else []
        found = {name: top / bottom for name, (top, bottom) in zip(ratios, totals, strict=True) if bottom > 0}
        ratios.clear()
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the ratios of training summed over processes."""
        if self.model.training:
            for name, value in self.take_ratios("train").items():
                self._metrics["train"][name] = [value]
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate or predict, with the ratios among the metrics under the call's prefix."""
        stored = getattr(self, "_metrics", {"eval": {}})["eval"]
        stored.clear()  # of a `predict`, which logs nothing
        self.__dict__.get("_ratios", {"eval": {}})["eval"].clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        metrics = self.take_ratios("eval")
        if metric_key_prefix != "eval":
            # TRL logs its own under "eval_", whatever the prefix: those of one set overwrite another's (trl 1.16).
            metrics |= {name: sum(values) / len(values) for name, values in stored.items() if values}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
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


# --- supervised fine-tuning ------------------------------------------------------------------------------------------


class SFTSeam(Seam, SFTTrainer):
    """
    `SFTTrainer` with public hooks in place of the private methods a weighted trainer has to override.

    Subclasses override only these and `compute_loss`:

    - `check_rows(dataset, args, formatting_func, dataset_name)`: raw rows, before anything else; it gives rows of one
      data type, with the texts of `formatting_func`. Where `rows_are_checked`, that was done;
    - `tokenise(rows, host, tokenizer, args, dataset_name)`: around the host's `host(rows)`;
    - `prepare_rows(dataset, args, packing, dataset_name)`: tokenised, labelled rows, before truncation and packing;
    - `signature_columns()`: further columns that must reach the collator;
    - `count_items(batches, device)`: the loss's denominator over the whole accumulated, gathered batch;
    - `draw_batches(batches)`: the micro-batches of one optimiser step, as a list that may be extended or annotated.
    """

    rows_are_checked = False

    def check_rows(
        self, dataset: AnyDataset, args: SFTConfig, formatting_func: Callable | None, dataset_name: str
    ) -> AnyDataset:
        """Check raw rows; the default takes them as they are."""
        return dataset

    def tokenise(
        self,
        rows: AnyDataset,
        host: Callable[[AnyDataset], AnyDataset],
        tokenizer: PreTrainedTokenizerBase,
        args: SFTConfig,
        dataset_name: str,
    ) -> AnyDataset:
        """Tokenise and label checked rows; the default is the host's way alone."""
        return host(rows)

    def prepare_rows(self, dataset: AnyDataset, args: SFTConfig, packing: bool, dataset_name: str) -> AnyDataset:
        """Truncate, filter, pack and shuffle tokenised rows; the default is TRL's own way, which drops our columns."""
        return super()._prepare_dataset(dataset, self._tokenizer, args, packing, None, dataset_name)

    def signature_columns(self) -> list[str]:
        """Columns beyond TRL's own that the collator reads."""
        return []

    def count_items(self, batches: list[dict[str, Any]], device: torch.device) -> Tensor | int | None:
        """Denominator of the loss for one optimiser step over all processes; the default counts supervised tokens."""
        return super()._get_num_items_in_batch(batches, device)

    def draw_batches(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Micro-batches of one optimiser step on this process; the default trains on them as they come."""
        return batches

    # --- the private methods behind the hooks ---------------------------------------------------------------------

    def _prepare_dataset(
        self,
        dataset: AnyDataset,
        processing_class: PreTrainedTokenizerBase,
        args: SFTConfig,
        packing: bool,
        formatting_func: Callable | None,
        dataset_name: str,
    ) -> AnyDataset:
        if not self.rows_are_checked:
            dataset = self.check_rows(unformatted(dataset), args, formatting_func, dataset_name)
        self.completion_only_loss = completion_only(column_names(dataset), args)
        prepare = super()._prepare_dataset

        def host(rows: AnyDataset) -> AnyDataset:
            # Checked rows hold the texts of `formatting_func`: the host would write them to a column it does not read.
            with expecting_a_row():
                return prepare(rows, processing_class, _tokenise_only(args), False, None, dataset_name)

        dataset = self.tokenise(dataset, host, processing_class, args, dataset_name)
        return self.prepare_rows(dataset, args, packing, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = list(self._signature_columns or []) + self.signature_columns()

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | int | None:
        return self.count_items(batch_samples, device) if batch_samples else None

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Draw the micro-batches of one optimiser step, then let `draw_batches` see them."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return (self.draw_batches(batches) if batches else batches), num_items


def completion_only(names: list[str], args: SFTConfig) -> bool:
    """
    Whether the loss is on completions alone, for rows with the columns `names`.

    TRL (1.16) asks the first train row alone, also for eval sets, and leaves a `completion_mask` of tokenised rows
    unused unless `completion_only_loss=True`.
    """
    if args.completion_only_loss is not None:
        return args.completion_only_loss
    return {"prompt", "completion"} <= set(names) or "completion_mask" in names


def _tokenise_only(args: SFTConfig) -> SFTConfig:
    """A copy of `args` under which TRL tokenises and labels, but neither truncates, filters nor shuffles."""
    neutral = copy.copy(args)
    neutral.max_length = None
    neutral.shuffle_dataset = False
    return neutral


def training_template(tokenizer: PreTrainedTokenizerBase, args: SFTConfig) -> str | None:
    """The template that `SFTTrainer` renders messages with in place of the tokenizer's, or `None` for the latter."""
    needs_template = args.assistant_only_loss and not has_generation_markers(tokenizer.chat_template)
    return get_training_chat_template(tokenizer) if needs_template else None


def with_end_token(tokenizer: PreTrainedTokenizerBase, args: SFTConfig) -> PreTrainedTokenizerBase:
    """The tokenizer as `SFTTrainer` sets it up: a copy with the config's `eos_token`, where that is another."""
    if args.eos_token is None or args.eos_token == tokenizer.eos_token:
        return tokenizer
    if args.eos_token not in tokenizer.get_vocab():
        raise ValueError(
            f"eos_token={args.eos_token!r} is not in the tokenizer's vocabulary. Choose one of its tokens."
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = args.eos_token
    return tokenizer


def tokenise_rows(
    dataset: AnyDataset,
    processing_class: PreTrainedTokenizerBase,
    args: SFTConfig,
    dataset_name: str = "train",
) -> AnyDataset:
    """TRL's own tokenising and labelling of rows of one SFT data type, without building a trainer (and so a model)."""
    host = object.__new__(SFTTrainer)  # `_prepare_dataset` reads three attributes of the trainer, and nothing else
    host._tokenizer = processing_class
    host.completion_only_loss = completion_only(column_names(dataset), args)
    host.chat_template = training_template(processing_class, args)
    with expecting_a_row():
        return host._prepare_dataset(dataset, processing_class, _tokenise_only(args), False, None, dataset_name)


def load_original(
    model: Any, processing_class: Any, args: SFTConfig, quantization_config: Any = None
) -> tuple[Any, Any]:
    """Model and tokenizer as `SFTTrainer` loads them, before it changes either; what is loaded already is returned."""
    options = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    revision = options.get("revision") if isinstance(model, str) else None
    if isinstance(model, str):
        if quantization_config is not None:
            options["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
            options["device_map"] = None
        model = create_model_from_path(model, **options)
    if processing_class is None:
        processing_class = AutoProcessor.from_pretrained(
            get_config_model_id(model.config), revision=revision, trust_remote_code=args.trust_remote_code
        )
    return model, processing_class


# --- for all ---------------------------------------------------------------------------------------------------------


@contextmanager
def expecting_a_row() -> Iterator[None]:
    """Inside, the host looks into a data set, and meets a StopIteration where a stream has nothing to show."""
    try:
        yield
    except StopIteration as error:
        raise ValueError(NO_ROW) from error


def unformatted(dataset: AnyDataset) -> AnyDataset:
    """The rows as plain Python values: a `with_format("torch")` would turn lists into tensors on the way."""
    if isinstance(dataset, Dataset):
        return dataset if dataset.format["type"] in (None, "custom") else dataset.with_format(None)
    return dataset.with_format(None)


def tokenise_preference_rows(
    dataset: AnyDataset, processing_class: PreTrainedTokenizerBase, args: DPOConfig, dataset_name: str = "eval"
) -> AnyDataset:
    """
    TRL's own tokenising of preference rows, without building a trainer: `prompt_ids`, `chosen_ids`, `rejected_ids`.

    Nothing is truncated and no row is dropped: that is for the collator.
    """
    host = object.__new__(DPOTrainer)  # `_prepare_dataset` reads one attribute of the trainer, and nothing else
    host._tokenizer = getattr(processing_class, "tokenizer", processing_class)
    return DPOTrainer._prepare_dataset(host, dataset, processing_class, _tokenise_only(args), dataset_name)


@contextmanager
def fused_lm_head(model: Any) -> Iterator[None]:
    """
    Inside, `model(**batch, labels=..., fused_lm_head=True)` returns per-token log-probabilities without logits.

    `model` may be a `PeftModel`: its base model is patched, as TRL does. The forward is as before afterwards.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.__dict__.get("forward")
    add_fused_lm_head(base)
    try:
        yield
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before


def label_log_probs(model: Any, inputs: dict[str, Any]) -> Tensor:
    """
    Log-probability of every label after the first, `(batch, seq_len - 1)`, 0 where it is -100; in [`fused_lm_head`].

    TRL multiplies by the head's weight alone (trl 1.16), so what PEFT put around the head would be left out: such a
    model gives its logits.
    """
    if not has_adapted_head(model):
        return model(**inputs, use_cache=False, fused_lm_head=True).log_probs
    labels = inputs["labels"][:, 1:]
    without_labels = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model(**without_labels, use_cache=False).logits[:, :-1].float()
    chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return chosen.masked_fill(labels == -100, 0)


def has_adapted_head(model: Any, kind: str = "") -> bool:
    """Whether PEFT has put a module around the output head, of a class of this name where one is given."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = type(base.get_output_embeddings()) if hasattr(base, "get_output_embeddings") else object
    return head.__module__.startswith("peft.") and kind in ("", head.__name__)


def release_with(trainer: Trainer, model: Any) -> None:
    """
    Give `model` its own forward back when `trainer` is dropped.

    The fused head that TRL puts on it is a method, kept in the model itself (trl 1.16): a cycle, so that model and
    gradients stay in memory until the garbage collector comes by.
    """
    function = getattr(vars(model).get("forward"), "__func__", None)
    code: Any = getattr(function, "__code__", None)
    if function is None or "original_forward" not in getattr(code, "co_freevars", ()):
        return
    original = function.__closure__[code.co_freevars.index("original_forward")].cell_contents
    if getattr(original, "__func__", None) is type(model).forward:  # else another trainer's head lies below
        weakref.finalize(trainer, _restore_forward, weakref.ref(model), weakref.ref(function)).atexit = False


def _restore_forward(model: weakref.ref[Any], function: weakref.ref[Any]) -> None:
    alive = model()
    if alive is not None and getattr(vars(alive).get("forward"), "__func__", None) is function():
        del alive.forward


__all__ = [
    "NO_ROW",
    "TOUCHED",
    "AnyDataset",
    "CheckpointSeam",
    "DataCollatorForLanguageModeling",
    "DataCollatorForPreference",
    "SFTSeam",
    "Seam",
    "expecting_a_row",
    "fused_lm_head",
    "label_log_probs",
    "load_original",
    "tokenise_preference_rows",
    "tokenise_rows",
    "training_template",
    "unformatted",
    "with_end_token",
]
