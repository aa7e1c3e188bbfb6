"""Consensus: train on noisy labels, keep what the model agrees with, train again from the start."""

from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method, Paper

METHOD = Method(
    name="consensus",
    summary="a classifier on noisy labels, trained again on those the model agrees with where that helps",
    commands=("train consensus", "data relabel"),
    trainer="ConsensusRecipe",
    config="ConsensusConfig",
    recipe="hf_ext.recipes.consensus.train",
    card="consensus",
    host="transformers",
    task=None,
    telltale_settings=("cross_fit",),
    card_settings=("mode", "round_loss", "budget", "rounds", "cross_fit", "reinit"),
    card_tags=("label-noise",),
    paper=Paper(
        title="Retraining with Predicted Hard Labels Provably Increases Model Accuracy",
        id="2406.11206",
        citation="""\
@inproceedings{das2025retraining,
    title     = {Retraining with Predicted Hard Labels Provably Increases Model Accuracy},
    author    = {Rudrajit Das and Inderjit S. Dhillon and Alessandro Epasto and Adel Javanmard and Jieming Mao
                 and Vahab Mirrokni and Sujay Sanghavi and Peilin Zhong},
    booktitle = {International Conference on Machine Learning},
    year      = {2025},
    eprint    = {2406.11206},
    archivePrefix = {arXiv}
}""",
    ),
)

EXPORTS = {
    "hf_ext.data.relabeling.choice": ("Choice", "Strategy", "choose_strategy"),
    "hf_ext.rounds.consensus": ("ConsensusRecipe",),
    "hf_ext.rounds.consensus_report": ("ConsensusResult", "RoundReport"),
    "hf_ext.trainers.consensus.config": ("ConsensusConfig",),
    "hf_ext.trainers.consensus.sentence_head": ("SentenceHead",),
    "hf_ext.trainers.consensus.trainer": ("ForwardCorrectedTrainer",),
}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
