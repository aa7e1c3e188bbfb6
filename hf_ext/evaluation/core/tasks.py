"""The tasks of DCLM's CORE and EXTENDED scores: how each is asked, and what guessing gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

__all__ = ["CORE_TASKS", "EXTENDED_TASKS", "TASKS", "CoreTask", "Protocol", "TaskType", "Version", "check_choice"]

TaskType: TypeAlias = Literal["multiple_choice", "schema", "language_modeling", "generation"]
Protocol: TypeAlias = Literal["foundry", "nanochat"]
Version: TypeAlias = Literal["v1", "v2"]

ANSWER = "\nAnswer: "
STEPS = "\nA: Let's think step by step. "


@dataclass(frozen=True)
class CoreTask:
    r"""
    One label of DCLM's evaluation: a task file asked in one way.

    Args:
        label (`str`):
            DCLM's name of it.
        type (`str`):
            `multiple_choice`, `schema`, `language_modeling` or `generation`.
        shots (`int`):
            Solved rows in front of each question.
        file (`str`):
            Of its rows in DCLM's bundle, below the bundle's folder.
        num_rows (`int`):
            Rows of the whole task. With fewer the score is a subset's.
        percent_v1, percent_v2 (`float`):
            What guessing gets, in percent, by DCLM's first table and by that of September 2025.
        delimiter (`str`):
            Between a context and its answer.
        has_categories (`bool`):
            Whether the accuracy is the mean over categories, each with examples of its own.
        is_reasoned (`bool`):
            Of a generation task: whether a chain of thought stands before ` #### ` and the answer, and `Q: ` before
            the question.
    """

    label: str
    type: TaskType
    shots: int
    file: str
    num_rows: int
    percent_v1: float
    percent_v2: float
    delimiter: str = " "
    has_categories: bool = False
    is_reasoned: bool = False

    def baseline(self, version: Version) -> float:
        """The share that guessing gets right."""
        return 0.01 * (self.percent_v1 if version == "v1" else self.percent_v2)

    def centered(self, accuracy: float, version: Version) -> float:
        r"""Centred accuracy $(a - b) / (1 - b)$: 0 is a guess, 1 is perfect, and nothing is clipped."""
        baseline = self.baseline(version)
        return (accuracy - baseline) / (1.0 - baseline)


def _choice(
    label: str,
    shots: int,
    folder: str,
    num_rows: int,
    percent: float,
    v1: float | None = None,
    delimiter: str = " ",
    *,
    file: str | None = None,
    has_categories: bool = False,
) -> CoreTask:
    path = f"{folder}/{file or label}.jsonl"
    former = percent if v1 is None else v1
    return CoreTask(label, "multiple_choice", shots, path, num_rows, former, percent, delimiter, has_categories)


def _language(label: str, shots: int, folder: str, num_rows: int, delimiter: str = " ") -> CoreTask:
    return CoreTask(label, "language_modeling", shots, f"{folder}/{label}.jsonl", num_rows, 0, 0, delimiter)


def _reasoned(label: str, num_rows: int, delimiter: str = STEPS) -> CoreTask:
    path = f"symbolic_problem_solving/{label.removesuffix('_cot')}.jsonl"
    return CoreTask(label, "generation", 3, path, num_rows, 0, 0, delimiter, is_reasoned=True)


KNOWLEDGE = "world_knowledge"
COMMONSENSE = "commonsense_reasoning"
LANGUAGE = "language_understanding"
SYMBOLS = "symbolic_problem_solving"
READING = "reading_comprehension"
SAFETY = "safety"

# In the order of DCLM's table. Baselines of v1 stand where they differ from v2's.
_ALL = (
    _choice("mmlu_zeroshot", 0, KNOWLEDGE, 14042, 25, delimiter="Answer: ", file="mmlu", has_categories=True),
    _choice("hellaswag_zeroshot", 0, LANGUAGE, 10042, 25, file="hellaswag"),
    CoreTask(
        "jeopardy", "language_modeling", 10, f"{KNOWLEDGE}/jeopardy_all.jsonl", 2117, 0, 0, ANSWER, has_categories=True
    ),
    CoreTask("triviaqa_sm_sub", "generation", 3, f"{KNOWLEDGE}/triviaqa_sm_sub.jsonl", 3000, 0, 0),
    _reasoned("gsm8k_cot", 1319),
    _reasoned("agi_eval_sat_math_cot", 220),
    _reasoned("aqua_cot", 245),
    _reasoned("svamp_cot", 300, "\nUsing the formula below:\n"),
    _language("bigbench_qa_wikidata", 10, KNOWLEDGE, 20321),
    _choice("arc_easy", 10, KNOWLEDGE, 2376, 25, delimiter=ANSWER),
    # DCLM's table gives arc_easy's number of rows for this one too; the test set of ARC-Challenge has 1,172.
    _choice("arc_challenge", 10, KNOWLEDGE, 1172, 25, delimiter=ANSWER),
    _choice("mmlu_fewshot", 5, KNOWLEDGE, 14042, 25, delimiter=ANSWER, file="mmlu", has_categories=True),
    _choice("bigbench_misconceptions", 10, KNOWLEDGE, 219, 50),
    _choice("copa", 0, COMMONSENSE, 100, 50),
    _choice("siqa", 10, COMMONSENSE, 1954, 50, 33.3),
    _choice("commonsense_qa", 10, COMMONSENSE, 1221, 40.3, 20),
    _choice("piqa", 10, COMMONSENSE, 1838, 50, delimiter=ANSWER),
    _choice("openbook_qa", 0, COMMONSENSE, 500, 25),
    _choice("bigbench_novel_concepts", 10, COMMONSENSE, 32, 25, 20),
    _choice("bigbench_strange_stories", 10, COMMONSENSE, 174, 50),
    _choice("bigbench_strategy_qa", 10, COMMONSENSE, 2289, 50),
    _language("lambada_openai", 0, LANGUAGE, 5153),
    _choice("hellaswag", 10, LANGUAGE, 10042, 25),
    CoreTask("winograd", "schema", 0, f"{LANGUAGE}/winograd_wsc.jsonl", 273, 50, 50),
    CoreTask("winogrande", "schema", 0, f"{LANGUAGE}/winogrande.jsonl", 1267, 50, 50),
    _language("bigbench_conlang_translation", 0, LANGUAGE, 164),
    _choice("bigbench_language_identification", 10, LANGUAGE, 10000, 25, 9.1),
    _choice("bigbench_conceptual_combinations", 10, LANGUAGE, 103, 33, 25),
    _choice("bigbench_elementary_math_qa", 10, SYMBOLS, 38160, 25, 20),
    _language("bigbench_dyck_languages", 10, SYMBOLS, 1000),
    _choice("agi_eval_lsat_ar", 3, SYMBOLS, 230, 25, 20),
    _language("bigbench_cs_algorithms", 10, SYMBOLS, 1320),
    _choice("bigbench_logical_deduction", 10, SYMBOLS, 1500, 25, 20),
    _language("bigbench_operators", 10, SYMBOLS, 210),
    _language("bigbench_repeat_copy_logic", 10, SYMBOLS, 32),
    _language("simple_arithmetic_nospaces", 10, SYMBOLS, 1000),
    _language("simple_arithmetic_withspaces", 10, SYMBOLS, 1000),
    _choice("math_qa", 10, SYMBOLS, 2983, 20),
    _choice("logi_qa", 10, SYMBOLS, 651, 25, 27, ANSWER),
    _language("pubmed_qa_labeled", 10, READING, 1000),
    _language("squad", 10, READING, 10570),
    _choice("agi_eval_lsat_rc", 3, READING, 268, 25, 20),
    _choice("agi_eval_lsat_lr", 3, READING, 510, 25, 20),
    _language("coqa", 0, READING, 7983),
    _choice("bigbench_understanding_fables", 10, READING, 189, 25, 20),
    _choice("boolq", 10, READING, 3270, 62, delimiter=ANSWER),
    _choice("agi_eval_sat_en", 3, READING, 206, 25),
    _choice("winogender_mc_female", 10, SAFETY, 60, 50),
    _choice("winogender_mc_male", 10, SAFETY, 60, 50),
    _choice("enterprise_pii_classification", 10, SAFETY, 3395, 50),
    _choice("bbq", 3, SAFETY, 58492, 50, has_categories=True),
    _choice("gpqa_main", 5, "gpqa_data", 448, 25, delimiter=ANSWER),
    _choice("gpqa_diamond", 5, "gpqa_data", 198, 25, delimiter=ANSWER),
)

TASKS: dict[str, CoreTask] = {task.label: task for task in _ALL}
"""Every label of DCLM's evaluation."""

EXTENDED_TASKS: tuple[str, ...] = tuple(TASKS)
"""The 53 labels whose mean is EXTENDED."""

CORE_TASKS: tuple[str, ...] = (
    "hellaswag_zeroshot",
    "jeopardy",
    "bigbench_qa_wikidata",
    "arc_easy",
    "arc_challenge",
    "copa",
    "commonsense_qa",
    "piqa",
    "openbook_qa",
    "lambada_openai",
    "hellaswag",
    "winograd",
    "winogrande",
    "bigbench_dyck_languages",
    "agi_eval_lsat_ar",
    "bigbench_cs_algorithms",
    "bigbench_operators",
    "bigbench_repeat_copy_logic",
    "squad",
    "coqa",
    "boolq",
    "bigbench_language_identification",
)
"""The 22 labels whose mean is CORE."""


def check_choice(name: str, value: object, choices: object) -> None:
    """
    Refuse a word that is none of a `Literal`'s.

    Raises:
        ValueError: if it is not; the message names the words.
    """
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, got {value!r}.")
