"""
Do LoRA experts by EM find the sources of mixed rows, and what does that gain on held-out rows?

SmolLM2-135M-Instruct, float32; 240 rows of at most 96 tokens, a third each of GSM8K (question, answer), instructions
(instruction, response) and WikiText-2 (the first words of a passage, the rest); the sources are known to the
benchmark alone. Adapters on query, value and MLP projections of the last six layers; the other layers are frozen, so
that their output is computed once a row. Arms, each with three rounds of two epochs, batch 8 and one learning rate:

- `mixture`: three adapters of rank 8, by EM;
- `single`: one adapter of rank 24 on all rows, with as many epochs;
- `sources`: three adapters of rank 8, each on the rows of its true source, and asked for held-out rows of that source.

The loss of the mixture is -log sum_i g_i(x) p_i(y|x); routed, that of the expert that the gate finds most probable.

Last line, one JSON object (nats per token of held-out completions; no goal):
  benchmark, rows, held_out
  mixture_minus_single_nats       negative: the mixture is better
  routed_minus_single_nats
  mixture_minus_sources_nats      what is lost by not knowing the sources
  original_minus_single_nats      what tuning gains at all
  routing_purity                  share of held-out rows that go where most of an expert's rows have their source

    HF_EXT_DATA=... python benchmarks/moe_lora.py            # resumable, inside an arm too; an hour on 2 cores
    HF_EXT_DATA=... python benchmarks/moe_lora.py --quick    # a minute, a tiny model, not the claim
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from common import data_folder, finish, parser, piece
from datasets import Dataset, concatenate_datasets, load_dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_ext.data.sft_rows import prepare_sft_rows
from hf_ext.data.weighting import score_rows
from hf_ext.rounds.lora_mixture import LoraMixtureTrainer
from hf_ext.trainers.moe_lora import LoraMixtureConfig

SOURCES = ("gsm8k", "instructions", "wikitext")
RANK = 8
PASSAGE_WORDS = 90


class FrozenLayers(torch.nn.Module):
    """The first layers of a model, which nothing trains: their output is computed once a row and looked up later."""

    def __init__(self, layers: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = tuple(layers)  # no ModuleList: PEFT must not see them
        self.states: dict[tuple[int, ...], Tensor] = {}
        self.rows: list[tuple[int, ...]] = []

    def watch(self, body: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the body's forward: the tokens of its rows, without the padding on their right."""
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        self.rows = [tuple(row[keep.bool()].tolist()) for row, keep in zip(ids, mask, strict=True)]

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Output of the last of these layers; zero on padding, where nobody looks."""
        with torch.no_grad():
            if any(row not in self.states for row in self.rows):
                states = hidden_states
                for layer in self.layers:
                    states = layer(states, **kwargs)
                self.states |= {row: states[i, : len(row)].clone() for i, row in enumerate(self.rows)}
            output = torch.zeros_like(hidden_states)
            for i, row in enumerate(self.rows):
                output[i, : len(row)] = self.states[row]
        return output


def freeze_layers(model: Any, trained_layers: int) -> FrozenLayers:
    """Put [`FrozenLayers`] in the place of all but the last layers of a Llama, in place."""
    body = model.model
    frozen = FrozenLayers(body.layers[:-trained_layers])
    body.layers = torch.nn.ModuleList([frozen, *body.layers[-trained_layers:]])
    model.config.num_hidden_layers = 1 + trained_layers
    body.register_forward_pre_hook(frozen.watch, with_kwargs=True)
    return frozen


class Bench:
    """Model, rows and settings of one run."""

    def __init__(
        self,
        model_path: str,
        work: Path,
        *,
        per_source: int,
        max_length: int,
        trained_layers: int,
        rounds: int,
        epochs: int,
    ) -> None:
        self.work = work
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        freeze_layers(self.model, trained_layers)
        self.settings = {
            "model": Path(model_path).name, "per_source": per_source, "max_length": max_length,
            "trained_layers": trained_layers, "rounds": rounds, "epochs": epochs, "batch": 8, "learning_rate": 5e-4,
        }  # fmt: skip
        rows = {name: self._rows(name, per_source * 3 // 2) for name in SOURCES}
        self.train = {name: part.select(range(per_source)) for name, part in rows.items()}
        self.held_out = {name: part.select(range(per_source, len(part))) for name, part in rows.items()}

    def arm(self, name: str, sources: Sequence[str], experts: int, rank: int) -> dict[str, Any]:
        """Train on the rows of some sources; held-out losses and, of a mixture, where the gate sends held-out rows."""
        held_out = concatenate_datasets([self.held_out[source] for source in sources])
        trainer = LoraMixtureTrainer(
            self.model,
            self._config(name, experts),
            concatenate_datasets([self.train[source] for source in sources]),
            held_out,
            self.tokenizer,
            self._adapter(rank),
        )
        mixture = trainer.train()
        figures = trainer.run_folder.results(f"round-{self.settings['rounds'] + 1:03d}/responsibilities")
        prompts = [self.tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in held_out["prompt"]]
        routes = [int(mixture.gate_probabilities(prompt).argmax()) for prompt in prompts]
        mixture.model.unload()
        print(trainer.table(), file=sys.stderr)
        return {
            "arm": name,
            "nll": figures["eval_nll"],
            "routed_nll": figures["eval_routed_nll"],
            "tokens": self._tokens(held_out),
            "shares": figures["shares"],
            "routes": [
                {"source": source, "expert": expert}
                for source, expert in zip(
                    [source for source in sources for _ in range(len(self.held_out[source]))], routes, strict=True
                )
            ],
        }

    def original(self) -> dict[str, Any]:
        """Held-out loss of the model as it came."""
        rows = self._prepared(concatenate_datasets([self.held_out[source] for source in SOURCES]))
        scores = score_rows(self.model, rows, pad_token_id=self.tokenizer.pad_token_id)
        tokens = sum(counts[0] for _, counts in scores)
        return {"arm": "original", "nll": sum(nats[0] for nats, _ in scores) / tokens, "tokens": tokens}

    def _tokens(self, rows: Dataset) -> int:
        return sum(label != -100 for labels in self._prepared(rows)["labels"] for label in labels[1:])

    def _prepared(self, rows: Dataset) -> Dataset:
        return prepare_sft_rows(rows, self.tokenizer, self._config("none", 1), dataset_name="eval")

    def _rows(self, source: str, count: int) -> Dataset:
        """The first rows of a source whose prompt takes at most half of the tokens."""
        rows: list[dict[str, str]] = []
        for prompt, completion in pairs_of(source):
            prompt = f"{prompt}\n"
            if len(self.tokenizer(prompt)["input_ids"]) <= self.settings["max_length"] // 2:
                rows.append({"prompt": prompt, "completion": completion})
            if len(rows) == count:
                return Dataset.from_list(rows)
        raise ValueError(f"{source} has {len(rows)} rows with short prompts, {count} are needed")

    def _config(self, name: str, experts: int) -> LoraMixtureConfig:
        settings = self.settings
        return LoraMixtureConfig(
            output_dir=str(self.work / name),
            num_experts=experts,
            rounds=settings["rounds"],
            max_length=settings["max_length"],
            num_train_epochs=settings["epochs"],
            per_device_train_batch_size=settings["batch"],
            per_device_eval_batch_size=settings["batch"],
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            save_strategy="steps",
            save_steps=20,
            save_total_limit=1,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            seed=0,
        )

    def _adapter(self, rank: int) -> LoraConfig:
        names = "q_proj|v_proj|gate_proj|up_proj|down_proj"
        return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=rf".*\.({names})", task_type="CAUSAL_LM")


def pairs_of(source: str) -> list[tuple[str, str]]:
    """Prompts and completions of a source, in the file's order."""
    files = {
        "gsm8k": "gsm8k/train.jsonl.gz",
        "instructions": "instructions_dolly_hhrlhf/train.jsonl.gz",
        "wikitext": "wikitext2/validation.jsonl.gz",
    }
    raw = load_dataset("json", data_files=str(data_folder() / files[source]), split="train")
    pairs: list[tuple[str, str]] = []
    for row in raw:
        if source == "gsm8k":
            pairs.append((row["question"], row["answer"]))
        elif source == "instructions":
            user, assistant = (message["content"] for message in row["messages"][:2])
            pairs.append((user, assistant))
        else:
            words = row["text"].split()
            passages = [words[start : start + PASSAGE_WORDS] for start in range(0, len(words), PASSAGE_WORDS)]
            whole = [passage for passage in passages if len(passage) == PASSAGE_WORDS]
            pairs += [(" ".join(passage[:20]), " ".join(passage[20:])) for passage in whole[:3]]
    return pairs


def purity_of(routes: Sequence[dict[str, Any]]) -> float:
    """Share of rows whose source is the most frequent one of their expert."""
    counts = Counter((route["expert"], route["source"]) for route in routes)
    experts = {route["expert"] for route in routes}
    largest = [max(count for (expert, _), count in counts.items() if expert == number) for number in experts]
    return sum(largest) / len(routes)


def headline_of(rows: Sequence[dict[str, Any]], train_rows: int) -> dict[str, Any]:
    """The headline from the rows of the arms."""
    by_arm = {row["arm"]: row for row in rows}
    sources = [by_arm[f"source-{name}"] for name in SOURCES]
    tokens = sum(row["tokens"] for row in sources)
    sources_nll = sum(row["nll"] * row["tokens"] for row in sources) / tokens
    mixture = by_arm["mixture"]
    single_nll = by_arm["single"]["nll"]
    return {
        "benchmark": "moe_lora",
        "rows": train_rows,
        "held_out": len(mixture["routes"]),
        "mixture_minus_single_nats": round(mixture["nll"] - single_nll, 4),
        "routed_minus_single_nats": round(mixture["routed_nll"] - single_nll, 4),
        "mixture_minus_sources_nats": round(mixture["nll"] - sources_nll, 4),
        "original_minus_single_nats": round(by_arm["original"]["nll"] - single_nll, 4),
        "routing_purity": round(purity_of(mixture["routes"]), 4),
    }


def main() -> None:
    """Run every arm that is missing, print its table, then the headline."""
    options = parser(__doc__ or "", "moe_lora")
    args = options.parse_args()
    bench = _quick(args.work) if args.quick else _whole(args.work)
    arms = {"mixture": (SOURCES, len(SOURCES), RANK), "single": (SOURCES, 1, len(SOURCES) * RANK)}
    arms |= {f"source-{name}": ((name,), 1, RANK) for name in SOURCES}
    rows = [piece(args.work, "original", bench.settings, bench.original)]
    for name, (sources, experts, rank) in arms.items():
        run = lambda name=name, sources=sources, experts=experts, rank=rank: bench.arm(name, sources, experts, rank)  # noqa: E731
        rows.append(piece(args.work, name, bench.settings, run))
    for row in rows:
        print(f"{row['arm']:22}{row['nll']:8.4f} nats per token of {row['tokens']:,} ({row['seconds']:,.0f} s)")
    train_rows = sum(len(part) for part in bench.train.values())
    finish(args, {"settings": bench.settings, "rows": rows}, headline_of(rows, train_rows))


def _whole(work: Path) -> Bench:
    from hf_ext.demo.model import embedded_model

    return Bench(str(embedded_model()), work, per_source=80, max_length=96, trained_layers=6, rounds=3, epochs=2)


def _quick(work: Path) -> Bench:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.tiny import tiny_model, tiny_tokenizer

    folder = work / "tiny"
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The tiny tokenizer cuts text into single bytes.
    return Bench(str(folder), work, per_source=4, max_length=448, trained_layers=1, rounds=1, epochs=1)


if __name__ == "__main__":
    main()
