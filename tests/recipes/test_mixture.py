"""The recipe of mixtures: what it takes as a source, what it refuses, and the list of shares it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import DatasetConfig

from hf_ext.recipes.mixture.train import RECIPE, datasets_text, load_part, source_names
from tests.recipes.work import SMALL


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Two files of rows with the same columns, and one of held-out rows."""
    monkeypatch.chdir(tmp_path)
    for name, n in (("maths", 12), ("web", 8), ("held_out", 4)):
        lines = [json.dumps({"text": f"{name} {i}", "id": i}) for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_sources_are_named_for_their_file_or_repository():
    parts = [
        DatasetConfig("open-web-math/open-web-math"),
        DatasetConfig("json", data_files="data/maths.jsonl.gz"),
        DatasetConfig("web.jsonl"),
        DatasetConfig("other/web"),
    ]
    assert source_names(parts) == ["open-web-math", "maths", "web 1", "web 2"]


def test_a_number_behind_a_name_is_no_other_source_s_name():
    parts = [
        DatasetConfig(path) for path in ("a/web.jsonl", "b/web.jsonl", "web 2.jsonl", "web 1.jsonl", "c/web.jsonl")
    ]
    assert source_names(parts) == ["web 3", "web 4", "web 2", "web 1", "web 5"]


def test_files_are_named_as_they_are_and_patterns_match(rows):
    odd = "maths [1] *.jsonl"
    Path("maths.jsonl").rename(odd)
    text = datasets_text([DatasetConfig(odd)], [1.0])
    assert len(get_dataset(DatasetMixtureConfig(**yaml.safe_load(text)))["train"]) == 12
    assert len(load_part(DatasetConfig(odd))) == 12
    assert len(load_part(DatasetConfig("json", data_files="*.jsonl"))) == 24
    with pytest.raises(ValueError, match=r"is a pattern, which that file does not match: 'maths \[\[\]1\] \[\*\]"):
        load_part(DatasetConfig("json", data_files=odd))
    with pytest.raises(ValueError, match=r"data_files 'no/\*.jsonl' match nothing"):
        load_part(DatasetConfig("json", data_files=["no/*.jsonl"]))


def test_the_list_of_shares_is_one_that_trl_mixes_by(rows):
    parts = [DatasetConfig("maths.jsonl", columns=["text"]), DatasetConfig("json", data_files="web.jsonl")]
    parts[1].columns = ["text"]
    text = datasets_text(parts, [0.25, 0.75])
    config = DatasetMixtureConfig(**yaml.safe_load(text))
    assert [part.fraction for part in config.datasets] == [0.25, 0.75]
    mixed = get_dataset(config)["train"]["text"][:]
    assert [text.split()[0] for text in mixed] == ["maths"] * 3 + ["web"] * 8


def test_a_part_is_a_file_or_what_trl_loads_with_its_columns(rows):
    by_path = load_part(DatasetConfig("maths.jsonl", columns=["text"]))
    by_builder = load_part(DatasetConfig("json", data_files="maths.jsonl", split="train[:5]", columns=["text"]))
    assert by_path.column_names == by_builder.column_names == ["text"]
    assert by_path["text"][:5] == by_builder["text"][:]
    with pytest.raises(ValueError, match=r"'maths\.jsonl' has no column 'prompt'; it has \['text', 'id'\]"):
        load_part(DatasetConfig("maths.jsonl", columns=["prompt"]))


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({}, [], "reward 'alignment' needs target_dataset_name"),
        ({"fraction": 0.5}, ["--target_dataset_name", "held_out.jsonl"], "mixture does not take fraction"),
        ({}, ["--test_split_size", "0.1", "--reward", "loss"], "mixture does not take test_split_size"),
        ({}, ["--streaming", "true", "--reward", "loss"], "mixture does not take streaming"),
        ({}, ["--floor_share", "1.5"], "floor_share must be a number, at least 0 and below 1"),
        ({}, ["--target_dataset_name", "maths.jsonl"], "Row 0 of the target is row 0 of source 'maths'"),
        ({}, ["--target_dataset_name", "gone.jsonl"], "gone.jsonl"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(changes, more, message, rows, work, capsys):
    for path in rows.glob("*.jsonl"):
        (work / path.name).write_bytes(path.read_bytes())
    entries = [{"path": f"{name}.jsonl", "columns": ["text"], **changes} for name in ("maths", "web")]
    (work / "mix.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    assert RECIPE.run(["--config", "mix.yaml", *SMALL, "--output_dir", "out", *more]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
