"""
Does DCLM's game at nano size find the better training set, and what does it cost?

The pool is good documents and as many characters of junk (`junk.py`); other good documents are held out, and others
again teach the classifier. The game is `dclm/nano` as a user types it: raw, rules of quality, duplicates out, the half
that the classifier scores highest; three models of each, the same tokens for all; held-out loss, and CORE on the first
20 rows of each of the 16 tasks at hand. It is killed once by SIGKILL, in the middle of a model.

Last line, one JSON object:
  benchmark, models, tokens      of each model
  minutes, process_minutes       of all of it, on the clock and of the processors      (goal: minutes <= 60)
  models_trained_again           of those that were finished when it was killed        (goal: 0)
  loss_<treatment>               nats a token of held-out documents, mean of the seeds
  loss_winner                    the best treatment where it is beyond its error, else "none"
  loss_lead, loss_lead_error     of the best over the raw documents, and half of its 95 % interval
  <core>_<treatment>             the mean of the tasks
  core_winner                    as for the loss

    python benchmarks/dclm_game.py            # an hour on 2 cores; a killed run goes on
    python benchmarks/dclm_game.py --quick    # two minutes, few documents and tokens, not the claim
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from common import finish, parser, piece
from curation_quality import good_documents, parts
from junk import mixed
from nano_runs import ON_CPU, QUICK_SIZE, core_folder, launch, minutes_of, nano_tokenizer, write_documents

DOCUMENTS = 700
CORE_ROWS = 20
KILLED_BEHIND = 6  # finished models of the twelve, and a checkpoint of the next
QUICK = (*QUICK_SIZE, "--max_steps", "3", "--save_steps", "1")
QUICK_DOCUMENTS = 60
SEED = 0
CORE_OF_QUICK = 2


def make_documents(folder: Path, count: int) -> dict[str, Any]:
    """Write the pool, the held-out and the reference documents and the tokenizer; how many documents there are."""
    good, foreign = good_documents(count)
    split = parts(good, SEED)
    pool = mixed(split["pool"], foreign, SEED)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "web": [row["text"] for row in pool],
        "held_out": [row["text"] for row in split["held_out"]],
        "good": [row["text"] for row in split["reference"]],
    }
    for name, documents in texts.items():
        write_documents(folder / f"{name}.jsonl", documents)
    nano_tokenizer(texts["good"]).save_pretrained(folder / "tokenizer")  # of no treatment's documents
    good_rows = sum(row["kind"] == "good" for row in pool)
    return {**{name: len(documents) for name, documents in texts.items()}, "good_of_web": good_rows}


def finished_models(game: Path) -> dict[str, list[int]]:
    """Result of each finished model, and when it and its weights were written."""
    return {
        path.name: [path.stat().st_mtime_ns, _weights_of(path).stat().st_mtime_ns]
        for path in sorted(game.glob("*-seed-*.json"))
    }


def _weights_of(result: Path) -> Path:
    treatment, _, seed = result.stem.rpartition("-seed-")
    return result.parent / treatment / f"seed-{seed}" / "model.safetensors"


def is_in_a_model(game: Path, count: int) -> bool:
    """Whether so many models are finished, and the next one has a checkpoint."""
    finished = finished_models(game)
    checkpoints = game.glob("*/seed-*/checkpoint-*/hf_ext_checkpoint.json")
    begun = {f"{path.parts[-4]}-{path.parts[-3]}.json" for path in checkpoints} - set(finished)
    return len(finished) >= count and bool(begun)


def words_of(options: argparse.Namespace, documents: Path) -> list[Any]:
    """The command of the game; the classifier's folder is written as the file has it, so it runs where that is."""
    words = ["train", "dclm", *ON_CPU, "--config", "dclm/nano", "--output_dir", options.work / "game"]
    words += ["--dataset_name", documents / "web.jsonl", "--eval_dataset_name", documents / "held_out.jsonl"]
    words += ["--tokenizer_name", documents / "tokenizer", "--core_data", core_folder(options.work, options.quick)]
    words += ["--core_max_rows", CORE_OF_QUICK if options.quick else CORE_ROWS]
    return [*words, *QUICK, "--seeds", "2"] if options.quick else words


def model_rows(report: Any, seed: int) -> list[dict[str, Any]]:
    """A row a model."""
    return [
        {
            "treatment": result.name,
            "seed": seed + number,
            "documents": result.num_documents,
            "tokens": result.num_tokens,
            "epochs": result.epochs,
            "loss": fmean(losses),
            "core": core,
            "core_error": error,
        }
        for result in report.treatments
        for number, (losses, core, error) in enumerate(
            zip(result.losses, result.cores, result.core_errors, strict=True)
        )
    ]


def differences(report: Any) -> list[dict[str, Any]]:
    """Of every two treatments, for both measures."""
    rows = []
    for measure in ("loss", "core"):
        for place, treatment in enumerate(report.treatments):
            for other in report.treatments[place + 1 :]:
                mean, half_width = report.difference(measure, treatment, other)
                names = {"treatment": treatment.name, "other": other.name}
                rows.append({"measure": measure, **names, "mean": mean, "half_width": half_width})
    return rows


def headline_of(
    rows: list[dict[str, Any]], winners: dict[str, str], pairs: list[dict[str, Any]], core_name: str
) -> dict[str, Any]:
    """What follows from the rows of the models and the differences of the treatments."""
    names = list(dict.fromkeys(row["treatment"] for row in rows))
    means = {
        measure: {name: fmean(row[measure] for row in rows if row["treatment"] == name) for name in names}
        for measure in ("loss", "core")
    }
    best = min(means["loss"], key=lambda name: means["loss"][name])
    leads = {
        pair["other"]: (pair["mean"], pair["half_width"])
        for pair in pairs
        if pair["measure"] == "loss" and pair["treatment"] == "raw"
    }
    lead, error = leads.get(best, (0.0, 0.0))
    return {
        **{f"loss_{name}": round(value, 4) for name, value in means["loss"].items()},
        "loss_winner": winners["loss"],
        "loss_lead": round(lead, 4),
        "loss_lead_error": round(error, 4),
        **{f"{core_name}_{name}": round(value, 4) for name, value in means["core"].items()},
        "core_winner": winners["core"],
    }


def main() -> None:
    """Play the game, killed once, and tell of it."""
    from hf_ext.rounds.game_report import GameReport

    options = parser(__doc__ or "", "dclm_game").parse_args()
    if options.quick:
        options.work /= "quick"
    documents = options.work / "documents"
    game = options.work / "game"
    records = options.work / "launches"
    count = QUICK_DOCUMENTS if options.quick else DOCUMENTS
    counts = piece(options.work, "documents", {"count": count}, lambda: make_documents(documents, count))
    print(counts, flush=True)

    def train_classifier() -> dict[str, Any]:
        words = ["data", "classify", "--positives", documents / "good.jsonl", "--negatives", documents / "web.jsonl"]
        launch([*words, "--save", documents / "quality"], records, folder=documents)
        return {}

    def play_and_kill() -> dict[str, Any]:
        behind = 2 if options.quick else KILLED_BEHIND
        launch(words_of(options, documents), records, lambda: is_in_a_model(game, behind), folder=documents)
        return {"finished": finished_models(game)}

    def play_on() -> dict[str, Any]:
        launch(words_of(options, documents), records, folder=documents)
        return {"finished": finished_models(game), **minutes_of(records)}

    piece(options.work, "classifier", counts, train_classifier)
    killed = piece(options.work, "killed", counts, play_and_kill)
    ended = piece(options.work, "ended", counts, play_on)
    report = GameReport.load(game)
    print(report.to_markdown())
    rows = model_rows(report, seed=124)
    pairs = differences(report)
    winners = {
        measure: best if rival is None else "none"
        for measure, (best, rival) in ((measure, report.winner(measure)) for measure in ("loss", "core"))
    }
    headline = {
        "benchmark": "dclm_game",
        "models": len(ended["finished"]),
        "tokens": int(report.settings["tokens"].replace(",", "")),
        "minutes": ended["minutes"],
        "process_minutes": ended["process_minutes"],
        "models_trained_again": sum(ended["finished"][name] != times for name, times in killed["finished"].items()),
        **headline_of(rows, winners, pairs, report.core_name),
    }
    facts = {"documents": counts, "finished_when_killed": len(killed["finished"]), "differences": pairs}
    finish(options, {"rows": rows, **facts}, headline)


if __name__ == "__main__":
    main()
