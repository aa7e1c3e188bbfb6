# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.

from hf_ext.method import Method
from hf_ext.trainers.flow.config import FlowSFTConfig as FlowSFTConfig
from hf_ext.trainers.flow.trainer import FlowSFTTrainer as FlowSFTTrainer

METHOD: Method
