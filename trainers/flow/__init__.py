"""FLOW: fine-tuning rows weighted by how easy the original model finds them."""

from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method, Paper

METHOD = Method(
    name="flow",
    summary="FLOW: rows weighted by how easy the original model finds them",
    commands=("train flow", "data flow-weights"),
    trainer="FlowSFTTrainer",
    config="FlowSFTConfig",
    recipe="hf_ext.recipes.flow.train",
    card="flow",
    telltale_settings=("normalize", "tau"),
    private_settings=("bad_rows_path", "original_cache_dir"),
    paper=Paper(
        title="Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting",
        id="2502.02797",
        citation="""\
@inproceedings{sanyal2025upweighting,
    title     = {Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting},
    author    = {Sunny Sanyal and Hayden Prairie and Rudrajit Das and Ali Kavis and Sujay Sanghavi},
    booktitle = {International Conference on Machine Learning},
    year      = {2025},
    eprint    = {2502.02797},
    archivePrefix = {arXiv}
}""",
    ),
)

EXPORTS = {
    "hf_ext.trainers.flow.config": ("FlowSFTConfig",),
    "hf_ext.trainers.flow.trainer": ("FlowSFTTrainer",),
}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
