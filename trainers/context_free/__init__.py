"""Context-free synthetic data: an unbiased KL anchor to the original model."""

from hf_ext.trainers.context_free.config import ContextFreeSFTConfig
from hf_ext.trainers.context_free.trainer import ContextFreeSFTTrainer

__all__ = ["ContextFreeSFTConfig", "ContextFreeSFTTrainer"]
