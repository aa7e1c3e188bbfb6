"""`hf-ext eval moe`: who handles what in a mixture of experts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hf_ext.cli.options import option
from hf_ext.cli.outputs import print_report
from hf_ext.guards.exits import exit_status
from hf_ext.guards.extras import require_extra
from hf_ext.guards.numbers import COUNT, SIZE

if TYPE_CHECKING:
    from hf_ext.moe.partition import PartitionReport


def add_eval_parser(actions: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext eval moe`."""
    parser = actions.add_parser(
        "moe",
        help="who handles what in a mixture of experts",
        description="Divide rows among the experts of a saved mixture: each expert's share, its accuracy where labels "
        "are given, and its most typical rows; with --plot the regions of the gate on two principal axes. Without "
        "--dataset the report is read that training wrote beside the model.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the saved model: a folder or, with --dataset, a Hub name")
    option(parser, "--dataset", metavar="DATA", help="rows to divide: a file, a folder or a Hub name")
    option(parser, "--dataset-config", metavar="NAME", help="configuration of a Hub dataset")
    option(parser, "--split", metavar="NAME", help="split to read (default: the only one)")
    option(parser, "--max-rows", type=COUNT, metavar="N", help="take the first rows only (default: all)")
    option(parser, "--input-column", metavar="NAME", help="texts or features (default: text, or else embeddings)")
    option(parser, "--label-column", metavar="NAME", help="divide by the labels too, and measure accuracy")
    option(parser, "--batch-size", type=SIZE, default=64, help="rows the encoder gets at a time (default: 64)")
    option(parser, "--output", metavar="OUTPUT", help="folder for the report (default with --plot: the model's)")
    option(parser, "--plot", action="store_true", help="draw rows and regions too, SVG and PNG")
    option(parser, "--json", action="store_true", help="print the report as JSON instead of the table")
    parser.set_defaults(run=lambda o: exit_status(lambda: run_moe(o), "hf-ext eval moe"))


def run_moe(options: argparse.Namespace) -> int:
    """
    Divide the rows, or read the report, print it, and write it where wanted.

    Raises:
        ValueError: if an argument, the model or a row cannot be used.
    """
    if options.plot:
        require_extra("matplotlib")
    output = options.output or (options.folder if options.plot else None)
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise ValueError(f"--output {output!r} is a file, and a folder is to be written; name another")
    if options.output is None and output is not None and not Path(output).is_dir():
        raise ValueError(f"{output!r} is no folder here: name one for the plot with --output")
    report = _report(options)
    folder = None if output is None else report.save(output, plot=options.plot)
    print_report(report, folder, as_json=options.json)
    return 0


def _report(options: argparse.Namespace) -> PartitionReport:
    from hf_ext.moe.partition import PartitionReport

    if options.dataset is None:
        if not Path(options.folder).is_dir():
            raise ValueError(f"{options.folder!r} is no folder here: name the one that training wrote")
        if not (Path(options.folder) / f"{PartitionReport.file_name}.json").is_file():
            raise ValueError(
                f"{options.folder!r} has no {PartitionReport.file_name}.json, which plot_partition of the trainer "
                "writes: give --dataset, the rows to divide"
            )
        return PartitionReport.load(options.folder)
    from datasets import Dataset

    from hf_ext.data.loading import first_rows, load_rows
    from hf_ext.moe.predict import MoEPredict

    rows = first_rows(load_rows(options.dataset, config=options.dataset_config, split=options.split), options.max_rows)
    assert isinstance(rows, Dataset)
    column = options.input_column or ("text" if "text" in rows.column_names else "embeddings")
    predict = MoEPredict(options.folder, column, options.label_column)
    return predict.partition(rows, batch_size=options.batch_size)
