"""Settings that are keyword arguments of something else in a host library: tried before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments

MAPPINGS = (
    "model_init_kwargs",
    "activation_checkpointing_kwargs",
    "gradient_checkpointing_kwargs",  # its name before transformers 5.23
    "dataset_kwargs",
    "lr_scheduler_kwargs",
)


def check_scheduler(training_args: TrainingArguments) -> None:
    """
    Make the scheduler once on a parameter of its own: the host makes it after the model and all rows are loaded.

    Raises:
        ValueError: if `lr_scheduler_kwargs` has a key or value that the scheduler does not take, or lacks one that it
            needs, or has no effect.
    """
    import torch
    from transformers import SchedulerType, get_scheduler

    kind = SchedulerType(training_args.lr_scheduler_type)
    keywords = training_args.lr_scheduler_kwargs or {}
    setting = f"with lr_scheduler_type={kind.value!r}"
    if keywords and kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        raise ValueError(
            f"lr_scheduler_kwargs={keywords!r} has no effect {setting}: leave it out, or name another type"
        )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training_args.learning_rate)
    try:
        get_scheduler(kind, optimizer, 0, 1_000_000, scheduler_specific_kwargs=dict(keywords))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"lr_scheduler_kwargs={keywords!r} cannot be used {setting}: {error}") from error


def check_optimizer_words(training_args: TrainingArguments) -> None:
    """
    Look at `optim_args`, which the host splits at commas once model and rows are loaded.

    Raises:
        ValueError: if a part of it is not `NAME=VALUE`.
    """
    text = training_args.optim_args
    if isinstance(text, str) and text and any(part.count("=") != 1 for part in text.split(",")):
        raise ValueError(
            f"optim_args={text!r} must be NAME=VALUE, several with commas between them; no value may hold a comma "
            "(the betas of Adam are adam_beta1 and adam_beta2)"
        )


@contextmanager
def naming_keywords(training_args: TrainingArguments) -> Iterator[None]:
    """
    Around what passes `MAPPINGS` on: an unknown keyword among them is said to be the setting's.

    Raises:
        ValueError: in place of a `TypeError` about a keyword that one of the mappings has.
    """
    try:
        yield
    except TypeError as error:
        match = re.search("unexpected keyword argument '([^']+)'", str(error))
        for name in MAPPINGS if match is not None else ():
            mapping = getattr(training_args, name, None)
            if isinstance(mapping, Mapping) and match is not None and match[1] in mapping:
                raise ValueError(f"{name} has a key {match[1]!r} that nothing takes: {error}") from error
        raise
