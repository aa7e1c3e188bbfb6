# /// script
# dependencies = [
#     "hf-ext[data]",
# ]
# ///

"""
Play DCLM's game: the same model, the same tokens, other data.

Documents go through each treatment, are packed, and a model is trained on what is left, once a seed. The report
compares held-out loss and CORE, with errors, and names no winner inside them. A game that was stopped, even by
`kill -9`, goes on where it was when the same command is run again.

# Raw, rules of quality, duplicates out, the best half: a model a treatment and seed on two processor cores
```bash
hf-ext data classify --positives good.jsonl --negatives web.jsonl --save quality
hf-ext train dclm --config dclm/nano \
    --dataset_name web.jsonl --eval_dataset_name held_out.jsonl --tokenizer_name tokenizer
```

# The same with DCLM's tasks: documents with a row of them in it are left out, and CORE is measured
```bash
hf-ext train dclm --config dclm/nano --dataset_name web.jsonl --eval_dataset_name held_out.jsonl \
    --tokenizer_name tokenizer --core_data core_eval --core_max_rows 20
```
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trl import DatasetMixtureConfig, ModelConfig

from hf_ext.data.loading import first_rows, load_rows
from hf_ext.guards.world import check_world_size
from hf_ext.recipes.curation.settings import read_steps
from hf_ext.recipes.launch import Recipe, check_arguments, is_sharded
from hf_ext.recipes.pretraining.train import PretrainingArguments, load_tokenizer
from hf_ext.rounds.data_game import HELD_OUT, DataGame, Treatment
from hf_ext.trainers.pretraining import GAME

if TYPE_CHECKING:
    from hf_ext.trainers.pretraining.config import PretrainingConfig

KEYS = {"steps", "mix"}


@dataclass
class GameArguments(PretrainingArguments):
    """
    [`PretrainingArguments`], the treatments, and how often each is trained.

    Parameters:
        treatments (`dict`, *optional*):
            Name to a list of curation steps, or to a mapping with `steps` and `mix`: file, folder or Hub name of
            documents to their share of the tokens, in place of `dataset_name`.
        seeds (`int`, *optional*, defaults to `3`):
            Models of a treatment; raise it to go on with a finished game.
    """

    treatments: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Name to a list of curation steps, or to a mapping with 'steps' and 'mix'."},
    )
    seeds: int = field(default=3, metadata={"help": "Models of a treatment, at least 2."})

    def read_treatments(self) -> list[Treatment]:
        """
        The treatments, with their steps made and their sources loaded.

        Raises:
            ValueError: if they are no mapping of two or more, or one of them cannot be used.
        """
        try:
            entries = json.loads(self.treatments) if isinstance(self.treatments, str) else self.treatments
        except ValueError as error:
            raise ValueError(f"treatments is no JSON: {error}") from error
        if not isinstance(entries, Mapping) or len(entries) < 2:
            raise ValueError("treatments must map two names or more to lists of curation steps")
        return [_treatment(name, entry) for name, entry in entries.items()]


def _treatment(name: str, entry: object) -> Treatment:
    place = f"treatments: {name[:80]!r}"
    if not name.replace("_", "").replace("-", "").isalnum() or name == HELD_OUT:
        raise ValueError(f"{place} names a folder: use letters, digits, - and _, and not {HELD_OUT!r}")
    if not isinstance(entry, Mapping):
        entry = {"steps": entry}
    unknown = sorted(set(entry) - KEYS)
    if unknown:
        raise ValueError(f"{place}: unknown key {unknown[0]!r:.80}; there are {', '.join(sorted(KEYS))}")
    steps = tuple(read_steps(entry["steps"], place)) if entry.get("steps") else ()
    weights = entry.get("mix") or {}
    if not isinstance(weights, Mapping):
        raise ValueError(f"{place}: mix must map documents to shares, found {weights!r:.80}")
    return Treatment(name, steps, {source: load_rows(source) for source in weights}, weights)


@dataclass(frozen=True)
class GameRecipe(Recipe[GameArguments]):
    """A pretraining a treatment and seed, each an ordinary run in its own folder of `output_dir`."""

    arguments: type[GameArguments] = GameArguments

    def check(
        self,
        script_args: GameArguments,
        training_args: PretrainingConfig,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        check_arguments(script_args, training_args, model_args, dataset_args, needs_model=False)
        missing = {
            "architecture": isinstance(training_args.architecture, dict),
            "token_budget (or max_steps)": training_args.max_steps > 0,
            "eval_dataset_name, held-out documents": script_args.eval_dataset_name is not None,
            "tokenizer_name": training_args.tokenizer_name is not None,
        }
        for setting, is_there in missing.items():
            if not is_there:
                raise ValueError(f"the game needs {setting}")
        refused = {
            "model_name_or_path: every model is new": model_args.model_name_or_path is not None,
            "a 'datasets' mixture (write it into treatments)": bool(dataset_args.datasets),
            "dataset_streaming": script_args.dataset_streaming,
            "eval_strategy (held-out loss is measured at the end)": training_args.eval_strategy != "no",
            "resume_from_checkpoint (the same command goes on by itself)": training_args.resume_from_checkpoint,
            "push_to_hub (push the model you want)": training_args.push_to_hub,
            "plan (hf-ext train pretraining has it)": script_args.plan,
            "prompt_column and prompt_template": script_args.prompt_column or script_args.prompt_template,
            "use_peft": model_args.use_peft,
            "FSDP or DeepSpeed (losses are read off the whole model)": is_sharded(training_args),
            "core_max_rows without core_data": script_args.core_max_rows is not None and script_args.core_data is None,
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(f"the game does not take {setting}")

    def main(
        self,
        script_args: GameArguments,
        training_args: PretrainingConfig,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """
        Train the models that are not finished, and print the report.

        Raises:
            ValueError: if an argument cannot be honoured, or the game was begun with other settings or documents.
        """
        check_world_size(script_args.expected_num_processes)
        self.check(script_args, training_args, model_args, dataset_args)
        tokenizer = load_tokenizer(training_args, model_args)
        assert script_args.dataset_name is not None  # checked, as are the two that follow
        assert script_args.eval_dataset_name is not None
        assert tokenizer is not None
        documents = load_rows(script_args.dataset_name, config=script_args.dataset_config)
        game = DataGame(
            script_args.read_treatments(),
            first_rows(documents, script_args.max_train_rows),
            first_rows(load_rows(script_args.eval_dataset_name), script_args.max_eval_rows),
            tokenizer,
            training_args,
            num_seeds=script_args.seeds,
            core_data=script_args.core_data,
            core_max_rows=script_args.core_max_rows,
        )
        report = game.run()
        if game.state.is_main_process:
            print(report.to_markdown())
            print(f"Report written to {training_args.output_dir}.")
        game.state.wait_for_everyone()
        game.state.destroy_process_group()


RECIPE = GameRecipe(GAME)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
