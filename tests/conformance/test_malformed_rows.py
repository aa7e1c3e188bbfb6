"""Every kind of bad row, given to every trainer, ends in our sentence before anything is tokenised or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl import SFTTrainer

from hf_ext.guards.rows import RowError
from tests.conformance.registry import TRAINERS, Method
from tests.guards.bad_rows import CASES, as_dataset, bad_rows_of

# The cases are rows of SFT; for preference rows see `registry.malformed`, `tests/guards/test_preference_rows.py`.
SFT = [method for method in TRAINERS if issubclass(method.trainer, SFTTrainer)]
every_trainer = pytest.mark.parametrize("method", SFT, ids=lambda method: method.name)


@every_trainer
@pytest.mark.parametrize("part", range(4))
def test_every_malformed_row_is_named_by_every_trainer(method: Method, part: int, tmp_path: Path) -> None:
    no_columns = {name: None for name in method.settings if name.endswith("_column")}  # which these rows do not have
    for case in CASES[part::4]:
        settings: dict[str, Any] = no_columns | case.options
        kwargs = {name: settings.pop(name) for name in ("formatting_func",) if name in settings}
        rows = as_dataset(bad_rows_of(case))
        with pytest.raises(ValueError) as caught:  # noqa: PT011  (which one is what the next lines are about)
            method.build(tmp_path, rows, **settings, kwargs=kwargs)
        said = str(caught.value)
        if "dataset is not conversational" in said:  # TRL does not take from/value turns for this setting, and says so
            assert "assistant_only_loss" in settings, case.name
            assert rows.column_names[0] == "conversations", case.name
            continue
        assert isinstance(caught.value, RowError), case.name
        assert said.startswith(f"row {0 if case.wide else 2}, column {case.column!r}: "), case.name
        assert case.problem in said.split("\n")[0], case.name
