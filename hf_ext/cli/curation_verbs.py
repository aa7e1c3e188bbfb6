"""`hf-ext data dedup|classify|decontaminate`: one step of curation by itself, with the options that it needs most."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.cli.config_file import named_values
from hf_ext.cli.curate import add_curation_options, curate_documents, require_options
from hf_ext.cli.options import add_field_option, option
from hf_ext.cli.outputs import check_folder_output, file_output
from hf_ext.guards.exits import exit_status
from hf_ext.guards.numbers import PROBABILITY, SHARE
from hf_ext.guards.runs import claimed_file

if TYPE_CHECKING:
    from hf_ext.data.curation.classifier import Classifier
    from hf_ext.data.curation.ngram_index import NGramIndex
    from hf_ext.data.curation.steps import Step

METHODS = {"exact": "ExactDeduplication", "minhash": "MinHashDeduplication", "bloom": "BloomDeduplication"}


def add_parsers(actions: argparse._SubParsersAction) -> None:
    """Add the parsers of the three verbs."""
    parser = actions.add_parser(
        "dedup",
        help="drop documents, or cut paragraphs, that repeat earlier ones",
        description="Drop documents that repeat an earlier one: exactly, nearly (MinHash of word 5-grams), or by "
        "paragraph (a Bloom filter of 13-grams, as for DCLM-Baseline). The first of several stays.",
    )
    option(parser, "--method", choices=[*METHODS], default="minhash", help="what counts as one (default: minhash)")
    add_field_option(parser, "NAME=VALUE", "a field of the step, such as bands=93, threshold=0.7 or mode=both")
    add_curation_options(parser)
    parser.set_defaults(run=lambda o: exit_status(lambda: run_dedup(o), "hf-ext data dedup"))

    parser = actions.add_parser(
        "classify",
        help="train a quality classifier, or keep the documents that it scores highest",
        description="With --positives and --negatives, train a classifier and save it. With --dataset, keep the "
        "documents that --classifier (or the one just trained) scores highest.",
    )
    option(parser, "--positives", metavar="DATA", help="good documents: a file, a folder or a Hub name")
    option(parser, "--negatives", metavar="DATA", help="other documents, such as random pages")
    option(parser, "--text-column", default="text", metavar="NAME", help="of all documents (default: text)")
    option(parser, "--save", metavar="FOLDER", help="where a trained classifier goes: a new folder")
    option(parser, "--classifier", metavar="PATH", help="a saved classifier: a folder, or a fastText .bin file")
    option(parser, "--keep-share", type=SHARE, metavar="SHARE", help="of the words to keep, in (0, 1]")
    option(parser, "--threshold", type=PROBABILITY, metavar="SCORE", help="keep documents from this score on, 0 to 1")
    add_curation_options(parser)
    parser.set_defaults(run=lambda o: exit_status(lambda: run_classify(o), "hf-ext data classify"))

    parser = actions.add_parser(
        "decontaminate",
        help="find rows of benchmarks in documents, and drop these or cut the rows out",
        description="Look for the word 13-grams of benchmarks in documents. The drop ledger names the benchmark's row "
        "and where it stands. With --save-index the n-grams are kept for the next time.",
    )
    option(parser, "--benchmark", nargs="+", metavar="DATA", help="benchmarks: files, folders or Hub names")
    option(parser, "--columns", nargs="+", metavar="NAME", help="their columns of questions, contexts and answers")
    option(parser, "--index", metavar="FILE", help="an index that --save-index wrote, in place of --benchmark")
    option(parser, "--save-index", metavar="FILE", help="where to keep the index, a .parquet file with their texts")
    option(
        parser,
        "--mode",
        choices=["drop", "mask_span", "report"],
        default="drop",
        help="drop the document, cut the span out, or write it down alone (default: drop)",
    )
    add_curation_options(parser)
    parser.set_defaults(run=lambda o: exit_status(lambda: run_decontaminate(o), "hf-ext data decontaminate"))


def run_dedup(options: argparse.Namespace) -> int:
    """
    Drop duplicates.

    Raises:
        ValueError: if an argument or a document cannot be used.
    """
    from hf_ext.recipes.curation.settings import read_steps

    require_options(options, "dataset", "output")
    steps = read_steps([{METHODS[options.method]: named_values(options.option)}], "--option")
    return curate_documents(options, lambda: steps)


def run_classify(options: argparse.Namespace) -> int:
    """
    Train a classifier, or filter by one, or both.

    Raises:
        ValueError: if an argument or a document cannot be used.
    """
    is_training = options.positives is not None or options.negatives is not None
    if is_training == (options.classifier is not None):
        raise ValueError("give --positives and --negatives to train a classifier, or --classifier, a saved one")
    if options.dataset is not None and (options.keep_share is None) == (options.threshold is None):
        raise ValueError("with --dataset give one of --keep-share and --threshold")
    require_options(options, *(("positives", "negatives", "save") if is_training else ("dataset",)))
    if options.dataset is not None:
        require_options(options, "output")
    make_classifier = partial(_trained if is_training else _loaded, options)
    if options.dataset is None:
        make_classifier()
        return 0

    def make_steps() -> list[Step]:
        from hf_ext.data.curation.quality_filter import QualityFilter, QualityShare

        settings: dict[str, Any] = {"classifier": make_classifier(), "text_column": options.text_column}
        if options.threshold is not None:
            return [QualityFilter(threshold=options.threshold, **settings)]
        return [QualityShare(keep_share=options.keep_share, **settings)]

    return curate_documents(options, make_steps)


def run_decontaminate(options: argparse.Namespace) -> int:
    """
    Look for benchmarks in documents.

    Raises:
        ValueError: if an argument, a benchmark or a document cannot be used.
    """
    require_options(options, "dataset", "output")
    if (options.benchmark is None) == (options.index is None):
        raise ValueError("give --benchmark with --columns, or --index")
    if options.index is None:
        require_options(options, "columns")

    def make_steps() -> list[Step]:
        from hf_ext.data.curation.decontaminate import Decontaminate

        return [Decontaminate(index=_index(options), mode=options.mode)]

    return curate_documents(options, make_steps)


def _trained(options: argparse.Namespace) -> Classifier:
    """The classifier of `--positives` and `--negatives`, saved; what is known of it is printed."""
    from hf_ext.data.curation.classifier import fit_quality_classifier
    from hf_ext.data.loading import load_rows

    check_folder_output(options, "save", ("classifier.json", "classifier.safetensors"), "a classifier")
    with claimed_file(Path(options.save)):
        positives, negatives = (load_rows(name) for name in (options.positives, options.negatives))
        classifier = fit_quality_classifier(positives, negatives, text_column=options.text_column)
        classifier.save(options.save)
    report = classifier.report
    print(f"trained on {report.num_positives:,} good and {report.num_negatives:,} other documents")
    if report.auc is not None:
        print(f"held-out AUC {report.auc:.3f}; of the length alone {report.length_auc:.3f}")
    print(f"classifier: {options.save}")
    return classifier


def _loaded(options: argparse.Namespace) -> Classifier:
    from hf_ext.data.curation.quality_filter import load_classifier

    return load_classifier(options.classifier)


def _index(options: argparse.Namespace) -> NGramIndex:
    """The n-grams of `--index`, or of `--benchmark`, kept where `--save-index` says."""
    from hf_ext.data.curation.ngram_index import NGramIndex
    from hf_ext.data.loading import load_rows

    if options.index is not None:
        index = NGramIndex.load(options.index)
    else:
        benchmarks = [(load_rows(name), Path(name).name) for name in options.benchmark]
        index = NGramIndex.joined(
            [NGramIndex.from_dataset(rows, options.columns, task=task) for rows, task in benchmarks]
        )
    print(f"{len(index.records):,} texts of benchmarks, {index.num_too_short:,} of them too short to be looked for")
    if options.save_index is not None:
        with file_output(options, "save_index") as path:
            index.save(path)
    return index
