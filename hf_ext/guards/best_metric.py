"""Which of what is logged is better when it is lower, for choosing the best checkpoint and for stopping early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

# The host takes a metric for better when higher unless its name ends in "loss" (transformers 5.23). Of ours and TRL's,
# beside those:
LOWER_IS_BETTER = (
    "loss_weighted",
    "loss/target",
    "loss/context_free",
    "loss/hardest_decile",
    "kl_original_to_new/k1",
    "kl_original_to_new/k3",
    "infopo/loss_weighted",
    "infopo/rejected_delta",
    "infopo/chosen_dropped",
    "infopo/squeeze",
    "infopo/clipped",
    "rare/dropped_by_budget",
    "rare/empty_hits",
    "rewards/rejected",
    "logps/rejected",
    "kl",
)
OUR_PREFIXES = ("loss_weighted", "infopo/", "rare/")  # how names begin that a trainer of ours adds to an evaluation


# TRL (1.16) reports these of its own under "eval_" too, whatever the set: the last set's would choose.
LAST_OF_SETS = ("mean_token_accuracy", "entropy", "num_tokens", "aux_loss", "kl", "rewards/", "logps/", "logits/")


def fill_direction(config: TrainingArguments) -> None:
    """Set `greater_is_better` where it is left open and the metric is better when lower, before the host guesses."""
    metric = config.metric_for_best_model
    if config.greater_is_better is None and metric is not None and is_lower_better(metric):
        config.greater_is_better = False


def is_lower_better(metric: str) -> bool:
    """Whether a metric is one of those above, with or without `eval_` and the name of an evaluation set before it."""
    return any(metric == name or metric.endswith(f"_{name}") for name in LOWER_IS_BETTER)


def without_host_direction(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a host's configuration, without the direction that the host gave such a metric by its name."""
    metric = values.get("metric_for_best_model")
    if values.get("greater_is_better") is True and metric is not None and is_lower_better(metric):
        return values | {"greater_is_better": None}
    return values


def check_best_metric(trainer: Trainer) -> None:
    """
    Refuse before training a metric of ours or TRL's that names none of several evaluation sets.

    Raises:
        ValueError: if `metric_for_best_model` is such a metric without the name of a set.
    """
    metric = trainer.args.metric_for_best_model
    sets = trainer.eval_dataset
    if not (metric and isinstance(sets, dict) and sets) or trainer.args.eval_strategy == "no":
        return
    name = metric.removeprefix("eval_")
    names_a_set = any(name.startswith(f"{key}_") for key in sets)
    if not names_a_set and (name == "loss" or name.startswith((*OUR_PREFIXES, *LAST_OF_SETS))):
        choices = " or ".join(f"'eval_{key}_{name}'" for key in list(sets)[:3])
        raise ValueError(
            f"metric_for_best_model={metric!r} names none of the evaluation sets, which have one each: pass {choices}."
        )
