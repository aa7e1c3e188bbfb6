# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.

from hf_ext.method import Method
from hf_ext.moe.lora import LoraMixture as LoraMixture
from hf_ext.rounds.lora_mixture import LoraMixtureTrainer as LoraMixtureTrainer
from hf_ext.trainers.moe_lora.config import LoraMixtureConfig as LoraMixtureConfig

METHOD: Method
