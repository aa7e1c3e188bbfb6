"""Mixtures of sources whose shares follow, while training, what each source does for a target."""

from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method, Paper

METHOD = Method(
    name="mixture",
    summary="several sources of rows, whose shares follow what each does for held-out target rows",
    commands=("train mixture",),
    trainer="MixtureSFTTrainer",
    config="MixtureSFTConfig",
    recipe="hf_ext.recipes.mixture.train",
    telltale_settings=("reward_every",),
    card_settings=("reward", "reward_every", "target_rows", "floor_share", "reward_window"),
    private_settings=("bad_rows_path",),
    paper=Paper(
        title="Asymptotically-Optimal Gaussian Bandits with Side Observations",
        id="2505.10698",
        citation="""@inproceedings{atsidakou2022asymptotically,
    title  = {Asymptotically-Optimal Gaussian Bandits with Side Observations},
    author = {Atsidakou, Alexia and Papadigenopoulos, Orestis and Caramanis, Constantine and Sanghavi, Sujay and
              Shakkottai, Sanjay},
    booktitle = {International Conference on Machine Learning},
    year   = 2022,
}""",
    ),
)

EXPORTS = {
    "hf_ext.bandits.mixture": ("SideObservationMixture",),
    "hf_ext.trainers.mixture.config": ("MixtureSFTConfig",),
    "hf_ext.trainers.mixture.feedback": ("MixtureFeedbackCallback",),
    "hf_ext.trainers.mixture.trainer": ("MixtureSFTTrainer", "with_mixture"),
}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
