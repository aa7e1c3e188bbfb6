"""Weighted classification: the stock `Trainer` plus a `weight` column; on pictures, FLOW after a linear probe."""

from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method

METHOD = Method(
    name="weighted_classification",
    summary="a classifier of pictures or texts on rows with a 'weight' column",
    commands=("train weighted_classification",),
    trainer="WeightedTrainer",
    config="WeightedConfig",
    recipe="hf_ext.recipes.weighted_classification.train",
    card="weighted_classification",
    host="transformers",
    task=None,
    telltale_settings=("head_only",),
    card_settings=("head_only", "normalize"),
)

EXPORTS = {
    "hf_ext.trainers.weighted_classification.config": ("WeightedConfig",),
    "hf_ext.trainers.weighted_classification.trainer": ("WeightedTrainer",),
}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
