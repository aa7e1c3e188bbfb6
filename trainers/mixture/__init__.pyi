# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.

from hf_ext.bandits.mixture import SideObservationMixture as SideObservationMixture
from hf_ext.method import Method
from hf_ext.trainers.mixture.config import MixtureSFTConfig as MixtureSFTConfig
from hf_ext.trainers.mixture.feedback import MixtureFeedbackCallback as MixtureFeedbackCallback
from hf_ext.trainers.mixture.trainer import MixtureSFTTrainer as MixtureSFTTrainer
from hf_ext.trainers.mixture.trainer import with_mixture as with_mixture

METHOD: Method
