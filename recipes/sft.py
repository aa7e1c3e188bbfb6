"""What the SFT recipes share beyond [`Recipe`]: columns, sampling, report. A method's `train.py` names its classes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trl import DatasetMixtureConfig, ModelConfig

import hf_ext
from hf_ext.data.loading import load_rows, rename_columns
from hf_ext.data.starts import starts_of_words
from hf_ext.guards.models import loading_model
from hf_ext.recipes.launch import Recipe, RecipeArguments, is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from hf_ext.data.loading import AnyDataset
    from hf_ext.trainers.weighted_sft.trainer import WeightedSFTTrainer

REPORT_SEED = 20_000  # far from the seeds of training stores: a report needs samples that nobody trained on


@dataclass
class SFTRecipeArguments(RecipeArguments):
    """
    [`RecipeArguments`] and what a weighted SFT recipe adds.

    Parameters:
        completion_column (`str`, *optional*):
            Column renamed to `completion`; goes with `prompt_column`. Only these two and `weight` are kept.
        report (`bool`, *optional*, defaults to `False`):
            Whether to measure what was learned and forgotten after training, into `output_dir` and the card.
        report_num_tokens (`int`, *optional*, defaults to `16384`):
            Fresh context-free tokens sampled from the original model for the report.
        report_general_text (`str`, *optional*):
            Dataset with a column `text`, unrelated to the target, for the report.
    """

    completion_column: str | None = field(
        default=None, metadata={"help": "Column to use as 'completion' (then name prompt_column too)."}
    )
    report: bool = field(
        default=False,
        metadata={"help": "After training, measure what was learned and forgotten: output_dir/report and the card."},
    )
    report_num_tokens: int = field(
        default=16_384, metadata={"help": "Fresh context-free tokens for the report, from the original model."}
    )
    report_general_text: str | None = field(
        default=None, metadata={"help": "File, folder or Hub name of general text (column 'text') for the report."}
    )

    def prepare_rows(self, rows: AnyDataset) -> AnyDataset:
        """Rows with the columns `prompt` and `completion`, where the arguments name them."""
        return rename_columns(rows, self.prompt_column, self.completion_column, self.prompt_template)

    def wants_held_out(self, training_args: TrainingArguments) -> bool:
        """Whether evaluation rows are needed, during training or for the report."""
        return super().wants_held_out(training_args) or self.report


@dataclass
class ContextFreeRecipeArguments(SFTRecipeArguments):
    """
    [`SFTRecipeArguments`] and the sampling of context-free rows before training.

    Parameters:
        context_free_num_tokens (`int`, *optional*):
            Sample at least so many tokens from the model into `context_free_path` first, if they are not there yet.
        context_free_max_new_tokens (`int`, *optional*, defaults to `128`):
            Longest row, in sampled tokens.
        context_free_start (`list[str]`, *optional*, defaults to `["bos"]`):
            What every row begins with: `bos`, `separator`, `chat`, `think` or a text; several, each as `START=SHARE`.
    """

    context_free_num_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Sample at least so many tokens from the original model into context_free_path (default: "
            "context_free in output_dir) before training, if they are not there yet."
        },
    )
    context_free_max_new_tokens: int = field(
        default=128, metadata={"help": "Longest context-free row, in sampled tokens."}
    )
    context_free_start: list[str] = field(
        default_factory=lambda: ["bos"],
        metadata={
            "help": "What every context-free row begins with: 'bos', 'separator', 'chat' (the chat template up to a "
            "user's words), 'think' or a text; several, each as START=SHARE, mix them."
        },
    )


SFTArguments = TypeVar("SFTArguments", bound=SFTRecipeArguments)


@dataclass(frozen=True)
class SFTRecipe(Recipe[SFTArguments]):
    """A launchable method of the SFT family: [`Recipe`] with context-free rows before and a report after training."""

    def check(
        self,
        script_args: SFTArguments,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        super().check(script_args, training_args, model_args, dataset_args)
        sampling = getattr(script_args, "context_free_num_tokens", None) is not None
        if (script_args.report or sampling) and is_sharded(training_args):
            raise ValueError(
                "report and context_free_num_tokens need the whole model in each process; FSDP or DeepSpeed shards "
                "it. Run 'hf-ext data context-free' before, or 'hf-ext eval forgetting' after this run instead."
            )
        if script_args.report and script_args.dataset_streaming:
            raise ValueError("report measures a fixed set of rows: set dataset_streaming to false, or report to false")

    def before_training(
        self, script_args: SFTArguments, training_args: TrainingArguments, model_args: ModelConfig
    ) -> None:
        """Sample the context-free rows that the arguments ask for."""
        if isinstance(script_args, ContextFreeRecipeArguments):
            sample_context_free_rows(script_args, training_args, model_args)

    def after_training(
        self,
        trainer: WeightedSFTTrainer,
        script_args: SFTArguments,
        model_args: ModelConfig,
        held_out: AnyDataset | None,
    ) -> None:
        """Write the report, where asked for."""
        if script_args.report:
            write_report(trainer, script_args, model_args, held_out)


# --- the original model ----------------------------------------------------------------------------------------------


def load_original(training_args: TrainingArguments, model_args: ModelConfig) -> PreTrainedModel:
    """The model before tuning as the trainer loads it (same revision and dtype), on this process's device."""
    from transformers import AutoModelForCausalLM
    from trl import get_quantization_config

    with loading_model(model_args.model_name_or_path):
        model = AutoModelForCausalLM.from_pretrained(
            model_args.model_name_or_path,
            **{"trust_remote_code": training_args.trust_remote_code, **training_args.model_init_kwargs},
            quantization_config=get_quantization_config(model_args),
        )
    return model.to(training_args.device)


def sample_context_free_rows(
    script_args: ContextFreeRecipeArguments, training_args: TrainingArguments, model_args: ModelConfig
) -> None:
    """
    Fill `context_free_path` where `context_free_num_tokens` asks for it; a store that is complete is taken as it is.

    Raises:
        ValueError: if neither a store nor a number of tokens is named, the store was made with other settings, or a
            token of the settings is not in the vocabulary.
    """
    import torch
    from transformers import AutoTokenizer

    if script_args.context_free_num_tokens is None:
        if training_args.context_free_path is None:
            raise ValueError(
                "context_free needs rows sampled from the original model: pass context_free_num_tokens (they are "
                "sampled first), or context_free_path with a store made by 'hf-ext data context-free'"
            )
        return
    if training_args.context_free_path is None:
        training_args.context_free_path = str(Path(training_args.output_dir) / "context_free")
    with loading_model(model_args.model_name_or_path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            trust_remote_code=training_args.trust_remote_code,
        )
    check_token_names(training_args, tokenizer)
    hf_ext.generate_context_free(
        load_original(training_args, model_args),
        tokenizer,
        script_args.context_free_num_tokens,
        output_dir=training_args.context_free_path,
        max_new_tokens=script_args.context_free_max_new_tokens,
        seed=training_args.seed,
        start=starts_of_words(script_args.context_free_start),
        # the rows must come from the model as training runs it
        autocast_dtype=torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else None,
        show_progress=not training_args.disable_tqdm,
    )


def check_token_names(training_args: TrainingArguments, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Refuse before rows are sampled what the trainer would refuse afterwards.

    Raises:
        ValueError: if `eos_token` or `pad_token` is not in the tokenizer's vocabulary.
    """
    names = ["eos_token"] if training_args.chat_template_path is not None else ["eos_token", "pad_token"]
    vocabulary = tokenizer.get_vocab()
    for name in names:  # another tokenizer's chat template may bring the padding token along
        token = getattr(training_args, name)
        if token is not None and token not in vocabulary:
            raise ValueError(f"{name}={token!r} is not in the tokenizer's vocabulary: name one of its tokens")


def write_report(
    trainer: WeightedSFTTrainer, script_args: SFTRecipeArguments, model_args: ModelConfig, held_out: AnyDataset | None
) -> None:
    """
    Measure the tuned model against the original one, print the table, and write it into `output_dir` and the card.

    Writes `report/forgetting.json`, `.md`, `.svg`, `.png` and the store of fresh samples `report/fresh_samples`.
    """
    args = trainer.args
    tokenizer = trainer.processing_class
    folder = Path(args.output_dir) / "report"
    original = load_original(args, model_args)
    fresh_samples = hf_ext.generate_context_free(  # on every process: they share the work
        original,
        tokenizer,
        script_args.report_num_tokens,
        output_dir=folder / "fresh_samples",
        seed=REPORT_SEED + args.seed,
        show_progress=not args.disable_tqdm,
    )
    # On every process as well: the host library's preparation waits for all of them.
    unpacked = copy.copy(args)
    unpacked.packing = unpacked.shuffle_dataset = False
    target = hf_ext.prepare_sft_rows(held_out, tokenizer, unpacked, dataset_name="eval")
    if trainer.accelerator.is_main_process:
        general = script_args.report_general_text
        report = hf_ext.forgetting_report(
            original,
            {trainer.method: trainer.accelerator.unwrap_model(trainer.model)},
            tokenizer,
            target=target,
            context_free=fresh_samples,
            general_text=None if general is None else load_rows(general),
            batch_size=args.per_device_eval_batch_size,
            max_length=args.max_length or 1024,
            show_progress=not args.disable_tqdm,
        )
        report.save(folder)
        trainer.forgetting_report = report
        print(report.to_markdown())
        print(f"Report written to {folder}.")
    trainer.accelerator.wait_for_everyone()
    trainer.create_model_card(dataset_name=script_args.dataset_name)
