"""Every kind of bad preference row, pair or single labelled response, beside a good twin that passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hf_ext.guards.preference_rows import check_preference_rows, check_unpaired_rows
from tests.guards.bad_rows import INF, NAN, Case, bot, user

PAIR = {"prompt": "Why is the sky blue?", "chosen": "Scattering.", "rejected": "Paint."}
CHAT = {"prompt": [user("Why is the sky blue?")], "chosen": [bot("Scattering.")], "rejected": [bot("Paint.")]}
WHOLE = {name: CHAT["prompt"] + CHAT[name] for name in ("chosen", "rejected")}
HEAVY, KNOWN = PAIR | {"weight": 1.0}, PAIR | {"ref_chosen_logps": -3.0, "ref_rejected_logps": -4.0}
SINGLE = {"prompt": "Why is the sky blue?", "completion": "Scattering.", "label": True}
SINGLE_CHAT = {"prompt": CHAT["prompt"], "completion": CHAT["chosen"], "label": False}

SKY, ANSWER = "prompt: 'Why is the sky blue?'", "chosen: 'Scattering.'"
EMPTY, NONE, SAME = "found an empty string", "found None", "the same as 'chosen', so there is nothing to prefer"

PAIR_CASES = [
    Case("chosen None", PAIR, {"chosen": None}, {"chosen": " "}, "chosen", f"a non-empty string, {NONE}", SKY),
    Case("rejected empty", PAIR, {"rejected": ""}, {"rejected": " "}, "rejected", f"non-empty string, {EMPTY}", SKY),
    Case("prompt None", PAIR, {"prompt": None}, {"prompt": ""}, "prompt", f"expected a string, {NONE}", ANSWER),
    Case(
        "the same response twice", PAIR, {"rejected": "Scattering."}, {"rejected": "scattering."}, "rejected", SAME,
        SKY,
    ),
    Case(
        "chat chosen empty", CHAT, {"chosen": []}, {"chosen": [bot("No."), user("And?")]}, "chosen",
        "expected at least one message, found an empty list", SKY,
    ),
    Case(
        "chat rejected None", CHAT, {"rejected": None}, {"rejected": [bot("No.")]}, "rejected",
        f"expected a list of messages with 'role' and 'content', {NONE}", SKY,
    ),
    Case(
        "chat rejected without content", CHAT, {"rejected": [bot("")]}, {"rejected": [bot(" ")]}, "rejected",
        "every message's 'content' is an empty string", SKY,
    ),
    Case(
        "chat rejected content None", CHAT, {"rejected": [bot(None)]},
        {"rejected": [bot(None) | {"tool_calls": [{"name": "look"}]}]}, "rejected", "'content' is missing or None",
        SKY,
    ),
    Case(
        "the same messages twice", CHAT, {"rejected": [bot("Scattering.")]}, {"rejected": [user("Scattering.")]},
        "rejected", SAME, SKY,
    ),
    Case(
        "the same dialogue twice, prompt inside", WHOLE, {"rejected": WHOLE["chosen"]},
        {"rejected": [*WHOLE["chosen"], user("And?")]}, "rejected", SAME, "chosen: 'Why is the sky blue?'",
    ),
    Case(
        "dialogues that begin differently", WHOLE, {"rejected": [user("Is it blue?"), bot("No.")]},
        {"rejected": [WHOLE["chosen"][0], bot("No.")]}, "rejected",
        "'chosen' and 'rejected' share no beginning, and there is no 'prompt'", "chosen: 'Why is the sky blue?'",
    ),
    Case(
        "weight negative", HEAVY, {"weight": -1.0}, {"weight": 0.0}, "weight",
        "expected a finite number >= 0, found -1.0", SKY,
    ),
    Case("weight NaN", HEAVY, {"weight": NAN}, {"weight": 2.0}, "weight", "a finite number >= 0, found nan", SKY),
    Case("weight None", HEAVY, {"weight": None}, {"weight": 2.0}, "weight", NONE, SKY),
    Case(
        "reference of the chosen NaN", KNOWN, {"ref_chosen_logps": NAN}, {"ref_chosen_logps": 0.5},
        "ref_chosen_logps", "expected a finite number of nats, found nan", SKY,
    ),
    Case(
        "reference of the rejected -inf", KNOWN, {"ref_rejected_logps": -INF}, {"ref_rejected_logps": -1e6},
        "ref_rejected_logps", "expected a finite number of nats, found -inf", SKY,
    ),
    Case(
        "reference of the rejected None", KNOWN, {"ref_rejected_logps": None}, {"ref_rejected_logps": 0.0},
        "ref_rejected_logps", NONE, SKY,
    ),
]  # fmt: skip
SINGLE_CASES = [
    Case("response None", SINGLE, {"completion": None}, {"completion": " "}, "completion", NONE, SKY),
    Case("response empty", SINGLE, {"completion": ""}, {"completion": "."}, "completion", EMPTY, SKY),
    Case("label None", SINGLE, {"label": None}, {"label": False}, "label", f"expected true or false, {NONE}", SKY),
    Case(
        "chat response without content", SINGLE_CHAT, {"completion": [bot("")]}, {"completion": [bot("No.")]},
        "completion", "every message's 'content' is an empty string", SKY,
    ),
    Case(
        "reference NaN", SINGLE | {"ref_logps": -2.0}, {"ref_logps": NAN}, {"ref_logps": -5.0}, "ref_logps",
        "found nan", SKY,
    ),
    Case(
        "weight inf", SINGLE | {"weight": 2.0}, {"weight": INF}, {"weight": 1e30}, "weight", "found inf", SKY,
    ),
]  # fmt: skip
PREFERENCE_CASES = [*PAIR_CASES, *SINGLE_CASES]


def check_of(case: Case) -> Callable[..., Any]:
    """The check for the case's rows."""
    return check_preference_rows if "chosen" in case.base else check_unpaired_rows


def rows_with(case: Case, changed: dict[str, Any], at: int = 5, n: int = 8) -> list[dict[str, Any]]:
    """`n` rows of the case, of both classes where they are labelled, one of them changed."""
    rows = [dict(case.base) for _ in range(n)]
    if "label" in case.base:
        for i in range(n):
            rows[i]["label"] = i % 2 == 0
    rows[at] |= changed
    return rows
