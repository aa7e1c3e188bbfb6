"""Every number that a command takes has bounds: found from the parsers, so that a new option cannot escape."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import pytest

import hf_ext
from hf_ext.cli import VERBS, main, make_parser
from hf_ext.cli.options import temperature
from hf_ext.guards.numbers import SIZE, Bounds
from hf_ext.method import method_named, trained_methods

METHODS = [method.name for method in trained_methods()]
CONFIGS = ["RareSparseConfig", *dict.fromkeys(method.config for method in trained_methods())]
HUGE = str(10**30)
# What one of these means for a setting that takes it. Every other one is refused.
TAKEN = {
    "0": {
        "adam_beta1", "adam_beta2", "adam_epsilon", "cross_fit", "data_seed", "dataloader_num_workers",
        "dataset_num_proc", "eval_delay", "eval_steps", "example_rate", "f_alpha_divergence_coef", "floor",
        "floor_share", "flow_anneal", "flow_floor", "guard_tolerance", "kl_weight", "label_smoothing",
        "label_smoothing_factor", "learning_rate", "local_rank", "lora_dropout", "max_grad_norm", "min_example_score",
        "min_prob", "n_examples", "neftune_noise_alpha", "num_train_epochs", "ref_model_mixup_alpha", "reward_margin",
        "router_aux_loss_coef", "save_steps", "save_total_limit", "seed", "warmup_ratio", "warmup_steps",
        "weight_decay", "retrieval --k", "classify --threshold", "z_loss_weight", "cooldown_learning_rate",
        "plan_hourly_price",
        "wise-ft --alpha", "wise-ft --max-kl", "em_iterations", "max_reseeds", "tol",
    },
    "-1": {
        "f_alpha_divergence_coef", "floor",  # any score, any coefficient
        "local_rank", "max_steps", "save_total_limit", "max_grad_norm",  # the hosts' words for "not set"
        "min_example_score",
    },
    "1e400": {"max_grad_norm"},  # measured, never clipped
    HUGE: {"rounds"},  # until it is stopped
    "nan": set(),
}  # fmt: skip


def parsers(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A parser and all below it, each with the words that lead to it."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from parsers(below, f"{name} {word}")


OPTIONS = [
    (name, action)
    for verb in VERBS
    for name, parser in parsers(make_parser(verb), "hf-ext")
    for action in parser._actions
    if action.type is not None and not isinstance(action, argparse._SubParsersAction)
]


@pytest.mark.parametrize(("name", "action"), OPTIONS, ids=[f"{name} {a.option_strings[0]}" for name, a in OPTIONS])
def test_an_option_takes_no_number_outside_of_its_bounds(name: str, action: argparse.Action) -> None:
    convert: Any = action.type
    assert isinstance(convert, Bounds) or convert is temperature
    takes_fractions = convert is temperature or convert.kind is float
    for text in ("-1", "0", "nan", "1e400") if takes_fractions else ("-1", "0", "0.5", "nan", HUGE):
        if {action.dest, f"{name.split()[-1]} {action.option_strings[0]}"} & TAKEN.get(text, set()):
            convert(text)
            continue
        with pytest.raises(argparse.ArgumentTypeError, match="must be"):
            convert(text)


def test_the_message_names_option_bounds_and_number_before_anything_is_read(capsys: pytest.CaptureFixture) -> None:
    command = ["eval", "retrieval", "--model", "nowhere", "--beir", "nowhere", "--max-queries", "-1"]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("hf-ext eval retrieval: error: argument --max-queries")
    assert message.endswith("must be a whole number, at least 1 and below 2**63, got -1")


@pytest.mark.parametrize("text", ["mean", "ess:2", "ess:nan", "ess:", "-1", "nan"])
def test_a_temperature_is_a_rule_or_a_number_above_zero(text: str) -> None:
    assert (temperature("median"), temperature("ess:0.8"), temperature("1.5")) == ("median", "ess:0.8", 1.5)
    with pytest.raises(argparse.ArgumentTypeError, match=f"'ess:SHARE'.*, got '{text}'"):
        temperature(text)


# --- recipes ---------------------------------------------------------------------------------------------------------


@cache
def recipe_parser(method: str) -> Any:
    return import_module(method_named(method).recipe).make_parser()


def numeric_fields(method: str) -> dict[str, bool]:
    """The fields of a recipe that hold one number, and whether it may be a fraction."""
    found: dict[str, bool] = {}
    for kind in recipe_parser(method).dataclass_types:
        hints = typing.get_type_hints(kind)
        for entry in dataclasses.fields(kind):
            members = {hints[entry.name], *typing.get_args(hints[entry.name])}
            if entry.init and members & {int, float}:
                found[entry.name] = float in members
    return found


def refusal_of(method: str, setting: str, capsys: pytest.CaptureFixture) -> str:
    """What the recipe says to `--setting`, or nothing."""
    command = ["--model_name_or_path", "x", "--output_dir", "x", "--bf16", "false", "--use_cpu", "true", setting]
    if method == "infopo_online":
        command += ["--verifier", "gsm8k"]
    try:
        script_args, *_ = recipe_parser(method).parse_args_and_config(command)
        if hasattr(script_args, "check"):
            script_args.check()
    except ValueError as error:
        return str(error)
    except SystemExit:
        return capsys.readouterr().err
    return ""


def test_a_recipe_takes_no_number_with_which_training_makes_no_sense(capsys: pytest.CaptureFixture) -> None:
    method_of = {name: (method, fractions) for method in METHODS for name, fractions in numeric_fields(method).items()}
    assert {"learning_rate", "max_steps", "seed", "max_train_rows", "lora_r"} <= set(method_of)
    wrong = []
    for name, (method, takes_fractions) in method_of.items():
        for text in ("-1", "0", "nan", "1e400") if takes_fractions else ("-1", "0", HUGE):
            refusal = refusal_of(method, f"--{name}={text}", capsys)
            if (name in TAKEN[text]) == bool(refusal) or (refusal and name not in refusal):
                wrong.append((name, text, refusal))
    assert wrong == []


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("setting", [{"learning_rate": float("nan")}, {"max_steps": 0}, {"data_seed": -1}], ids=str)
def test_a_config_in_python_refuses_the_same_numbers(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(setting))} must be .*, got"):
        getattr(hf_ext, name)(output_dir="x", use_cpu=True, bf16=False, report_to="none", **setting)


def test_a_whole_number_may_be_written_as_a_float_and_has_no_fraction() -> None:
    assert SIZE.problem_of(1e5) is None
    assert SIZE.problem_of(1.5) == "must be a whole number, at least 1 and below 2**31, got 1.5"
    assert SIZE.problem_of(float("inf")) == "must be a whole number, at least 1 and below 2**31, got inf"


def test_a_seed_that_the_host_never_reads_is_refused_for_retrievers() -> None:
    hf_ext.RareConfig("x", use_cpu=True, seed=3, data_seed=3)
    with pytest.raises(ValueError, match="data_seed=0 has no effect"):
        hf_ext.RareConfig("x", use_cpu=True, seed=3, data_seed=0)


def test_what_is_taken_is_named_once_and_is_a_setting_of_something() -> None:
    settings = {name for method in METHODS for name in numeric_fields(method)}
    options = {name for verb, a in OPTIONS for name in (a.dest, f"{verb.split()[-1]} {a.option_strings[0]}")}
    assert {name for names in TAKEN.values() for name in names} <= settings | options
