"""Robust data pruning: the rows that stand for the clean bulk of noisy data."""

from hf_ext.data.pruning.groups import quotas
from hf_ext.data.pruning.matching import Matching, gm_matching
from hf_ext.data.pruning.median import GeometricMedian, geometric_median
from hf_ext.data.pruning.official import gm_official

__all__ = ["GeometricMedian", "Matching", "geometric_median", "gm_matching", "gm_official", "quotas"]
