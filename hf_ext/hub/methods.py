"""What a card says of each method: its template, library, task and paper."""

from __future__ import annotations

__all__ = ["LIBRARIES", "METHODS", "OWN_TAGS", "PAPERS", "TRAINERS"]

METHODS = ("weighted_sft", "flow", "context_free", "infopo", "infopo_unpaired", "rare", "consensus")
"""Methods with a card template, `model_cards/<method>.jinja`."""

LIBRARIES: dict[str, tuple[str, str | None]] = {
    "rare": ("sentence-transformers", "sentence-similarity"),
    "consensus": ("transformers", None),
}
"""The library that opens a method's folder, and its task (`None`: the model's class tells), where that is not a
generator of transformers."""
TRAINERS = {"rare": "sentence-transformers", "consensus": "transformers"}
"""The library whose trainer a method extends, where that is not TRL."""

PAPERS: dict[str, dict[str, str]] = {
    "flow": {
        "title": "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting",
        "id": "2502.02797",
        "citation": """\
@inproceedings{sanyal2025upweighting,
    title     = {Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting},
    author    = {Sunny Sanyal and Hayden Prairie and Rudrajit Das and Ali Kavis and Sujay Sanghavi},
    booktitle = {International Conference on Machine Learning},
    year      = {2025},
    eprint    = {2502.02797},
    archivePrefix = {arXiv}
}""",
    },
    "context_free": {
        "title": "Context-Free Synthetic Data Mitigates Forgetting",
        "id": "2505.13811",
        "citation": """\
@misc{bansal2025contextfree,
    title  = {Context-Free Synthetic Data Mitigates Forgetting},
    author = {Parikshit Bansal and Sujay Sanghavi},
    year   = {2025},
    eprint = {2505.13811},
    archivePrefix = {arXiv}
}""",
    },
    "infopo": {
        "title": "InfoPO: On Mutual Information Maximization for Large Language Model Alignment",
        "id": "2505.08507",
        "citation": """\
@inproceedings{xiao2025infopo,
    title     = {InfoPO: On Mutual Information Maximization for Large Language Model Alignment},
    author    = {Teng Xiao and Zhen Ge and Sujay Sanghavi and Tian Wang and Julian Katz-Samuels and Marc Versage
                 and Qingjun Cui and Trishul Chilimbi},
    booktitle = {Proceedings of the Conference of the Nations of the Americas Chapter of the ACL (NAACL)},
    year      = {2025},
    eprint    = {2505.08507},
    archivePrefix = {arXiv}
}""",
    },
}
PAPERS["infopo_unpaired"] = PAPERS["infopo"]
PAPERS["pruning"] = {
    "title": "Geometric Median (GM) Matching for Robust k-Subset Selection from Noisy Data",
    "id": "2504.00564",
    "citation": """\
@inproceedings{acharya2025geometric,
    title     = {Geometric Median (GM) Matching for Robust k-Subset Selection from Noisy Data},
    author    = {Anish Acharya and Sujay Sanghavi and Alexandros G. Dimakis and Inderjit S. Dhillon},
    booktitle = {International Conference on Machine Learning},
    year      = {2025},
    eprint    = {2504.00564},
    archivePrefix = {arXiv}
}""",
}
PAPERS["rare"] = {
    "title": "RARe: Retrieval Augmented Retrieval with In-Context Examples",
    "id": "2410.20088",
    "citation": """\
@inproceedings{tejaswi2025rare,
    title     = {RARe: Retrieval Augmented Retrieval with In-Context Examples},
    author    = {Atula Tejaswi and Yoonsang Lee and Sujay Sanghavi and Eunsol Choi},
    booktitle = {Conference on Language Modeling},
    year      = {2025},
    eprint    = {2410.20088},
    archivePrefix = {arXiv}
}""",
}
PAPERS["consensus"] = {
    "title": "Retraining with Predicted Hard Labels Provably Increases Model Accuracy",
    "id": "2406.11206",
    "citation": """\
@inproceedings{das2025retraining,
    title     = {Retraining with Predicted Hard Labels Provably Increases Model Accuracy},
    author    = {Rudrajit Das and Inderjit S. Dhillon and Alessandro Epasto and Adel Javanmard and Jieming Mao
                 and Vahab Mirrokni and Sujay Sanghavi and Peilin Zhong},
    booktitle = {International Conference on Machine Learning},
    year      = {2025},
    eprint    = {2406.11206},
    archivePrefix = {arXiv}
}""",
}
"""Papers by method, in the shape of TRL's `_paper`: `title`, arXiv `id`, `citation`."""

OWN_TAGS = frozenset({"hf-ext", "trl", *METHODS})
OWN_TAGS |= {
    "synthetic",
    "context-free",
    "pruned",
    "label-differential-privacy",
    "label-noise",
    "in-context-retrieval",
}
OWN_TAGS |= {"sentence-transformers", "sparse-encoder"}
"""Tags that cards of hf-ext get by what they are about."""
