"""The benchmark of LoRA experts: its frozen layers are those of the model, its headline is plain arithmetic."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import moe_lora

        yield moe_lora
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        sys.modules.pop("moe_lora", None)


def test_layers_looked_up_give_the_logits_of_the_model(benchmark):
    model = tiny_model(tiny_tokenizer(), layers=3)
    ids = torch.tensor([[7, 8, 9, 10, 11], [12, 13, 14, 0, 0], [15, 16, 17, 18, 0]])
    mask = (ids != 0).long()
    expected = [model(row[keep.bool()][None]).logits[0] for row, keep in zip(ids, mask, strict=True)]
    frozen = benchmark.freeze_layers(model, trained_layers=1)
    for rows in ([0, 1, 2], [2, 0], [1]):  # the later ones from memory, padded otherwise
        width = int(mask[rows].sum(1).max())
        inputs = {"input_ids": ids[rows][:, :width], "attention_mask": mask[rows][:, :width]}
        logits = model(**inputs, use_cache=False).logits
        for place, row in enumerate(rows):
            torch.testing.assert_close(logits[place, : len(expected[row])], expected[row], atol=1e-5, rtol=1e-4)
    assert len(frozen.states) == 3
    assert not any("layers.0." in name for name, _ in model.model.named_parameters())


def test_the_headline_is_made_of_differences_and_counts(benchmark):
    routes = [("gsm8k", 0), ("gsm8k", 0), ("gsm8k", 1), ("instructions", 1), ("instructions", 1), ("wikitext", 0)]
    rows = [{"arm": "original", "nll": 3.0, "tokens": 60}, {"arm": "single", "nll": 2.5, "tokens": 60}]
    rows += [
        {"arm": f"source-{name}", "nll": nll, "tokens": tokens}
        for name, nll, tokens in zip(benchmark.SOURCES, (1.0, 2.0, 3.0), (10, 20, 30), strict=True)
    ]
    mixture = {"arm": "mixture", "nll": 2.25, "routed_nll": 2.375, "tokens": 60}
    rows.append(mixture | {"routes": [{"source": source, "expert": expert} for source, expert in routes]})
    assert benchmark.headline_of(rows, 240) == {
        "benchmark": "moe_lora",
        "rows": 240,
        "held_out": 6,
        "mixture_minus_single_nats": -0.25,
        "routed_minus_single_nats": -0.125,
        "mixture_minus_sources_nats": round(2.25 - 140 / 60, 4),
        "original_minus_single_nats": 0.5,
        "routing_purity": round(4 / 6, 4),
    }


def test_the_committed_headline_follows_from_its_rows(benchmark):
    result = json.loads((ROOT / "benchmarks" / "results" / "moe_lora.json").read_text(encoding="utf-8"))
    assert result["headline"] == benchmark.headline_of(result["rows"], 3 * result["settings"]["per_source"])
