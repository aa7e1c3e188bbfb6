"""RARe: retrievers that use in-context examples."""

from hf_ext.guards.extras import naming_extras

with naming_extras():
    from hf_ext.trainers.rare.collator import RareDataCollator
    from hf_ext.trainers.rare.config import RareConfig, RareSparseConfig
    from hf_ext.trainers.rare.distill import ContextDistillationTrainer
    from hf_ext.trainers.rare.trainer import RareSparseTrainer, RareTrainer

__all__ = [
    "ContextDistillationTrainer",
    "RareConfig",
    "RareDataCollator",
    "RareSparseConfig",
    "RareSparseTrainer",
    "RareTrainer",
]
