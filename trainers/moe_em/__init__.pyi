# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.

from hf_ext.method import Method
from hf_ext.trainers.moe_em.config import MoEEMConfig as MoEEMConfig
from hf_ext.trainers.moe_em.trainer import MoEEMTrainer as MoEEMTrainer

METHOD: Method
