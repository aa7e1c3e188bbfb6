# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.

from hf_ext.method import Method
from hf_ext.trainers.weighted_classification.config import WeightedConfig as WeightedConfig
from hf_ext.trainers.weighted_classification.trainer import WeightedTrainer as WeightedTrainer

METHOD: Method
