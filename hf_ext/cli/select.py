"""`hf-ext eval select`: the best of several checkpoints on held-out rows, with a confidence."""

from __future__ import annotations

import argparse
import glob
import re
from contextlib import nullcontext
from pathlib import Path

from hf_ext.cli.options import add_rows_options, autocast_dtype, option, rows_of, telling_rows_by
from hf_ext.cli.outputs import print_report, resumed_output
from hf_ext.guards.exits import exit_status
from hf_ext.guards.numbers import CONFIDENCE, COUNT, SEED, SIZE

_CHECKPOINT = re.compile(r"checkpoint-\d+")
_MODEL_FILES = ("config.json", "adapter_config.json")


def add_eval_parser(actions: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext eval select`."""
    parser = actions.add_parser(
        "select",
        help="the best of several checkpoints on held-out rows, with a confidence",
        description="Measure the loss of checkpoints on the same held-out rows, in growing rounds, and drop those "
        "that are worse by more than chance explains, until one is left or all rows are measured. Prints who is "
        "best, at what confidence and after how many evaluations, or that nothing can be told.",
    )
    option(
        parser,
        "--candidate",
        required=True,
        nargs="+",
        action="extend",
        metavar="MODEL",
        help="checkpoints, models or PEFT adapters: folders, Hub names, or a pattern such as 'run/checkpoint-*'",
    )
    option(parser, "--confidence", type=CONFIDENCE, default=0.95, help="of the choice (default: 0.95)")
    option(parser, "--budget", type=COUNT, metavar="N", help="evaluations at most: a model on a row is one")
    option(
        parser,
        "--output",
        metavar="FOLDER",
        help="folder for the report and the rows' losses; killed, the same command goes on there",
    )
    option(parser, "--batch-size", type=SIZE, default=8, help="rows a forward (default: 8)")
    option(parser, "--max-length", type=SIZE, default=1024, help="rows are cut to so many tokens (default: 1024)")
    option(parser, "--assistant-only-loss", action="store_true", help="score the assistant's turns only")
    option(parser, "--seed", type=SEED, default=0, help="of the order of the rows (default: 0)")
    option(
        parser, "--autocast", choices=["none", "bf16", "fp16"], default="none", help="of every forward (default: none)"
    )
    option(parser, "--device", help="such as cuda:0 or cpu (default: the accelerator if there is one)")
    option(parser, "--json", action="store_true", help="print the report as JSON instead of the table")
    add_rows_options(parser, "--items", "held-out rows, of any TRL SFT data type", required=True)
    parser.set_defaults(run=lambda o: exit_status(lambda: run_select(o), "hf-ext eval select"))


@telling_rows_by("--items")
def run_select(options: argparse.Namespace) -> int:
    """
    Measure, print what can be told, write the report where wanted.

    Raises:
        ValueError: if an argument, a model or a row cannot be used.
    """
    from hf_ext.bandits.checkpoints import select_checkpoint
    from hf_ext.data.loading import check_model_name

    options.candidate = _candidates(options.candidate)
    with nullcontext() if options.output is None else resumed_output(options):
        rows = rows_of(options, options.items)
        for name in options.candidate:  # all of them now, and not after the first was measured
            if not (Path(name) / "adapter_config.json").is_file():
                check_model_name(name)
        from trl import SFTConfig

        selection = select_checkpoint(
            options.candidate,
            rows,
            args=SFTConfig(
                report_to="none",
                bf16=False,
                max_length=options.max_length,
                assistant_only_loss=options.assistant_only_loss,
            ),
            confidence=options.confidence,
            budget=options.budget,
            batch_size=options.batch_size,
            max_length=options.max_length,
            autocast_dtype=autocast_dtype(options),
            device=options.device,
            seed=options.seed,
            output_dir=options.output,
        )
        folder = None if options.output is None else selection.save(options.output)
    print_report(selection, folder, as_json=options.json)
    return 0


def _candidates(words: list[str]) -> list[str]:
    """Each word, a pattern that no shell has spelled out replaced by what it matches, without damaged checkpoints."""
    from hf_ext.bandits.checkpoints import is_whole
    from hf_ext.guards.checkpoints import checkpoints_in

    names: list[str] = []
    for word in words:
        is_pattern = any(letter in word for letter in "*?[") and not Path(word).exists()
        matches = glob.glob(word) if is_pattern else [word]
        if not matches:
            raise ValueError(f"--candidate {word!r} matches nothing")
        # checkpoint-50 before checkpoint-100
        names += sorted(matches, key=lambda match: (len(match), match)) if is_pattern else matches
    places: set[Path | str] = set()
    for name in names:
        folder = Path(name)
        place = folder.resolve() if folder.is_dir() else name  # one folder has several spellings
        if place in places:
            raise ValueError(f"--candidate {name!r} is given twice")
        places.add(place)
        if checkpoints_in(name) and not any((folder / file).is_file() for file in _MODEL_FILES):
            raise ValueError(
                f"--candidate {name!r} is a run and no model: give its checkpoints, '{name}/checkpoint-*'"
            )
    checkpoints = [name for name in names if Path(name).is_dir() and _CHECKPOINT.fullmatch(Path(name).name)]
    whole_names = [name for name in names if name not in checkpoints or is_whole(Path(name))]
    if not whole_names:
        raise ValueError("no --candidate is whole")
    return whole_names
