"""InfoPO: preference tuning by mutual information, on pairs and on single labelled responses."""

from dataclasses import replace

from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method, Paper

PAIRED = Method(
    name="infopo",
    summary="InfoPO: preference pairs, by mutual information",
    commands=("train infopo",),
    trainer="InfoPOTrainer",
    config="InfoPOConfig",
    recipe="hf_ext.recipes.infopo.train",
    card="infopo",
    telltale_settings=("estimator",),
    host_settings=("loss_type", "loss_weights", "beta", "precompute_ref_log_probs"),
    private_settings=("bad_rows_path",),
    paper=Paper(
        title="InfoPO: On Mutual Information Maximization for Large Language Model Alignment",
        id="2505.08507",
        citation="""\
@inproceedings{xiao2025infopo,
    title     = {InfoPO: On Mutual Information Maximization for Large Language Model Alignment},
    author    = {Teng Xiao and Zhen Ge and Sujay Sanghavi and Tian Wang and Julian Katz-Samuels and Marc Versage
                 and Qingjun Cui and Trishul Chilimbi},
    booktitle = {Proceedings of the Conference of the Nations of the Americas Chapter of the ACL (NAACL)},
    year      = {2025},
    eprint    = {2505.08507},
    archivePrefix = {arXiv}
}""",
    ),
)
UNPAIRED = replace(
    PAIRED,
    name="infopo_unpaired",
    summary="InfoPO on single responses labelled good or bad",
    commands=("train infopo_unpaired",),
    trainer="InfoPOUnpairedTrainer",
    config="InfoPOUnpairedConfig",
    recipe="hf_ext.recipes.infopo.unpaired",
    card="infopo_unpaired",
    telltale_settings=("estimator", "positive_fraction"),
)
ONLINE = replace(
    PAIRED,
    name="infopo_online",
    summary="InfoPO in rounds: sample answers, score them, pair them, train, again",
    commands=("train infopo_online",),
    recipe="hf_ext.recipes.infopo.online",
    variant_of="infopo",
)
METHODS = (PAIRED, UNPAIRED, ONLINE)

EXPORTS = {
    "hf_ext.trainers.infopo.callbacks": ("LikelihoodGuardCallback",),
    "hf_ext.trainers.infopo.config": ("InfoPOConfig", "InfoPOUnpairedConfig"),
    "hf_ext.trainers.infopo.trainer": ("InfoPOTrainer",),
    "hf_ext.trainers.infopo.unpaired": ("InfoPOUnpairedTrainer",),
}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
