"""RARe: retrievers that use in-context examples."""

from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method, Paper

METHOD = Method(
    name="rare",
    summary="RARe: a retriever that reads examples, past queries with documents, before the query",
    commands=("train rare", "data exemplars", "eval retrieval"),
    trainer="RareTrainer",
    config="RareConfig",
    recipe="hf_ext.recipes.rare.train",
    card="rare",
    host="sentence-transformers",
    library="sentence-transformers",
    task="sentence-similarity",
    telltale_settings=("n_examples",),
    card_tags=("in-context-retrieval", "sentence-transformers", "sparse-encoder"),
    private_settings=("bad_rows_path",),
    paper=Paper(
        title="RARe: Retrieval Augmented Retrieval with In-Context Examples",
        id="2410.20088",
        citation="""\
@inproceedings{tejaswi2025rare,
    title     = {RARe: Retrieval Augmented Retrieval with In-Context Examples},
    author    = {Atula Tejaswi and Yoonsang Lee and Sujay Sanghavi and Eunsol Choi},
    booktitle = {Conference on Language Modeling},
    year      = {2025},
    eprint    = {2410.20088},
    archivePrefix = {arXiv}
}""",
    ),
)

EXPORTS = {
    "hf_ext.trainers.rare.collator": ("RareDataCollator",),
    "hf_ext.trainers.rare.config": ("RareConfig", "RareSparseConfig"),
    "hf_ext.trainers.rare.distill": ("ContextDistillationTrainer",),
    "hf_ext.trainers.rare.trainer": ("RareSparseTrainer", "RareTrainer"),
}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
