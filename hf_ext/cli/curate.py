"""`hf-ext data curate`: raw pages or texts through a chain of steps, with a reason for every document that goes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.cli.config_file import named_values, option_schemas, read_config
from hf_ext.cli.options import add_field_option, option
from hf_ext.cli.outputs import check_files, report_output, resumed_output
from hf_ext.guards.exits import exit_status
from hf_ext.guards.numbers import SEED, SIZE
from hf_ext.guards.runs import claimed_folder

if TYPE_CHECKING:
    from hf_ext.data.curation.report import CurationReport
    from hf_ext.data.curation.steps import Step

REPORT_FILES = tuple(f"curation.{suffix}" for suffix in ("json", "md", "html", "svg", "png"))


def add_parser(actions: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext data curate`."""
    parser = actions.add_parser(
        "curate",
        help="make a training set of raw pages or texts, with a reason for every document that goes",
        description="Send pages or texts through the steps of a YAML file: extract, filter, rewrite, deduplicate. "
        "OUTPUT gets the rows (data/), the drop ledger (drops/) and the report (report/). Stopped, the same command "
        "continues; after a change it does again what depends on it.",
    )
    option(parser, "--config", metavar="NAME", help="a YAML file with steps: of the package, or on disk")
    add_field_option(parser, "STEP.FIELD=VALUE", "a field of a step, such as GopherQuality.min_words=60")
    add_curation_options(parser)
    group = parser.add_argument_group("instead of curating")
    option(group, "--dry-run", action="store_true", help="judge a sample and write the report alone")
    option(group, "--sample", type=SIZE, default=2000, metavar="N", help="documents of a dry run (default: 2000)")
    option(group, "--seed", type=SEED, default=0, help="of a dry run's sample (default: 0)")
    option(group, "--explain", metavar="ID", help="print why OUTPUT lacks a document")
    option(group, "--schema", action="store_true", help="print the JSON schema of the YAML file")
    parser.set_defaults(run=lambda o: exit_status(lambda: run_curate(o, parser), "hf-ext data curate"))


def add_curation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every verb that sends documents through steps."""
    option(
        parser,
        "--dataset",
        metavar="DATA",
        help=".warc, .parquet or .jsonl files (.gz, .zst too), a folder or pattern of them, or a Hub name",
    )
    option(parser, "--dataset-config", metavar="NAME", help="configuration of a Hub dataset")
    option(parser, "--split", metavar="NAME", help="split of a Hub dataset or saved folder (default: the only one)")
    option(parser, "--output", metavar="FOLDER", help="where rows, drop ledger and report are written")
    option(parser, "--report", metavar="FOLDER", help="of a report elsewhere (default: OUTPUT/report, OUTPUT-dry-run)")
    option(parser, "--overwrite", action="store_true", help="replace a report elsewhere, a classifier, an index")
    option(parser, "--num-proc", type=SIZE, default=1, metavar="N", help="processes; same result (default: 1)")
    option(parser, "--id-column", metavar="NAME", help="ids in the drop ledger (default: none, file:row)")
    option(parser, "--source-column", metavar="NAME", help="count drops by this column too (default: none)")
    option(parser, "--tokenizer", metavar="NAME", help="count its tokens: a folder or a Hub name (default: words)")
    option(
        parser,
        "--on-bad-row",
        choices=["raise", "drop"],
        default="raise",
        help="stop at a row that is no document, or write it into the drop ledger (default: raise)",
    )


def run_curate(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """
    Curate, judge a sample, explain a drop or print the schema.

    Raises:
        ValueError: if an argument, a step or a document cannot be used.
    """
    from hf_ext.recipes.curation.settings import file_schema, read_steps

    if options.schema:
        print(json.dumps(file_schema(option_schemas(parser)), indent=2))
        return 0
    if options.explain is not None:
        require_options(options, "output")
        return _explain(Path(options.output), options.explain)
    values = read_config(options, parser, other_keys=("steps",))
    require_options(options, "config", "dataset", "output")
    steps = read_steps(values.get("steps"), f"--config {options.config}", named_values(options.option))
    return judge(options, steps) if options.dry_run else curate_documents(options, lambda: steps)


def require_options(options: argparse.Namespace, *names: str) -> None:
    """Refuse a command that lacks one of these, in a file of options too."""
    for name in names:
        if getattr(options, name) is None:
            remedy = "name a YAML file, such as curation/dclm_baseline.yaml" if name == "config" else "give it"
            raise ValueError(f"--{name} is missing: {remedy}")


def curate_documents(options: argparse.Namespace, make_steps: Callable[[], Sequence[Step]]) -> int:
    """Send the documents through steps into `--output`, looked at before the steps are made; print what is left."""
    from hf_ext.data.curation.pipeline import curate, refuse_other_content
    from hf_ext.data.curation.report import CurationReport

    if options.report is not None:
        check_files(options, "report", REPORT_FILES)
    with resumed_output(options) as output:
        refuse_other_content(output)
        counts = curate(
            documents_of(options),
            make_steps(),
            output=output,
            id_column=options.id_column,
            source_column=options.source_column,
            tokenizer=_tokenizer(options.tokenizer),
            on_bad_row=options.on_bad_row,
            num_proc=options.num_proc,
        )
        report = CurationReport(counts)
        folder = Path(options.report or output / "report")
        with claimed_folder(folder):
            report.save(folder)
    _print_report(report, folder)
    print(f"{counts.rows_kept:,} rows: {output}")
    return 0


def judge(options: argparse.Namespace, steps: Sequence[Step]) -> int:
    """Judge a sample by the steps; write the report and nothing else."""
    from hf_ext.data.curation.dry_run import dry_run

    options.report = options.report or f"{options.output.rstrip('/')}-dry-run"
    with report_output(options, REPORT_FILES) as folder:
        report = dry_run(
            documents_of(options),
            steps,
            sample=options.sample,
            seed=options.seed,
            id_column=options.id_column,
            source_column=options.source_column,
            on_bad_row=options.on_bad_row,
        )
        report.save(folder)
    _print_report(report, folder)
    return 0


def documents_of(options: argparse.Namespace) -> Any:
    """
    What `--dataset` names: files as they lie, or a dataset, a stream of one where it is on the Hub.

    Raises:
        ValueError: if a dataset cannot be loaded.
    """
    from glob import has_magic

    from hf_ext.data.curation.sources import KINDS
    from hf_ext.data.loading import load_rows, require_place

    path = Path(options.dataset)
    if not has_magic(options.dataset):
        require_place(options.dataset)
    if (path / "data").is_dir() and (path / "drops").is_dir():  # what `curate` wrote; its drop ledger is no document
        return f"{options.dataset.rstrip('/')}/data"
    is_saved = any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json"))
    is_files = (path.is_dir() and not is_saved) or path.name.endswith(KINDS) or has_magic(options.dataset)
    if is_files and options.dataset_config is None:
        return options.dataset
    return load_rows(options.dataset, config=options.dataset_config, split=options.split, streaming=not path.exists())


def _tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from transformers import AutoTokenizer

    from hf_ext.guards.models import loading_model

    with loading_model(name, "tokenizer"):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _print_report(report: CurationReport, folder: Path) -> None:
    for name, value in report.summary():
        print(f"{name}: {value}")
    for step in report.counts.steps:
        if step.rows_in > step.rows_out:
            print(f"  {step.name} drops {step.rows_in - step.rows_out:,} of {step.rows_in:,}")
    for warning in report.warnings():
        print(f"note: {warning}")
    print(f"report: {folder / 'curation.html'}")


def _explain(folder: Path, document_id: str) -> int:
    from hf_ext.data.curation.drop_ledger import DropLedger
    from hf_ext.guards.markdown import one_line

    ledger = DropLedger.read(folder)
    records = ledger.explain(document_id)
    if not records:
        example = next((f"; ids are such as {record.id[:80]!r}" for record in ledger), "")
        raise ValueError(
            f"no document {document_id[:80]!r} is in the drop ledger of {folder}: it was kept, or not read{example}"
        )
    for record in records:
        measured = "" if record.value is None else f", {record.value:g}"
        bound = "" if record.threshold is None else f" where the bound is {record.threshold:g}"
        detail = "" if record.detail is None else f" ({record.detail})"
        reason = f"{record.step}:{record.rule}{measured}{bound}{detail}"
        print(one_line(f"{record.id} ({record.shard}, row {record.row:,}) goes by {reason}"))
    return 0
