"""Mixtures of experts by EM: a gate and experts on the features of any encoder."""

from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method, Paper

METHOD = Method(
    name="moe_em",
    summary="a mixture of linear, logistic or softmax experts on an encoder's features, by EM",
    commands=("train moe_em", "eval moe"),
    trainer="MoEEMTrainer",
    config="MoEEMConfig",
    recipe="hf_ext.recipes.moe_em.train",
    card="moe_em",
    host="transformers",
    task="text-classification",
    telltale_settings=("num_experts", "em_iterations"),
    card_settings=(
        "method", "num_experts", "expert_type", "symmetric", "shared_variance", "ridge", "em_iterations",
        "inner_steps", "eta", "restarts", "finalists", "tol", "patience", "whiten",
    ),
    card_tags=("mixture-of-experts",),
    paper=Paper(
        title="Learning Mixtures of Experts with EM: A Mirror Descent Perspective",
        id="2411.06056",
        citation="""\
@inproceedings{fruytier2025learning,
    title     = {Learning Mixtures of Experts with EM: A Mirror Descent Perspective},
    author    = {Quentin Fruytier and Aryan Mokhtari and Sujay Sanghavi},
    booktitle = {International Conference on Machine Learning},
    year      = {2025},
    series    = {PMLR},
    volume    = {267},
    pages     = {17690--17726},
    eprint    = {2411.06056},
    archivePrefix = {arXiv}
}""",
    ),
)  # fmt: skip

EXPORTS = {
    "hf_ext.trainers.moe_em.config": ("MoEEMConfig",),
    "hf_ext.trainers.moe_em.trainer": ("MoEEMTrainer",),
}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
