"""`hf-ext data privatize|relabel`: randomise labels once, with a ledger; give rows new labels from predictions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.cli.options import add_rows_options, check_columns, option, rows_of, write_rows
from hf_ext.cli.outputs import add_output_options, rows_output
from hf_ext.guards.exits import exit_status
from hf_ext.guards.numbers import CLASSES, POSITIVE, PROBABILITY

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset

    from hf_ext.data.relabeling import HashColumn


def add_parsers(actions: argparse._SubParsersAction) -> None:
    """Add the parsers of `hf-ext data privatize` and `hf-ext data relabel`."""
    _add_privatize(actions)
    _add_relabel(actions)


def _add_privatize(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "privatize",
        help="randomise labels under label differential privacy, with a ledger",
        description="Replace each label by one noisy copy, tied to a secret key and the row's id, and write what it "
        "cost beside it. Refuses columns that give the label away. Make the key once, with --make-key FILE.",
    )
    option(parser, "--make-key", metavar="FILE", help="write a new secret key into FILE and stop")
    add_output_options(parser, "a .parquet or .jsonl file, or a folder (Arrow)")
    option(parser, "--epsilon", type=POSITIVE, metavar="NATS", help="budget of each label: 1 is strong, 8 is weak")
    option(parser, "--num-classes", type=CLASSES, metavar="K", help="classes (default: those of a ClassLabel)")
    option(parser, "--key-file", metavar="FILE", help="file of the key")
    option(parser, "--key-env", metavar="NAME", help="environment variable of the key (default: HF_EXT_LABEL_KEY)")
    option(parser, "--salt", default="", metavar="TEXT", help="names this release; another salt is another draw")
    group = parser.add_argument_group("columns")
    option(
        group, "--label", default="label", metavar="NAME", help="of class numbers, or lists of them (default: label)"
    )
    option(group, "--id-column", default="id", metavar="NAME", help="unique ids (default: id)")
    option(
        group,
        "--number-rows",
        action="store_true",
        help="write ids 0, 1, ... first; needs --salt",
    )
    option(group, "--prior-column", metavar="NAME", help="a public prior over the classes, for each row")
    option(group, "--public-columns", nargs="+", default=[], metavar="NAME", help="may give the label away")
    option(group, "--drop-columns", nargs="+", default=[], metavar="NAME", help="leave out")
    option(group, "--hash-columns", nargs="+", default=[], metavar="NAME", help="replace by keyed hashes, such as ids")
    group = parser.add_argument_group("rows with a ledger")
    option(group, "--compose", action="store_true", help="the labels are the true ones again: add the budgets up")
    option(group, "--after", type=POSITIVE, metavar="NATS", help="the labels came from one draw of NATS: degrade them")
    add_rows_options(parser, "--dataset", "the rows")
    parser.set_defaults(run=lambda o: exit_status(lambda: run_privatize(o), "hf-ext data privatize"))


def _add_relabel(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "relabel",
        help="give rows new labels from the given ones and a model's predictions",
        description="Keep the rows whose prediction is the given label (consensus), or take the prediction (full), or "
        "weigh both (bayes, bayes_soft). predict_column writes the predictions.",
    )
    add_output_options(parser, "a .parquet or .jsonl file, or a folder (Arrow)", required=True)
    option(
        parser,
        "--mode",
        choices=["consensus", "full", "bayes", "bayes_soft"],
        default="consensus",
        help="what the new label is (default: consensus)",
    )
    option(
        parser, "--epsilon", type=POSITIVE, metavar="NATS", help="of the labels: for bayes, and for the accuracy shown"
    )
    option(parser, "--num-classes", type=CLASSES, metavar="K", help="classes (default: those of a ClassLabel)")
    option(parser, "--label", default="label", metavar="NAME", help="column of the given label (default: label)")
    option(parser, "--prediction", default="pred", metavar="NAME", help="column of the prediction (default: pred)")
    option(parser, "--probs", default="probs", metavar="NAME", help="column of the distribution (default: probs)")
    option(parser, "--min-prob", type=PROBABILITY, metavar="P", help="least probability of a label that is kept")
    option(parser, "--soft", choices=["weight", "column"], default="weight", help="how bayes_soft writes")
    option(parser, "--report", metavar="FILE", help="write the figures as JSON")
    add_rows_options(parser, "--dataset", "the rows, with predictions", required=True)
    parser.set_defaults(run=lambda o: exit_status(lambda: run_relabel(o), "hf-ext data relabel"))


def run_privatize(options: argparse.Namespace) -> int:
    """
    Make a key, or randomise the labels of a dataset and print what they cost.

    Raises:
        ValueError: if an argument, a key, a column or a row cannot be used.
        FileExistsError: if the key file to make is there already.
    """
    from hf_ext.data.relabeling import make_key_file

    if options.make_key is not None:
        key = make_key_file(options.make_key)
        print(f"key {key.key_id} written to {options.make_key}: back it up, and keep it from whoever gets the labels")
        return 0
    missing = [name for name in ("dataset", "output", "epsilon") if getattr(options, name) is None]
    if missing:
        raise ValueError(f"--{missing[0]} is missing")
    if options.number_rows and not options.salt:
        raise ValueError(
            "--number-rows needs --salt with a name for this dataset: another one that is numbered alike would get "
            "the same noise under the same key, and who knows the labels of one could read off those of the other"
        )
    with rows_output(options) as output:
        return _privatize(options, output)


def _privatize(options: argparse.Namespace, output: Path) -> int:
    from hf_ext.data.relabeling import HashColumn, KeyRef, RandomizedResponse, RRChannel, privatize
    from hf_ext.data.relabeling.keys import REMEDY, weakness_of
    from hf_ext.data.relabeling.releases import RECORD_ENV, record_path

    key = KeyRef(env=options.key_env, file=options.key_file)
    # key and record first: both are refused before any row is read
    if weakness_of(key.read()) is not None:
        raise ValueError(f"the key is a stand-in that anybody can guess. {REMEDY}")
    record = record_path(key)
    if record is not None and output.resolve() == record.resolve():
        raise ValueError(f"--output {str(output)!r} is the record of what was released under the key; name another")
    rows = _prepared(rows_of(options, options.dataset), options, lambda name: HashColumn(name, key))
    check_columns(rows, output)
    num_classes = _num_classes(rows, options)
    mechanism = RandomizedResponse(
        options.epsilon,
        num_classes,
        key,
        label=options.label,
        id_column=options.id_column,
        prior_column=options.prior_column,
        compose=options.compose,
        salt=options.salt,
        after=None if options.after is None else RRChannel(options.after, num_classes),
        public_columns=tuple(options.public_columns),
    )
    noisy_rows = privatize(rows, mechanism)
    write_rows(noisy_rows, output, options.overwrite)
    epsilons = noisy_rows["label_dp_epsilon"][:]  # a row's may be more than this draw's: budgets are added up
    most = f"{max(epsilons):g}" if len(epsilons) else "0"
    print(f"channel {mechanism.channel_id}: epsilon {options.epsilon:g} a label, {most} nats in the ledger at most")
    if options.prior_column is None:
        print(f"a label stays as it is with probability {mechanism.channel.p:.4f}")
    print(f"release recorded in {record}" if record else f"release not recorded: set {RECORD_ENV} to a file")
    print(f"{len(noisy_rows):,} rows written to {output}; the true labels are still in {options.dataset}")
    return 0


def run_relabel(options: argparse.Namespace) -> int:
    """
    Relabel, write, print the report.

    Raises:
        ValueError: if an argument, a column or a row cannot be used, or nothing is left.
    """
    with rows_output(options) as output:
        return _relabel(options, output)


def _relabel(options: argparse.Namespace, output: Path) -> int:
    from hf_ext.data.relabeling import RRChannel, relabel

    if options.mode in ("bayes", "bayes_soft") and options.epsilon is None:
        raise ValueError(f"--mode {options.mode} needs --epsilon, that of the draw which the labels came through")
    rows = rows_of(options, options.dataset)
    check_columns(rows, output)
    if options.num_classes is not None:
        for column in {options.label, options.prediction}.intersection(rows.column_names):
            _check_classes(rows, column, options.num_classes)
    channel = None if options.epsilon is None else RRChannel(options.epsilon, _num_classes(rows, options))
    relabelled_rows, report = relabel(
        rows,
        options.mode,
        channel,
        options.prediction,
        options.probs,
        options.min_prob,
        return_report=True,
        label=options.label,
        soft=options.soft,
    )
    write_rows(relabelled_rows, output, options.overwrite)
    for name, value in report.summary():
        print(f"{name}: {value}")
    for note in report.notes:
        print(f"note: {note}")
    print(f"{len(relabelled_rows):,} rows written to {output}")
    if options.report is not None:
        print(f"report: {report.save(options.report)}")
    return 0


def _prepared(rows: Dataset, options: argparse.Namespace, hashed: Callable[[str], HashColumn]) -> Any:
    """Rows numbered, without the columns to drop, and with hashes in place of those to hash."""
    column_names = [*options.drop_columns, *options.hash_columns, *options.public_columns]
    unknown = [name for name in column_names if name not in rows.column_names]
    if unknown:
        raise ValueError(f"no column {unknown[0]!r}; the rows have {rows.column_names}")
    rows = rows.remove_columns(options.drop_columns)
    if options.number_rows:
        if options.id_column in rows.column_names:
            raise ValueError(f"--number-rows: there is a column {options.id_column!r} already; drop it first")
        rows = rows.add_column(options.id_column, list(range(len(rows))))
    for name in options.hash_columns:
        rows = rows.map(hashed(name), batched=True)
    return rows


def _check_classes(rows: Dataset, column: str, num_classes: int) -> None:
    """Refuse a number beyond the classes; what is no integer is the library's to refuse."""
    from hf_ext.data.relabeling.columns import are_classes, class_column, label_columns

    for start, values in label_columns(rows, column):
        if are_classes(values, num_classes) is False:
            class_column({column: values.to_pylist()}, column, num_classes, offset=start)


def _num_classes(rows: Dataset, options: argparse.Namespace) -> int:
    if options.num_classes is not None:
        return int(options.num_classes)
    names = getattr(rows.features.get(options.label), "names", None)
    if names is None:
        raise ValueError(
            f"--num-classes is missing, and column {options.label!r} is no ClassLabel that would tell. Counting the "
            "classes that occur would show something of the labels: say how many there can be"
        )
    return len(names)
