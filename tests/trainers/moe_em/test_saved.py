"""What a training on texts leaves behind: a folder that stock classes open, cached features, and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from hf_ext.cli import main
from hf_ext.hub.push import files_to_push
from hf_ext.moe.partition import PartitionReport
from tests.moe.models import tiny_encoder
from tests.tiny import tiny_tokenizer
from tests.trainers.mixtures import feature_rows, mixture_trainer, text_rows
from tests.trainers.runs import assert_same_weights

SETTINGS = {"num_experts": 2, "ridge": 1e-2, "max_steps": 6, "model_license": "apache-2.0"}


@pytest.fixture
def on_texts(tmp_path: Path, vectors_in: Path) -> Any:
    trainer = mixture_trainer(tmp_path / "out", text_rows(60), (tiny_encoder(), tiny_tokenizer()), **SETTINGS)
    trainer.train()
    trainer.save_model()
    return trainer


def test_the_folder_opens_with_the_stock_pipeline_and_gives_the_trainer_s_predictions(
    on_texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    rows = text_rows(60)
    expected = torch.from_numpy(on_texts.predict(rows).predictions)
    answers = pipeline("text-classification", str(out))(rows["text"][:5], top_k=None)
    for answer, log_probs in zip(answers, expected, strict=False):
        scores = {entry["label"]: entry["score"] for entry in answer}
        assert scores == pytest.approx(
            {"late": float(log_probs[0].exp()), "early": float(log_probs[1].exp())}, abs=1e-5
        )
    assert_same_weights(AutoModelForSequenceClassification.from_pretrained(out), on_texts.model)
    assert_same_weights(AutoModel.from_pretrained(out / "encoder"), tiny_encoder())
    accuracy = float((expected.argmax(-1).numpy() == np.array(rows["label"])).mean())
    assert accuracy > max(np.bincount(rows["label"])) / 60

    card = ModelCard.load(out / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-classification"
    assert {"hf-ext", "moe_em", "mixture-of-experts"} <= set(card.data.tags)
    assert "opens after `import hf_ext`" in card.text
    assert f"| `iterations` | {on_texts.fit_result.iterations} |" in card.text
    assert str(tmp_path) not in card.content


def test_features_are_computed_once_and_found_again(
    on_texts: Any, tmp_path: Path, vectors_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = (vectors_in / "hf_ext_pruning").glob("*.npy")
    vectors = np.load(file)
    assert np.array_equal(on_texts.train_rows.features, vectors)
    with torch.no_grad():
        inputs = tiny_tokenizer()(text_rows(60)["text"][:3], padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        assert torch.allclose(on_texts.model.features(**inputs), torch.from_numpy(vectors[:3]), atol=1e-5)
    encoder = tiny_encoder()
    monkeypatch.setattr(encoder, "forward", None)  # calling it would fail
    again = mixture_trainer(tmp_path / "again", text_rows(60), (encoder, tiny_tokenizer()), **SETTINGS)
    again.train()
    assert_same_weights(again.model.mixture, on_texts.model.mixture)


def test_who_handles_what_is_written_shown_by_the_command_line_and_kept_from_the_hub(
    on_texts: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    report = on_texts.plot_partition(out)
    assert sum(part.rows for part in report.experts) == 60
    texts = text_rows(60)["text"]
    for part in report.experts:
        assert part.share == pytest.approx(float(on_texts.fit_result.shares[part.expert]), abs=1e-3)
        assert all(texts[row.row].startswith(row.excerpt.strip("'")[:20]) for row in part.typical)
    assert {f"partition.{suffix}" for suffix in ("json", "md", "svg", "png")} <= {path.name for path in out.iterdir()}
    pushed = set(files_to_push(out))
    assert {"partition.svg", "model.safetensors", "encoder/model.safetensors"} <= pushed
    assert not {"partition.json", "partition.md"} & pushed

    assert main(["eval", "moe", str(out), "--json"]) == 0
    assert PartitionReport.from_dict(json.loads(capsys.readouterr().out)) == report
    text_rows(60).to_json(tmp_path / "rows.jsonl")
    capsys.readouterr()
    command = ["eval", "moe", str(out), "--dataset", str(tmp_path / "rows.jsonl"), "--label-column", "label"]
    assert main([*command, "--json", "--plot", "--output", str(tmp_path / "report")]) == 0
    computed = PartitionReport.from_dict(json.loads(capsys.readouterr().out))
    for ours, theirs in zip(computed.experts, report.experts, strict=True):
        assert ours.rows == theirs.rows
        assert ours.accuracy == pytest.approx(theirs.accuracy)
        assert ours.share == pytest.approx(theirs.share, abs=1e-4)
    assert (tmp_path / "report" / "partition.svg").is_file()


def test_the_command_line_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["eval", "moe", str(tmp_path / "empty")]) == 2
    assert (
        "has no partition.json, which plot_partition of the trainer writes: give --dataset" in capsys.readouterr().err
    )
    assert main(["eval", "moe", str(tmp_path / "none")]) == 2
    assert "none' is no folder here: name the one that training wrote" in capsys.readouterr().err
    assert main(["eval", "moe", str(tmp_path / "none"), "--plot"]) == 2
    assert "is no folder here: name one for the plot with --output" in capsys.readouterr().err


def test_a_folder_of_features_alone_says_how_it_is_used(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = feature_rows(40, "linear, two numbers, own variances")
    trainer = mixture_trainer(tmp_path / "out", rows, num_experts=2, shared_variance=False, max_steps=3)
    trainer.train()
    trainer.save_model()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 2)
    given = torch.tensor(rows["embeddings"][:])
    with torch.no_grad():
        logits = model(embeddings=given).logits
    assert torch.allclose(logits, torch.from_numpy(trainer.predict(rows).predictions), atol=1e-5)
    rows.to_parquet(tmp_path / "rows.parquet")
    assert main(["eval", "moe", str(tmp_path / "out"), "--dataset", str(tmp_path / "rows.parquet")]) == 0
    assert "| expert | share | rows |" in capsys.readouterr().out
    assert trainer.predict(rows.remove_columns(["label", "weight"])).label_ids is None
    assert "model(embeddings=" in (tmp_path / "out" / "README.md").read_text()
