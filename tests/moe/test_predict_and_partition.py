"""Who handles what: columns of a dataset, and the report with its plot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset

from hf_ext.guards.models import ModelFilesError
from hf_ext.guards.rows import RowError
from hf_ext.moe.modeling_moe import MoEForSequenceClassification
from hf_ext.moe.parameters import MixtureParameters
from hf_ext.moe.partition import PartitionReport, partition_report
from hf_ext.moe.predict import MoEPredict
from tests.moe.models import mixture_of, saved_folder
from tests.moe.problems import SHAPES, normal, rows_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_folder(tmp_path_factory.mktemp("mixture"))


@pytest.mark.parametrize("name", SHAPES)
def test_columns_are_the_mixtures_posterior(name: str, tmp_path: Path) -> None:
    mixture = mixture_of(name)
    MoEForSequenceClassification.from_mixture(mixture).save_pretrained(tmp_path)
    X, y = rows_of(SHAPES[name], n=30, d=6)
    X = X.float()
    rows = Dataset.from_dict({"embeddings": X.tolist(), "label": y.tolist()})
    out = rows.map(MoEPredict(tmp_path, label_column="label"), batched=True).with_format("numpy")[:]
    expected = mixture.posterior(X, y)[0]
    np.testing.assert_allclose(out["responsibility"], expected.numpy(), atol=1e-5)
    assert out["expert"].tolist() == expected.argmax(1).tolist()
    predicted = mixture.predict(X)
    if "linear" in name:
        np.testing.assert_allclose(np.reshape(out["prediction"], predicted.shape), predicted.numpy(), rtol=1e-5)
    else:
        assert out["prediction"].tolist() == predicted.argmax(1).tolist()


def test_texts_go_through_the_folders_own_encoder(folder: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["the red fox", "a lazy dog sleeps near the river and the old mill", "the"]
    out = Dataset.from_dict({"text": texts}).map(MoEPredict(folder, "text"), batched=True)
    model = MoEForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in out:
        with torch.no_grad():
            alone = model(**tokenizer(row["text"], return_tensors="pt"))
        np.testing.assert_allclose(row["responsibility"], alone.router_logits[0].softmax(-1), atol=1e-5)
        assert row["prediction"] == int(alone.logits.argmax())


def test_a_folder_that_was_trained_again_has_another_hash(tmp_path: Path) -> None:
    MoEForSequenceClassification.from_mixture(mixture_of("softmax")).save_pretrained(tmp_path)
    first = MoEPredict(tmp_path)
    assert first == MoEPredict(str(tmp_path))
    shutil.rmtree(tmp_path)
    MoEForSequenceClassification.from_mixture(mixture_of("softmax", seed=5)).save_pretrained(tmp_path)
    assert first != MoEPredict(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"embeddings": [0.0, 1.0, float("nan"), 0.0, 0.0, 0.0], "label": 1},
            "row 1, column 'embeddings': dimension 2 is nan",
        ),
        ({"embeddings": [0.0] * 5, "label": 1}, "row 1, column 'embeddings': the vector has 5 numbers"),
        ({"embeddings": None, "label": 1}, "row 1, column 'embeddings': there is no vector"),
        (
            {"embeddings": [0.0] * 6, "label": -100},
            "row 1, column 'label': the label is -100, not a class from 0 to 3",
        ),
        ({"embeddings": [0.0] * 6, "label": None}, r"row 1, column 'label': there is no label \(None\)"),
    ],
    ids=["nan", "width", "none", "ignored", "no label"],
)
def test_bad_rows_are_named(row: dict, message: str) -> None:
    batch = {"embeddings": [[0.0] * 6, row["embeddings"]], "label": [1, row["label"]]}
    with pytest.raises(RowError, match=message):
        MoEPredict("tests/moe/mixture", label_column="label")(batch)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=tmp_path.name):
        MoEPredict(tmp_path)({"embeddings": [[0.0] * 6]})


def test_weights_that_are_a_pickle_are_not_read(tmp_path: Path) -> None:
    model = MoEForSequenceClassification.from_mixture(mixture_of("softmax"))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert MoEForSequenceClassification.from_pretrained(tmp_path).config.num_experts == 3  # transformers would
    with pytest.raises(ModelFilesError, match="safetensors"):
        MoEPredict(tmp_path)({"embeddings": [[0.0] * 6]})


def test_shares_rows_and_accuracy_are_those_of_the_responsibilities() -> None:
    mixture = mixture_of("softmax")
    X, y = rows_of(SHAPES["softmax"], n=200, d=6)
    report = partition_report(mixture, X, y, text_of=lambda row: f"text {row}")
    responsibilities = mixture.posterior(X, y)[0]
    handled_by = responsibilities.argmax(1)
    right = mixture.predict(X).argmax(1) == y
    assert sum(part.rows for part in report.experts) == 200
    for part in report.experts:
        mine = handled_by == part.expert
        assert part.share == pytest.approx(float(responsibilities[:, part.expert].mean()))
        assert part.rows == int(mine.sum())
        assert part.accuracy == pytest.approx(float(right[mine].double().mean()))
        center = np.average(
            ((X - mixture.mean) / mixture.scale)[mine], axis=0, weights=responsibilities[mine, part.expert]
        )
        far = np.linalg.norm(((X - mixture.mean) / mixture.scale).numpy() - center, axis=1)
        far[~mine.numpy()] = np.inf
        assert [row.row for row in part.typical] == np.argsort(far)[:3].tolist()
        assert part.typical[0].excerpt == f"'text {part.typical[0].row}'"


def test_on_the_drawn_plane_the_regions_are_the_gates() -> None:
    """In two dimensions the plane is the whole space, so that every row lies in its own expert's region."""
    mixture = mixture_of("softmax", d=2)
    X = 2 * normal(150, 2, seed=3)
    report = partition_report(mixture, X)
    points = torch.tensor(report.points, dtype=torch.float64)
    plane = torch.tensor(report.plane, dtype=torch.float64)
    on_plane = points[:, :2] @ plane[:, :2].T + plane[:, 2]
    expected = mixture.outputs(X)[0]
    torch.testing.assert_close(on_plane, expected, rtol=0, atol=1e-9)
    assert points[:, 2].tolist() == expected.argmax(1).tolist()
    assert sum(report.explained) == pytest.approx(1)


def test_the_report_is_saved_with_its_plot_and_read_back(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    X, y = rows_of(SHAPES["softmax"], n=50, d=6)
    report = partition_report(mixture_of("softmax"), X, y, text_of=lambda row: "<b>|`x`|</b>")
    report.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"partition.{kind}" for kind in ("json", "md", "svg", "png")}
    assert PartitionReport.load(tmp_path) == report
    assert "<b>" not in (tmp_path / "partition.md").read_text()
    first = (tmp_path / "partition.json").read_bytes()
    partition_report(mixture_of("softmax"), X, y, text_of=lambda row: "<b>|`x`|</b>").save(tmp_path, plot=False)
    assert (tmp_path / "partition.json").read_bytes() == first


def test_one_feature_or_an_idle_expert_is_reported_without_a_plot_or_rows(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    mixture = MixtureParameters(
        gate=torch.tensor([[0.0, 9.0], [0.0, -9.0]]).double(), experts=torch.zeros(2, 1, 2).double(), variance=None,
        mean=torch.zeros(1).double(), scale=torch.ones(1).double(), expert_type="logistic",
    )  # fmt: skip
    report = partition_report(mixture, normal(9, 1, seed=0))
    assert [part.rows for part in report.experts] == [9, 0]
    assert report.experts[1].typical == []
    report.save(tmp_path)
    assert "at least two dimensions" in caplog.text or "matplotlib is missing" in caplog.text
    assert not (tmp_path / "partition.svg").exists()


@pytest.mark.parametrize("X", [torch.zeros(0, 6), torch.full((2, 6), float("nan"))], ids=["none", "nan"])
def test_rows_that_cannot_be_divided_are_refused(X: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"no row to divide|X is nan in row 0, column 0"):
        partition_report(mixture_of("softmax"), X)


def test_axes_of_many_features_are_those_of_their_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    X = normal(40, 6, seed=1)
    mixture = mixture_of("softmax")
    expected = partition_report(mixture, X)
    monkeypatch.setattr("hf_ext.moe.partition._WIDE", 5)
    wide = partition_report(mixture, X)
    for name in ("points", "plane", "explained"):
        np.testing.assert_allclose(getattr(wide, name), getattr(expected, name), atol=1e-9)
    assert partition_report(mixture, X[:1]).points == []


def test_rows_that_name_their_classes_or_number_them_otherwise_are_divided_alike(folder: Path) -> None:
    texts = ["the red fox", "a lazy dog", "the", "an old mill near the river"]
    rows = Dataset.from_dict({"text": texts, "label": [0, 1, 3, 2]})
    predict = MoEPredict(folder, "text", "label")
    expected = predict.partition(rows)
    named = Dataset.from_dict({"text": texts, "label": ["c0", "c1", "c3", "c2"]})
    backwards = Dataset.from_dict({"text": texts, "label": [3, 2, 0, 1]})
    backwards = backwards.cast_column("label", ClassLabel(names=["c3", "c2", "c1", "c0"]))
    assert predict.partition(named) == expected
    assert predict.partition(backwards) == expected
    with pytest.raises(RowError, match="row 0, column 'label': the label is 'c9', none of the model's classes"):
        predict({"text": texts[:1], "label": ["c9"]})


@pytest.mark.parametrize("change", [{"points": [[1.0]]}, {"plane": [[0.0] * 3]}, {"explained": [0.5]}], ids=str)
def test_a_report_that_cannot_be_drawn_is_not_read(change: dict, tmp_path: Path) -> None:
    values = partition_report(mixture_of("softmax"), normal(9, 6, seed=0)).to_dict()
    (tmp_path / "partition.json").write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=r"is not a report that hf-ext wrote: .*three numbers each"):
        PartitionReport.load(tmp_path)
