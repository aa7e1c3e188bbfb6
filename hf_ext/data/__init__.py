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
        name="label_privacy",
        summary="labels randomised under label differential privacy, with a ledger of what they cost",
        commands=("data privatize",),
        card_tags=("label-differential-privacy",),
    ),
)
