"""`hf-ext demo`: four ways to tune one model on one skill, and what each of them forgot."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hf_ext.demo.model import check_room, embedded_model
from hf_ext.demo.settings import ANCHORED, PURPOSES, RUNS, DemoSettings
from hf_ext.guards.runs import RunFolder, claimed_folder

if TYPE_CHECKING:
    from hf_ext.demo.training import RunRecord, Workplace
    from hf_ext.evaluation.report import ForgettingReport, RunResult


def run_demo(output: str | Path, settings: DemoSettings) -> ForgettingReport:
    """
    Run the demo, or what is left of it, and print where everything is.

    Args:
        output (`str` or `Path`):
            The demo's folder: new, empty, or of a demo with the same settings, which is then continued.
        settings ([`DemoSettings`]):
            [`full_settings`] or [`fast_settings`].

    Returns:
        [`ForgettingReport`]: of all runs.

    Raises:
        EmbeddedModelMissing: if the model's wheel is not installed; the message has the line that installs it.
        ValueError: if `output` holds something else or a demo with other settings, or if another process uses it.
        OSError: if the disk has too little room.
        MemoryError: if too little memory is available.
    """
    with claimed_folder(output, remedy="pass another --output"):
        return _run(Path(output), settings)


def _run(output: Path, settings: DemoSettings) -> ForgettingReport:
    print(_announcement(settings), flush=True)
    try:
        check_room(output, disk_bytes=settings.disk_bytes, memory_bytes=settings.memory_bytes, purpose="The demo")
    except OSError as error:
        raise OSError(f"{error} --output chooses the place of the demo's own files.") from error
    original = embedded_model() if settings.model != "tiny" else output / "original"
    demo_folder = RunFolder(output, "settings.json", remedy="pass another --output")
    demo_folder.begin(settings.to_dict())

    # The heavy imports come after the cheap refusals.
    from hf_ext.demo.training import Workplace, quiet_hosts, train_and_measure

    start = time.monotonic()
    with quiet_hosts():
        if settings.model == "tiny":
            from hf_ext.demo.tiny import tiny_folder

            tiny_folder(original, seed=settings.seed)
        place = Workplace(settings, demo_folder, original)
        place.sample()
        records = {}
        for number, run in enumerate(RUNS, start=1):
            print(f"Run {number} of {len(RUNS)}: {RUNS[run]}", flush=True)
            records[run] = train_and_measure(place, run)
        report, best = _finish(place, records)
        print(f"\n{table(report)}\n{_weights_line(records)}\n{_purpose_lines()}", flush=True)
        _ask(place, best)
    _print_places(output, best, time.monotonic() - start)
    print("\n" + verdict(report), flush=True)
    return report


def _announcement(settings: DemoSettings) -> str:
    precision = "bfloat16" if settings.bf16 else "float32"
    name = "a tiny model built in code" if settings.model == "tiny" else "SmolLM2-135M-Instruct"
    return (
        f"Tuning {name} on a house format in {len(RUNS)} ways, {settings.max_steps} steps each, in {precision}: "
        f"{settings.duration} on 2 cores (here: {os.cpu_count()}). After a stop, the same command continues."
    )


def best_run(report: ForgettingReport) -> str:
    """The anchored run that forgot less."""
    return min(ANCHORED, key=lambda run: _kl(report.run(RUNS[run])))


def _finish(place: Workplace, records: dict[str, RunRecord]) -> tuple[ForgettingReport, str]:
    """Join the runs' reports, write table, plot and the kept model's card."""
    from hf_ext.evaluation.report import ForgettingReport
    from hf_ext.hub.cards import write_model_card

    reports = [record.report for record in records.values()]
    settings = reports[0].settings | {
        "demo": place.settings.to_dict(),
        "flow_ess_ratio": {RUNS[run]: record.ess_ratio for run, record in records.items() if record.ess_ratio},
        "seconds": {RUNS[run]: record.seconds for run, record in records.items()},
    }
    report = ForgettingReport(reports[0].original, [report.runs[0] for report in reports], settings)
    report.save(place.output / "report")
    best = best_run(report)
    write_model_card(
        place.run_folder(best) / "model",
        method="context_free",
        base_model=place.original,
        settings=place.settings.to_dict() | {"run": RUNS[best]},
        report=report,
        run=RUNS[best],
        model_name="hf-ext-demo",
        usage=_usage(place),
    )
    return report, best


def _usage(place: Workplace) -> str:
    prompt = place.held_out_rows[0]["prompt"]
    return (
        "```python\nfrom transformers import pipeline\n\n"
        'generator = pipeline("text-generation", model="path/to/this/folder")\n'
        f'print(generator({prompt!r}, max_new_tokens=32, return_full_text=False)[0]["generated_text"])\n```'
    )


def _ask(place: Workplace, best: str) -> None:
    """Open the kept model with stock transformers and ask it, and the original, about goods no run was shown."""
    row = next(row for row in place.held_out_rows if not row["hard"])
    print(f"\nThe kept model ({RUNS[best]}), opened with plain AutoModelForCausalLM and asked:\n{row['prompt']}")
    for name, folder in ((RUNS[best], place.run_folder(best) / "model"), ("original", place.original)):
        print(f"  {name + ':':<14}{answer(folder, row['prompt'])}", flush=True)
    print(f"  {'house format:':<14}{row['completion'].strip()}", flush=True)


def answer(folder: Path, prompt: str, max_new_tokens: int = 24) -> str:
    """The first line that the model in `folder` writes after `prompt`, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    text = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    return text.splitlines()[0] if text else "(nothing)"


# --- what the numbers say -------------------------------------------------------------------------------------------


def table(report: ForgettingReport) -> str:
    """The table for a terminal: every run, losses on easy and hard rows apart, and what was forgotten."""
    head = ("run", "target, easy rows", "target, hard rows", "KL(original‖new)")
    lines: list[tuple[str, ...]] = [head]
    for result in (report.original, *report.runs):
        kl = result.kl_original_to_new
        groups = (str(result.group_loss[name]) for name in ("hard=False", "hard=True"))
        lines.append((result.name, *groups, str(kl) if kl else "0"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text) + "\nNats per token, less is better; ± half of a 95 % interval over rows."


def _purpose_lines() -> str:
    return "\n".join(f"{RUNS[run]} is {purpose}." for run, purpose in PURPOSES.items())


def _weights_line(records: dict[str, RunRecord]) -> str:
    shares = [f"{record.ess_ratio:.2f} ({RUNS[run]})" for run, record in records.items() if record.ess_ratio]
    return f"Effective sample size of FLOW's weights over rows: {', '.join(shares)}; 1 would be plain SFT."


def verdict(report: ForgettingReport) -> str:
    """One line, computed: what SFT gained and forgot, and every other run's share of either."""
    sft = report.run(RUNS["sft"])
    gain, forgot = _gain(sft, report.original), _kl(sft)
    start = f"SFT gained {gain:.2f} nats per token on easy held-out rows and forgot {forgot:.3f}"
    if gain <= 0 or forgot <= 0:
        return f"{start}: too little to compare the other runs with."
    parts = [
        f"{run.name} forgot {_kl(run) / forgot:.2f} x as much and gained {_gain(run, report.original) / gain:.2f} x"
        for run in report.runs
        if run is not sft
    ]
    return f"{start}; {', '.join(parts)}."


def _gain(run: RunResult, original: RunResult) -> float:
    """Fall of the loss on easy held-out rows, nats per token."""
    return original.group_loss["hard=False"].mean - run.group_loss["hard=False"].mean


def _kl(run: RunResult) -> float:
    assert run.kl_original_to_new is not None
    return run.kl_original_to_new.mean


def _print_places(output: Path, best: str, seconds: float) -> None:
    other = next(run for run in ANCHORED if run != best)
    print(
        f"\nTable  {output / 'report' / 'forgetting.md'} (and forgetting.json)\n"
        f"Plot   {output / 'report' / 'forgetting.svg'} (and .png)\n"
        f"Model  {output / 'runs' / best / 'model'} with its card, README.md\n"
        f"       (run {RUNS[best]}: of the two with context-free rows it forgot less; the other is {RUNS[other]} in "
        f"{output / 'runs' / other / 'model'})\n"
        f"Took {seconds:.0f} s."
    )
