"""Any file of rows and any rows: good rows, or an error of ours."""

from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import strategies as st

from hf_ext.data.loading import load_rows
from hf_ext.guards.rows import RowError, check_sft_rows
from tests.fuzz.engine import EXAMPLES, fuzz, trees
from tests.guards.bad_rows import CASES, as_stream

COLUMNS = ["text", "messages", "conversations", "prompt", "completion", "input_ids", "labels", "completion_mask"]
COLUMNS += ["weight", "tools", "row_index", "__hf_ext_row__", "title"]
MESSAGES = st.lists(
    st.fixed_dictionaries({}, optional={key: trees(leaves=2) for key in ("role", "content", "from", "value")}),
    max_size=2,
)
EMPTY = ("The train dataset is empty", "Every weight of the train dataset")
CELLS = trees(leaves=3) | MESSAGES | st.lists(st.integers(-2, 9), max_size=3)


def checked(rows: object) -> list[dict] | None:
    """The good rows; `None` after an error of ours."""
    try:
        return list(check_sft_rows(rows))
    except ValueError as error:
        if isinstance(error, RowError) or str(error).startswith(EMPTY):
            return None
        raise


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where `load_dataset` writes, out of the way."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path


@EXAMPLES
def test_any_bytes_in_the_place_of_a_jsonl_file(cache, examples):
    lines = st.lists(st.dictionaries(st.sampled_from(COLUMNS), CELLS, max_size=3).map(json.dumps), max_size=3)
    content = st.binary(max_size=40) | lines.map(lambda rows: "\n".join(rows).encode("utf-8", "surrogatepass"))

    def check(data: bytes) -> None:
        (cache / "rows.jsonl").write_bytes(data)
        try:
            rows = load_rows(str(cache / "rows.jsonl"))
        except ValueError as error:
            if str(error).startswith("dataset "):
                return
            raise
        checked(rows)

    fuzz(examples, content, check)


@EXAMPLES
def test_any_rows_as_a_stream_and_as_a_dataset(examples):
    def check(rows: list[dict]) -> None:
        checked(as_stream(rows))
        try:
            dataset = Dataset.from_list(rows)
        except (pa.ArrowException, OverflowError, TypeError, ValueError, UnicodeEncodeError):
            return  # no Dataset can hold these
        checked(dataset)

    one_shape = st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=4, unique=True).flatmap(
        lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, CELLS)), max_size=3)
    )
    fuzz(examples, one_shape, check)


@EXAMPLES
def test_a_good_row_with_one_cell_of_anything(examples):
    """Close to right is where a check is most easily wrong."""
    bases = [case.base for case in CASES if not case.options]

    def check(drawn: tuple[dict, str, object]) -> None:
        base, column, value = drawn
        rows = checked(as_stream([base, {**base, column: value}]))
        if rows is not None:
            assert len(rows) == 2

    spoiled = st.sampled_from(bases).flatmap(
        lambda base: st.tuples(st.just(base), st.sampled_from(sorted(base)), CELLS)
    )
    fuzz(examples, spoiled, check)
