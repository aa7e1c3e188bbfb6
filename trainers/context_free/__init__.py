"""Context-free synthetic data: an unbiased KL anchor to the original model."""

from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method, Paper

METHOD = Method(
    name="context_free",
    summary="fine-tuning beside rows sampled from the original model",
    commands=("train context_free", "data context-free"),
    trainer="ContextFreeSFTTrainer",
    config="ContextFreeSFTConfig",
    recipe="hf_ext.recipes.context_free.train",
    card="context_free",
    telltale_settings=("normalize", "kl_weight"),
    card_tags=("synthetic", "context-free"),
    private_settings=("bad_rows_path", "context_free_path", "original_cache_dir"),
    paper=Paper(
        title="Context-Free Synthetic Data Mitigates Forgetting",
        id="2505.13811",
        citation="""\
@misc{bansal2025contextfree,
    title  = {Context-Free Synthetic Data Mitigates Forgetting},
    author = {Parikshit Bansal and Sujay Sanghavi},
    year   = {2025},
    eprint = {2505.13811},
    archivePrefix = {arXiv}
}""",
    ),
)

EXPORTS = {
    "hf_ext.trainers.context_free.config": ("ContextFreeSFTConfig",),
    "hf_ext.trainers.context_free.trainer": ("ContextFreeSFTTrainer",),
}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
