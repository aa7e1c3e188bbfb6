# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.

from hf_ext.method import Method
from hf_ext.trainers.rare.collator import RareDataCollator as RareDataCollator
from hf_ext.trainers.rare.config import RareConfig as RareConfig
from hf_ext.trainers.rare.config import RareSparseConfig as RareSparseConfig
from hf_ext.trainers.rare.distill import ContextDistillationTrainer as ContextDistillationTrainer
from hf_ext.trainers.rare.trainer import RareSparseTrainer as RareSparseTrainer
from hf_ext.trainers.rare.trainer import RareTrainer as RareTrainer

METHOD: Method
