# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.

from hf_ext.data.relabeling.choice import Choice as Choice
from hf_ext.data.relabeling.choice import Strategy as Strategy
from hf_ext.data.relabeling.choice import choose_strategy as choose_strategy
from hf_ext.method import Method
from hf_ext.rounds.consensus import ConsensusRecipe as ConsensusRecipe
from hf_ext.rounds.consensus_report import ConsensusResult as ConsensusResult
from hf_ext.rounds.consensus_report import RoundReport as RoundReport
from hf_ext.trainers.consensus.config import ConsensusConfig as ConsensusConfig
from hf_ext.trainers.consensus.sentence_head import SentenceHead as SentenceHead
from hf_ext.trainers.consensus.trainer import ForwardCorrectedTrainer as ForwardCorrectedTrainer

METHOD: Method
