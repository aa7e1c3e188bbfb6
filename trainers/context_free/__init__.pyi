# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.

from hf_ext.method import Method
from hf_ext.trainers.context_free.config import ContextFreeSFTConfig as ContextFreeSFTConfig
from hf_ext.trainers.context_free.trainer import ContextFreeSFTTrainer as ContextFreeSFTTrainer

METHOD: Method
