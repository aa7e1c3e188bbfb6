"""InfoPO: preference tuning by mutual information, on pairs and on single labelled responses."""

from hf_ext.trainers.infopo.callbacks import LikelihoodGuardCallback
from hf_ext.trainers.infopo.config import InfoPOConfig, InfoPOUnpairedConfig
from hf_ext.trainers.infopo.trainer import InfoPOTrainer
from hf_ext.trainers.infopo.unpaired import InfoPOUnpairedTrainer

__all__ = [
    "InfoPOConfig",
    "InfoPOTrainer",
    "InfoPOUnpairedConfig",
    "InfoPOUnpairedTrainer",
    "LikelihoodGuardCallback",
]
