"""A grid of runs, from YAML: which runs, with which settings, from which seeds; all checked before one trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_ext.comparison.methods import check_parts, settings_by_part
from hf_ext.guards.near_names import did_you_mean
from hf_ext.guards.numbers import COUNT, NON_NEGATIVE, PROBABILITY, SEED, SIZE, Bounds
from hf_ext.guards.yaml_file import read_yaml

__all__ = ["Grid", "PlannedRun", "RowsSource", "Samples"]

_NUMBERS: dict[str, Bounds] = {
    "alpha": PROBABILITY,
    "ewc_weight": NON_NEGATIVE,
    "fisher_max_rows": COUNT,
    "l2_sp_weight": NON_NEGATIVE,
    "replay_share": Bounds(float, 0, 1, "a number above 0 and below 1", above=True, below=True),
}


@dataclass(frozen=True)
class PlannedRun:
    """
    One run of a grid.

    Args:
        name (`str`):
            In tables and plots.
        parts (`tuple[str, ...]`):
            The words of its `method`.
        settings (`dict[str, dict]`):
            By the part that takes them; those of training under `"training"`.
    """

    name: str
    parts: tuple[str, ...]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def source(self) -> str | None:
        """The run whose model this one takes, where it trains none of its own."""
        return self.settings["wise_ft"]["of"] if self.parts == ("wise_ft",) else None

    @property
    def store_path(self) -> str | None:
        """The folder of the store that it names for itself, in place of the grid's samples."""
        path: str | None = self.settings.get("context_free", {}).get("context_free_path")
        return path

    @property
    def needs_samples(self) -> bool:
        """Whether it trains on the grid's context-free rows."""
        parts = {"ewc", "corda"} if self.store_path is not None else {"context_free", "ewc", "corda"}
        return bool(parts & set(self.parts))


@dataclass(frozen=True)
class RowsSource:
    """
    Rows as `hf-ext` commands name them.

    Args:
        dataset (`str`):
            A file, a folder or a name on the Hub.
        config, split, prompt_column, completion_column, prompt_template (`str`, *optional*):
            As in the options of that name.
        max_rows (`int`, *optional*):
            The first rows only.
    """

    dataset: str
    config: str | None = None
    split: str | None = None
    max_rows: int | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    prompt_template: str | None = None

    def load(self) -> Any:
        """The rows."""
        from hf_ext.data.loading import first_rows, load_rows, rename_columns

        rows = load_rows(self.dataset, config=self.config, split=self.split)
        rows = rename_columns(rows, self.prompt_column, self.completion_column, self.prompt_template)
        return first_rows(rows, self.max_rows)


@dataclass(frozen=True)
class Samples:
    """
    Context-free rows to train on, as `generate_context_free` takes them.

    Args:
        num_tokens (`int`):
            Sampled tokens.
        max_new_tokens, batch_size, seed (`int`, *optional*):
            Longest row, rows sampled together, and their seed: another one than that of the rows that measure the KL.
    """

    num_tokens: int
    max_new_tokens: int = 128
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Grid:
    """
    Runs that are trained and measured alike.

    Args:
        runs (`list[PlannedRun]`):
            In the order of the table; a run that takes another's model comes behind it.
        seeds (`list[int]`):
            Each run is trained once from each.
        train, replay ([`RowsSource`], *optional*):
            Training rows, and general rows for `replay`, where the grid names them.
        context_free ([`Samples`], *optional*):
            Rows sampled from the original model, for the runs that train on them.
    """

    runs: list[PlannedRun]
    seeds: list[int] = field(default_factory=lambda: [0])
    train: RowsSource | None = None
    replay: RowsSource | None = None
    context_free: Samples | None = None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Grid:
        """
        Read and check a grid.

        Raises:
            ValueError: if the file is no YAML mapping, or a run cannot be as it says; the message names both.
        """
        values = read_yaml(path, exponents_from=0)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: Any) -> Grid:
        """
        Check a grid of plain values, as the YAML file has them.

        Raises:
            ValueError: if a key, a method or a setting is unknown or does not fit; the message names the run.
        """
        keys = ("runs", "settings", *(entry.name for entry in dataclasses.fields(cls) if entry.name != "runs"))
        _check_mapping(values, keys, "a grid")
        shared = values.get("settings") or {}
        if not isinstance(shared, Mapping):
            raise ValueError("settings must be a mapping of the fields of TRL's SFTConfig that all runs share")
        entries = values.get("runs")
        if not isinstance(entries, Mapping) or not entries:
            raise ValueError("runs must be a mapping of at least one name to what the run is, such as {SFT: {}}")
        runs = [run for name, entry in entries.items() for run in _planned_runs(str(name), entry, shared)]
        _check_sources(runs)
        seeds = values.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds or len(set(map(repr, seeds))) < len(seeds):
            raise ValueError(f"seeds must be a list of different numbers, such as [0, 1, 2], got {seeds!r}")
        for seed in seeds:
            _check_number("seeds", seed, SEED)
        samples = _record(Samples, values.get("context_free"), "context_free")
        if samples is None and (needy := next((run.name for run in runs if run.needs_samples), None)) is not None:
            raise ValueError(
                f"run {needy!r} trains on context-free rows: say how many, as in 'context_free: {{num_tokens: 20000}}'"
            )
        train, replay = (_record(RowsSource, values.get(name), name) for name in ("train", "replay"))
        return cls(runs, seeds, train, replay, samples)


def _planned_runs(name: str, entry: Any, shared: Mapping[str, Any]) -> Iterator[PlannedRun]:
    """The run of an entry, or one for each alpha of a list."""
    try:
        if not isinstance(entry or {}, Mapping):
            raise ValueError(f"expected a mapping of method and settings, got {entry!r:.80}")
        settings = dict(entry or {})
        words = settings.pop("method", "sft")
        parts = check_parts([words] if isinstance(words, str) else list(words) if isinstance(words, list) else [words])
        trains = parts != ("wise_ft",)
        alphas = settings.get("alpha")
        is_sweep = isinstance(alphas, list) and not trains
        values: list[Any] = settings["alpha"] if is_sweep else [alphas]
        for alpha in values:
            alpha_setting = {} if trains or alpha is None else {"alpha": alpha}
            by_part = settings_by_part(parts, {**(shared if trains else {}), **settings, **alpha_setting})
            for part in parts:
                for setting, value in by_part[part].items():
                    if setting in _NUMBERS:
                        _check_number(setting, value, _NUMBERS[setting])
            yield PlannedRun(f"{name} {alpha:g}" if is_sweep else name, parts, by_part)
    except ValueError as error:
        raise ValueError(f"run {name!r}: {error}") from error


def _check_sources(runs: list[PlannedRun]) -> None:
    names = [run.name for run in runs]
    for i, run in enumerate(runs):
        if names.count(run.name) > 1:
            raise ValueError(f"there are two runs {run.name!r}: give each a name of its own")
        if run.source is None:
            continue
        possible = [other.name for other in runs[:i] if other.source is None]
        if run.source not in possible:
            guess = did_you_mean(str(run.source), possible)
            raise ValueError(
                f"run {run.name!r}: 'of' names {run.source!r}{guess}; it must be a run above it that trains "
                f"({', '.join(possible) or 'there is none'})"
            )


def _check_mapping(values: Any, keys: tuple[str, ...], words: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{words} must be a mapping with {', '.join(keys)}, got {values!r:.80}")
    for key in values:
        if key not in keys:
            guess = did_you_mean(str(key), keys)
            raise ValueError(f"{words} has no key {key!r}{guess}; it takes {', '.join(keys)}")


def _check_number(name: str, value: Any, bounds: Bounds) -> None:
    problem = bounds.problem_of(value)
    if problem is not None or isinstance(value, bool):
        raise ValueError(f"{name} {problem or f'must be {bounds.words}, got {value!r}'}")


def _record(kind: type, values: Any, name: str) -> Any:
    """A mapping as one of the records above, its numbers within bounds and its texts texts."""
    if values is None:
        return None
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    _check_mapping(values, tuple(fields), name)
    for key, entry in fields.items():
        if key not in values:
            if entry.default is dataclasses.MISSING:
                raise ValueError(f"{name} needs {key!r}")
            continue
        if "int" in str(entry.type):
            if values[key] is not None or "None" not in str(entry.type):
                _check_number(f"{name}: {key}", values[key], SEED if key == "seed" else SIZE)
        elif not isinstance(values[key], str) and values[key] is not None:
            raise ValueError(f"{name}: {key} must be a text, got {values[key]!r:.80}")
    return kind(**values)
