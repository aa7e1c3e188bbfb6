"""
Post-training for Hugging Face models that keeps what a model already knows.

Every public name is importable from here and is loaded on first use: `import hf_ext` itself imports neither torch nor
any host library.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hf_ext._registration import register as _register
from hf_ext.guards.lazy import lazy_names

# Module -> the public names that it defines, beside the trainers and configurations that the methods' records name.
# `python tools/exports.py` writes all of them for type checkers: `__init__.pyi`.
EXPORTS = {
    "hf_ext.bandits.checkpoint_callback": ("CheckpointSelectionCallback",),
    "hf_ext.bandits.checkpoints": ("select_best", "select_checkpoint"),
    "hf_ext.bandits.curves": ("RegretCurves",),
    "hf_ext.bandits.information": ("SideInformation",),
    "hf_ext.bandits.lower_bound": ("Bound", "lower_bound"),
    "hf_ext.bandits.mixture": ("SideObservationMixture",),
    "hf_ext.bandits.side_observations": ("SideObservationPolicy",),
    "hf_ext.bandits.simulation": ("simulate",),
    "hf_ext.comparison.compare": ("compare_forgetting",),
    "hf_ext.comparison.grid": ("Grid",),
    "hf_ext.comparison.penalty": ("QuadraticPenaltyCallback", "context_free_fisher"),
    "hf_ext.comparison.report": ("ComparisonReport",),
    "hf_ext.data.backends.completions": ("CompletionsBackend",),
    "hf_ext.data.backends.continuous": ("ContinuousBatchingBackend",),
    "hf_ext.data.backends.protocol": ("SampledRow",),
    "hf_ext.data.backends.vllm": ("VLLMBackend",),
    "hf_ext.data.class_losses": ("add_original_class_losses",),
    "hf_ext.data.context_free": ("generate_context_free", "generate_contextual"),
    "hf_ext.data.context_free_store": ("ContextFreeStore",),
    "hf_ext.data.curation.baseline": ("dclm_baseline",),
    "hf_ext.data.curation.classifier": ("QualityClassifier", "fit_quality_classifier"),
    "hf_ext.data.curation.counts": ("CurationCounts",),
    "hf_ext.data.curation.decontaminate": ("Decontaminate",),
    "hf_ext.data.curation.deduplication.bloom": ("BloomDeduplication",),
    "hf_ext.data.curation.deduplication.dataset": ("deduplicate",),
    "hf_ext.data.curation.deduplication.exact": ("ExactDeduplication",),
    "hf_ext.data.curation.deduplication.minhash": ("MinHashDeduplication",),
    "hf_ext.data.curation.drop_ledger": ("DropLedger",),
    "hf_ext.data.curation.extract": ("HtmlToText",),
    "hf_ext.data.curation.language": ("LanguageFilter",),
    "hf_ext.data.curation.lines": ("LineRules",),
    "hf_ext.data.curation.mixing": ("mix",),
    "hf_ext.data.curation.ngram_index": ("NGramIndex",),
    "hf_ext.data.curation.packing": ("pack",),
    "hf_ext.data.curation.pipeline": ("curate",),
    "hf_ext.data.curation.quality": ("GopherQuality",),
    "hf_ext.data.curation.quality_filter": ("QualityFilter", "QualityShare", "find_cut"),
    "hf_ext.data.curation.remove_urls": ("RemoveUrls",),
    "hf_ext.data.curation.repetition": ("GopherRepetition",),
    "hf_ext.data.curation.report": ("CurationReport",),
    "hf_ext.data.curation.urls": ("UrlRules",),
    "hf_ext.data.curation.warc": ("read_warc",),
    "hf_ext.data.exemplars.augment": ("AddInContextExamples", "ExampleDraw", "add_in_context_examples"),
    "hf_ext.data.exemplars.formatter": ("RareFormatter",),
    "hf_ext.data.exemplars.store": ("ExemplarStore",),
    "hf_ext.data.preference": ("PairsToUnpaired", "pairs_to_unpaired"),
    "hf_ext.data.pruning.dataset": ("prune",),
    "hf_ext.data.pruning.matching": ("Matching", "gm_matching"),
    "hf_ext.data.pruning.median": ("GeometricMedian", "geometric_median"),
    "hf_ext.data.pruning.official": ("gm_official",),
    "hf_ext.data.pruning.report": ("PruneReport",),
    "hf_ext.data.pruning.selectors": ("register_selector", "select_rows"),
    "hf_ext.data.relabeling.accuracy": ("accuracy_difference", "noisy_accuracy"),
    "hf_ext.data.relabeling.audit": ("audit_channel",),
    "hf_ext.data.relabeling.channel": ("RRChannel", "RRWithPrior"),
    "hf_ext.data.relabeling.choice": ("choose_strategy",),
    "hf_ext.data.relabeling.consensus": ("ConsensusFilter", "bayes_posterior", "relabel"),
    "hf_ext.data.relabeling.keys": ("KeyRef", "make_key_file"),
    "hf_ext.data.relabeling.leaks": ("LabelLeakError",),
    "hf_ext.data.relabeling.ledger": ("PrivacyBudgetError",),
    "hf_ext.data.relabeling.predicting": ("fold_numbers", "predict_column"),
    "hf_ext.data.relabeling.privatize": ("HashColumn", "carry_ledger", "privatize"),
    "hf_ext.data.relabeling.randomize": ("RandomizedResponse",),
    "hf_ext.data.relabeling.report": ("RelabelReport",),
    "hf_ext.data.replay": ("store_replay",),
    "hf_ext.data.vectors.embedding": ("EmbedBatches", "EmbedRows", "embed_rows"),
    "hf_ext.data.weighting": (
        "FlowWeights",
        "add_flow_weights",
        "add_original_losses",
        "flow_temperature",
        "prepare_sft_rows",
    ),
    "hf_ext.demo.model": ("embedded_model",),
    "hf_ext.evaluation.core.aggregate": ("CoreIncomplete", "aggregate_core"),
    "hf_ext.evaluation.core.callback": ("CoreCallback",),
    "hf_ext.evaluation.core.evaluate": ("evaluate_core",),
    "hf_ext.evaluation.core.export": ("export_lm_eval",),
    "hf_ext.evaluation.core.report": ("CoreReport",),
    "hf_ext.evaluation.forgetting": ("forgetting_report",),
    "hf_ext.evaluation.metrics": ("CentredAccuracy", "KLOriginalToNew", "NDCGAt10"),
    "hf_ext.evaluation.preference": ("likelihood_report",),
    "hf_ext.evaluation.preference_report": ("LikelihoodReport",),
    "hf_ext.evaluation.report": ("ForgettingReport",),
    "hf_ext.evaluation.wise_ft": ("wise_ft",),
    "hf_ext.evaluation.wise_ft_sweep": ("WiseFTSweep", "sweep_wise_ft"),
    "hf_ext.guards.engines": ("BackendError",),
    "hf_ext.guards.finite": ("NonFiniteError",),
    "hf_ext.guards.preference_rows": ("check_preference_rows", "check_unpaired_rows"),
    "hf_ext.guards.rows": ("RowError", "check_sft_rows"),
    "hf_ext.guards.world": ("check_world_size",),
    "hf_ext.hub.cards": ("write_dataset_card", "write_model_card"),
    "hf_ext.hub.push": ("push_dataset", "push_folder"),
    "hf_ext.hub.retry": ("PushError",),
    "hf_ext.losses.infopo": ("infopo_loss", "infopo_unpaired_loss", "mi_estimate"),
    "hf_ext.losses.kl": ("exact_kl", "kl_k1", "kl_k3"),
    "hf_ext.losses.label_noise": ("backward_corrected_nll", "forward_corrected_nll", "forward_loss_func", "soft_nll"),
    "hf_ext.losses.moe_likelihood": ("moe_nll",),
    "hf_ext.losses.top_k_kl": ("top_k_kl",),
    "hf_ext.losses.weighted_classes": ("weighted_class_nll",),
    "hf_ext.losses.weighted_nll": ("weighted_nll",),
    "hf_ext.moe.arguments": ("EMArguments",),
    "hf_ext.moe.configuration_moe": ("MoEConfig",),
    "hf_ext.moe.em": ("fit_em",),
    "hf_ext.moe.experts": ("ExpertProtocol", "fit_em_experts"),
    "hf_ext.moe.lora": ("LoraMixture",),
    "hf_ext.moe.modeling_moe": ("MoEForSequenceClassification",),
    "hf_ext.moe.parameters": ("MixtureShape",),
    "hf_ext.moe.predict": ("MoEPredict",),
    "hf_ext.moe.stochastic": ("StochasticMixtureFit",),
    "hf_ext.retrieval.augmenter": ("EncoderSettings", "QueryAugmenter"),
    "hf_ext.retrieval.encoder": ("RareEncoder",),
    "hf_ext.trainers.consensus.sentence_head": ("SentenceHead",),
    "hf_ext.trainers.consensus.trainer": ("ForwardCorrectedTrainer",),
    "hf_ext.trainers.infopo.callbacks": ("LikelihoodGuardCallback",),
    "hf_ext.trainers.mixture.feedback": ("MixtureFeedbackCallback",),
    "hf_ext.trainers.mixture.trainer": ("with_mixture",),
    "hf_ext.trainers.pretraining.architecture": ("new_model",),
    "hf_ext.trainers.rare.config": ("RareSparseConfig",),
    "hf_ext.trainers.rare.trainer": ("RareSparseTrainer",),
}

# Exported up to 0.1, and on no page: each stays in its module, and goes from here with the next version.
UNEXPORTED = {
    "RareDataCollator": "hf_ext.trainers.rare.collator",
    "RowProblem": "hf_ext.guards.rows",
    "check_finite": "hf_ext.guards.finite",
    "model_hash": "hf_ext.data.provenance",
    "score_rows": "hf_ext.data.weighting",
    "tokenizer_hash": "hf_ext.data.provenance",
}


def _trainers_and_configs() -> dict[str, tuple[str, ...]]:
    from hf_ext.method import method_exports

    return method_exports()


_register()  # transformers opens folders of em_moe from now on; nothing is imported before transformers is

_load, _names = lazy_names(__name__, EXPORTS, more_exports=_trainers_and_configs)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hf-ext")
    if name in UNEXPORTED:
        import warnings

        home = UNEXPORTED[name]
        message = f"hf_ext.{name} goes with the next version; import it with: from {home} import {name}"
        warnings.warn(message, FutureWarning, stacklevel=2)
        return getattr(import_module(home), name)
    return _load(name)


def __dir__() -> list[str]:
    return [*_names(), "__version__"]
