# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.

from hf_ext.method import Method
from hf_ext.trainers.pretraining.architecture import new_model as new_model
from hf_ext.trainers.pretraining.config import PretrainingConfig as PretrainingConfig
from hf_ext.trainers.pretraining.curve import TrainingCurve as TrainingCurve
from hf_ext.trainers.pretraining.plan import TrainingPlan as TrainingPlan
from hf_ext.trainers.pretraining.trainer import PretrainingTrainer as PretrainingTrainer

TRAINING: Method
GAME: Method
METHODS: tuple[Method, ...]
