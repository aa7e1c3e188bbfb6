"""
What do in-context examples buy a small retriever, and how much of it is memory?

MiniLM (22 million parameters, mean pooling) trained on scifact and pubmedqa together by `RareTrainer`, beside a twin
that gets the same instruction, rows, batches and steps and never sees an example: 100 steps of 32, learning rate 5e-5.
RARe shows 15 % of the training queries one example, and each test query the nearest one. The mean is of the query's
own tokens, which have read the example; `rare_pooled` is a model whose example enters the mean too. scifact is
searched whole (5,183 abstracts, all 200 test claims), pubmedqa too (700 abstracts, 250 questions). Three seeds. For
about half of scifact's test claims the document of that example is the abstract that is looked for: those claims are
`leaked`, the others `clean`; pubmedqa is all clean. nDCG@10, in points (hundredths).

Dev is a fifth of the train queries, by hash of the id: out of training, and out of the pool while tuning. There, and
nowhere else, two numbers a data set are chosen, how much of a query's vector comes from its text with examples
(`weight`) and the BM25 score of the nearest example below which it is read bare (`floor`): the best sum of the nDCG of
all dev queries and that of the clean ones, among pairs with a weight of 0.2 or more that leave at least half of the
queries with examples. Then the models are trained again on all train queries. The twin's own vectors, example in the
mean, are blended in the same way, as a control: what examples give without any training to read them.

Last line, one JSON object; points of nDCG@10, mean of seeds, 95 % interval over test queries (bootstrap):
  benchmark, seeds, test_queries
  gain_ndcg_points, _low, _high   RARe with examples minus the twin, scifact                        (goal >= 2.72)
  gain_clean_points, _low, _high  the same on scifact's clean claims and all of pubmedqa, pooled      (goal >= 0)
  gain_plain_points               RARe without examples minus the twin, scifact                      (goal >= -1)
  gain_ood_points, _low, _high    trained on boolq and pubmedqa, tested on scifact with its own pool
  augmented_share                 test queries of both sets whose vector uses examples, weight >= 0.2 (goal >= 0.5)
  augmented_share_<set>           each set
  copy_ndcg_points                the documents of the shown examples as the ranking, without any model, scifact
  twin_ndcg_points, rare_ndcg_points, untouched_ndcg_points   what the gains are between, scifact
  gain_over_blended_twin_points   RARe with examples minus the twin blended in the same way, scifact
  gain_over_unpooled_twin_points  the same, the twin's example kept out of the mean as RARe's is
  gain_same_positives_points      with and without the exclusion of same-positive examples in training, scifact
  cautious_gain_ndcg_points, cautious_gain_clean_points, _low, _high
                                  the first two under another choice on dev: the best nDCG of all queries that leaves
                                  the clean ones where they were, or else the best nDCG of the clean ones
  gain_over_pooled_points         RARe minus the one whose example enters the mean, seed 0, scifact
  boolq_gain_points               trained and tested on boolq, one seed
  smollm2_gain_points             SmolLM2-135M, LoRA, last token, 60 steps of 16, scifact's gold abstracts, one seed
  process_minutes                 of all pieces, added up; two processes of one thread shared them

    python benchmarks/rare_retrieval.py            # within two hours on 2 cores; a killed run goes on
    python benchmarks/rare_retrieval.py --quick    # a minute, a few documents, not the claim
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import finish, parser
from numpy.typing import NDArray
from retrieval_jobs import Job, finished, load, shown_to, split_of
from tqdm.auto import tqdm

WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
FLOORS = (0.0, 0.2, 0.4)  # quantiles of dev's best BM25 scores
SEEDS = (0, 1, 2)
DRAWS = 4000  # of the bootstrap

# --- scores ----------------------------------------------------------------------------------------------------------


def ndcg(documents: NDArray[Any], queries: NDArray[Any], names: list[str], gold: list[set[str]]) -> NDArray[Any]:
    """nDCG@10 of each query, binary gains."""
    ranked = np.argsort(-(queries @ documents.astype(np.float32).T), axis=1, kind="stable")[:, :10]
    return np.array([gain_of([names[i] for i in row], own) for row, own in zip(ranked, gold, strict=True)])


def gain_of(ranking: list[str], gold: set[str]) -> float:
    """nDCG@10 of one ranking."""
    discounts = 1 / np.log2(np.arange(2, 12))
    found = sum(discounts[place] for place, name in enumerate(ranking[:10]) if name in gold)
    return float(found / discounts[: len(gold)].sum())


@dataclass
class Split:
    """The queries of a split, and what is known of each before any model is asked."""

    names: list[str]
    gold: list[set[str]]
    shown: list[list[str]]  # documents of the examples, nearest first
    scores: NDArray[Any]  # BM25 of the nearest example
    leaked: NDArray[Any]  # whether a gold document is among them


def describe(task: str, split: str, job: Job) -> Split:
    """A split as the examples leave it."""
    data = load(task, job.limit, job.only_gold)
    gold = list(split_of(data, split)[0].values())
    hits = shown_to(task, split, job)
    shown = [[hit.doc_id for hit in row] for row in hits]
    leaked = np.array([bool(own & set(row)) for own, row in zip(gold, shown, strict=True)])
    scores = np.array([row[0].score if row else 0.0 for row in hits])
    return Split(list(data["corpus"]), gold, shown, scores, leaked)


def blended(plain: NDArray[Any], shown: NDArray[Any], weight: float, uses: NDArray[Any]) -> NDArray[Any]:
    """Queries' vectors, `weight` of each from its text with examples where `uses` says so."""
    mixed = (1 - weight) * plain + weight * shown
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    return np.where(uses[:, None], mixed, plain)


def choose(task: str, jobs: list[Job], work: Path) -> dict[str, Any]:
    """Weight and floor of a task for the arm that these jobs, one a seed, train; from dev alone."""
    at = describe(task, "dev", jobs[0])
    stored = [finished(job, work)[0] for job in jobs]
    clean = ~at.leaked

    def score(weight: float, uses: NDArray[Any]) -> NDArray[Any]:
        of_seeds = []
        for own in stored:
            queries = blended(own[f"{task}/dev/plain"], own[f"{task}/dev/shown"], weight, uses)
            of_seeds.append(ndcg(own[f"{task}/documents"], queries, at.names, at.gold))
        return np.mean(of_seeds, axis=0)

    plain = score(0.0, np.zeros(len(at.gold), dtype=bool))
    table = []
    for quantile in FLOORS:
        floor = float(np.quantile(at.scores, quantile)) if quantile else 0.0
        uses = (at.scores >= floor) & (at.scores > 0)
        for weight in WEIGHTS:
            own = score(weight, uses)
            table.append(
                {
                    "weight": weight, "floor": round(floor, 4), "share": float(uses.mean()),
                    "all": round(100 * float(own.mean()), 3), "clean": round(100 * float(own[clean].mean()), 3),
                }
            )  # fmt: skip
    allowed = [cell for cell in table if cell["share"] >= 0.5]
    best = max(allowed, key=lambda cell: cell["all"] + cell["clean"])
    facts = {"plain": round(100 * float(plain.mean()), 3), "plain_clean": round(100 * float(plain[clean].mean()), 3)}
    harmless = [cell for cell in allowed if cell["clean"] >= facts["plain_clean"]]
    cautious = (
        max(harmless, key=lambda cell: cell["all"]) if harmless else max(allowed, key=lambda cell: cell["clean"])
    )
    return best | facts | {"dev_queries": len(at.gold), "cautious": cautious, "table": table}


def row_of(job: Job, task: str, chosen: dict[str, Any], work: Path) -> dict[str, Any]:
    """A finished test of one model on one task: of each query nDCG@10 in ten-thousandths."""
    own, facts = finished(job, work)
    at = describe(task, "test", job)
    documents, plain, shown = (own[f"{task}/{name}"] for name in ("documents", "test/plain", "test/shown"))
    uses = (at.scores >= chosen["floor"]) & (at.scores > 0)
    queries = blended(plain, shown, chosen["weight"], uses)
    best = [at.names[i] for i in np.argmax(queries @ documents.astype(np.float32).T, axis=1)]
    copied = [name in row and name not in gold for name, row, gold in zip(best, at.shown, at.gold, strict=True)]
    results = {
        "plain": ndcg(documents, plain, at.names, at.gold),
        "shown": ndcg(documents, shown, at.names, at.gold),
        "blend": ndcg(documents, queries, at.names, at.gold),
        "copy": np.array([gain_of(row, gold) for row, gold in zip(at.shown, at.gold, strict=True)]),
    }
    return {
        "arm": job.arm, "seed": job.seed, "task": task, "weight": chosen["weight"], "floor": chosen["floor"],
        "wrong_copies": round(float(np.mean(copied)), 4), "train_s": facts["logs"].get("train_runtime"),
        "augmented_in_training": facts["logs"].get("rare/augmented_share"),
        "leaked": "".join("01"[int(value)] for value in at.leaked),
        "uses": "".join("01"[int(value)] for value in uses),
        **{name: " ".join(str(round(10_000 * value)) for value in values) for name, values in results.items()},
    }  # fmt: skip


# --- the headline ----------------------------------------------------------------------------------------------------


def values_of(
    rows: list[dict[str, Any]], arm: str, task: str, column: str, seeds: tuple[int, ...] = SEEDS
) -> NDArray[Any]:
    """Points of each test query, mean of seeds, shape `(queries,)`."""
    own = [row for row in rows if row["arm"] == arm and row["task"] == task and row["seed"] in seeds]
    found = [row[column].split() for row in own]
    return np.array(found, dtype=float).mean(axis=0) / 100


def interval(gains: NDArray[Any]) -> dict[str, float]:
    """Mean of the queries' gains, and the middle 95 % of its bootstrap."""
    drawn = np.random.default_rng(0).integers(len(gains), size=(DRAWS, len(gains)))
    low, high = np.quantile(gains[drawn].mean(axis=1), [0.025, 0.975])
    return {"": round(float(gains.mean()), 3), "_low": round(float(low), 3), "_high": round(float(high), 3)}


def flags_of(rows: list[dict[str, Any]], arm: str, task: str, column: str) -> NDArray[Any]:
    """A flag a test query, equal for every seed."""
    (text,) = {row[column] for row in rows if row["arm"] == arm and row["task"] == task}
    return np.array([letter == "1" for letter in text])


def headline_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The headline from the rows."""
    of: Callable[..., NDArray[Any]] = lambda *key: values_of(rows, *key)  # noqa: E731
    gain = of("rare", "scifact", "blend") - of("twin", "scifact", "plain")
    clean = ~flags_of(rows, "rare", "scifact", "leaked")
    other = of("rare", "pubmedqa", "blend") - of("twin", "pubmedqa", "plain")
    ood = of("rare_ood", "scifact", "blend") - of("twin_ood", "scifact", "plain")
    cautious = {
        task: of("rare_cautious", task, "blend") - of("twin", task, "plain") for task in ("scifact", "pubmedqa")
    }
    named = {
        "gain_ndcg_points": gain, "gain_clean_points": np.concatenate([gain[clean], other]), "gain_ood_points": ood,
        "cautious_gain_ndcg_points": cautious["scifact"],
        "cautious_gain_clean_points": np.concatenate([cautious["scifact"][clean], cautious["pubmedqa"]]),
    }  # fmt: skip
    alone = {arm: {row["task"] for row in rows if row["arm"] == f"rare_{arm}"} for arm in ("boolq", "smollm2")}
    one_seed = {
        f"{arm}_gain_points": of(f"rare_{arm}", task, "blend") - of(f"twin_{arm}", task, "plain")
        for arm, tasks in alone.items()
        for task in tasks
    }
    uses = {
        task: flags_of(rows, "rare", task, "uses")
        * (min(row["weight"] for row in rows if row["arm"] == "rare" and row["task"] == task) >= 0.2)
        for task in ("scifact", "pubmedqa")
    }
    return {
        "benchmark": "rare_retrieval",
        "seeds": len({row["seed"] for row in rows if row["arm"] == "rare"}),
        "test_queries": len(gain) + len(other),
        **{name + end: value for name, gains in named.items() for end, value in interval(gains).items()},
        "gain_plain_points": round(float((of("rare", "scifact", "plain") - of("twin", "scifact", "plain")).mean()), 3),
        "augmented_share": round(float(np.concatenate(list(uses.values())).mean()), 4),
        **{f"augmented_share_{task}": round(float(flags.mean()), 4) for task, flags in uses.items()},
        "copy_ndcg_points": round(float(of("rare", "scifact", "copy").mean()), 3),
        "twin_ndcg_points": round(float(of("twin", "scifact", "plain").mean()), 3),
        "rare_ndcg_points": round(float(of("rare", "scifact", "blend").mean()), 3),
        "untouched_ndcg_points": round(float(of("untouched", "scifact", "plain").mean()), 3),
        "gain_over_blended_twin_points": round(
            float((of("rare", "scifact", "blend") - of("twin", "scifact", "blend")).mean()), 3
        ),
        "gain_over_unpooled_twin_points": round(
            float((of("rare", "scifact", "blend") - of("twin_unpooled", "scifact", "blend")).mean()), 3
        ),
        "gain_same_positives_points": round(
            float((of("rare", "scifact", "blend") - of("rare_same_positives", "scifact", "blend")).mean()), 3
        ),
        "gain_over_pooled_points": round(
            float((of("rare", "scifact", "blend", (0,)) - of("rare_pooled", "scifact", "blend", (0,))).mean()), 3
        ),
        **{name: round(float(gains.mean()), 3) for name, gains in one_seed.items()},
    }


def main() -> None:
    """Tune on dev, train, test, report."""
    arguments = parser(__doc__ or "", "rare_retrieval")
    arguments.add_argument("--arms", nargs="+", help="Only finish the pieces of these arms: a second process helps.")
    arguments.add_argument("--headline", action="store_true", help="Leave out the arms of one seed.")
    options = arguments.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            benchmark(options, Path(folder), Job("", steps=2, batch=4, limit=30), seeds=(0,), extras=False)
    elif options.arms:
        for arm in options.arms:
            for job in (job for jobs in plan(Job(""), SEEDS)[arm].values() for job in jobs):
                finished(job, options.work)
    else:
        benchmark(options, options.work, Job(""), SEEDS, extras=not options.headline)


def plan(like: Job, seeds: tuple[int, ...]) -> dict[str, dict[str, list[Job]]]:
    """The models of each arm: those that are tested, and those of which dev chooses weight and floor."""
    ood: dict[str, Any] = {"train": ("boolq", "pubmedqa"), "test": ("scifact",)}
    boolq: dict[str, Any] = {"train": ("boolq",), "test": ("boolq",)}
    decoder: dict[str, Any] = {
        "train": ("scifact",), "test": ("scifact",), "base": "smollm2", "only_gold": True, "learning_rate": 2e-4,
        "steps": min(60, like.steps), "batch": min(16, like.batch),
    }  # fmt: skip
    twin: dict[str, Any] = {"rate": 0.0, "pool_examples": True}  # no example in training, so only its blend is of them
    arms: dict[str, tuple[dict[str, Any], int]] = {
        "twin": (twin, len(seeds)),
        "rare": ({}, len(seeds)),
        "rare_ood": (ood, len(seeds)),
        "twin_ood": (ood | twin, len(seeds)),
        "rare_same_positives": ({"same_positive": True}, len(seeds)),
        "twin_unpooled": ({"rate": 0.0}, len(seeds)),
        "untouched": ({"steps": 0}, 1),
        "rare_pooled": ({"pool_examples": True}, 1),
        "rare_boolq": (boolq, 1),
        "twin_boolq": (boolq | twin, 1),
        "rare_smollm2": (decoder, 1),
        "twin_smollm2": (decoder | twin, 1),
    }
    made = {}
    for arm, (changes, count) in arms.items():
        jobs = [replace(like, arm=arm, seed=seed, **changes) for seed in seeds[:count]]
        tuning = [replace(job, arm=f"{arm}_dev", without_dev=True) for job in jobs]
        if arm in ("twin", "twin_unpooled", "rare_same_positives"):  # beside the claim: one seed chooses
            tuning = tuning[:1]
        if arm.endswith("_ood"):  # scifact's dev queries were not trained on in any case
            tuning = jobs
        made[arm] = {"tuning": [] if arm in ("untouched", "twin_smollm2") else tuning, "test": jobs}
    return made


def benchmark(options: argparse.Namespace, work: Path, like: Job, seeds: tuple[int, ...], extras: bool) -> None:
    """All arms, the headline's first."""
    rows: list[dict[str, Any]] = []
    chosen: dict[str, dict[str, Any]] = {}
    trained_jobs: set[Job] = set()
    arms = plan(like, seeds)
    for arm, jobs in tqdm(arms.items(), desc="Arms"):
        if not extras and arm.endswith(("boolq", "smollm2")):
            continue
        tuning = jobs["tuning"]
        bare = {"weight": 0.0, "floor": 0.0}
        chosen[arm] = {task: choose(task, tuning, work) if tuning else bare for task in jobs["test"][0].test}
        trained_jobs |= {*tuning, *jobs["test"]}
        tests = [(job, task) for job in jobs["test"] for task in job.test]
        rows += [row_of(job, task, chosen[arm][task], work) for job, task in tests]
        if arm == "rare":
            choices = {task: found["cautious"] for task, found in chosen[arm].items()}
            rows += [row_of(job, task, choices[task], work) | {"arm": "rare_cautious"} for job, task in tests]
    minutes = sum(finished(job, work)[1]["seconds"] for job in trained_jobs) / 60
    headline = headline_of(rows) | {"process_minutes": round(minutes, 1)}
    finish(options, {"job": asdict(like), "chosen": chosen, "rows": rows}, headline)


if __name__ == "__main__":
    main()
