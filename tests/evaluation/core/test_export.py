"""Tasks for lm-evaluation-harness: what is in the files, read as it reads them. Beside it: tests/peers."""

from __future__ import annotations

import json

import pytest
import yaml
from datasets import load_dataset

from hf_ext.evaluation.core.export import EXPORT_TAG, export_lm_eval
from tests.evaluation.core.small_tasks import small_rows, write_tasks

CHOICES = [
    {"id": "a", "query": " The cat sat ", "choices": ["on a mat", " in a hat"], "gold": 1},
    {"id": "b", "query": "1 + 1 =", "choices": ["2", "3"], "gold": 0},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def exported(folder, name):
    settings = yaml.safe_load((folder / f"{name}.yaml").read_text())
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return settings, rows


def test_prompts_are_written_as_text_with_the_examples_in_front(folder):
    data = write_tasks(folder / "data", {"copa": CHOICES, "arc_easy": CHOICES})
    assert export_lm_eval(data, folder / "out") == ["dclm_arc_easy", "dclm_copa"]
    settings, rows = exported(folder / "out", "dclm_copa")
    assert rows == [
        {"id": "a", "row": 0, "context": "The cat sat", "choices": ["on a mat", "in a hat"], "gold": 1},
        {"id": "b", "row": 1, "context": "1 + 1 =", "choices": ["2", "3"], "gold": 0},
    ]
    _, rows = exported(folder / "out", "dclm_arc_easy")
    # the other row is the only example that there is
    assert rows[0]["context"] == "1 + 1 =\nAnswer: 2\nThe cat sat\nAnswer:"
    assert settings["tag"] == [EXPORT_TAG]
    assert settings["num_fewshot"] == 0
    assert [metric["metric"] for metric in settings["metric_list"]] == ["acc", "acc_norm"]
    assert (settings["doc_to_text"], settings["doc_to_choice"], settings["doc_to_target"]) == (
        "context",
        "choices",
        "gold",
    )
    assert settings["target_delimiter"] == " "


def test_a_schema_has_a_context_an_option_and_language_modelling_its_space(folder):
    options = ["Ann saw Bob and Ann", "Ann saw Bob and Bob"]
    schema = [{"id": "s", "context_options": options, "continuation": "ran.", "gold": 1}]
    language = [{"id": "l", "context": "To be or not to ", "continuation": "be"}]
    data = write_tasks(folder / "data", {"winograd": schema, "lambada_openai": language})
    export_lm_eval(data, folder / "out")
    settings, rows = exported(folder / "out", "dclm_winograd")
    assert rows[0]["contexts"] == options
    assert (rows[0]["continuation"], rows[0]["gold"]) == ("ran.", 1)
    # a number in the place of the text is what makes the harness compare contexts
    assert (settings["doc_to_text"], settings["doc_to_choice"]) == ("gold", "contexts")
    settings, rows = exported(folder / "out", "dclm_lambada_openai")
    assert (rows[0]["context"], rows[0]["continuation"]) == ("To be or not to", " be")
    assert settings["output_type"] == "loglikelihood"


def test_datasets_reads_the_files_from_inside_the_folder(folder, monkeypatch):
    data = write_tasks(folder / "data", {"piqa": small_rows("piqa", 6)})
    export_lm_eval(data, folder / "out", max_rows=4)
    settings, rows = exported(folder / "out", "dclm_piqa")
    monkeypatch.chdir(folder / "out")
    dataset = load_dataset(settings["dataset_path"], **settings["dataset_kwargs"])[settings["test_split"]]
    assert dataset.to_list() == rows
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("label", "out", "changes", "words"),
    [
        ("svamp_cot", "out", {}, "svamp_cot: the answer is written by the model"),
        ("copa", "data", {}, "holds something"),
        ("copa", "data/copa.jsonl", {}, "holds something"),
        ("copa", "out", {"max_rows": 0}, "max_rows must be"),
        ("copa", "out", {"tasks": ["nothing"]}, "'nothing' is no task"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(folder, label, out, changes, words):
    data = write_tasks(folder / "data", {label: small_rows(label, 4)})
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(ValueError, match=words):
        export_lm_eval(data, folder / out, **({"tasks": [label]} | changes))
    assert sorted(path.name for path in folder.rglob("*")) == before
