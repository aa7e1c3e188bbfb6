# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.

from hf_ext.method import Method
from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig as WeightedSFTConfig
from hf_ext.trainers.weighted_sft.trainer import WeightedSFTTrainer as WeightedSFTTrainer

METHOD: Method
