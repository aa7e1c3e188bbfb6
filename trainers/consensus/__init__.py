"""Consensus: train on noisy labels, keep what the model agrees with, train again from the start."""

from hf_ext.trainers.consensus.choice import Choice, Strategy, choose_strategy
from hf_ext.trainers.consensus.config import ConsensusConfig
from hf_ext.trainers.consensus.recipe import ConsensusRecipe
from hf_ext.trainers.consensus.report import ConsensusResult, RoundReport
from hf_ext.trainers.consensus.sentence_head import SentenceHead
from hf_ext.trainers.consensus.trainer import ForwardCorrectedTrainer

__all__ = [
    "Choice",
    "ConsensusConfig",
    "ConsensusRecipe",
    "ConsensusResult",
    "ForwardCorrectedTrainer",
    "RoundReport",
    "SentenceHead",
    "Strategy",
    "choose_strategy",
]
