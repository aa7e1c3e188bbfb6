"""`hf-ext data exemplars` and `hf-ext eval retrieval`: a pool of past queries, and what it buys a retriever."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hf_ext.cli.options import option
from hf_ext.cli.outputs import add_output_options, file_output, store_output
from hf_ext.guards.exits import exit_status
from hf_ext.guards.numbers import COUNT, FINITE, SHARE, SIZE, WHOLE_NUMBER

MOST_CHARACTERS = 100  # characters of a text that is printed


def add_data_parser(actions: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext data exemplars`."""
    parser = actions.add_parser(
        "exemplars",
        help="build a pool of (query, document) pairs that a retriever is shown, and look into it",
        description="Build a pool of (query, document) pairs from a dataset or a BEIR folder, as Parquet with hashes, "
        "for RareEncoder and RareTrainer. With --query, print what that query would be shown. The pool is text in "
        "clear: whoever reads it, or the model it is pushed with, reads your queries.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    option(source, "--dataset", metavar="DATA", help="pairs: a file, a folder or a Hub name")
    option(source, "--beir", metavar="FOLDER", help="a folder with corpus.jsonl, queries.jsonl and qrels/")
    option(source, "--store", metavar="FOLDER", help="a pool made before, to look into")
    add_output_options(parser, "where the pool is written", metavar="FOLDER")
    option(parser, "--dataset-config", metavar="NAME", help="configuration of a Hub dataset")
    option(parser, "--split", metavar="NAME", help="split to read (default: the only one; of a BEIR folder 'train')")
    option(parser, "--max-rows", type=COUNT, metavar="N", help="take the first rows only (default: all)")
    for name in ("query", "document", "id", "doc-id", "negative"):
        option(parser, f"--{name}-column", metavar="NAME", help=f"column of the {name} (default: found by its name)")
    option(parser, "--license", help="of the pairs, a Hub key; written down with them")
    option(
        parser,
        "--retriever",
        choices=["bm25", "random", "fixed"],
        help="how exemplars are chosen (default: bm25, or the store's own)",
    )
    option(parser, "--query", action="append", default=[], metavar="TEXT", help="print what it is shown; repeatable")
    option(parser, "--k", type=SIZE, default=5, help="exemplars of a query (default: 5)")
    parser.set_defaults(run=lambda o: exit_status(lambda: run_exemplars(o), "hf-ext data exemplars"))


def run_exemplars(options: argparse.Namespace) -> int:
    """
    Build or open the pool, write it where wanted, print what queries are shown.

    Raises:
        ValueError: if an argument or a row cannot be used.
    """
    if options.output is None and not options.query:
        raise ValueError("nothing to do: give --output to write the pool, --query to look into it, or both")
    from hf_ext.data.exemplars.files import CONFIG, FILES

    with nullcontext() if options.output is None else store_output(options, (CONFIG,), "a pool", FILES):
        return _exemplars(options)


def _exemplars(options: argparse.Namespace) -> int:
    store = _pool(options)
    if options.output is not None:
        provenance = {"license": options.license} if options.license else {}
        store.save(options.output, config={"rare": {"k": options.k, "provenance": provenance}})
        print(f"{len(store):,} exemplars written to {options.output} (text in clear)")
    for query, hits in zip(options.query, store.search(options.query, options.k), strict=True):
        print(f"\n{query}")
        for hit in hits:
            print(f"  {hit.score:8.3f}  {_short(hit.query)}\n            {_short(hit.document)}")
        if not hits:
            print("  nothing: the query shares no word with the pool, or is in it alone")
    return 0


def _pool(options: argparse.Namespace) -> Any:
    from hf_ext.data.exemplars import ExemplarStore
    from hf_ext.data.loading import first_rows, load_rows

    retriever = options.retriever or "bm25"
    if options.store is not None:
        if options.retriever is None:
            return ExemplarStore.load(options.store)
        from hf_ext.data.exemplars.retrievers import retriever_named

        return ExemplarStore.load(options.store, retriever=retriever_named(options.retriever))
    if options.beir is not None:
        return ExemplarStore.from_beir(options.beir, options.split or "train", retriever=retriever)
    rows = first_rows(load_rows(options.dataset, config=options.dataset_config, split=options.split), options.max_rows)
    columns = {f"{name}_column": getattr(options, f"{name}_column") for name in ("query", "document", "id", "doc_id")}
    source = Path(options.dataset).name if Path(options.dataset).exists() else options.dataset  # no path of a machine
    try:
        return ExemplarStore.from_dataset(
            rows, **columns, negative_column=options.negative_column, retriever=retriever, source=source
        )
    except TypeError as error:  # a column that is no text: of the input, so an error in a sentence
        raise ValueError(str(error)) from error


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def add_eval_parser(actions: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext eval retrieval`."""
    parser = actions.add_parser(
        "retrieval",
        help="nDCG, MRR and recall of a retriever with and without exemplars, leaked and clean queries apart",
        description="Measure a sentence-transformers model on a BEIR folder: graded nDCG, MRR and recall; with a pool "
        "also on the bare queries, on the queries whose answer stood among their exemplars and on the others, the "
        "documents of the exemplars as a ranking without any model, and the time of a query.",
    )
    option(parser, "--model", required=True, help="a folder or a Hub name; its own exemplars are used if it has any")
    option(parser, "--beir", required=True, metavar="FOLDER", help="corpus.jsonl, queries.jsonl and qrels/")
    option(parser, "--split", default="test", help="qrels to measure on (default: test)")
    pool = parser.add_mutually_exclusive_group()
    option(pool, "--pool-split", metavar="NAME", help="qrels of the folder whose pairs are the pool, such as train")
    option(pool, "--exemplars", metavar="STORE", help="a pool: its folder, or user/dataset@revision")
    option(pool, "--plain", action="store_true", help="leave the model's own exemplars out")
    option(parser, "--k", type=WHOLE_NUMBER, help="exemplars of a query (default: the model's setting, or 5)")
    option(parser, "--example-weight", type=SHARE, help="share of the vector that comes from them, in (0, 1]")
    option(parser, "--floor", type=FINITE, help="score of the nearest exemplar below which a query is read bare")
    option(parser, "--prompt", help="before every query, in place of the model's own")
    option(parser, "--max-queries", type=COUNT, metavar="N", help="take the first queries only (default: all)")
    option(parser, "--batch-size", type=SIZE, default=32, help="texts a forward (default: 32)")
    option(parser, "--device", help="such as cuda:0 or cpu (default: the accelerator if there is one)")
    add_output_options(parser, "write the numbers there too, as JSON", metavar="FILE")
    option(parser, "--json", action="store_true", help="print them as JSON instead of the table")
    parser.set_defaults(run=lambda o: exit_status(lambda: run_retrieval(o), "hf-ext eval retrieval"))


def run_retrieval(options: argparse.Namespace) -> int:
    """
    Measure, print the table, write the numbers where wanted.

    Raises:
        ValueError: if an argument, the model or a file cannot be used.
    """
    with nullcontext() if options.output is None else file_output(options):
        return _retrieval(options)


def _retrieval(options: argparse.Namespace) -> int:
    from hf_ext.evaluation.retrieval import RareInformationRetrievalEvaluator

    queries, corpus, judged = _task(options)
    model = _encoder(options)
    evaluator = RareInformationRetrievalEvaluator(
        queries,
        corpus,
        judged,
        batch_size=options.batch_size,
        show_progress_bar=not options.json,
        query_prompt=options.prompt,
        write_csv=False,
    )
    metrics = evaluator(model)
    facts = {
        "model": options.model,
        "data": Path(options.beir).name,
        "split": options.split,
        "queries": len(evaluator.queries),
        "documents": len(corpus),
        "exemplars": 0 if model.exemplars is None else len(model.exemplars),
        "k": model.settings.k,
        "example_weight": model.settings.example_weight,
        "floor": model.settings.floor,
    }
    text = json.dumps(facts | {"metrics": metrics}, indent=2)
    if options.output is not None:
        from hf_ext.guards.disk import write_whole, writing

        with writing("the numbers", options.output):
            write_whole(options.output, text + "\n")
    if options.json:
        print(text)
        return 0
    for name, value in facts.items():
        print(f"{name:>24}  {value}")
    print()
    for name, value in metrics.items():
        print(f"{name:>32}  {value:.4f}")
    return 0


def _task(options: argparse.Namespace) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, float]]]:
    from hf_ext.data.exemplars.sources import read_qrels, texts_by_id

    folder = Path(options.beir)
    judged: dict[str, dict[str, float]] = {}
    for query, document, grade in read_qrels(folder, options.split):
        judged.setdefault(query, {})[document] = float(grade)
    if options.max_queries is not None:
        judged = dict(list(judged.items())[: options.max_queries])
    return texts_by_id(folder, "queries"), texts_by_id(folder, "corpus"), judged


def _encoder(options: argparse.Namespace) -> Any:
    import dataclasses

    from hf_ext.data.exemplars import ExemplarStore
    from hf_ext.retrieval.encoder import RareEncoder

    pool: Any = options.exemplars
    if options.pool_split is not None:
        if options.pool_split == options.split:
            raise ValueError("--pool-split is the split that is measured: every query would be shown its own answer")
        pool = ExemplarStore.from_beir(options.beir, options.pool_split)
    try:
        model = RareEncoder(options.model, exemplars=pool, device=options.device)
    except OSError as error:
        raise ValueError(f"--model {options.model!r} cannot be loaded: {error}") from error
    if options.plain:
        model.exemplars = None
    names = ("k", "example_weight", "floor")
    changed_settings = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    model.settings = dataclasses.replace(model.settings, **changed_settings)
    return model
