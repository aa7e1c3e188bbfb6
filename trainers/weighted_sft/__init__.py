"""Weighted supervised fine-tuning: `SFTTrainer` plus a `weight` column."""

from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig
from hf_ext.trainers.weighted_sft.trainer import WeightedSFTTrainer

__all__ = ["WeightedSFTConfig", "WeightedSFTTrainer"]
