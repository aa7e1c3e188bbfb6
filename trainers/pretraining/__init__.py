"""Pretraining from scratch on packed shards, as DCLM does it."""

from dataclasses import replace

from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method, Paper

TRAINING = Method(
    name="pretraining",
    summary="a language model from scratch on packed shards, on DCLM's schedule",
    commands=("train pretraining",),
    trainer="PretrainingTrainer",
    config="PretrainingConfig",
    recipe="hf_ext.recipes.pretraining.train",
    card="pretraining",
    host="transformers",
    telltale_settings=("z_loss_weight",),
    card_settings=("sequence_length", "token_budget", "sequences_per_step", "z_loss_weight", "cooldown_learning_rate"),
    host_settings=("weight_decay", "adam_beta1", "adam_beta2", "warmup_steps", "max_grad_norm"),
    private_settings=("tokenizer_name",),
    paper=Paper(
        title="DataComp-LM: In search of the next generation of training sets for language models",
        id="2406.11794",
        citation="""\
@inproceedings{li2024datacomplm,
    title     = {DataComp-LM: In search of the next generation of training sets for language models},
    author    = {Jeffrey Li and Alex Fang and Georgios Smyrnis and Maor Ivgi and Matt Jordan and others},
    booktitle = {Advances in Neural Information Processing Systems},
    year      = {2024},
    eprint    = {2406.11794},
    archivePrefix = {arXiv}
}""",
    ),
)
GAME = replace(
    TRAINING,
    name="dclm",
    summary="DCLM's game: one scale, a model a treatment of the data, held-out loss and CORE with errors",
    commands=("train dclm",),
    recipe="hf_ext.recipes.dclm.train",
    variant_of="pretraining",
)
METHODS = (TRAINING, GAME)

EXPORTS = {
    "hf_ext.trainers.pretraining.architecture": ("new_model",),
    "hf_ext.trainers.pretraining.config": ("PretrainingConfig",),
    "hf_ext.trainers.pretraining.curve": ("TrainingCurve",),
    "hf_ext.trainers.pretraining.plan": ("TrainingPlan",),
    "hf_ext.trainers.pretraining.trainer": ("PretrainingTrainer",),
}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
