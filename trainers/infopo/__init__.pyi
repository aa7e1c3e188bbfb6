# Written by tools/exports.py from EXPORTS in __init__.py and the records of methods.

from hf_ext.method import Method
from hf_ext.trainers.infopo.callbacks import LikelihoodGuardCallback as LikelihoodGuardCallback
from hf_ext.trainers.infopo.config import InfoPOConfig as InfoPOConfig
from hf_ext.trainers.infopo.config import InfoPOUnpairedConfig as InfoPOUnpairedConfig
from hf_ext.trainers.infopo.trainer import InfoPOTrainer as InfoPOTrainer
from hf_ext.trainers.infopo.unpaired import InfoPOUnpairedTrainer as InfoPOUnpairedTrainer

PAIRED: Method
UNPAIRED: Method
ONLINE: Method
METHODS: tuple[Method, ...]
