"""A run goes on under what it was begun with: every argument that is not named as free counts."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, TrainingArguments

from hf_ext.data.run_settings import FREE, SAVING, begin_run, described, model_settings, settings_of, source_settings
from hf_ext.guards.runs import RunFolder
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainers.classifiers import tiny_bert


def arguments(**changes: Any) -> TrainingArguments:
    return TrainingArguments(**{"output_dir": "out", "use_cpu": True, "bf16": False, "report_to": "none"} | changes)


def claim(folder: Path, settings: dict[str, Any], rows: Dataset | None = None) -> None:
    begin_run(RunFolder(folder), settings, {"training rows": rows}, parts="round-*")


def test_an_argument_that_nobody_listed_counts() -> None:
    """A later version of the host adds one."""

    @dataclasses.dataclass
    class Later(TrainingArguments):
        brand_new: float = 1.0

    one, other = (settings_of(Later("out", use_cpu=True, report_to="none", brand_new=value)) for value in (1.0, 2.0))
    assert {name for name in one if one[name] != other[name]} == {"brand_new"}


def test_every_argument_of_the_host_is_compared_or_free() -> None:
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    hub = {name for name in names if name.startswith("hub_")}
    assert set(settings_of(arguments())) == names - FREE - SAVING - hub
    assert set(settings_of(arguments(hub_token="hf_secret", eval_strategy="steps", load_best_model_at_end=True))) == (
        names - FREE - hub  # the best model is one of those saved
    )


def test_the_same_settings_go_on_and_changed_ones_are_all_named(tmp_path: Path) -> None:
    settings = {"processes": 1, **settings_of(arguments(lr_scheduler_kwargs={"min_lr": 0.1}))}
    claim(tmp_path, settings)
    written = (tmp_path / "run.json").read_bytes()
    again = settings_of(arguments(lr_scheduler_kwargs={"min_lr": 0.1}, output_dir="other", logging_steps=1))
    claim(tmp_path, {"processes": 1, **again})
    assert (tmp_path / "run.json").read_bytes() == written
    changes = {"adam_beta2": 0.5, "optim_args": "x=1", "lr_scheduler_kwargs": {"min_lr": 0.2}}
    with pytest.raises(ValueError, match="was begun with other settings") as error:
        claim(tmp_path, {"processes": 2, **settings_of(arguments(**changes))})
    for words in (
        "processes was 1, is 2",
        "adam_beta2 was 0.999, is 0.5",
        "optim_args was None, is 'x=1'",
        "lr_scheduler_kwargs.min_lr was 0.1, is 0.2",
        "another output_dir",
    ):
        assert words in str(error.value)
    assert str(error.value).count("; ") == 3
    assert (tmp_path / "run.json").read_bytes() == written


def test_rows_that_came_went_or_changed_are_named(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"a": [1, 2, 3]})
    claim(tmp_path, {}, rows)
    claim(tmp_path, {}, rows.select([2, 1, 0]).select([2, 1, 0]))
    with pytest.raises(ValueError, match=r"other training rows \(first in row 1, column 'a'\)"):
        claim(tmp_path, {}, rows.select([0, 2, 1]))
    with pytest.raises(ValueError, match="training rows: there are none now"):
        claim(tmp_path, {})


def test_a_folder_whose_settings_are_lost_damaged_or_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "round-000").mkdir()
    with pytest.raises(ValueError, match=r"not empty and holds no run\.json.* but 'round-000'"):
        claim(tmp_path, {})
    for content, words in (("{", "is damaged"), ('{"format_revision": 1}', "another version of hf-ext")):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            claim(tmp_path, {})
        assert (tmp_path / "run.json").read_text() == content


def _scaled(values: Any, scale: float) -> Any:
    return values * scale


def _doubled(values: Any, scale: float) -> Any:
    return values * scale * 2


class Collator:
    def __init__(self, scale: float) -> None:
        self.scale, self.inner = scale, [functools.partial(_scaled, scale=scale)]

    def __call__(self, rows: Any) -> Any:
        return rows


def test_objects_are_described_by_what_they_are_made_of() -> None:
    def closed(scale: float) -> Any:
        return lambda values: values * scale

    unlike = [
        Collator(1.0), Collator(2.0), _scaled, _doubled, functools.partial(_scaled, scale=2.0), closed(1.0),
        closed(2.0), {"optimizer": torch.optim.SGD}, {"optimizer": torch.optim.Adam}, torch.float32,
        torch.tensor([1.0]), torch.tensor([2.0]), DataCollatorWithPadding(tiny_tokenizer()),
        DataCollatorWithPadding(tiny_tokenizer(), pad_to_multiple_of=8),
    ]  # fmt: skip
    texts = [json.dumps(described(value)) for value in unlike]
    assert len(set(texts)) == len(texts)
    assert "0x" not in "".join(texts), "an address would differ in the next process"
    assert described(Collator(1.0)) == described(Collator(1.0))
    assert described(closed(1.0)) == described(closed(1.0))


def test_a_model_counts_by_weights_buffers_dropout_freezing_and_configuration() -> None:
    models = [
        tiny_bert(),
        tiny_bert(seed=1),
        tiny_bert(hidden_dropout_prob=0.5),
        tiny_bert(),
        tiny_bert(),
        tiny_bert(),
    ]
    models[3].bert.requires_grad_(False)
    models[4].register_buffer("running_mean", torch.ones(2))
    models[5].config.problem_type = "multi_label_classification"
    settings = [json.dumps(model_settings(model)) for model in models]
    assert len(set(settings)) == len(settings)
    assert json.dumps(model_settings(tiny_bert())) == settings[0]


def test_a_model_by_name_counts_by_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "original"
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = source_settings(str(folder))
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(settings)
    (folder / "README.md").write_text("a card")
    (folder / "forgetting.json").write_text("{}")
    shutil.copytree(folder, tmp_path / "copy")
    assert source_settings(str(tmp_path / "copy")) == settings
    for name in settings:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-2] + b"  ")
        assert {key for key, value in source_settings(str(folder)).items() if value != settings[key]} == {name}
        (folder / name).write_bytes(content)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert source_settings(str(tmp_path / "adapter"))["base"] == settings
