# /// script
# dependencies = [
#     "hf-ext",
#     "peft",
# ]
# ///

"""
Fine-tune on several sources, whose shares follow what each does for held-out target rows.

# The recipe: web pages and pages with mathematics
```bash
hf-ext train mixture --config mixture/maths_web.yaml
```

# Files of your own, each a source, and held-out rows of what the model is to become good at
```bash
hf-ext train mixture \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M \
    --datasets maths.jsonl web.jsonl \
    --target_dataset_name held_out.jsonl \
    --gradient_accumulation_steps 4 \
    --output_dir SmolLM2-135M-mixed
```

# On several GPUs
```bash
hf-ext train mixture --num_processes 8 --config mixture/maths_web.yaml
accelerate launch --num_processes 8 -m hf_ext.recipes.mixture.train --config mixture/maths_web.yaml
```
"""

from __future__ import annotations

import glob
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from trl import DatasetMixtureConfig, ModelConfig, get_dataset, get_peft_config, get_quantization_config
from trl.scripts.utils import DatasetConfig

from hf_ext.data.loading import check_part, file_format, first_rows, load_rows
from hf_ext.guards.disk import write_whole, writing
from hf_ext.recipes.sft import SFTRecipe, SFTRecipeArguments
from hf_ext.trainers.mixture import METHOD, MixtureSFTTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer, TrainingArguments

    from hf_ext.data.loading import AnyDataset

DATASETS_FILE = "mixture_datasets.yaml"


@dataclass
class MixtureRecipeArguments(SFTRecipeArguments):
    """
    [`SFTRecipeArguments`] and the target of a mixture. `datasets` are its sources; each is prepared apart.

    Parameters:
        target_dataset_name (`str`, *optional*):
            Held-out rows of what the model is to become good at; only `reward: loss` does without. They are the
            evaluation rows too, where `eval_dataset_name` names none.
        target_dataset_config (`str`, *optional*):
            Configuration of a Hub dataset.
        target_dataset_split (`str`, *optional*, defaults to `"train"`):
            Split of the target, such as `train[:1000]`.
    """

    target_dataset_name: str | None = field(
        default=None,
        metadata={"help": "File, folder or Hub name of held-out rows of what the model is to become good at."},
    )
    target_dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    target_dataset_split: str = field(
        default="train", metadata={"help": "Split of the target's dataset, such as 'train[:1000]'."}
    )

    def __post_init__(self) -> None:
        self.parts: list[DatasetConfig] = []


@dataclass(frozen=True)
class MixtureRecipe(SFTRecipe[MixtureRecipeArguments]):
    """A training on the sources of `datasets`, which leaves their final shares beside the model."""

    arguments: type[MixtureRecipeArguments] = MixtureRecipeArguments

    def check(
        self,
        script_args: MixtureRecipeArguments,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        super().check(script_args, training_args, model_args, dataset_args)
        refused = {
            "dataset_name (its sources are the list 'datasets')": script_args.dataset_name,
            "streaming (rows are drawn again by number: name a part, such as split: train[:50000])": (
                dataset_args.streaming or script_args.dataset_streaming
            ),
            "test_split_size (name held-out rows in target_dataset_name)": dataset_args.test_split_size is not None,
            "fraction in 'datasets' (it finds the shares itself; other recipes take what it has found)": any(
                part.fraction is not None for part in dataset_args.datasets
            ),
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(f"mixture does not take {setting}")
        if script_args.target_dataset_name is None and training_args.reward != "loss":
            raise ValueError(
                f"reward {training_args.reward!r} needs target_dataset_name: held-out rows of what the model is to "
                "become good at"
            )

    def load(
        self,
        script_args: MixtureRecipeArguments,
        training_args: TrainingArguments,
        dataset_args: DatasetMixtureConfig,
    ) -> tuple[Any, AnyDataset | None]:
        """The mixture of sources, and the evaluation rows: the target where no others are named."""
        from hf_ext.trainers.mixture.trainer import mixture_of

        script_args.parts = dataset_args.datasets
        rows = [load_part(part) for part in script_args.parts]
        names = source_names(script_args.parts)
        sources = {
            name: first_rows(script_args.prepare_rows(part), script_args.max_train_rows)
            for name, part in zip(names, rows, strict=True)
        }
        target = None
        if script_args.target_dataset_name is not None:
            target = script_args.prepare_rows(
                load_part(
                    DatasetConfig(
                        path=script_args.target_dataset_name,
                        name=script_args.target_dataset_config,
                        split=script_args.target_dataset_split,
                        columns=rows[0].column_names,
                    )
                )
            )
        held_out = None
        if script_args.wants_held_out(training_args):
            eval_name = script_args.eval_dataset_name
            held_out = target if eval_name is None else script_args.prepare_rows(load_rows(eval_name))
            if held_out is None:
                raise ValueError("evaluation needs rows: name them in eval_dataset_name, or set eval_strategy to 'no'")
            held_out = first_rows(held_out, script_args.max_eval_rows)
        return mixture_of(training_args, sources, target), held_out

    def make_trainer(
        self,
        model: str | PreTrainedModel,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        **rows: Any,
    ) -> Trainer:
        """The trainer on the mixture that [`load`] gave."""
        return MixtureSFTTrainer(
            model,
            training_args,
            mixture=rows["train_dataset"],
            eval_dataset=rows.get("eval_dataset"),
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )

    def after_training(
        self,
        trainer: MixtureSFTTrainer,
        script_args: MixtureRecipeArguments,
        model_args: ModelConfig,
        held_out: AnyDataset | None,
    ) -> None:
        """Write the final shares, their table and their plot into `output_dir`, then the report, where asked for."""
        if trainer.accelerator.is_main_process:
            report = trainer.mixture.report()
            report.save(trainer.args.output_dir)
            path = Path(trainer.args.output_dir) / DATASETS_FILE
            with writing("the shares", path):
                write_whole(path, datasets_text(script_args.parts, list(report.shares.values())))
            print(report.to_markdown())
            print(f"Shares written to {path}.")
        trainer.accelerator.wait_for_everyone()
        super().after_training(trainer, script_args, model_args, held_out)


def load_part(part: DatasetConfig) -> Dataset:
    """
    Rows of one entry of `datasets`: as TRL loads it, or a file or a saved folder by its path alone.

    Raises:
        ValueError: if there is no such dataset, split or column; the message names it.
    """
    is_saved = any((Path(part.path) / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if file_format(part.path) is None and not is_saved:
        check_part(part)
        whole_part = DatasetConfig(**(asdict(part) | {"columns": None, "fraction": None}))
        rows = get_dataset(DatasetMixtureConfig(datasets=[whole_part]))["train"]
    else:
        rows = load_rows(part.path, split=part.split if is_saved else None)
    missing = [name for name in part.columns or () if name not in rows.column_names]
    if missing:
        raise ValueError(f"dataset {part.path!r} has no column {missing[0]!r}; it has {rows.column_names}")
    return rows if part.columns is None else rows.select_columns(part.columns)


def source_names(parts: list[DatasetConfig]) -> list[str]:
    """A short name for each entry: of its file or repository, with a number where several have the same."""
    places = [part.data_files if isinstance(part.data_files, str) else part.path for part in parts]
    short_names = [Path(place).name.split(".")[0] or place for place in places]
    counts = Counter(short_names)
    names: list[str] = []
    numbers = {name: count(1) for name in short_names}
    for short_name in short_names:
        name = short_name
        # "web 2" may be a file's own name: a source that took it from another would be lost
        while counts[short_name] > 1 and (name == short_name or name in short_names or name in names):
            name = f"{short_name} {next(numbers[short_name])}"
        names.append(name)
    return names


def datasets_text(parts: list[DatasetConfig], shares: list[float]) -> str:
    """`datasets:` as TRL reads it, with the share of each as `fraction`."""
    entries = []
    for part, share in zip(parts, shares, strict=True):
        values = asdict(part)
        if (kind := file_format(part.path)) is not None:
            values |= {"path": kind, "data_files": glob.escape(part.path)}  # which `datasets` takes for a pattern
        entries.append({name: value for name, value in values.items() if value is not None} | {"fraction": share})
    note = "# Shares at the end of a training with 'hf-ext train mixture'; any other recipe takes this list.\n"
    return note + yaml.safe_dump({"datasets": entries}, sort_keys=False, allow_unicode=True)


RECIPE = MixtureRecipe(METHOD)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
