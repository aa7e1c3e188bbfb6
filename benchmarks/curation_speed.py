"""
How fast are the rules of curation next to DCLM's own mappers, datatrove, datasketch and trafilatura?

In one process on one thread, by processor time. In each round both sides of each comparison go through the same
documents, the order swapped from round to round; ours, which is over in a blink, goes through them several times. A
ratio is taken within a round; the headline has the median. The first call of each side, which compiles or loads, is
left out. Documents: the 600 of `text_docs`, with addresses made up where a row has none, and English pages of
`html_docs`.

The chain is DCLM-Baseline's but for language identification. `--dclm` runs the mappers of a clone of DCLM's
repository, with its lists of words; without it `dclm_mappers.py`, written after the specification, stands in.

Last line, one JSON object:
  benchmark, rounds, documents
  dclm                           "checkout" or "rewritten": which mappers ours were compared with
  over_dclm                      the whole chain, documents a second, ours over DCLM's (goal >= 60)
  over_dclm_rules                quality and repetition alone (goal >= 150)
  over_dclm_same_words           the same, DCLM's word breaking taken out and ours left in (goal >= 10)
  over_datatrove                 quality and repetition, each its own rules and words (goal >= 40)
  minhash_over_datasketch        signatures of 112 hashes of word 5-grams, from the text to the signature: ours folds
                                 case and accents and cuts at all but letters and digits, for datasketch Python lowers
                                 and splits at white space; its `MinHash.bulk`, SHA-1 as by default (goal >= 40)
  minhash_same_hashes            the hash functions alone: both get the n-grams as the same 32-bit numbers, datasketch
                                 with a hash function that gives them back
  extraction_over_trafilatura    text of pages, each with its own settings (goal >= 15)
  rules_per_second               documents a second of quality and repetition, ours
  verdict_differences            documents of which quality and repetition decide otherwise than DCLM's

Runs in the environment of `make test-peers`:

    make test-peers PYTEST_ARGS=--collect-only
    .venv-peers/bin/python benchmarks/curation_speed.py [--dclm PATH]      # about fifteen minutes on a quiet machine
    .venv-peers/bin/python benchmarks/curation_speed.py --quick            # under a minute, not the claim
"""

from __future__ import annotations

import argparse
import gzip
import json
import os

if __name__ == "__main__":  # before the libraries that read these, and not where another process looks at this file
    for name in ("OMP", "NUMBA", "RAYON", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import data_folder, finish, parser
from dclm_checkout import Checkout
from tqdm.auto import tqdm

FULL = {"documents": 600, "pages": 400, "rounds": 5}  # pages: about a chunk of `curate`
QUICK = {"documents": 30, "pages": 6, "rounds": 2}
PEERS = ("datasketch", "datatrove", "spacy", "trafilatura", "uniseg", "numba", "resiliparse")
BLINK = 0.5  # seconds that our side of a round takes at least
LIST_SIZES = {"domains": 5_000, "strict": 150, "hard": 150, "soft": 100}
HASHES = 112
RATIOS = {
    "chain": "over_dclm",
    "rules": "over_dclm_rules",
    "same_words": "over_dclm_same_words",
    "datatrove": "over_datatrove",
    "minhash": "minhash_over_datasketch",
    "minhash_hashes": "minhash_same_hashes",
    "extraction": "extraction_over_trafilatura",
}


@dataclass
class Comparison:
    """Two sides that do the same with the same documents; each call goes through all of them."""

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    documents: int
    around_peer: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)


def cpu_seconds() -> float:
    """Processor time of this process and of those that it started and saw end, as each that extracts pages for it."""
    return sum(os.times()[:4])


def texts_and_urls(count: int) -> tuple[list[str], list[str]]:
    """Documents of `text_docs` with their addresses."""
    with gzip.open(data_folder() / "web_docs/text_docs.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:count]
    made_urls = [f"https://www.site-{number}.example.org/pages/{number}.html" for number in range(len(rows))]
    return [row["text"] for row in rows], [row["url"] or url for row, url in zip(rows, made_urls, strict=True)]


def english_pages(count: int) -> list[str]:
    """Pages of every source."""
    import pyarrow.parquet as pq

    table = pq.read_table(data_folder() / "web_docs/html_docs.parquet", columns=["html", "lang"])
    pages = [row["html"] for row in table.to_pylist() if row["lang"] == "en"]
    return pages[:: max(1, len(pages) // count)][:count]


def made_lists() -> dict[str, list[str]]:
    """Words and hosts that no address holds, as many as real lists might have."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = {name: ["".join(rng.choice(letters, 9)) for _ in range(size)] for name, size in LIST_SIZES.items()}
    return words | {"domains": [f"{word}.com" for word in words["domains"]]}


# --- ours --------------------------------------------------------------------------------------------------------


def through_steps(steps: Sequence[Any], texts: list[str], urls: list[str]) -> list[int]:
    """Numbers of the documents that all the steps leave, each step seeing what those before it left."""
    rows: dict[str, list[Any]] = {"text": texts, "url": urls, "number": list(range(len(texts)))}
    for step in steps:
        judgement = step.judge(rows)
        rows = rows | judgement.columns
        if any(drop is not None for drop in judgement.drops):
            staying = [place for place, drop in enumerate(judgement.drops) if drop is None]
            rows = {name: [column[place] for place in staying] for name, column in rows.items()}
    return rows["number"]


# --- peers -------------------------------------------------------------------------------------------------------


def through_mappers(mappers: Sequence[Callable[..., Any]], texts: list[str], urls: list[str]) -> list[int]:
    """Numbers of the pages that DCLM's mappers leave, step by step, as its runner does it."""
    rows = [{"text": texts[number], "url": urls[number], "number": number} for number in range(len(texts))]
    for mapper in mappers:
        rows = [page for row in rows for page in mapper(row)]
    return [row["number"] for row in rows]


def through_datatrove(filters: Sequence[Any], texts: list[str]) -> int:
    """How many documents datatrove's filters keep."""
    from datatrove.data import Document

    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
    return sum(all(step.filter(document) is True for step in filters) for document in documents)


def byte_ngrams(text: str) -> set[bytes]:
    """Word 5-grams of the lower-cased text."""
    words = text.lower().split()
    return {" ".join(words[start : start + 5]).encode() for start in range(max(1, len(words) - 4))}


def datasketch_signatures(ngrams: Iterable[Any], **options: Any) -> list[Any]:
    """A signature of each set."""
    from datasketch import MinHash

    return MinHash.bulk(ngrams, num_perm=HASHES, seed=1, **options)


def comparisons(options: argparse.Namespace, folder: Path) -> dict[str, Comparison]:
    """Both sides of every comparison."""
    import dclm_mappers
    import trafilatura
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    from hf_ext.data.curation.deduplication.folded_text import folded_ngrams
    from hf_ext.data.curation.deduplication.minhash import MinHashDeduplication
    from hf_ext.data.curation.extract import HtmlToText
    from hf_ext.data.curation.lines import LineRules
    from hf_ext.data.curation.quality import GopherQuality
    from hf_ext.data.curation.remove_urls import RemoveUrls
    from hf_ext.data.curation.repetition import GopherRepetition
    from hf_ext.data.curation.top_level_domains import TOP_LEVEL_DOMAINS
    from hf_ext.data.curation.urls import UrlRules

    texts, urls = texts_and_urls(options.documents)
    pages = english_pages(options.pages)
    lists = made_lists()
    if options.dclm:
        checkout = Checkout(options.dclm)
        lists |= {name: words for name, words in checkout.lists().items() if words}
        chain = checkout.chain(lists)
        dclm_rules = checkout.rules()
        words_given = checkout.words_given
    else:
        chain = dclm_mappers.chain(lists, sorted(TOP_LEVEL_DOMAINS))
        dclm_rules = dclm_mappers.rules()
        words_given = dclm_mappers.words_given
    for name, words in lists.items():
        (folder / name).write_text("\n".join(words) + "\n", encoding="utf-8")
    addresses = UrlRules(
        domains=str(folder / "domains"),
        strict_words=str(folder / "strict"),
        hard_words=str(folder / "hard"),
        soft_words=str(folder / "soft"),
    )
    rules = [GopherQuality(), GopherRepetition()]
    steps = [addresses, RemoveUrls(), *rules, LineRules()]
    filters = [GopherQualityFilter(), GopherRepetitionFilter()]
    minhash = MinHashDeduplication()
    hashes = [folded_ngrams(text, minhash.ngram, minhash.seed) for text in texts]
    numbers = [values.tolist() for values in hashes]
    extractor = HtmlToText()

    def ours() -> list[int]:
        return through_steps(rules, texts, urls)

    def dclm() -> list[int]:
        return through_mappers(dclm_rules, texts, urls)

    def whole() -> list[int]:
        return through_steps(steps, texts, urls)

    return {
        "chain": Comparison(whole, lambda: through_mappers(chain, texts, urls), len(texts)),
        "rules": Comparison(ours, dclm, len(texts)),
        "same_words": Comparison(ours, dclm, len(texts), words_given(texts)),
        "datatrove": Comparison(ours, lambda: through_datatrove(filters, texts), len(texts)),
        "minhash": Comparison(
            lambda: minhash.features(texts, {"text": texts}),
            lambda: datasketch_signatures(map(byte_ngrams, texts)),
            len(texts),
        ),
        "minhash_hashes": Comparison(
            lambda: minhash._signatures(hashes),
            lambda: datasketch_signatures(numbers, hashfunc=int),
            len(texts),
        ),
        "extraction": Comparison(
            lambda: extractor.judge({"html": pages}), lambda: [trafilatura.extract(page) for page in pages], len(pages)
        ),
    }


# --- time --------------------------------------------------------------------------------------------------------


def seconds_of(call: Callable[[], Any], at_least: float) -> float:
    """Processor seconds of a call, the mean over as many as take `at_least` together."""
    started = cpu_seconds()
    calls = 0
    while True:
        call()
        calls += 1
        spent = cpu_seconds() - started
        if spent >= at_least:
            return spent / calls


def timed_rounds(pairs: dict[str, Comparison], rounds: int, blink: float) -> list[dict[str, Any]]:
    """A row for each round of each comparison."""
    rows = []
    for number in tqdm(range(rounds), desc="Rounds"):
        for name, pair in pairs.items():
            seconds: dict[str, float] = {}
            for side in ("ours", "peer") if number % 2 else ("peer", "ours"):
                if side == "ours":
                    seconds[side] = seconds_of(pair.ours, blink)
                else:
                    with pair.around_peer():
                        seconds[side] = seconds_of(pair.peer, 0)
            rates = {side: round(pair.documents / spent, 2) for side, spent in seconds.items()}
            rows.append({"comparison": name, "round": number, "documents": pair.documents, **rates})
    return rows


def headline_of(options: argparse.Namespace, rows: list[dict[str, Any]], differences: int) -> dict[str, Any]:
    """The headline from the rows."""
    ratios = {
        key: round(median(row["ours"] / row["peer"] for row in rows if row["comparison"] == name), 2)
        for name, key in RATIOS.items()
    }
    return {
        "benchmark": "curation_speed",
        "rounds": options.rounds,
        "documents": options.documents,
        "dclm": "checkout" if options.dclm else "rewritten",
        **ratios,
        "rules_per_second": round(median(row["ours"] for row in rows if row["comparison"] == "rules")),
        "verdict_differences": differences,
    }


def main() -> None:
    """Time both sides of each comparison; print the headline."""
    choices = parser(__doc__ or "", "curation_speed")
    for name in FULL:
        choices.add_argument(f"--{name}", type=int, help=f"Default {FULL[name]:,}.")
    choices.add_argument("--dclm", type=Path, help="Folder of a clone of DCLM's repository.")
    options = choices.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    with TemporaryDirectory() as folder:
        pairs = comparisons(options, Path(folder))
        for pair in pairs.values():  # compiled and loaded before the clock starts
            pair.ours()
            pair.peer()
        differences = len(set(pairs["rules"].ours()) ^ set(pairs["rules"].peer()))
        rows = timed_rounds(pairs, options.rounds, BLINK / 10 if options.quick else BLINK)
    headline = headline_of(options, rows, differences)
    finish(options, {"rows": rows, "peers": {name: version(name) for name in PEERS}}, headline)


if __name__ == "__main__":
    main()
