"""`hf-ext eval core`: DCLM's CORE of a model, and its tasks for lm-evaluation-harness."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_ext.cli.options import add_precision_options, autocast_dtype, option, tuned_model_and_tokenizer
from hf_ext.cli.outputs import print_report
from hf_ext.guards.exits import exit_status
from hf_ext.guards.numbers import SIZE


def add_eval_parser(actions: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext eval core`."""
    parser = actions.add_parser(
        "core",
        help="DCLM's CORE: centred accuracy on up to 22 tasks, with errors",
        description="Measure a causal language model on the tasks of DCLM's CORE, without a chat template. Prints the "
        "scores by both versions of the baselines and a table of the tasks; writes JSON, Markdown, a line a row and a "
        "plot. Killed, the same command goes on at the next row.",
    )
    option(parser, "--model", help="the model (or PEFT adapter): a folder or a Hub name")
    option(parser, "--data", required=True, metavar="FOLDER", help="task files: with tasks.json, or DCLM's bundle")
    option(parser, "--output", metavar="FOLDER", help="folder for the report and the rows' results")
    option(
        parser,
        "--tasks",
        nargs="+",
        default=["available"],
        metavar="LABEL",
        help="labels, or one of: available (CORE's that are there; the default), core (all 22 or an error), all",
    )
    option(parser, "--max-rows", type=SIZE, metavar="N", help="first rows of each task (default: all)")
    option(
        parser,
        "--against",
        metavar="MODEL",
        help="another model, by its own tokenizer: paired differences on the same rows",
    )
    option(parser, "--protocol", choices=["foundry", "nanochat"], default="foundry", help="default: foundry, as DCLM")
    option(parser, "--max-length", type=SIZE, default=2048, help="tokens of a prompt with its answer (default: 2048)")
    option(parser, "--batch-tokens", type=SIZE, default=4096, help="tokens of a batch (default: 4096)")
    option(
        parser,
        "--export",
        metavar="FOLDER",
        help="measure nothing, and write the tasks there for lm-evaluation-harness",
    )
    option(parser, "--json", action="store_true", help="print the report as JSON instead of the table")
    add_precision_options(parser)
    parser.set_defaults(run=lambda o: exit_status(lambda: run_core(o), "hf-ext eval core"))


def run_core(options: argparse.Namespace) -> int:
    """
    Measure, print the table, write the report; or export the tasks.

    Raises:
        ValueError: if an argument, a model, a task or a row cannot be used.
    """
    tasks = options.tasks[0] if options.tasks in (["available"], ["core"], ["all"]) else options.tasks
    if options.export is not None:
        return _export(options, tasks)
    if options.model is None or options.output is None:
        raise ValueError("give --model and --output, or --export to write the tasks alone")
    if Path(options.output).exists() and not Path(options.output).is_dir():
        raise ValueError(f"--output {options.output!r} is a file, and a folder is to be written; name another")
    from accelerate import PartialState

    from hf_ext.evaluation.core import evaluate_core
    from hf_ext.evaluation.core.task_files import load_tasks

    load_tasks(options.data, tasks)  # a bad row is named now, and not after a model was loaded
    state = PartialState(cpu=options.device == "cpu")  # before a model is loaded: each process has its own device
    model, tokenizer = tuned_model_and_tokenizer(options.model, options.dtype, options.device)
    settings: dict[str, Any] = {
        "tasks": tasks,
        "protocol": options.protocol,
        "max_rows": options.max_rows,
        "max_length": options.max_length,
        "batch_tokens": options.batch_tokens,
        "autocast_dtype": autocast_dtype(options),
    }
    other: Any = None
    if options.against is not None:
        other, other_tokenizer = tuned_model_and_tokenizer(options.against, options.dtype, options.device)
        # by its own tokenizer: read by the other's, it would be asked what it never learned
        folder = Path(options.output) / "against"
        other = evaluate_core(other, other_tokenizer, options.data, output_dir=folder, **settings)
    report = evaluate_core(model, tokenizer, options.data, against=other, output_dir=options.output, **settings)
    if not state.is_main_process:
        return 0
    print_report(report, report.save(options.output), as_json=options.json)
    return 0


def _export(options: argparse.Namespace, tasks: str | list[str]) -> int:
    from hf_ext.evaluation.core.export import EXPORT_TAG, export_lm_eval

    unused = [name for name in ("model", "output", "against") if getattr(options, name) is not None]
    if unused:
        raise ValueError(f"--export measures nothing: leave out {', '.join('--' + name for name in unused)}")
    if options.protocol != "foundry":
        raise ValueError("--export writes the prompts of protocol foundry alone: leave out --protocol")
    names = export_lm_eval(options.data, options.export, tasks=tasks, max_rows=options.max_rows)
    print(f"{len(names)} tasks: {options.export}")
    print("There: lm_eval --model hf --model_args pretrained=MODEL --include_path . --tasks " + EXPORT_TAG)
    return 0
