"""`hf-ext data`: the files it writes hold what the library computes, and what it prints is true."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_ext.cli import main
from hf_ext.data.loading import load_rows
from tests.data.backends.engines import PlainEngine
from tests.data.backends.server import Server

FLOW = shlex.split("data flow-weights --model original --dataset train.jsonl --device cpu")
SAMPLE = shlex.split(
    "data context-free --model original --output store --batch-size 4 --max-new-tokens 16 --device cpu"
)


def completion_losses(folder, rows):
    """Mean loss of each completion and its end token, by a plain forward, in nats per token."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    losses = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[len(prompt) :])).item())
    return np.array(losses)


@pytest.mark.parametrize("output", ["weighted.parquet", "weighted.jsonl", "weighted"])
def test_weights_are_exp_of_minus_loss_over_the_median_in_every_format(work, capsys, output):
    assert main([*FLOW, "--output", output]) == 0
    written = load_rows(output)
    losses = completion_losses(work / "original", written)
    tau = float(np.median(losses))
    tokens = np.array(written["original_num_tokens"])
    expected = np.exp(-losses / tau)
    np.testing.assert_allclose(written["weight"], expected / np.average(expected, weights=tokens), rtol=1e-4)
    ess = np.sum(written["weight"]) ** 2 / (24 * np.sum(np.square(written["weight"])))
    out = capsys.readouterr().out
    assert f"tau {tau:.4f} nats/token\nESS/n {ess:.3f}\n" in out
    assert re.search(r"weights 0\.\d+ \|[ ▁▂▃▄▅▆▇█]{10}\| 1\.\d+", out)
    assert "24 rows written" in out


def test_an_ess_rule_and_a_number_are_taken(work, capsys):
    assert main([*FLOW, "--tau", "ess:0.8", "--output", "a.jsonl"]) == 0
    weights = np.array(load_rows("a.jsonl")["weight"])
    assert weights.sum() ** 2 / (24 * (weights**2).sum()) == pytest.approx(0.8, abs=1e-6)
    assert main([*FLOW, "--tau", "2.5", "--output", "b.jsonl"]) == 0
    assert "tau 2.5000" in capsys.readouterr().out


def test_the_papers_scale_a_floor_and_sources_are_the_librarys(work, capsys):
    rows = load_rows("train.jsonl").add_column("kind", ["first", "second"] * 12)
    rows.to_json("kinds.jsonl")
    more = ["--weight-scale", "none", "--flow-floor", "0.99", "--source-column", "kind"]
    assert main([*FLOW, "--dataset", "kinds.jsonl", *more, "--output", "w.jsonl"]) == 0
    out = capsys.readouterr().out
    written = load_rows("w.jsonl")
    losses = completion_losses(work / "original", written)
    for start, kind in enumerate(("first", "second")):
        tau = float(np.median(losses[start::2]))
        assert f"{kind}: tau {tau:.4f} nats/token" in out
        above = np.exp(-losses[start::2] / tau)
        weights = np.array(written["weight"])[start::2]
        np.testing.assert_allclose(weights, np.maximum(above, weights.min()), rtol=1e-4)
        assert weights.min() > above.min() * 1.001, "the floor lifts nothing"
        mean = np.average(weights, weights=np.array(written["original_num_tokens"])[start::2])
        assert weights.min() == pytest.approx(0.99 * mean, rel=1e-9)


def test_the_result_trains_with_weighted_sft(work):
    from tests.recipes.work import SMALL

    assert main([*FLOW, "--output", "weighted"]) == 0
    more = ["--dataset_name", "weighted", "--normalize", "tokens", "--output_dir", "out", "--report_to", "none"]
    assert main(["train", "weighted_sft", *SMALL, *more]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "x.txt"], ["x.txt", ".parquet"]),
        (["--output", "original"], ["--output 'original' is the --model 'original' itself, which would be lost"]),
        (["--output", "x.jsonl", "--model", "nowhere"], ["model 'nowhere' cannot be loaded"]),
        (["--output", "x.jsonl", "--model", "classifier"], ["model 'classifier' reads a text in both directions"]),
        (["--output", "x.jsonl", "--dataset", "none.jsonl"], ["none.jsonl", "no such file"]),
        (["--output", "x.jsonl", "--split", "dev"], ["'dev'", "['train']"]),
        (["--output", "x.jsonl", "--device", "cuda:7"], ["cuda:7"]),
    ],
)
def test_wrong_arguments_to_flow_weights_are_status_2(work, capsys, arguments, words):
    assert main([*FLOW, *arguments]) == 2
    err = capsys.readouterr().err
    message = err[err.index("hf-ext data flow-weights: error:") :]
    assert message.count("\n") == 1
    assert all(word in message for word in words)


def test_a_bad_row_is_named(work, capsys):
    (work / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": null}\n')
    assert main([*FLOW, "--dataset", "bad.jsonl", "--output", "x.jsonl"]) == 2
    assert "row 1, column 'completion'" in capsys.readouterr().err


def test_sampling_prints_speed_and_store_and_the_second_call_has_nothing_to_do(work, capsys):
    assert main([*SAMPLE, "--num-tokens", "100"]) == 0
    out = capsys.readouterr().out
    manifest = json.loads((work / "store" / "manifest.json").read_text())
    assert manifest["tokens"] >= 100
    assert f"{manifest['tokens']:,} tokens in {manifest['rows']:,} rows" in out
    assert re.search(r"\([\d,]+ tokens/s\)", out)
    assert "store: store" in out
    assert main([*SAMPLE, "--num_tokens", "100"]) == 0  # the other spelling
    assert "0 of them now (nothing was left to sample)" in capsys.readouterr().out


def test_seeds_are_mixed_and_prompts_and_real_texts_are_stored(work, capsys):
    mixed = ["--num-tokens", "100", "--start", "bos=0.5", "--start", "chat=0.5", "--temperature", "0.7"]
    assert main([*SAMPLE, *mixed]) == 0
    manifest = json.loads((work / "store" / "manifest.json").read_text())
    assert [(start["name"], start["share"], start["ends"]) for start in manifest["starts"]] == [
        ("bos", 0.5, 1), ("chat", 0.5, 2),
    ]  # fmt: skip
    assert manifest["temperature"] == 0.7
    # the last --output counts
    assert main([*SAMPLE, "--num-tokens", "60", "--prompts", "train.jsonl", "--output", "contextual"]) == 0
    assert main([*SAMPLE, "--replay", "general.jsonl", "--output", "replay"]) == 0
    kinds = {
        name: json.loads((work / name / "manifest.json").read_text())["kind"] for name in ("contextual", "replay")
    }
    assert kinds == {"contextual": "contextual", "replay": "replay"}
    capsys.readouterr()
    for words, problem in (
        (["--num-tokens", "9", "--start", "bos", "--prompts", "train.jsonl"], "give one of --start, --prompts"),
        (["--start", "bos"], "give --num-tokens, or --replay"),
        (
            ["--num-tokens", "9", "--start", "bos", "--start", "chat=1"],
            "'bos': of several starts each needs its share",
        ),
    ):
        assert main([*SAMPLE, "--output", "other", *words]) == 2
        assert problem in capsys.readouterr().err
    assert not (work / "other").exists()


def test_a_larger_number_continues_and_other_settings_are_refused(work, capsys):
    assert main([*SAMPLE, "--num-tokens", "50"]) == 0
    first = json.loads((work / "store" / "manifest.json").read_text())["tokens"]
    assert main([*SAMPLE, "--num-tokens", str(first + 50)]) == 0
    assert json.loads((work / "store" / "manifest.json").read_text())["tokens"] >= first + 50
    assert main([*SAMPLE, "--num-tokens", "50", "--seed", "9"]) == 2
    assert "seed was 0, is 9" in capsys.readouterr().err


def test_histogram_bars_follow_the_counts(capsys):
    from hf_ext.cli.data import BARS, _print_weights

    weights = np.repeat([0.05, 0.55, 0.95], [80, 1, 40])  # ten intervals of 0.09: first, sixth and last
    _print_weights(weights)
    bars = re.search(r"\|(.{10})\|", capsys.readouterr().out).group(1)
    assert (bars[0], bars[5], bars[9]) == (BARS[7], BARS[0], BARS[4])
    assert bars.count(" ") == 7


def test_context_free_rows_come_from_a_server_and_then_from_the_model_itself(work, capsys):
    model = AutoModelForCausalLM.from_pretrained("original")
    with Server(PlainEngine(model)) as server:
        from_server = ["--backend", "completions", "--backend-url", server.url]
        assert main([*SAMPLE, "--num-tokens", "300", *from_server]) == 0
    assert main([*SAMPLE, "--num-tokens", "900", "--backend", "continuous_batching"]) == 0
    shards = json.loads((work / "store" / "manifest.json").read_text())["shards"]
    names = [shard["backend"]["name"] for shard in shards]
    assert set(names) == {"completions", "continuous_batching"}
    with Server(PlainEngine(model, change=lambda logits: logits * 3)) as server:
        refused = ["--backend", "completions", "--backend-url", server.url]
        assert main([*SAMPLE, "--num-tokens", "5000", *refused]) == 1
    assert "error: The backend completions is refused" in capsys.readouterr().err
    assert len(json.loads((work / "store" / "manifest.json").read_text())["shards"]) == len(shards)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--backend", "completions"], "needs the url of its server"),
        (["--backend-url", "http://localhost:1"], "no other one takes any"),
        (["--backend", "completions", "--backend-url", "ftp://x"], "looks like http://localhost:8000"),
        (["--replay", "general.jsonl", "--backend", "continuous_batching"], "--replay stores real texts"),
    ],
)
def test_a_backend_that_cannot_be_used_is_refused_in_one_line(work, capsys, more, words):
    tokens = [] if "--replay" in more else ["--num-tokens", "100"]
    assert main([*SAMPLE, *tokens, *more]) == 2
    assert words in capsys.readouterr().err
