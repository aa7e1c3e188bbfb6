"""`hf-ext train METHOD --schema`, judged by the jsonschema package; our own check agrees with it."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_ext
from hf_ext.cli import main
from hf_ext.method import method_named, trained_methods
from hf_ext.recipes.files import find_recipe, training_recipes
from hf_ext.recipes.schema import config_schema, problem_of

jsonschema = pytest.importorskip("jsonschema")
METHODS = [method.name for method in trained_methods()]

CONFIGS = {
    "weighted_sft": "WeightedSFTConfig",
    "flow": "FlowSFTConfig",
    "context_free": "ContextFreeSFTConfig",
    "infopo": "InfoPOConfig",
    "infopo_unpaired": "InfoPOUnpairedConfig",
    "infopo_online": "InfoPOConfig",
    "rare": "RareConfig",
    "consensus": "ConsensusConfig",
    "mixture": "MixtureSFTConfig",
    "weighted_classification": "WeightedConfig",
    "moe_em": "MoEEMConfig",
    "moe_lora": "LoraMixtureConfig",
    "pretraining": "PretrainingConfig",
    "dclm": "PretrainingConfig",
}
RECIPES = training_recipes()


@cache
def schema_of(method: str) -> dict:
    from importlib import import_module

    return config_schema(import_module(method_named(method).recipe).make_parser().dataclass_types, method)


def complaints(method: str, values: object) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema_of(method)).iter_errors(values)]


@pytest.mark.parametrize("method", METHODS)
def test_the_verb_prints_a_schema_of_the_draft_it_names_and_nothing_else(method, capsys):
    assert main(["train", method, "--schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(printed)
    assert printed["properties"] == json.loads(json.dumps(schema_of(method)["properties"]))


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_is_valid(name):
    values = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
    method = training_recipes()[name].name
    assert complaints(method, values) == []
    assert problem_of(values, schema_of(method)) is None


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_the_config_is_there_with_default_and_help(method):
    properties = schema_of(method)["properties"]
    for field in fields(getattr(hf_ext, CONFIGS[method])):
        if field.init:
            assert "default" in properties[field.name], field.name
            assert complaints(method, {field.name: properties[field.name]["default"]}) == []
    assert "unitless" in schema_of("context_free")["properties"]["kl_weight"]["description"]
    assert all("%%" not in value.get("description", "") for value in properties.values())


WRONG = [
    {"learning_rat": 1e-5},
    {"learning_rate": [1e-5]},
    {"learning_rate": "fast"},
    {"max_steps": 1.5},
    {"max_steps": True},
    {"packing": "maybe"},
    {"normalize": "rows"},
    {"lr_scheduler_type": "sine"},
    {"eval_strategy": False},
    {"lora_target_modules": [1]},
    {"datasets": [{"name": "no path"}]},
    {"datasets": [{"path": "a", "colums": []}]},
    {"env": {"A": [1]}},
    {"env": {"1A": "x"}},
    {"output_dir": 7},
    [],
    "text",
]
RIGHT = [
    {"learning_rate": "2e-5", "max_steps": "3", "tau": 1.5},
    {"learning_rate": 1, "tau": "ess:0.8", "lora_target_modules": "all-linear"},
    {"lora_target_modules": ["q_proj"], "model_init_kwargs": {"a": {"b": 1}}, "max_length": None},
    {"datasets": [{"path": "a", "split": "train"}], "env": {"A": "x", "B": 1}},
    {"eval_strategy": "no", "report_to": ["wandb"]},
    {},
]


@pytest.mark.parametrize("values", WRONG, ids=str)
def test_what_is_wrong_is_refused_by_the_package_and_by_our_check(values):
    assert complaints("flow", values)
    assert problem_of(values, schema_of("flow"))


@pytest.mark.parametrize("values", RIGHT, ids=str)
def test_what_is_right_is_taken_by_the_package_our_check_and_the_parser(values, tmp_path, monkeypatch):
    from hf_ext.recipes.flow.train import make_parser

    assert complaints("flow", values) == []
    assert problem_of(values, schema_of("flow")) is None
    for name in values.get("env", {}):
        monkeypatch.setenv(name, "")  # put back afterwards
    (tmp_path / "right.yaml").write_text(yaml.safe_dump(values))
    here = ["--use_cpu", "true", "--bf16", "false"]
    make_parser().parse_args_and_config([*here, "--config", str(tmp_path / "right.yaml")])


def test_a_bare_no_is_explained():
    assert "write 'no'" in problem_of(yaml.safe_load("eval_strategy: no"), schema_of("flow"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(schema_of("flow")["properties"])), value=VALUES)
def test_our_check_agrees_with_the_package_on_any_value(name, value):
    whole = isinstance(value, float) and value.is_integer()  # JSON calls 8.0 an integer; our check does not
    theirs, ours = complaints("flow", {name: value}), problem_of({name: value}, schema_of("flow"))
    if not (whole and ours):
        assert bool(theirs) == bool(ours), (theirs, ours)


def test_the_schema_does_not_depend_on_the_machine_s_accelerators():
    """The parser turns `use_cpu` on where there is none; a schema made on one machine is used on another."""
    assert schema_of("flow")["properties"]["use_cpu"]["default"] is False
