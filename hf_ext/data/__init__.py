"""Callables and functions on datasets: weighting rows, context-free rows."""

from hf_ext.method import Method, Paper

METHODS = (
    Method(
        name="pruning",
        summary="Geometric Median Matching: keep the rows that stand for the clean bulk of a dataset",
        commands=("data prune",),
        card_tags=("pruned",),
        paper=Paper(
            title="Geometric Median (GM) Matching for Robust k-Subset Selection from Noisy Data",
            id="2504.00564",
            citation="""\
@inproceedings{acharya2025geometric,
    title     = {Geometric Median (GM) Matching for Robust k-Subset Selection from Noisy Data},
    author    = {Anish Acharya and Sujay Sanghavi and Alexandros G. Dimakis and Inderjit S. Dhillon},
    booktitle = {International Conference on Machine Learning},
    year      = {2025},
    eprint    = {2504.00564},
    archivePrefix = {arXiv}
}""",
        ),
    ),
    Method(
        name="curation",
        summary="DCLM's curation: raw pages to a training set, with a reason for every document that goes",
        commands=("data curate", "data dedup", "data classify", "data decontaminate"),
        card_tags=("curated",),
        paper=Paper(
            title="DataComp-LM: In search of the next generation of training sets for language models",
            id="2406.11794",
            citation="""\
@inproceedings{li2024datacomplm,
    title     = {{DataComp-LM}: In search of the next generation of training sets for language models},
    author    = {Jeffrey Li and Alex Fang and Georgios Smyrnis and Maor Ivgi and Matt Jordan and others},
    booktitle = {Advances in Neural Information Processing Systems, Datasets and Benchmarks Track},
    year      = {2024},
    eprint    = {2406.11794},
    archivePrefix = {arXiv}
}""",
        ),
    ),
    Method(
        name="label_privacy",
        summary="labels randomised under label differential privacy, with a ledger of what they cost",
        commands=("data privatize",),
        card_tags=("label-differential-privacy",),
    ),
)
