"""Label privacy and consensus: noisy labels with a ledger, what a model makes of them, and how right it is."""

from hf_ext.data.relabeling.accuracy import accuracy_difference, noisy_accuracy
from hf_ext.data.relabeling.audit import AuditReport, audit_channel, realised_epsilon
from hf_ext.data.relabeling.channel import RRChannel, RRWithPrior
from hf_ext.data.relabeling.consensus import ConsensusFilter, bayes_posterior, relabel
from hf_ext.data.relabeling.estimates import Estimate
from hf_ext.data.relabeling.keys import KeyRef, make_key_file
from hf_ext.data.relabeling.leaks import LabelLeakError, Leak, find_leaks
from hf_ext.data.relabeling.ledger import PrivacyBudgetError
from hf_ext.data.relabeling.predicting import fold_numbers, predict_column
from hf_ext.data.relabeling.privatize import HashColumn, carry_ledger, privatize
from hf_ext.data.relabeling.randomize import RandomizedResponse
from hf_ext.data.relabeling.report import RelabelReport

__all__ = [
    "AuditReport",
    "ConsensusFilter",
    "Estimate",
    "HashColumn",
    "KeyRef",
    "LabelLeakError",
    "Leak",
    "PrivacyBudgetError",
    "RRChannel",
    "RRWithPrior",
    "RandomizedResponse",
    "RelabelReport",
    "accuracy_difference",
    "audit_channel",
    "bayes_posterior",
    "carry_ledger",
    "find_leaks",
    "fold_numbers",
    "make_key_file",
    "noisy_accuracy",
    "predict_column",
    "privatize",
    "realised_epsilon",
    "relabel",
]
