"""Weighted supervised fine-tuning: `SFTTrainer` plus a `weight` column."""

from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method

METHOD = Method(
    name="weighted_sft",
    summary="supervised fine-tuning on rows with a 'weight' column",
    commands=("train weighted_sft",),
    trainer="WeightedSFTTrainer",
    config="WeightedSFTConfig",
    recipe="hf_ext.recipes.weighted_sft.train",
    card="weighted_sft",
    telltale_settings=("normalize",),
    private_settings=("bad_rows_path",),
)

EXPORTS = {
    "hf_ext.trainers.weighted_sft.config": ("WeightedSFTConfig",),
    "hf_ext.trainers.weighted_sft.trainer": ("WeightedSFTTrainer",),
}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
