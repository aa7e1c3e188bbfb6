"""`hf-ext data prune`: keep the rows that stand for the clean bulk of a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_ext.cli.config_file import named_value, read_config
from hf_ext.cli.options import add_rows_options, check_columns, option, rows_of, write_rows
from hf_ext.cli.outputs import add_output_options, rows_output
from hf_ext.guards.exits import exit_status
from hf_ext.guards.numbers import COUNT, SEED, SHARE, SIZE


def add_parser(actions: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext data prune`."""
    parser = actions.add_parser(
        "prune",
        help="keep the rows that stand for the clean bulk of a dataset",
        description="Keep the rows that stand for the clean bulk of a dataset, and write them with 'prune_rank'. The "
        "vectors come from a column or from a model; they are kept, and a killed command continues.",
    )
    option(parser, "--config", metavar="NAME", help="a YAML file of these options: of the package, or on disk")
    add_output_options(parser, "a .parquet or .jsonl file, or a folder (Arrow)")
    option(parser, "--k", type=COUNT, metavar="N", help="rows to keep")
    option(parser, "--fraction", type=SHARE, metavar="SHARE", help="share of the rows to keep, in (0, 1]")
    option(parser, "--method", default="gm", help="gm, herding, random, moderate, score, ... (default: gm)")
    option(parser, "--by", metavar="COLUMN", help="prune each label's rows on their own")
    option(parser, "--seed", type=SEED, default=0, help="of methods that draw (default: 0)")
    option(parser, "--report", metavar="FOLDER", help="write the report: JSON, Markdown and a plot")
    option(parser, "--resume-path", metavar="FILE", help="file of the picks so far, for gm and herding")
    option(
        parser,
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the method, such as trim=0.1, metric=raw, engine=pool or budget=equal; may be repeated",
    )
    group = parser.add_argument_group("vectors and scores")
    option(group, "--column", default="embedding", help="column of the vectors (default: embedding)")
    option(group, "--encoder", metavar="MODEL", help="compute vectors with this model: a folder or a Hub name")
    option(
        group,
        "--input-column",
        nargs="+",
        metavar="NAME",
        help="what the encoder reads; several texts are joined (default: 'text', or the only text or image)",
    )
    option(group, "--batch-size", type=SIZE, default=64, help="rows the encoder gets at a time (default: 64)")
    option(group, "--device", help="of the encoder, such as cuda:0 or cpu")
    option(group, "--cache-dir", metavar="FOLDER", help="where vectors are kept (default: the cache of datasets)")
    option(group, "--score-column", metavar="NAME", help="scores for method score, and for methods of your own")
    add_rows_options(parser, "--dataset", "the rows")
    parser.set_defaults(run=lambda o: exit_status(lambda: run_prune(o, parser), "hf-ext data prune"))


def run_prune(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """
    Read, prune, write; print what was kept and how well it stands for the rows.

    Raises:
        ValueError: if an argument, a column, a row or the encoder cannot be used.
    """
    has_size = options.k is not None or options.fraction is not None  # either replaces the file's size
    read_config(options, parser, skipped=("k", "fraction") if has_size else ())
    if isinstance(options.option, dict):
        options.option = [f"{name}={value}" for name, value in options.option.items()]
    missing = [name for name in ("dataset", "output") if getattr(options, name) is None]
    if missing:
        raise ValueError(f"--{missing[0]} is missing: name it on the command line or in --config")
    with rows_output(options, report=("pruning.json", "pruning.md", "pruning.svg", "pruning.png")) as output:
        return _prune(options, output)


def _prune(options: argparse.Namespace, output: Path) -> int:
    from hf_ext.data.pruning import load_encoder, prune
    from hf_ext.data.pruning.selectors import check_method

    method_options = dict(named_value(text) for text in options.option)
    method = check_method(options.method, method_options)  # now, and not after the rows are read
    if options.resume_path is not None:
        method_options["resume_path"] = options.resume_path
    rows = rows_of(options, options.dataset)
    check_columns(rows, output)
    pruned, report = prune(
        rows,
        options.k,
        options.fraction,
        method=method,
        column=options.column,
        encoder=None if options.encoder is None else load_encoder(options.encoder, options.device),
        input_column=options.input_column,
        by=options.by,
        score_column=options.score_column,
        seed=options.seed,
        return_report=True,
        batch_size=options.batch_size,
        cache_dir=options.cache_dir,
        **method_options,
    )
    write_rows(pruned, output, options.overwrite)
    for name, value in report.summary():
        print(f"{name}: {value}")
    for note in report.notes:
        print(f"note: {note}")
    print(f"{len(pruned):,} rows written to {output}")
    if options.report is not None:
        print(f"report: {report.save(options.report)}")
    return 0
