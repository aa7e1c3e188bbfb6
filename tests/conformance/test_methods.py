"""What holds for every record of a method: each verb takes it, and its two folders are all that a new one needs."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import hf_ext
import hf_ext.recipes
import hf_ext.trainers
from hf_ext.cli import main
from hf_ext.method import Method, known_methods, method_named, private_settings, trained_methods
from hf_ext.recipes.files import training_recipes
from tests.recipes.work import SMALL
from tests.tiny import tiny_model, tiny_prompt_completion_dataset, tiny_tokenizer

every_trained_method = pytest.mark.parametrize("method", trained_methods(), ids=lambda method: method.name)

TOY_RECORD = """
from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method

METHOD = Method(
    name="toy",
    summary="a loss times a number",
    commands=("train toy",),
    trainer="ToyTrainer",
    config="ToyConfig",
    recipe="hf_ext.recipes.toy.train",
    telltale_settings=("normalize", "toy_scale"),
    private_settings=("toy_cache",),
)
EXPORTS = {"hf_ext.trainers.toy.trainer": ("ToyConfig", "ToyTrainer")}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
"""
TOY_TRAINER = """
from dataclasses import dataclass, field

from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig
from hf_ext.trainers.weighted_sft.trainer import WeightedSFTTrainer


@dataclass
class ToyConfig(WeightedSFTConfig):
    toy_scale: float = field(default=1.0, metadata={"help": "The number."})
    toy_cache: str | None = field(default=None, metadata={"help": "A folder."})


class ToyTrainer(WeightedSFTTrainer):
    config_class = ToyConfig
    method = "toy"

    def compute_loss(self, *args, **kwargs):
        return self.args.toy_scale * super().compute_loss(*args, **kwargs)
"""
TOY_RECIPE = """
from hf_ext.recipes.sft import SFTRecipe, SFTRecipeArguments
from hf_ext.trainers.toy import METHOD

RECIPE = SFTRecipe(METHOD, SFTRecipeArguments)
make_parser = RECIPE.make_parser
"""


@every_trained_method
def test_a_tag_of_a_trainer_spells_no_method_in_another_way(method: Method) -> None:
    tags = getattr(getattr(hf_ext, method.trainer), "_tag_names", [])
    names = {record.name for record in known_methods()}
    assert not [tag for tag in tags if tag not in names and tag.replace("-", "_") in names]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Method]:
    """A method whose two folders lie elsewhere; nothing else in the package knows of it."""
    for folder, package in (("trainers", hf_ext.trainers), ("recipes", hf_ext.recipes)):
        (tmp_path / folder / "toy").mkdir(parents=True)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / folder)])
    (tmp_path / "trainers/toy/__init__.py").write_text(TOY_RECORD)
    (tmp_path / "trainers/toy/trainer.py").write_text(TOY_TRAINER)
    (tmp_path / "recipes/toy/__init__.py").write_text("")
    (tmp_path / "recipes/toy/train.py").write_text(TOY_RECIPE)
    (tmp_path / "recipes/toy/example.yaml").write_text("# A toy.\ntoy_scale: 0.5\n")
    importlib.invalidate_caches()
    yield method_named("toy")
    for name in [name for name in sys.modules if name.startswith(("hf_ext.trainers.toy", "hf_ext.recipes.toy"))]:
        del sys.modules[name]
    for package in (hf_ext, hf_ext.trainers, hf_ext.recipes):
        for name in {"ToyConfig", "ToyTrainer", "toy"} & set(vars(package)):
            delattr(package, name)


def stdout_of(capsys: pytest.CaptureFixture, *command: str) -> str:
    """What a command that ends with status 0 prints."""
    try:
        status = main(command)
    except SystemExit as stop:  # of --help
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def check_verbs(method: Method, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Every verb that takes a method, on a folder with nothing but the method's settings and the model's config."""
    fields = json.loads(stdout_of(capsys, "train", method.name, "--schema"))["properties"]
    assert {*method.telltale_settings, *method.card_settings, *method.private_settings} <= set(fields)
    assert stdout_of(capsys, "train", method.name, "--help").startswith(f"usage: hf-ext train {method.name} ")
    assert method.name in stdout_of(capsys, "train", "--help").split()
    recipes = [name for name, reader in training_recipes().items() if reader == method]
    assert recipes
    listed = stdout_of(capsys, "recipes", "list")
    for name in recipes:
        assert f"{name} " in listed
        assert stdout_of(capsys, "recipes", "show", name)
    settings = getattr(hf_ext, method.config)(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none")
    (folder / "config.json").write_text("{}")
    (folder / "training_args.json").write_text(settings.to_json_string())
    stdout_of(capsys, "card", "render", str(folder), "--name", "me/model")
    card = ModelCard.load(folder / "README.md")
    assert {"hf-ext", method.variant_of or method.name} <= set(card.data.tags)
    assert card.data.library_name == method.library
    assert "# me/model" in card.text
    shown = {name for name in fields if f"| `{name}` |" in card.text}
    assert {"learning_rate", *method.host_settings} & set(fields) <= shown
    assert not shown & private_settings()
    text = (folder / "README.md").read_text(encoding="utf-8")
    stdout_of(capsys, "card", "render", str(folder))
    assert (folder / "README.md").read_text(encoding="utf-8") == text
    stdout_of(capsys, "card", "render", str(folder), "--method", method.name)
    assert (folder / "README.md").read_text(encoding="utf-8") == text


@every_trained_method
def test_every_verb_that_takes_a_method_works(method: Method, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    check_verbs(method, tmp_path, capsys)


@every_trained_method
def test_a_record_names_what_is_there(method: Method) -> None:
    recipe = import_module(method.recipe).RECIPE
    assert recipe.method == method
    assert {method.trainer, method.config} <= set(hf_ext.__all__)
    card = (Path(hf_ext.__file__).parents[1] / "model_cards" / f"{method.card}.jinja").read_text(encoding="utf-8")
    assert "block method" in card or "block data" in card


def test_every_command_of_a_record_is_one_of_the_command_line(capsys: pytest.CaptureFixture) -> None:
    for method in known_methods():
        assert method.commands
        for command in method.commands:
            assert stdout_of(capsys, *command.split(), "--help").startswith(f"usage: hf-ext {command} ")


def test_the_methods_are_listed_with_command_and_paper(capsys: pytest.CaptureFixture) -> None:
    text = stdout_of(capsys, "methods")
    entries = {entry["name"]: entry for entry in json.loads(stdout_of(capsys, "methods", "--json"))}
    assert {"flow", "rare", "consensus", "pruning", "label_privacy", "forgetting"} <= set(entries)
    assert set(entries) == {line.split()[0] for line in text.splitlines() if not line.startswith(" ")}
    assert entries["pruning"]["commands"] == ["hf-ext data prune"]
    assert entries["flow"]["paper"]["id"] == "2502.02797"
    assert "hf-ext train flow, hf-ext data flow-weights (arXiv 2502.02797)" in text


def test_every_trainer_has_its_line_in_the_conformance_suite() -> None:
    from tests.conformance.registry import BY_NAME, RUNS_OF

    names = {method.name for method in trained_methods() if not method.variant_of}
    assert {RUNS_OF.get(name, name) for name in names} <= set(BY_NAME)


def test_no_two_methods_share_a_name_or_what_tells_them() -> None:
    names = [method.name for method in known_methods()]
    assert len(set(names)) == len(names)
    settings = [method.telltale_settings for method in trained_methods() if not method.variant_of]
    assert all(settings)
    assert len(set(settings)) == len(settings)


def test_a_new_method_is_its_folder_and_its_recipes(
    toy: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A record, a trainer and a recipe in folders of their own: every verb, card, schema and table knows them."""
    assert {"ToyTrainer", "ToyConfig"} <= set(hf_ext.__all__)
    assert "toy_cache" in private_settings()
    assert "toy" in {entry["name"] for entry in json.loads(stdout_of(capsys, "methods", "--json"))}
    (tmp_path / "settings").mkdir()
    check_verbs(toy, tmp_path / "settings", capsys)
    test_a_record_names_what_is_there(toy)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained("original")
    tokenizer.save_pretrained("original")
    tiny_prompt_completion_dataset(12).to_json("train.jsonl")
    words = ["--config", "toy/example", "--dataset_name", "train.jsonl", "--report_to", "none", "--output_dir", "out"]
    stdout_of(capsys, "train", "toy", *SMALL, *words)
    card = ModelCard.load("out/README.md")
    assert "| `toy_scale` | 0.5 |" in card.text
    assert "a loss times a number, by `ToyTrainer`" in card.text
    text = Path("out/README.md").read_text(encoding="utf-8")
    stdout_of(capsys, "card", "render", "out")
    assert Path("out/README.md").read_text(encoding="utf-8") == text
