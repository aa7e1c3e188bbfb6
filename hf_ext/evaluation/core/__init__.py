"""DCLM's CORE score of any causal language model: 22 tasks, centred accuracy, errors, by two protocols."""

from hf_ext.evaluation.core.aggregate import CoreIncomplete, Difference, Score, aggregate_core
from hf_ext.evaluation.core.callback import CoreCallback
from hf_ext.evaluation.core.evaluate import evaluate_core
from hf_ext.evaluation.core.export import export_lm_eval
from hf_ext.evaluation.core.report import CoreReport, TaskResult
from hf_ext.evaluation.core.tasks import CORE_TASKS, EXTENDED_TASKS, TASKS, CoreTask

__all__ = [
    "CORE_TASKS",
    "EXTENDED_TASKS",
    "TASKS",
    "CoreCallback",
    "CoreIncomplete",
    "CoreReport",
    "CoreTask",
    "Difference",
    "Score",
    "TaskResult",
    "aggregate_core",
    "evaluate_core",
    "export_lm_eval",
]
