"""Train and measure every run of a grid: what is done is never done twice, and a kill loses one run at most."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from hf_ext.comparison.grid import Grid, PlannedRun
from hf_ext.comparison.penalty import context_free_fisher
from hf_ext.comparison.report import ComparedRun, ComparisonReport
from hf_ext.comparison.training import Materials, configuration, trained_model
from hf_ext.data.context_free import ContextFreeStore, generate_context_free
from hf_ext.data.provenance import is_peft, model_hash, tokenizer_hash
from hf_ext.data.row_digest import rows_digest
from hf_ext.evaluation.forgetting import ForgettingMeasures
from hf_ext.evaluation.models import Model, free_memory, loaded
from hf_ext.evaluation.report import RunResult
from hf_ext.evaluation.wise_ft import require_linear_adapter, tuned_model, wise_ft
from hf_ext.guards.disk import replacing, writing
from hf_ext.guards.runs import RunFolder, claimed_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = ["compare_forgetting"]

logger = logging.getLogger(__name__)

STAYS = "finished runs stay, and are not done again."
REVISION = 1  # changes whenever a run of the same settings would come out otherwise


def compare_forgetting(
    original: Model | str | Path,
    tokenizer: PreTrainedTokenizerBase,
    grid: Grid | str | Path,
    train_dataset: Dataset | None = None,
    *,
    output_dir: str | Path,
    replay_dataset: Dataset | None = None,
    show_progress: bool = True,
    **measures: Any,
) -> ComparisonReport:
    """
    Train the runs of a grid on one model and one set of rows, and measure them alike.

    A run's identity is the hash of its settings, its seed, the model, the tokenizer, the rows, and of what it is
    measured on: a finished run is found again, however the grid around it changes, and a changed one is done anew.

    Args:
        original (model, `str` or `Path`):
            The model that every run starts from; a copy of it is trained.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        grid ([`Grid`], `str` or `Path`):
            The runs, or a YAML file of them.
        train_dataset (`Dataset`, *optional*), replay_dataset (`Dataset`, *optional*):
            In place of those that the grid names.
        output_dir (`str` or `Path`):
            Results of finished runs, models that others are made of, and samples lie there.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show progress bars.
        **measures:
            Those of [`forgetting_report`]: `target`, `context_free`, `general_text`, `groups`, `args`, ... The
            context-free rows must not be those trained on.

    Returns:
        [`ComparisonReport`]: `.to_markdown()`, `.front()`, `.save(folder)`.

    Raises:
        ValueError: if the grid, a run or a row cannot be used, or something in the folder is damaged; the message
            names the run or the file.
        InUseError: if another process compares into the folder.
        DiskFullError: if there is no room; finished runs stay.

    Example:

    ```python
    >>> report = compare_forgetting("original", tokenizer, "grid.yaml", output_dir="out", target=held_out)
    >>> print(report.to_markdown())
    ```
    """
    if not isinstance(grid, Grid):
        grid = Grid.from_yaml(grid)
    for run in grid.runs:
        if run.source is None:
            configuration(run, grid.seeds[0], Path(output_dir))  # refused now, and not after the runs before it
            if run.store_path is not None:
                _named_store(run)
    train = train_dataset if train_dataset is not None or grid.train is None else grid.train.load()
    if train is None:
        raise ValueError("There are no training rows: name them under 'train:' in the grid, or give train_dataset.")
    replay = replay_dataset if replay_dataset is not None or grid.replay is None else grid.replay.load()
    if replay is None and (needy := next((run.name for run in grid.runs if "replay" in run.parts), None)) is not None:
        raise ValueError(f"run {needy!r}: replay needs general rows: name them under 'replay:' in the grid")
    with claimed_folder(output_dir, remedy="choose another output folder"):
        _require_other_samples(grid, measures.get("context_free"))
        start = loaded(original, like=original)
        if start is not original:
            start = start.float()  # as TRL trains a model that it is given by name
        comparison = _Comparison(grid, start, tokenizer, train, replay, Path(output_dir), show_progress, measures)
        return comparison.report()


class _Comparison:
    """The state of one comparison: what is on the disk, and what has to be in memory for what is not."""

    def __init__(
        self,
        grid: Grid,
        original: Model,
        tokenizer: PreTrainedTokenizerBase,
        train: Dataset,
        replay: Dataset | None,
        folder: Path,
        show_progress: bool,
        measures: dict[str, Any],
    ) -> None:
        self.grid = grid
        self.original = original
        self.tokenizer = tokenizer
        self.folder = folder
        self.show_progress = show_progress
        self.measures = measures
        self.results = RunFolder(folder / "runs")
        self.plans = {run.name: run for run in grid.runs}
        self.sources = {run.source for run in grid.runs} - {None}
        self.materials = Materials(original, tokenizer, train, replay, lambda: self.store, self.fisher, folder)
        self.facts = {
            "revision": REVISION,
            "model": model_hash(original),
            "tokenizer": tokenizer_hash(tokenizer),
            "train": rows_digest(train)["columns"],
            "replay": None if replay is None else rows_digest(replay)["columns"],
        }

    def report(self) -> ComparisonReport:
        """Do what is to do, and put all of it together."""
        tasks = [(run, seed) for seed in self.grid.seeds for run in self.grid.runs]
        for run, seed in tasks:
            if (values := self.results.results(self._step_name(run, seed))) is not None:
                self._result(values, run, seed)  # a damaged record is named now, and not hours later
        entries: dict[tuple[str, int], dict[str, Any]] = {}
        with tqdm(tasks, desc="Runs", unit="run", disable=not self.show_progress) as bar:
            for run, seed in bar:
                bar.set_postfix_str(f"{run.name}, seed {seed}")
                step = self._step_name(run, seed)
                entries[run.name, seed] = self._step(step, partial(self._done, run, seed))
        runs = [
            ComparedRun(
                run.name,
                list(run.parts),
                run.settings,
                {seed: self._result(entries[run.name, seed], run, seed) for seed in self.grid.seeds},
                {seed: entries[run.name, seed].get("facts", {}) for seed in self.grid.seeds},
            )
            for run in self.grid.runs
        ]
        step = f"original-{_digest(self.facts | {'measures': self._measures_digest})}"
        original = self._step(step, lambda: {"result": asdict(self.forgetting.original), "facts": {}})
        return ComparisonReport(_read(original, self.folder / "runs" / f"{step}.json"), runs, self._settings())

    # --- what a run is ---------------------------------------------------------------------------------------------

    def _identity(self, run: PlannedRun, seed: int) -> dict[str, Any]:
        """All that its model depends on."""
        values: dict[str, Any] = {"parts": run.parts, "settings": run.settings, "seed": seed, **self.facts}
        if run.source is not None:
            values["source"] = self._identity(self.plans[run.source], seed)
            values["settings"] = {"alpha": run.settings["wise_ft"]["alpha"]}  # the name of its source is none of it
        if run.needs_samples:
            values["context_free"] = self._samples_settings()
        if run.store_path is not None:  # wherever it lies, it is known by its rows
            rows = rows_digest(_named_store(run).to_dataset())["columns"]
            values["settings"] = {
                **run.settings,
                "context_free": run.settings["context_free"] | {"context_free_path": rows},
            }
        if "replay" not in run.parts:
            values["replay"] = None
        return values

    def _samples_settings(self) -> dict[str, Any]:
        samples = self.grid.context_free
        assert samples is not None  # the grid has looked
        return asdict(samples)

    def _step_name(self, run: PlannedRun, seed: int) -> str:
        values = self._identity(run, seed) | {"measures": self._measures_digest}
        return f"{'-'.join(run.parts)}-{seed}-{_digest(values)}"

    @cached_property
    def _measures_digest(self) -> str:
        """Of what is measured, and on which rows."""
        values = {name: value for name, value in self.measures.items() if name not in ("batch_size", "args")}
        for name in ("target", "context_free", "general_text"):
            rows = values.get(name)
            if isinstance(rows, str | Path):
                rows = ContextFreeStore(Path(rows))
            if isinstance(rows, ContextFreeStore):
                rows = rows.to_dataset()
            values[name] = rows_digest(rows)["columns"] if hasattr(rows, "column_names") else rows
        args = self.measures.get("args")
        values["args"] = None if args is None else [args.max_length, args.assistant_only_loss]
        return _digest(values)

    def _settings(self) -> dict[str, Any]:
        names = ("max_length", "groups", "core_max_rows")
        shown = {name: self.measures[name] for name in names if self.measures.get(name) is not None}
        return {"unit": "nats per token", "model": self.facts["model"], "seeds": self.grid.seeds, **shown}

    # --- doing it --------------------------------------------------------------------------------------------------

    def _step(self, step: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a finished step left, or else its work."""
        values = self.results.results(step)
        if values is None:
            values = compute()
            self.results.folder.mkdir(parents=True, exist_ok=True)
            self.results.mark_done(step, values)
        return values

    def _result(self, values: dict[str, Any], run: PlannedRun, seed: int) -> RunResult:
        return _read(values, self.results.folder / f"{self._step_name(run, seed)}.json")

    def _done(self, run: PlannedRun, seed: int) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        if run.source is not None:
            folder = self._model_folder(self.plans[run.source], seed)
            try:
                source = tuned_model(folder, self.original)
            except ValueError as error:
                raise ValueError(f"run {run.name!r}: {error} Remove {folder}, and it is trained again.") from error
            model = wise_ft(source, self.original, run.settings["wise_ft"]["alpha"])
            del source
        else:
            model, facts = self._trained(run, seed)
            if run.name in self.sources:
                self._keep(model, self._model_path(run, seed))
        result = self.forgetting.of(run.name, model)
        del model
        free_memory()
        return {"result": asdict(result), "facts": facts}

    def _model_path(self, run: PlannedRun, seed: int) -> Path:
        return self.folder / "models" / f"{'-'.join(run.parts)}-{seed}-{_digest(self._identity(run, seed))}"

    def _model_folder(self, run: PlannedRun, seed: int) -> Path:
        """The model of a run that another one is made of; trained again where it was not needed at the time."""
        path = self._model_path(run, seed)
        if not path.is_dir():
            logger.info("Run %r, seed %d, is trained again: its model was not kept.", run.name, seed)
            model, _ = self._trained(run, seed)
            self._keep(model, path)
        return path

    def _trained(self, run: PlannedRun, seed: int) -> tuple[Any, dict[str, Any]]:
        # Mostly what `datasets` keeps of prepared rows: in its own cache, or the system's folder for temporary files.
        what = f"what run {run.name!r} prepares to train"
        with writing(what, self.folder, advice="Free some space, there and in the caches, and run again: " + STAYS):
            return trained_model(run, seed, self.materials)

    def _keep(self, model: Any, path: Path) -> None:
        """Save a model whole: an adapter whose scaling is linear as it is, others merged."""
        if is_peft(model, "PeftModel"):
            try:
                require_linear_adapter(model)
            except ValueError:
                model = model.merge_and_unload()
        advice = f"Free some space and run again: {STAYS}"
        with writing("the model of a run", path, advice=advice), replacing(path, overwrite=True) as temporary:
            model.save_pretrained(temporary)

    @cached_property
    def forgetting(self) -> ForgettingMeasures:
        """The measures, with those of the original model."""
        return ForgettingMeasures(
            lambda: self.original, self.tokenizer, show_progress=self.show_progress, **self.measures
        )

    @cached_property
    def store(self) -> ContextFreeStore:
        """Context-free rows to train on, of exactly these settings."""
        values = self._samples_settings()
        return generate_context_free(
            self.original,
            self.tokenizer,
            output_dir=self.folder / f"context_free_rows-{_digest(values | {'model': self.facts['model']})}",
            show_progress=self.show_progress,
            **values,
        )

    def fisher(self, max_rows: int) -> dict[str, Tensor]:
        """The Fisher information of the original model, computed once."""
        from safetensors.torch import load_file, save_file

        facts = {"rows": max_rows, "model": self.facts["model"], **self._samples_settings()}
        path = self.folder / f"fisher-{_digest(facts)}.safetensors"
        if not path.is_file():
            values = context_free_fisher(
                self.original, self.store, max_rows=max_rows, show_progress=self.show_progress
            )
            with writing("the Fisher information", path), replacing(path) as temporary:
                save_file({name: value.cpu() for name, value in values.items()}, temporary)
        try:
            return load_file(path)
        except Exception as error:  # whatever safetensors raises over a damaged file
            raise ValueError(f"{path} is damaged ({error}). Remove it, and it is computed again.") from error


def _require_other_samples(grid: Grid, measured: Any) -> None:
    """Refuse to measure the KL on the rows that some run trains on: it remembers those."""
    store = ContextFreeStore(Path(measured)) if isinstance(measured, str | Path) else measured
    if not isinstance(store, ContextFreeStore):
        return
    origin = ("kind", "seed", "temperature")
    for run in grid.runs:
        if run.store_path is None:
            continue
        manifest = _named_store(run).manifest
        if all(manifest.get(name) == store.manifest.get(name) for name in origin):
            raise ValueError(
                f"run {run.name!r} trains on {run.store_path}, and the KL is to be measured on rows of the same seed: "
                "it remembers them. Sample one of the two with another seed."
            )
    samples = grid.context_free
    if samples is None or not any(run.needs_samples for run in grid.runs):
        return
    if store.manifest.get("seed") == samples.seed:
        raise ValueError(
            f"The KL is to be measured on context-free rows of seed {samples.seed}, and runs train on rows of that "
            "seed: they remember them. Give another seed under 'context_free:' in the grid."
        )


def _named_store(run: PlannedRun) -> ContextFreeStore:
    """The store that a run names."""
    try:
        return ContextFreeStore(Path(str(run.store_path)))
    except (ValueError, OSError) as error:
        raise ValueError(f"run {run.name!r}: context_free_path: {error}") from error


def _read(values: dict[str, Any], path: Path) -> RunResult:
    try:
        return RunResult.from_dict(values["result"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no record of a finished run. Remove it, and the run is done again.") from error


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
