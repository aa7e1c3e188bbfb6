"""
Does the chosen answer's likelihood sink in preference tuning on reasoning, and less so with InfoPO than with DPO?

SmolLM2-135M-Instruct, top four layers trained, bf16 autocast, 32 steps of 4 pairs. Pairs are right and wrong solutions
to one GSM8K question (GSM8K's *test* questions: no model trained here may be scored on them), prompt and answer at
most 160 tokens, calculator marks `<<...>>` taken out. Split by question: held-out, validation, training. Arms:
SFT on the chosen answers (TRL's `SFTTrainer`); DPO, IPO and SimPO through TRL's `DPOTrainer`; InfoPO's `nwj` and `jsd`
at DPO's beta; three seeds, which draw the training pairs and their order. InfoPO's other estimators, `nwj` on mean
log-ratios with beta 10, and hh_rlhf_harmless: one seed.

Reference log-probabilities are computed once by TRL and given to every arm as columns. SimPO is TRL's `sigmoid_norm`
with beta 2 and the constant margin gamma 1 written into those columns. One learning rate for all arms: the one at
which *DPO's own* loss on validation questions is lowest, so the choice favours DPO and never looks at InfoPO. Betas
are the methods' usual ones, not tuned: IPO's and SimPO's rows show a direction, not a ranking.

The frozen lower layers' output is computed once a row; all arms train and are scored on top of it (`lookup_error`:
by how many nats that moves a sequence's log-probability: 5e-7 in float32, in bf16 what rounding does). KL is
KL(start||new), exact over the vocabulary, mean over every third position of the held-out answers: the answers are the
data's, not the model's samples. Gold answers are GSM8K's own to held-out questions, ending in `A: <number>` as the
solutions do.

Last line, one JSON object (nats per token unless said; nwj against DPO):
  benchmark, steps, seeds, learning_rate, heldout_questions
  infopo_chosen_minus_dpo          held-out change of the chosen answers, the lowest seed's difference    (goal > 0)
  infopo_heldout_chosen, dpo_heldout_chosen                the same changes, means over seeds
  infopo_train_chosen              change of the training pairs' chosen answers, lowest seed              (goal >= 0)
  dpo_train_chosen                 the same under DPO, highest seed                                    (expected < 0)
  infopo_gold_nll_minus_dpo        loss of gold answers, highest seed's difference                        (goal < 0)
  infopo_accuracy_minus_dpo, _low, _high   held-out pair accuracy, mean over seeds, 95 % interval over questions
                                                                                                (goal: _high >= 0)
  infopo_kl_over_dpo               mean over seeds of the ratio of KL(start||new)

    HF_EXT_DATA=... python benchmarks/preference_reasoning.py            # resumable; about 75 minutes on one core
    HF_EXT_DATA=... python benchmarks/preference_reasoning.py --quick    # a minute, a tiny model, not the claim
"""

from __future__ import annotations

import gc
import os
import re
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import trl.trainer.utils
from common import data_folder, finish, parser, piece
from datasets import Dataset, load_dataset
from scorer import FrozenLower, Scorer
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from hf_ext.evaluation.intervals import Estimate, ratio_estimate
from hf_ext.trainers.infopo import InfoPOConfig, InfoPOTrainer

# Without Triton, TRL's head scores prompts and padding too, and masks them then. Left out here, for every arm.
trl.trainer.utils._use_triton = lambda device: True
trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = 2048  # tiles that fit a CPU's cache: the same values in half the time

MAX_LENGTH = 160
BATCH = 4
TOP_LAYERS = 4
LEARNING_RATES = (3e-5, 1e-4, 3e-4)
SIMPO_MARGIN = 1.0
ARMS: dict[str, dict[str, Any]] = {
    "nwj": {"estimator": "nwj", "beta": 0.1},
    "dpo": {"loss_type": ["sigmoid"], "beta": 0.1},
    "sft": {},
    "jsd": {"estimator": "jsd", "beta": 0.1},
    "ipo": {"loss_type": ["ipo"], "beta": 0.1},
    "simpo": {"loss_type": ["sigmoid_norm"], "beta": 2.0},
}
OTHERS: dict[str, dict[str, Any]] = {
    "nwj_mean_beta_10": {"estimator": "nwj", "beta": 10.0, "length_normalized": True},
    "infonce": {"estimator": "infonce", "beta": 0.1},
    "nwj_mixture": {"estimator": "nwj_mixture", "beta": 0.1},
    "lsif": {"estimator": "lsif", "beta": 0.1},
}


class GivenReferences(DPOTrainer):
    """`DPOTrainer` that takes reference log-probabilities from columns it is given, as `InfoPOTrainer` does."""

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset  # TRL would compute them again, for every arm


class Pairs:
    """Pairs with a scorer over their distinct answers and the start's log-probabilities of them."""

    def __init__(self, bench: Bench, pairs: Dataset) -> None:
        self.pairs = pairs
        rows: dict[tuple[str, str], int] = {}
        self.index = np.array(
            [[rows.setdefault((p["prompt"], p[side]), len(rows)) for side in ("chosen", "rejected")] for p in pairs]
        )
        tokens = [bench.tokens(*texts) for texts in rows]
        self.scorer = Scorer(bench.lower, bench.start, tokens)
        self.lengths = self.scorer.lengths
        names = list(dict.fromkeys(pairs["question"]))
        self.question = np.array([names.index(name) for name in pairs["question"]])

    def changes(self, model: Any, which: np.ndarray | None = None, with_kl: bool = False) -> dict[str, Any]:
        """Changes of chosen and rejected, pair accuracy by question, and the KL to the start."""
        index = self.index if which is None else self.index[which]
        scores = self.scorer.scores(model, sorted(set(index.ravel().tolist())), with_kl)
        change = (scores["logp"] - self.scorer.before)[index]  # (pairs, 2)
        result: dict[str, Any] = {"pairs": len(index)}
        for side, name in enumerate(("chosen", "rejected")):
            result[name] = float(change[:, side].sum() / self.lengths[index[:, side]].sum())
            result[f"{name}_per_sequence"] = float(change[:, side].mean())
        right = (change[:, 0] > change[:, 1]).astype(float)
        result |= {"chosen_dropped": float((change[:, 0] < 0).mean()), "accuracy": float(right.mean())}
        if with_kl:
            counts, hits = np.bincount(self.question), np.bincount(self.question, weights=right)
            result["accuracy_half_interval"] = ratio_estimate(hits, counts).half_width
            result["right_by_question"] = "".join(str(int(hit)) for hit in hits)
            result["pairs_by_question"] = "".join(str(int(count)) for count in counts)
            result["kl_start_to_new"] = float(np.average(scores["kl"], weights=self.lengths))
        result["dpo_loss"] = float(np.logaddexp(0, -0.1 * (change[:, 0] - change[:, 1])).mean())
        return result


class Bench:
    """One data set: its splits, the start model's scores of them, and the arms."""

    def __init__(self, model_path: str, work: Path, name: str, steps: int, sizes: dict[str, int], bf16: bool) -> None:
        self.work, self.name, self.steps, self.autocast = work, name, steps, bf16
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)
        file = work / f"{name}-{Path(model_path).name}-{TOP_LAYERS}-{bf16}.pt"
        self.lower = FrozenLower(model_path, TOP_LAYERS, bf16, self.tokenizer.pad_token_id, file)
        self.start = self.lower.top()
        how = {"steps": steps, "sizes": sizes, "bf16": bf16, "top_layers": TOP_LAYERS}
        self.settings = {"model": Path(model_path).name, "data": name} | how
        if name == "gsm8k":
            heldout, validation, train = self._gsm8k(sizes)
            self.validation: Pairs | None = Pairs(self, validation)
            self.gold = self._gold(set(heldout["question"]))
        else:
            heldout, train = (self._hh(split).select(range(sizes[split])) for split in ("test", "train"))
            self.validation, self.gold = None, []
        self.heldout = Pairs(self, heldout)
        if self.gold:
            self.gold_scorer = Scorer(self.lower, self.start, self.gold)
        self.train = Pairs(self, train)
        self.references = piece(work, f"{name}-references", self.settings, self._references)

    def tokens(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """Prompt and completion, with the end token, as TRL cuts them."""
        first = self.tokenizer(prompt)["input_ids"]
        eos = "" if completion.endswith(self.tokenizer.eos_token) else self.tokenizer.eos_token
        whole = self.tokenizer(prompt + completion + eos)["input_ids"]
        assert whole[: len(first)] == first, "the tokenizer merged prompt and completion"
        return first, whole[len(first) :]

    def _fits(self, row: dict[str, str]) -> bool:
        return all(sum(map(len, self.tokens(row["prompt"], row[side]))) <= MAX_LENGTH for side in row["sides"])

    def _short(self, rows: list[dict[str, Any]]) -> Dataset:
        return Dataset.from_list([{k: v for k, v in row.items() if k != "sides"} for row in rows if self._fits(row)])

    def _gsm8k(self, sizes: dict[str, int]) -> list[Dataset]:
        """Held-out, validation and training pairs, split by question in the file's order (which is shuffled)."""
        rows = [
            {
                "question": row["id"][: len("gsm8k-test-00000")],
                "prompt": _asked(row["prompt"][0]["content"]),
                "sides": ("chosen", "rejected"),
                **{side: " " + _plain(row[side][0]["content"]) for side in ("chosen", "rejected")},
            }
            for row in _read("gsm8k_solutions/preference_pairs")
        ]
        pairs = self._short(rows)
        questions = list(dict.fromkeys(pairs["question"]))
        first, second = sizes["heldout"], sizes["heldout"] + sizes["validation"]
        parts = [questions[:first], questions[first:second], questions[second : second + sizes["train"]]]
        splits = [pairs.filter(lambda row, own=set(part): row["question"] in own) for part in parts]
        return [_at_most(split, 2) for split in splits[:2]] + splits[2:]

    def _gold(self, questions: set[str]) -> list[tuple[list[int], list[int]]]:
        rows = [row for row in _read("gsm8k/test") if row["id"] in questions]
        texts = [(_asked(row["question"]), " " + re.sub(r"#### ", "A: ", _plain(row["answer"]))) for row in rows]
        tokens = [self.tokens(*pair) for pair in texts]
        return [pair for pair in tokens if sum(map(len, pair)) <= MAX_LENGTH]

    def _hh(self, split: str) -> Dataset:
        """Pairs whose prompt is the rendered conversation."""
        render = self.tokenizer.apply_chat_template
        rows = [
            {
                "question": row["id"],
                "prompt": render(row["prompt"], tokenize=False, add_generation_prompt=True),
                "sides": ("chosen", "rejected"),
                **{side: row[side][0]["content"] for side in ("chosen", "rejected")},
            }
            for row in _read(f"hh_rlhf_harmless/{split}")
        ]
        return self._short(rows)

    def _config(self, cls: type, seed: int, learning_rate: float, **extra: Any) -> Any:
        """The settings all arms share."""
        return cls(
            str(self.work / "out"),
            max_length=MAX_LENGTH,
            per_device_train_batch_size=BATCH,
            max_steps=self.steps,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=max(1, self.steps // 16),
            bf16=self.autocast,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            seed=seed,
            report_to="none",
            disable_tqdm=True,
            **extra,
        )

    def _references(self) -> dict[str, Any]:
        """Reference log-probabilities of all training pairs, by stock TRL."""
        config = self._config(DPOConfig, 0, 1e-5, precompute_ref_log_probs=True)
        rows = self.train.pairs
        trainer = DPOTrainer(self.lower.top(), args=config, train_dataset=rows, processing_class=self.tokenizer)
        ready = trainer.train_dataset
        for row, cut in zip(rows, ready, strict=True):
            for side in ("chosen", "rejected"):
                if self.tokens(row["prompt"], row[side]) != (cut["prompt_ids"], cut[f"{side}_ids"]):
                    sys.exit("The benchmark cuts text into other tokens than TRL.")
        return {side: list(map(float, ready[f"ref_{side}_logps"])) for side in ("chosen", "rejected")}

    def _drawn(self, seed: int) -> np.ndarray:
        """The training pairs of a seed, in order."""
        count = min(BATCH * self.steps, len(self.train.pairs))
        return np.random.default_rng(seed).permutation(len(self.train.pairs))[:count]

    def _trained(self, method: dict[str, Any], seed: int, learning_rate: float) -> tuple[Any, dict[str, Any]]:
        """The model after training, and its log."""
        model, rows = self.lower.top(), self.train.pairs.select(self._drawn(seed))
        if not method:
            rows = rows.rename_column("chosen", "completion").select_columns(["prompt", "completion"])
            host, config = SFTTrainer, self._config(SFTConfig, seed, learning_rate)
        else:
            host, cls = (InfoPOTrainer, InfoPOConfig) if "estimator" in method else (GivenReferences, DPOConfig)
            config = self._config(cls, seed, learning_rate, precompute_ref_log_probs=True, **method)
            drawn, extra = self._drawn(seed), np.zeros(len(rows))
            references = {side: np.array(self.references[side])[drawn] for side in ("chosen", "rejected")}
            if method.get("loss_type") == ["sigmoid_norm"]:  # SimPO: no reference, but a margin on the mean
                lengths = self.train.lengths[self.train.index[drawn, 0]]
                references = {"chosen": lengths * SIMPO_MARGIN / method["beta"], "rejected": extra}
            for side, values in references.items():
                rows = rows.add_column(f"ref_{side}_logps", values)
        trainer = host(model, args=config, train_dataset=rows, processing_class=self.tokenizer)
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        notes = {
            "grad_norm_first": log[0]["grad_norm"],
            "grad_norm_mean": fmean(entry["grad_norm"] for entry in log),
            "grad_norm_last": log[-1]["grad_norm"],
            "loss_first": log[0]["loss"],
            "loss_last": log[-1]["loss"],
        }
        del trainer
        gc.collect()
        return model, notes

    def arm(self, method: dict[str, Any], seed: int, learning_rate: float) -> dict[str, Any]:
        """Train and measure one arm."""
        model, notes = self._trained(method, seed, learning_rate)
        result = {
            "heldout": self.heldout.changes(model, with_kl=True),
            "train": self.train.changes(model, self._drawn(seed)),
            "notes": notes | {"lookup_error": self.heldout.scorer.lookup_error(model)},
        }
        if self.gold:
            gold, tokens = self.gold_scorer, self.gold_scorer.lengths.sum()
            sums = {"nll": gold.scores(model)["logp"], "nll_before": gold.before}
            result["gold"] = {name: -float(logp.sum() / tokens) for name, logp in sums.items()} | {
                "rows": len(gold.rows)
            }
        return result

    def swept(self, learning_rate: float) -> dict[str, Any]:
        """DPO at one learning rate, measured on validation questions alone."""
        assert self.validation is not None
        model, notes = self._trained(ARMS["dpo"], 100, learning_rate)
        return self.validation.changes(model) | notes


def _read(name: str) -> Dataset:
    return load_dataset("json", data_files=str(data_folder() / f"{name}.jsonl.gz"), split="train")


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def _plain(text: str) -> str:
    """Without the marks that call GSM8K's calculator: `48/2=<<48/2=24>>24` reads `48/2=24`."""
    return re.sub(r"<<[^>]*>>", "", text)


def _at_most(pairs: Dataset, count: int) -> Dataset:
    """The first `count` pairs of every question."""
    seen: dict[str, int] = {}
    keep = []
    for i, question in enumerate(pairs["question"]):
        seen[question] = seen.get(question, 0) + 1
        if seen[question] <= count:
            keep.append(i)
    return pairs.select(keep)


def row_of(arm: str, seed: int, data: str, result: dict[str, Any]) -> dict[str, Any]:
    """One flat row, as the headline is computed from."""
    flat = {
        f"{part}_{key}": value for part in ("heldout", "train", "gold") for key, value in result.get(part, {}).items()
    }
    return {"arm": arm, "seed": seed, "data": data, **flat, **result["notes"]}


def headline_of(rows: list[dict[str, Any]], steps: int, learning_rate: float) -> dict[str, Any]:
    """The headline from the rows of every arm and seed: nwj against DPO of the same seed."""
    by = {(row["arm"], row["seed"]): row for row in rows if row["data"] == "gsm8k"}
    seeds = sorted(seed for arm, seed in by if arm == "nwj")
    pairs = [(by["nwj", seed], by["dpo", seed]) for seed in seeds]
    accuracy = accuracy_difference(pairs)
    half = accuracy.half_width or 0.0
    values = {
        "infopo_chosen_minus_dpo": min(ours["heldout_chosen"] - dpo["heldout_chosen"] for ours, dpo in pairs),
        "infopo_heldout_chosen": fmean(ours["heldout_chosen"] for ours, _ in pairs),
        "dpo_heldout_chosen": fmean(dpo["heldout_chosen"] for _, dpo in pairs),
        "infopo_train_chosen": min(ours["train_chosen"] for ours, _ in pairs),
        "dpo_train_chosen": max(dpo["train_chosen"] for _, dpo in pairs),
        "infopo_gold_nll_minus_dpo": max(ours["gold_nll"] - dpo["gold_nll"] for ours, dpo in pairs),
        "infopo_accuracy_minus_dpo": accuracy.mean,
        "infopo_accuracy_minus_dpo_low": accuracy.mean - half,
        "infopo_accuracy_minus_dpo_high": accuracy.mean + half,
        "infopo_kl_over_dpo": fmean(
            ours["heldout_kl_start_to_new"] / dpo["heldout_kl_start_to_new"] for ours, dpo in pairs
        ),
    }
    return {
        "benchmark": "preference_reasoning",
        "steps": steps,
        "seeds": len(seeds),
        "learning_rate": learning_rate,
        "heldout_questions": len(pairs[0][0]["heldout_right_by_question"]),
        **{key: round(value, 5) for key, value in values.items()},
    }


def accuracy_difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Estimate:
    """Pair accuracy of the first row less the second's, over all held-out pairs and seeds, clustered by question."""
    hits = [
        [int(a) - int(b) for a, b in zip(x["heldout_right_by_question"], y["heldout_right_by_question"], strict=True)]
        for x, y in pairs
    ]
    counts = [int(count) for count in pairs[0][0]["heldout_pairs_by_question"]]
    return ratio_estimate(np.mean(hits, axis=0), counts)


def table_of(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, one line an arm and data set; changes in nats per token."""
    columns = {
        "held-out": "heldout_chosen",
        "rejected": "heldout_rejected",
        "nats/seq": "heldout_chosen_per_sequence",
        "down": "heldout_chosen_dropped",
        "accuracy": "heldout_accuracy",
        "KL": "heldout_kl_start_to_new",
        "train": "train_chosen",
        "rejected ": "train_rejected",
        "gold NLL": "gold_nll",
        "grad norm": "grad_norm_mean",
    }
    lines = [f"{'data':8}{'arm':20}{'seeds':>6}" + "".join(f"{title:>11}" for title in columns)]
    for data, arm in dict.fromkeys((row["data"], row["arm"]) for row in rows):
        own = [row for row in rows if (row["data"], row["arm"]) == (data, arm)]
        means = [fmean(row[key] for row in own) if key in own[0] else float("nan") for key in columns.values()]
        lines.append(f"{data:8}{arm:20}{len(own):6}" + "".join(f"{value:11.4f}" for value in means))
    return "\n".join(lines)


def run_arms(bench: Bench, arms: dict[str, dict[str, Any]], seeds: int, learning_rate: float) -> list[dict[str, Any]]:
    """Every arm and seed that is missing, one progress line each."""
    rows = []
    for arm, method in arms.items():
        for seed in range(seeds):
            settings = bench.settings | {"lr": learning_rate, "arm": arm, "method": method, "seed": seed}
            run = lambda method=method, seed=seed: bench.arm(method, seed, learning_rate)  # noqa: E731
            result = piece(bench.work, f"{bench.name}-{arm}-{seed}", settings, run)
            rows.append(row_of(arm, seed, bench.name, result) | {"seconds": result["seconds"]})
            print(table_of(rows[-1:]), flush=True, file=sys.stderr)
    return rows


def main() -> None:
    """Run every missing piece, then print the table and the headline."""
    options = parser(__doc__ or "", "preference_reasoning")
    options.add_argument("--steps", type=int, default=32)
    options.add_argument("--seeds", type=int, default=3)
    args = options.parse_args()
    gsm8k, hh = {"heldout": 120, "validation": 30, "train": 94}, {"test": 100, "train": 250}
    steps, seeds, bf16 = args.steps, args.seeds, True
    if args.quick:
        model_path, steps, seeds, bf16 = _quick(args.work), 2, 1, False
        gsm8k, hh = {"heldout": 4, "validation": 2, "train": 4}, {"test": 4, "train": 8}
    else:
        from hf_ext.demo.model import embedded_model

        model_path = str(embedded_model())
    bench = Bench(model_path, args.work, "gsm8k", steps, gsm8k, bf16)
    sweep = {
        lr: piece(bench.work, f"lr-{lr:g}", bench.settings | {"lr": lr}, lambda lr=lr: bench.swept(lr))
        for lr in LEARNING_RATES
    }
    learning_rate = min(sweep, key=lambda lr: sweep[lr]["dpo_loss"])
    losses = {str(lr): result["dpo_loss"] for lr, result in sweep.items()}
    print(f"DPO's loss on validation questions by learning rate: {losses}; taken: {learning_rate}", file=sys.stderr)
    rows = run_arms(bench, ARMS, seeds, learning_rate)
    others = run_arms(bench, OTHERS, 1, learning_rate)
    harmless = Bench(model_path, args.work, "hh", steps, hh, bf16)
    others += run_arms(harmless, ARMS, 1, learning_rate)
    print(table_of(rows + others))
    result = {"settings": [bench.settings, harmless.settings], "learning_rates": losses, "sweep": sweep}
    result |= {"rows": rows, "others": others}
    finish(args, result, headline_of(rows, steps, learning_rate))


def _quick(work: Path) -> str:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.tiny import tiny_model, tiny_tokenizer

    folder = work / "tiny"
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    global MAX_LENGTH, TOP_LAYERS
    MAX_LENGTH, TOP_LAYERS = 600, 1  # the tiny tokenizer cuts text into single bytes
    return str(folder)


if __name__ == "__main__":
    main()
