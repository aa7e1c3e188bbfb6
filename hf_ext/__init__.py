"""
Post-training for Hugging Face models that keeps what a model already knows.

Every public name is importable from here and is loaded on first use: `import hf_ext` itself imports neither torch nor
any host library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_ext.data.context_free import ContextFreeStore, generate_context_free
    from hf_ext.data.exemplars.augment import AddInContextExamples, ExampleDraw, add_in_context_examples
    from hf_ext.data.exemplars.formatter import RareFormatter
    from hf_ext.data.exemplars.store import ExemplarStore
    from hf_ext.data.preference import PairsToUnpaired, pairs_to_unpaired
    from hf_ext.data.provenance import model_hash, tokenizer_hash
    from hf_ext.data.pruning.dataset import prune
    from hf_ext.data.pruning.matching import Matching, gm_matching
    from hf_ext.data.pruning.median import GeometricMedian, geometric_median
    from hf_ext.data.pruning.official import gm_official
    from hf_ext.data.pruning.report import PruneReport
    from hf_ext.data.pruning.selectors import register_selector, select_rows
    from hf_ext.data.relabeling.accuracy import accuracy_difference, noisy_accuracy
    from hf_ext.data.relabeling.audit import audit_channel
    from hf_ext.data.relabeling.channel import RRChannel, RRWithPrior
    from hf_ext.data.relabeling.consensus import ConsensusFilter, bayes_posterior, relabel
    from hf_ext.data.relabeling.keys import KeyRef, make_key_file
    from hf_ext.data.relabeling.leaks import LabelLeakError
    from hf_ext.data.relabeling.ledger import PrivacyBudgetError
    from hf_ext.data.relabeling.predicting import fold_numbers, predict_column
    from hf_ext.data.relabeling.privatize import HashColumn, carry_ledger, privatize
    from hf_ext.data.relabeling.randomize import RandomizedResponse
    from hf_ext.data.relabeling.report import RelabelReport
    from hf_ext.data.vectors.embedding import EmbedBatches, EmbedRows, embed_rows
    from hf_ext.data.weighting import (
        FlowWeights,
        add_flow_weights,
        add_original_losses,
        flow_temperature,
        prepare_sft_rows,
        score_rows,
    )
    from hf_ext.demo.model import embedded_model
    from hf_ext.evaluation.forgetting import forgetting_report
    from hf_ext.evaluation.preference import likelihood_report
    from hf_ext.evaluation.preference_report import LikelihoodReport
    from hf_ext.evaluation.report import ForgettingReport
    from hf_ext.guards.finite import NonFiniteError, check_finite
    from hf_ext.guards.preference_rows import check_preference_rows, check_unpaired_rows
    from hf_ext.guards.rows import RowError, RowProblem, check_sft_rows
    from hf_ext.guards.world import check_world_size
    from hf_ext.hub.cards import write_dataset_card, write_model_card
    from hf_ext.hub.push import push_dataset, push_folder
    from hf_ext.hub.retry import PushError
    from hf_ext.losses.infopo import infopo_loss, infopo_unpaired_loss, mi_estimate
    from hf_ext.losses.kl import exact_kl, kl_k1, kl_k3
    from hf_ext.losses.label_noise import backward_corrected_nll, forward_corrected_nll, forward_loss_func, soft_nll
    from hf_ext.losses.weighted_nll import weighted_nll
    from hf_ext.retrieval.augmenter import QueryAugmenter
    from hf_ext.retrieval.encoder import RareEncoder
    from hf_ext.retrieval.settings import EncoderSettings
    from hf_ext.trainers.consensus.choice import choose_strategy
    from hf_ext.trainers.consensus.config import ConsensusConfig
    from hf_ext.trainers.consensus.recipe import ConsensusRecipe
    from hf_ext.trainers.consensus.sentence_head import SentenceHead
    from hf_ext.trainers.consensus.trainer import ForwardCorrectedTrainer
    from hf_ext.trainers.context_free.config import ContextFreeSFTConfig
    from hf_ext.trainers.context_free.trainer import ContextFreeSFTTrainer
    from hf_ext.trainers.flow.config import FlowSFTConfig
    from hf_ext.trainers.flow.trainer import FlowSFTTrainer
    from hf_ext.trainers.infopo.callbacks import LikelihoodGuardCallback
    from hf_ext.trainers.infopo.config import InfoPOConfig, InfoPOUnpairedConfig
    from hf_ext.trainers.infopo.trainer import InfoPOTrainer
    from hf_ext.trainers.infopo.unpaired import InfoPOUnpairedTrainer
    from hf_ext.trainers.rare.collator import RareDataCollator
    from hf_ext.trainers.rare.config import RareConfig, RareSparseConfig
    from hf_ext.trainers.rare.trainer import RareSparseTrainer, RareTrainer
    from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig
    from hf_ext.trainers.weighted_sft.trainer import WeightedSFTTrainer

# Public name -> the module that defines it. A test holds this table, `__all__` and the imports above equal.
_EXPORTS = {
    "AddInContextExamples": "hf_ext.data.exemplars.augment",
    "ConsensusConfig": "hf_ext.trainers.consensus.config",
    "ConsensusFilter": "hf_ext.data.relabeling.consensus",
    "ConsensusRecipe": "hf_ext.trainers.consensus.recipe",
    "ContextFreeSFTConfig": "hf_ext.trainers.context_free.config",
    "ContextFreeSFTTrainer": "hf_ext.trainers.context_free.trainer",
    "ContextFreeStore": "hf_ext.data.context_free",
    "EmbedBatches": "hf_ext.data.vectors.embedding",
    "EmbedRows": "hf_ext.data.vectors.embedding",
    "EncoderSettings": "hf_ext.retrieval.settings",
    "ExampleDraw": "hf_ext.data.exemplars.augment",
    "ExemplarStore": "hf_ext.data.exemplars.store",
    "FlowSFTConfig": "hf_ext.trainers.flow.config",
    "FlowSFTTrainer": "hf_ext.trainers.flow.trainer",
    "FlowWeights": "hf_ext.data.weighting",
    "ForgettingReport": "hf_ext.evaluation.report",
    "ForwardCorrectedTrainer": "hf_ext.trainers.consensus.trainer",
    "GeometricMedian": "hf_ext.data.pruning.median",
    "HashColumn": "hf_ext.data.relabeling.privatize",
    "InfoPOConfig": "hf_ext.trainers.infopo.config",
    "InfoPOTrainer": "hf_ext.trainers.infopo.trainer",
    "InfoPOUnpairedConfig": "hf_ext.trainers.infopo.config",
    "InfoPOUnpairedTrainer": "hf_ext.trainers.infopo.unpaired",
    "KeyRef": "hf_ext.data.relabeling.keys",
    "LabelLeakError": "hf_ext.data.relabeling.leaks",
    "LikelihoodGuardCallback": "hf_ext.trainers.infopo.callbacks",
    "LikelihoodReport": "hf_ext.evaluation.preference_report",
    "Matching": "hf_ext.data.pruning.matching",
    "NonFiniteError": "hf_ext.guards.finite",
    "PairsToUnpaired": "hf_ext.data.preference",
    "PrivacyBudgetError": "hf_ext.data.relabeling.ledger",
    "PruneReport": "hf_ext.data.pruning.report",
    "PushError": "hf_ext.hub.retry",
    "QueryAugmenter": "hf_ext.retrieval.augmenter",
    "RRChannel": "hf_ext.data.relabeling.channel",
    "RRWithPrior": "hf_ext.data.relabeling.channel",
    "RandomizedResponse": "hf_ext.data.relabeling.randomize",
    "RareConfig": "hf_ext.trainers.rare.config",
    "RareDataCollator": "hf_ext.trainers.rare.collator",
    "RareEncoder": "hf_ext.retrieval.encoder",
    "RareFormatter": "hf_ext.data.exemplars.formatter",
    "RareSparseConfig": "hf_ext.trainers.rare.config",
    "RareSparseTrainer": "hf_ext.trainers.rare.trainer",
    "RareTrainer": "hf_ext.trainers.rare.trainer",
    "RelabelReport": "hf_ext.data.relabeling.report",
    "RowError": "hf_ext.guards.rows",
    "RowProblem": "hf_ext.guards.rows",
    "SentenceHead": "hf_ext.trainers.consensus.sentence_head",
    "WeightedSFTConfig": "hf_ext.trainers.weighted_sft.config",
    "WeightedSFTTrainer": "hf_ext.trainers.weighted_sft.trainer",
    "accuracy_difference": "hf_ext.data.relabeling.accuracy",
    "add_flow_weights": "hf_ext.data.weighting",
    "add_in_context_examples": "hf_ext.data.exemplars.augment",
    "add_original_losses": "hf_ext.data.weighting",
    "audit_channel": "hf_ext.data.relabeling.audit",
    "backward_corrected_nll": "hf_ext.losses.label_noise",
    "bayes_posterior": "hf_ext.data.relabeling.consensus",
    "carry_ledger": "hf_ext.data.relabeling.privatize",
    "check_finite": "hf_ext.guards.finite",
    "check_preference_rows": "hf_ext.guards.preference_rows",
    "check_sft_rows": "hf_ext.guards.rows",
    "check_unpaired_rows": "hf_ext.guards.preference_rows",
    "check_world_size": "hf_ext.guards.world",
    "choose_strategy": "hf_ext.trainers.consensus.choice",
    "embed_rows": "hf_ext.data.vectors.embedding",
    "embedded_model": "hf_ext.demo.model",
    "exact_kl": "hf_ext.losses.kl",
    "flow_temperature": "hf_ext.data.weighting",
    "fold_numbers": "hf_ext.data.relabeling.predicting",
    "forgetting_report": "hf_ext.evaluation.forgetting",
    "forward_corrected_nll": "hf_ext.losses.label_noise",
    "forward_loss_func": "hf_ext.losses.label_noise",
    "generate_context_free": "hf_ext.data.context_free",
    "geometric_median": "hf_ext.data.pruning.median",
    "gm_matching": "hf_ext.data.pruning.matching",
    "gm_official": "hf_ext.data.pruning.official",
    "infopo_loss": "hf_ext.losses.infopo",
    "infopo_unpaired_loss": "hf_ext.losses.infopo",
    "kl_k1": "hf_ext.losses.kl",
    "kl_k3": "hf_ext.losses.kl",
    "likelihood_report": "hf_ext.evaluation.preference",
    "make_key_file": "hf_ext.data.relabeling.keys",
    "mi_estimate": "hf_ext.losses.infopo",
    "model_hash": "hf_ext.data.provenance",
    "noisy_accuracy": "hf_ext.data.relabeling.accuracy",
    "pairs_to_unpaired": "hf_ext.data.preference",
    "predict_column": "hf_ext.data.relabeling.predicting",
    "prepare_sft_rows": "hf_ext.data.weighting",
    "privatize": "hf_ext.data.relabeling.privatize",
    "prune": "hf_ext.data.pruning.dataset",
    "push_dataset": "hf_ext.hub.push",
    "push_folder": "hf_ext.hub.push",
    "register_selector": "hf_ext.data.pruning.selectors",
    "relabel": "hf_ext.data.relabeling.consensus",
    "score_rows": "hf_ext.data.weighting",
    "select_rows": "hf_ext.data.pruning.selectors",
    "soft_nll": "hf_ext.losses.label_noise",
    "tokenizer_hash": "hf_ext.data.provenance",
    "weighted_nll": "hf_ext.losses.weighted_nll",
    "write_dataset_card": "hf_ext.hub.cards",
    "write_model_card": "hf_ext.hub.cards",
}

__all__ = [
    "AddInContextExamples",
    "ConsensusConfig",
    "ConsensusFilter",
    "ConsensusRecipe",
    "ContextFreeSFTConfig",
    "ContextFreeSFTTrainer",
    "ContextFreeStore",
    "EmbedBatches",
    "EmbedRows",
    "EncoderSettings",
    "ExampleDraw",
    "ExemplarStore",
    "FlowSFTConfig",
    "FlowSFTTrainer",
    "FlowWeights",
    "ForgettingReport",
    "ForwardCorrectedTrainer",
    "GeometricMedian",
    "HashColumn",
    "InfoPOConfig",
    "InfoPOTrainer",
    "InfoPOUnpairedConfig",
    "InfoPOUnpairedTrainer",
    "KeyRef",
    "LabelLeakError",
    "LikelihoodGuardCallback",
    "LikelihoodReport",
    "Matching",
    "NonFiniteError",
    "PairsToUnpaired",
    "PrivacyBudgetError",
    "PruneReport",
    "PushError",
    "QueryAugmenter",
    "RRChannel",
    "RRWithPrior",
    "RandomizedResponse",
    "RareConfig",
    "RareDataCollator",
    "RareEncoder",
    "RareFormatter",
    "RareSparseConfig",
    "RareSparseTrainer",
    "RareTrainer",
    "RelabelReport",
    "RowError",
    "RowProblem",
    "SentenceHead",
    "WeightedSFTConfig",
    "WeightedSFTTrainer",
    "accuracy_difference",
    "add_flow_weights",
    "add_in_context_examples",
    "add_original_losses",
    "audit_channel",
    "backward_corrected_nll",
    "bayes_posterior",
    "carry_ledger",
    "check_finite",
    "check_preference_rows",
    "check_sft_rows",
    "check_unpaired_rows",
    "check_world_size",
    "choose_strategy",
    "embed_rows",
    "embedded_model",
    "exact_kl",
    "flow_temperature",
    "fold_numbers",
    "forgetting_report",
    "forward_corrected_nll",
    "forward_loss_func",
    "generate_context_free",
    "geometric_median",
    "gm_matching",
    "gm_official",
    "infopo_loss",
    "infopo_unpaired_loss",
    "kl_k1",
    "kl_k3",
    "likelihood_report",
    "make_key_file",
    "mi_estimate",
    "model_hash",
    "noisy_accuracy",
    "pairs_to_unpaired",
    "predict_column",
    "prepare_sft_rows",
    "privatize",
    "prune",
    "push_dataset",
    "push_folder",
    "register_selector",
    "relabel",
    "score_rows",
    "select_rows",
    "soft_nll",
    "tokenizer_hash",
    "weighted_nll",
    "write_dataset_card",
    "write_model_card",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hf-ext")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hf_ext' has no attribute {name!r}")
    with import_module("hf_ext.guards.extras").naming_extras():
        value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
