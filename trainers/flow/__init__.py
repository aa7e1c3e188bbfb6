"""FLOW: fine-tuning rows weighted by how easy the original model finds them."""

from hf_ext.trainers.flow.config import FlowSFTConfig
from hf_ext.trainers.flow.trainer import FlowSFTTrainer

__all__ = ["FlowSFTConfig", "FlowSFTTrainer"]
