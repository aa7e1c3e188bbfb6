"""
Does curation find the junk, and is a model trained on what it leaves better?

Good documents are those of `text_docs` that nobody called bad, English pages of `html_docs` and the articles of
`wikitext2`, detokenised. `junk.py` adds as many characters of junk, each row with the label of its kind. The curation
is DCLM's: its rules, then duplicates (exact, then near), then a quality classifier. Seen are the labels of no row: the
classifier learns good documents that are set aside against rows of the pool. Then a tiny language model is trained
from nothing on as many tokens of each training set, in nats a token of good documents that no set holds:

  raw                  the pool as it is
  heuristics           after languages, quality, repetition and lines
  dedup                after duplicates, too
  classifier           after the classifier, too: the curated set
  oracle               the good documents of the pool

Of two equal rows any may stay: a copy is taken for the original where the original went and the copy stayed.

Last line, one JSON object:
  benchmark, seeds
  raw_minus_curated_nats         raw less curated, mean over seeds; _low the smallest of the seeds (goal > 0 on each)
  recovered_share                (raw - curated) / (raw - oracle), of the means (goal >= 0.7)
  classifier_auc                 of 360 human labels of `text_docs`: 5 folds, mean over seeds (goal >= 0.86)
  length_auc                     of the length alone
  junk_recall, junk_precision    rows of junk that go; rows that go that are junk: mean over seeds

    python benchmarks/curation_quality.py             # about an hour on 2 quiet cores; continues where it was stopped
    python benchmarks/curation_quality.py --quick     # a minute: one seed, few documents and steps, not the claim
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from common import data_folder, finish, parser, piece
from junk import KINDS, mixed
from tiny_lm import nats_a_token, token_rows, tokenizer_of, trained

FULL = {"seeds": 5, "steps": 1000, "documents": 700}
QUICK = {"seeds": 1, "steps": 6, "documents": 90}
ARMS = ("raw", "heuristics", "dedup", "classifier", "oracle")
PAGE_CHARS = 20_000  # longer pages and articles are cut: no document shall be a tenth of a set
HELD_OUT = 0.12
REFERENCE = 0.18
KEEP_SHARE = 0.8  # of the tokens that the classifier sees: chosen on seed 9, which is not among those measured
FOLDS = 5
STEPS = (
    "language",
    "gopher_quality",
    "gopher_repetition",
    "line_rules",
    "exact",
    "minhash",
    "quality",
)  # as the drop ledger names them
TEXT_DOCS = "web_docs/text_docs.jsonl.gz"


# --- documents ---------------------------------------------------------------------------------------------------


def detokenised(text: str) -> str:
    """WikiText as it was before it was cut into tokens."""
    text = re.sub(r" @([-.,])@ ", r"\1", text)
    text = re.sub(r" ([,.:;!?%)\]’'])", r"\1", text)
    text = re.sub(r"([(\[$£]) ", r"\1", text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    return re.sub(r"(?m)^ +| +$", "", text)


def rows_of(name: str) -> list[dict[str, Any]]:
    """All rows of a file of the real data."""
    with gzip.open(data_folder() / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def page_texts(count: int) -> tuple[list[str], list[str]]:
    """Text of pages in English, and in other languages: of `count` pages, in an order of their own."""
    import pyarrow.parquet as pq

    from hf_ext.data.curation import HtmlToText

    path = data_folder() / "web_docs/html_docs.parquet"
    rows = pq.read_table(path, columns=["html", "lang", "source"]).to_pylist()
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))[:count]]
    texts = HtmlToText()({"html": [row["html"] for row in rows]})["text"]
    english: list[str] = []
    foreign: list[str] = []
    for row, text in zip(rows, texts, strict=True):
        if not text or len(text) < 500:
            continue
        if row["lang"].startswith("en"):
            english.append(text[:PAGE_CHARS])
        elif row["source"] == "apache2-doc":  # translations elsewhere are half done: English under another language
            foreign.append(text[:PAGE_CHARS])
    return english, foreign


def good_documents(count: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Up to `count` good rows, of the three sources in turn, and pages in other languages."""
    english, foreign = page_texts(3 * count)
    articles = rows_of("wikitext2/validation.jsonl.gz")
    sources = {
        "text_docs": [row["text"] for row in rows_of(TEXT_DOCS) if row["quality_label"] != 0],
        "html_docs": english,
        "wikitext2": [detokenised(row["text"])[:PAGE_CHARS] for row in articles],
    }
    rows = []
    for number in range(count):
        for source, texts in sources.items():
            if number < len(texts):
                rows.append({"id": f"{source}-{number:05d}", "source": source, "text": texts[number]})
    return rows[:count], foreign


# --- curation ----------------------------------------------------------------------------------------------------


def parts(good: list[dict[str, Any]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Good rows held out, set aside for the classifier, and of the pool."""
    order = np.random.default_rng(seed).permutation(len(good)).tolist()
    rows = [good[place] for place in order]
    first = round(HELD_OUT * len(rows))
    second = first + round(REFERENCE * len(rows))
    return {"held_out": rows[:first], "reference": rows[first:second], "pool": rows[second:]}


def curated(rows: list[dict[str, Any]], reference: list[str], seed: int) -> dict[str, Any]:
    """Texts left after each stage, by id, and the step by which every other row went."""
    from datasets import Dataset

    from hf_ext.data.curation import (
        DropLedger,
        ExactDeduplication,
        GopherQuality,
        GopherRepetition,
        LanguageFilter,
        LineRules,
        MinHashDeduplication,
        QualityShare,
        curate,
        fit_quality_classifier,
    )

    dataset = Dataset.from_list([{"id": row["id"], "text": row["text"]} for row in rows])
    texts: dict[str, dict[str, str]] = {}
    steps_of: dict[str, str] = {}
    for stage in ("heuristics", "dedup", "classifier"):
        if stage == "heuristics":
            steps: list[Any] = [LanguageFilter(), GopherQuality(), GopherRepetition(), LineRules()]
        elif stage == "dedup":
            steps = [ExactDeduplication(), MinHashDeduplication()]
        else:
            classifier = fit_quality_classifier(reference, list(dataset["text"]), seed=seed)
            steps = [QualityShare(classifier=classifier, keep_share=KEEP_SHARE)]
        with TemporaryDirectory() as folder:
            curate(dataset, steps, output=folder, id_column="id", show_progress=False)
            dataset = Dataset.from_parquet([str(path) for path in sorted(Path(folder).glob("data/*.parquet"))])
            dataset = Dataset.from_dict({name: list(dataset[name]) for name in ("id", "text")})  # the files go
            steps_of |= {record.id: record.step for record in DropLedger.read(folder)}
        texts[stage] = dict(zip(dataset["id"], dataset["text"], strict=True))
    return {"texts": texts, "steps": steps_of}


def relabelled(rows: list[dict[str, Any]], steps_of: dict[str, str]) -> dict[str, str]:
    """The kind of each row; where an original went and a copy of it stayed, the copy is taken for the original."""
    kinds = {row["id"]: row["kind"] for row in rows}
    for row in rows:
        original = row["copy_of"]
        if original and original in steps_of and row["id"] not in steps_of and kinds[original] == "good":
            kinds[original] = row["kind"]
            kinds[row["id"]] = "good"
    return kinds


def counts_of(kinds: dict[str, str], steps_of: dict[str, str]) -> list[dict[str, Any]]:
    """For each step and kind, how many rows of it came to the step and how many went by it."""
    left = Counter(kinds.values())
    rows = []
    for step in STEPS:
        gone = Counter(kinds[row_id] for row_id, name in steps_of.items() if name == step)
        rows += [{"step": step, "kind": k, "rows": left[k], "dropped": gone[k]} for k in ("good", *KINDS)]
        left -= gone
    return rows


def curation_of(good: list[dict[str, Any]], foreign: list[str], seed: int) -> dict[str, Any]:
    """The counts of a seed, and what the arms are trained on: ids and, where a step rewrote it, the text."""
    split = parts(good, seed)
    rows = mixed(split["pool"], foreign, seed)
    stages = curated(rows, [row["text"] for row in split["reference"]], seed)
    sets = {
        "raw": {row["id"]: row["text"] for row in rows},
        **stages["texts"],
        "oracle": {row["id"]: row["text"] for row in split["pool"]},
    }
    kinds = relabelled(rows, stages["steps"])
    return {"counts": counts_of(kinds, stages["steps"]), "sets": {arm: list(sets[arm].values()) for arm in ARMS}}


# --- models ------------------------------------------------------------------------------------------------------


def arm_of(good: list[dict[str, Any]], texts: list[str], seed: int, steps: int) -> dict[str, Any]:
    """A model trained on these texts, and what it makes of documents held out."""
    split = parts(good, seed)
    tokenizer = tokenizer_of([row["text"] for row in split["reference"]])  # of no arm's set
    rows = token_rows(tokenizer, texts, seed)
    model = trained(rows, steps, seed)
    held_out = token_rows(tokenizer, [row["text"] for row in split["held_out"]])
    return {"nats": nats_a_token(model, held_out), "token_rows": len(rows), "held_out_rows": len(held_out)}


def classifier_aucs(seed: int) -> dict[str, float]:
    """AUC of the classifier and of the length on the rows with a human label, each row judged by folds without it."""
    from hf_ext.data.curation import fit_quality_classifier

    rows = [row for row in rows_of(TEXT_DOCS) if row["quality_label"] is not None]
    positives = [row["text"] for row in rows if row["quality_label"] == 1]
    negatives = [row["text"] for row in rows if row["quality_label"] == 0]
    report = fit_quality_classifier(positives, negatives, folds=FOLDS, seed=seed).report
    return {"classifier_auc": report.auc, "length_auc": report.length_auc}


def headline_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The headline from the rows, one a seed."""
    mean = {arm: fmean(row["nats"][arm] for row in rows) for arm in ARMS}
    gains = [row["nats"]["raw"] - row["nats"]["classifier"] for row in rows]
    recalls = []
    precisions = []
    for row in rows:
        junk_rows = sum(c["rows"] for c in row["counts"] if c["step"] == STEPS[0] and c["kind"] != "good")
        junk_drops = sum(c["dropped"] for c in row["counts"] if c["kind"] != "good")
        recalls.append(junk_drops / junk_rows)
        precisions.append(junk_drops / sum(c["dropped"] for c in row["counts"]))
    return {
        "benchmark": "curation_quality",
        "seeds": len(rows),
        "raw_minus_curated_nats": round(fmean(gains), 4),
        "raw_minus_curated_nats_low": round(min(gains), 4),
        "recovered_share": round((mean["raw"] - mean["classifier"]) / (mean["raw"] - mean["oracle"]), 3),
        "classifier_auc": round(fmean(row["classifier_auc"] for row in rows), 3),
        "length_auc": round(fmean(row["length_auc"] for row in rows), 3),
        "junk_recall": round(fmean(recalls), 3),
        "junk_precision": round(fmean(precisions), 3),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Share of the rows of each kind that each step drops, of those that come to it; over all seeds."""
    lines = ["step".ljust(24) + "".join(kind.rjust(18) for kind in ("good", *KINDS))]
    for step in STEPS:
        shares = []
        for kind in ("good", *KINDS):
            cells = [c for row in rows for c in row["counts"] if (c["step"], c["kind"]) == (step, kind)]
            shares.append(sum(c["dropped"] for c in cells) / max(1, sum(c["rows"] for c in cells)))
        lines.append(step.ljust(24) + "".join(f"{share:18.3f}" for share in shares))
    return "\n".join(lines)


def seed_row(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All of a seed, piece by piece."""
    good, foreign = good_documents(args.documents)
    settings = {"documents": args.documents, "seed": seed}
    curation = piece(args.work, f"curation-{seed}", settings, lambda: curation_of(good, foreign, seed))
    arms = {}
    for arm in ARMS:
        texts = curation["sets"][arm]
        arms[arm] = piece(
            args.work,
            f"{arm}-{seed}",
            settings | {"steps": args.steps},
            lambda texts=texts: arm_of(good, texts, seed, args.steps),
        )
    aucs = piece(args.work, f"auc-{seed}", {"seed": seed}, lambda: classifier_aucs(seed))
    nats = {arm: result["nats"] for arm, result in arms.items()}
    tokens = {arm: result["token_rows"] for arm, result in arms.items()}
    scores = {name: aucs[name] for name in ("classifier_auc", "length_auc")}
    print(f"seed {seed}: " + ", ".join(f"{arm} {value:.4f}" for arm, value in nats.items()), flush=True)
    return {"seed": seed, "nats": nats, "token_rows": tokens, **scores, "counts": curation["counts"]}


def main() -> None:
    """Curate, train and judge, seed by seed; print the table and the headline."""
    options = parser(__doc__ or "", "curation_quality")
    for name, value in FULL.items():
        options.add_argument(f"--{name}", type=int, help=f"Default {value:,}.")
    args = options.parse_args()
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.quick:
        args.work = args.work / "quick"
    rows = [seed_row(args, seed) for seed in range(args.seeds)]
    print(table(rows))
    finish(args, {"steps": args.steps, "documents": args.documents, "rows": rows}, headline_of(rows))


if __name__ == "__main__":
    main()
