"""Robust data pruning: the rows that stand for the clean bulk of noisy data."""

from hf_ext.data.pruning.dataset import prune
from hf_ext.data.pruning.matching import Matching, gm_matching
from hf_ext.data.pruning.median import GeometricMedian, geometric_median
from hf_ext.data.pruning.official import gm_official
from hf_ext.data.pruning.report import PruneReport
from hf_ext.data.pruning.selectors import register_selector, select_rows
from hf_ext.data.vectors.embedding import EmbedBatches, EmbedRows, embed_rows
from hf_ext.data.vectors.encoders import load_encoder

__all__ = [
    "EmbedBatches",
    "EmbedRows",
    "GeometricMedian",
    "Matching",
    "PruneReport",
    "embed_rows",
    "geometric_median",
    "gm_matching",
    "gm_official",
    "load_encoder",
    "prune",
    "register_selector",
    "select_rows",
]
