"""
What is run of each trainer on two processes, and the table of it in `docs/scaling.md`.

    python -m tests.distributed.lines     # writes the table anew

`test_sharded.py` runs the lines, and holds the table to them; `tests/conformance` runs every trainer under DDP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
BEGIN, END = "<!-- lines: begin -->", "<!-- lines: end -->"
STEPS, SAVED_AT, KILLED_AT = 4, 2, 3
RUN, REFUSED, NO_CPU, NOT_RUN = "run", "refused", "not on a CPU", "not run"
COLUMNS = ("DDP", "FSDP2", "FSDP2 + LoRA", "FSDP2, resumed", "ZeRO-3")


@dataclass(frozen=True)
class Line:
    """
    One trainer under FSDP2.

    Args:
        name (`str`): of the registry.
        label (`str`): on the page.
        changes (`dict`): to the config of every run.
        rows (`int`): of the train dataset.
        num_copies (`int`): frozen models that are sharded beside the one that is trained whole.
        zero3 (`str`): `REFUSED` where the trainer refuses DeepSpeed, by name.
    """

    name: str
    label: str
    changes: dict[str, Any] = field(default_factory=dict)
    rows: int = 32
    num_copies: int = 0
    zero3: str = NO_CPU


# FLOW's rows are one more than the processes share evenly, so that one of them scores a batch more than it has rows
# for; its weights are far from equal.
LINES = [
    Line("weighted_sft", "weighted SFT"),
    Line("flow", "FLOW, rows scored in parts", {"tau": "ess:0.5"}, rows=33, zero3=REFUSED),
    Line("context_free", "context-free, `kl=\"sampled\"`"),
    Line("context_free_exact", "context-free, `kl=\"exact\"`", {"kl_weight": 20.0}, num_copies=1, zero3=REFUSED),
    Line("context_free_topk", "context-free, `kl=\"topk\"`", {"kl_weight": 20.0}, num_copies=1, zero3=REFUSED),
    Line("infopo", "InfoPO on pairs", num_copies=1),
    Line("infopo_unpaired", "InfoPO on single responses", num_copies=1),
    Line("pretraining", "pretraining", {"z_loss_weight": 0.01}),
]  # fmt: skip
# Of the others, what they do under FSDP2 and under ZeRO-3: (label, FSDP2, ZeRO-3).
OTHERS = {
    "rare": ("RARe, cached MNRL", NOT_RUN, NO_CPU),
    "moe_em": ("mixture of experts by EM", REFUSED, REFUSED),
}


def jobs_of(folder: Path) -> list[dict[str, Any]]:
    """Four runs of each line: to the end, with an adapter, killed, and that one resumed; then the refusals."""
    jobs = []
    for line in LINES:
        changes = changes_of(line, 2)
        saving = changes | {"save_strategy": "steps", "save_steps": SAVED_AT}
        common = {"method": line.name, "rows": line.rows, "changes": changes}
        killed = common | {"changes": saving, "folder": str(folder / line.name / "killed")}
        jobs += [
            {"id": f"{line.name}/whole", "folder": str(folder / line.name / "whole"), **common},
            {
                "id": f"{line.name}/lora",
                "folder": str(folder / line.name / "lora"),
                "lora": True,
                "save": True,
                **common,
            },
            {"id": f"{line.name}/killed", "kill_at": KILLED_AT, **killed},
            {"id": f"{line.name}/resumed", "resume": True, "save": True, **killed},
        ]
    refused = {
        "moe_em": {},
        "flow_stream": {"method": "flow", "streaming": True},
        "states": {"method": "context_free_exact", "changes": {"original_cache_dir": str(folder / "states")}},
    }
    return jobs + [
        {"id": name, "method": name, "rows": 32, "changes": {}, "folder": str(folder / name), **job}
        for name, job in refused.items()
    ]  # fmt: skip


def changes_of(line: Line, batch_size: int) -> dict[str, Any]:
    """Settings of a run of `line` with that many rows a process and step."""
    optimiser = {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.01}
    return {"max_steps": STEPS, "per_device_train_batch_size": batch_size, **optimiser, **line.changes}


def table() -> str:
    """The table of the page, as the lines have it."""
    rows = [(line.label, RUN, RUN, RUN, RUN, line.zero3) for line in LINES]
    for label, fsdp2, zero3 in OTHERS.values():
        rows.append((label, RUN, *[fsdp2] * 3, zero3))
    lines = [("trainer", *COLUMNS), ("---",) * (len(COLUMNS) + 1), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def with_table(page: str) -> str:
    """The page with the table in its place."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
