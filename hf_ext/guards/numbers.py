"""Bounds of the numbers that a user gives: one sentence where a number is outside of them. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, TypeAlias

__all__ = [
    "BELOW_ONE",
    "CLASSES",
    "CONFIDENCE",
    "COUNT",
    "FINITE",
    "NON_NEGATIVE",
    "NUMBERS",
    "POSITIVE",
    "PROBABILITY",
    "SEED",
    "SHARE",
    "SIZE",
    "WHOLE_NUMBER",
    "Bounds",
    "TextOrNumber",
    "check_numbers",
]

TextOrNumber: TypeAlias = Annotated[str, "or a number, which needs no quotes in YAML"]
"""Type of a configuration's field whose `__post_init__` makes text of a number: `argparse` takes one type alone."""


@dataclass(frozen=True)
class Bounds:
    """
    The numbers that make sense for a setting; called with a text, the number in it, as `argparse` wants a `type`.

    Args:
        kind (`type`):
            `int` or `float`.
        least, most (`float`):
            Smallest and largest number, both allowed unless `above` or `below` says otherwise.
        above, below (`bool`):
            Whether `least` or `most` itself is outside.
        words (`str`):
            The bounds as the message says them.
        also (`tuple[float, ...]`):
            Further numbers, such as a -1 that stands for "not set".
    """

    kind: type[int] | type[float]
    least: float
    most: float
    words: str
    above: bool = False
    below: bool = False
    also: tuple[float, ...] = ()

    def __call__(self, text: str) -> Any:
        """The number in a text, for the command line."""
        try:
            value = self.kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {self.words}, got {text[:80]!r}") from None
        problem = self.problem_of(value)
        if problem is not None:
            raise argparse.ArgumentTypeError(problem)
        return value

    def problem_of(self, value: object) -> str | None:
        """What is wrong with a number, or `None`; a text is none."""
        if isinstance(value, Real) and self._holds(value):
            return None
        text = repr(value)
        return f"must be {self.words}, got {text if len(text) <= 80 else text[:77] + '...'}"

    def _holds(self, value: Any) -> bool:
        if value in self.also:
            return True
        if self.kind is int and value % 1 != 0:
            return False
        # NaN is neither above nor below anything, so each comparison is one that it fails.
        is_enough = value > self.least if self.above else value >= self.least
        return bool(is_enough and (value < self.most if self.below else value <= self.most))


_LARGEST = 2**63 - 1  # what Arrow and torch hold

COUNT = Bounds(int, 1, _LARGEST, "a whole number, at least 1 and below 2**63")
SIZE = Bounds(int, 1, 2**31 - 1, "a whole number, at least 1 and below 2**31")
WHOLE_NUMBER = Bounds(int, 0, 2**31 - 1, "a whole number, at least 0 and below 2**31")
CLASSES = Bounds(int, 2, 2**31, "a whole number of classes, at least 2 and at most 2**31")
SEED = Bounds(int, 0, 2**32 - 1, "a whole number, at least 0 and below 2**32")  # numpy takes no other
POSITIVE = Bounds(float, 0, words="a finite number above 0", above=True, most=math.inf, below=True)
NON_NEGATIVE = Bounds(float, 0, words="a finite number, at least 0", most=math.inf, below=True)
FINITE = Bounds(float, -math.inf, words="a finite number", above=True, most=math.inf, below=True)
SHARE = Bounds(float, 0, 1, "a number above 0 and at most 1", above=True)
PROBABILITY = Bounds(float, 0, 1, "a number from 0 to 1")
CONFIDENCE = Bounds(float, 0, 1, "a number above 0 and below 1", above=True, below=True)
_PAIR = Bounds(int, 2, 2**31 - 1, "a whole number, at least 2 and below 2**31")
BELOW_ONE = Bounds(float, 0, 1, "a number, at least 0 and below 1", below=True)

NUMBERS: dict[str, Bounds] = {
    **dict.fromkeys(
        (
            "dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout", "eval_accumulation_steps",
            "gradient_accumulation_steps", "lora_alpha", "lora_r", "max_length", "per_device_eval_batch_size",
            "per_device_train_batch_size", "precompute_ref_batch_size", "ref_model_sync_steps",
            "torch_empty_cache_steps", "context_free_max_new_tokens", "expected_num_processes", "max_document_tokens",
            "max_example_document_tokens", "max_example_query_tokens", "max_query_tokens", "pad_to_multiple_of",
            "context_free_batch_size", "guard_patience", "max_new_tokens", "mini_batch_num_tokens",
            "min_rows_per_class", "sample_batch_size", "plan_devices", "tau_rows", "kl_top_k",
        ),
        SIZE,
    ),
    **dict.fromkeys(
        (
            "context_free_num_tokens", "core_max_rows", "max_eval_rows", "max_train_rows", "questions_per_round",
            "report_num_tokens",
        ),
        COUNT,
    ),
    **dict.fromkeys(("cross_fit", "dataloader_num_workers", "dataset_num_proc", "n_examples"), WHOLE_NUMBER),
    **dict.fromkeys(("seed", "data_seed"), SEED),
    **dict.fromkeys(
        (
            "adam_epsilon", "desirable_weight", "eval_delay", "eval_steps", "learning_rate", "logging_steps",
            "neftune_noise_alpha", "num_train_epochs", "plan_hourly_price", "router_aux_loss_coef", "save_steps",
            "undesirable_weight", "warmup_steps", "weight_decay",
        ),
        NON_NEGATIVE,
    ),
    **dict.fromkeys(("beta", "discopop_tau", "loss_scale", "plan_teraflops", "test_split_size"), POSITIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "flow_floor", "label_smoothing_factor", "lora_dropout"), BELOW_ONE),
    **dict.fromkeys(
        ("example_rate", "flow_anneal", "label_smoothing", "ld_alpha", "ref_model_mixup_alpha", "warmup_ratio"),
        PROBABILITY,
    ),
    **dict.fromkeys(("f_alpha_divergence_coef", "min_example_score"), FINITE),
    **dict.fromkeys(("answers_per_question", "seeds", "selection_folds"), _PAIR),
    "num_classes": CLASSES,
    # The host clips by no number of 0 or less, and measures the norm alone under an infinite one.
    "max_grad_norm": Bounds(float, -math.inf, math.inf, "a number (0: no clipping)"),
    "max_steps": Bounds(int, 1, 2**31 - 1, "a whole number above 0, or -1 to train for num_train_epochs", also=(-1,)),
    "save_total_limit": Bounds(int, -1, 2**31 - 1, "a whole number above 0, or 0 to keep every checkpoint"),
    "local_rank": Bounds(int, -1, 2**31 - 1, "a whole number, at least -1"),
}  # fmt: skip
"""
Bounds by a field's name: of the configurations of transformers, TRL and sentence-transformers, and of the recipes' own
arguments. Fields of our configurations that are not here are checked where they are defined.
"""


def check_numbers(config: object) -> None:
    """
    Refuse a number of a configuration with which training cannot make sense.

    The hosts look at few of them, some after the model is loaded, and train on with others: with a `learning_rate` of
    NaN, or three epochs where `max_steps` is 0.

    Args:
        config (`object`):
            A dataclass with any of the fields of `NUMBERS`. A field that is `None` is not looked at, nor a text
            where the field takes one beside numbers.

    Raises:
        ValueError: if a number is out of bounds; the message names the field, the bounds and the number.
    """
    for name, bounds in NUMBERS.items():
        value = getattr(config, name, None)
        if value is None or (name == "pad_to_multiple_of" and isinstance(value, str)):
            continue
        problem = bounds.problem_of(value)
        if problem is not None:
            raise ValueError(f"{name} {problem}.")
