"""Cutting, packing and collating rows with their weights: against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hf_ext.data.sft_rows import WeightedCollator, finish_rows
from tests.trainers.runs import config_of


@st.composite
def token_rows(draw: Any) -> list[dict[str, Any]]:
    """Rows whose ids, weights and supervision are all told apart: id = 100 * row + position + 1."""
    lengths = draw(st.lists(st.integers(2, 14), min_size=1, max_size=9))
    rows = []
    for i, n in enumerate(lengths):
        supervised = draw(st.lists(st.booleans(), min_size=n, max_size=n))
        supervised[1] = True  # a token that is left after any cut
        ids = [100 * i + t + 1 for t in range(n)]
        rows.append(
            {
                "input_ids": ids,
                "labels": [token if s else -100 for token, s in zip(ids, supervised, strict=True)],
                "weight": [(token % 97) / 8 for token in ids],
                "__hf_ext_row__": i,
            }
        )
    return rows


def collate(rows: list[dict], flat: bool, **settings: Any) -> dict[str, Any]:
    return WeightedCollator(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=flat), **settings)(rows)


@given(token_rows(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_token_of_a_batch_has_its_own_weight_and_row(rows: list[dict], flat: bool) -> None:
    batch = collate(rows, flat)
    assert batch["weight"].shape == batch["labels"].shape == batch["__hf_ext_row__"].shape
    ids, where = batch["input_ids"], batch["input_ids"] != 0
    assert torch.equal(batch["__hf_ext_row__"], torch.where(where, (ids - 1) // 100, -1))
    assert torch.equal(batch["weight"], torch.where(where, (ids % 97) / 8, 0.0))


@given(token_rows(), st.booleans(), st.sampled_from(["weights", "tokens"]), st.sampled_from(["token", "row"]))
@settings(max_examples=150, deadline=None)
def test_the_share_of_the_denominator_is_that_of_a_loop(
    rows: list[dict], flat: bool, normalize: str, reduction: str
) -> None:
    total = 0.0
    for row in rows:
        weights = [w for w, label in zip(row["weight"][1:], row["labels"][1:], strict=True) if label != -100]
        if normalize == "weights":
            total += sum(weights) / (len(weights) if reduction == "row" else 1)
        else:
            total += 1 if reduction == "row" else len(weights)
    batch = collate(rows, flat, normalize=normalize, reduction=reduction)
    assert batch["num_items"].shape == (1,)
    assert float(batch["num_items"]) == pytest.approx(total, rel=1e-6)


@given(token_rows())
@settings(max_examples=40, deadline=None)
def test_packing_moves_weights_and_rows_with_their_tokens(rows: list[dict]) -> None:
    args = config_of(SFTConfig, "unused", max_length=14)
    packed = finish_rows(Dataset.from_list(rows), args, packing=True)
    assert packed.column_names == ["input_ids", "labels", "weight", "__hf_ext_row__", "seq_lengths"]
    seen: list[int] = []
    for row in packed:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["weight"]) == len(row["labels"]) <= 14
        assert len(row["__hf_ext_row__"]) == len(row["seq_lengths"])
        assert row["weight"] == [(token % 97) / 8 for token in row["input_ids"]]
        documents = [i for i, n in zip(row["__hf_ext_row__"], row["seq_lengths"], strict=True) for _ in range(n)]
        assert documents == [(token - 1) // 100 for token in row["input_ids"]]
        seen += row["input_ids"]
    assert sorted(seen) == sorted(token for row in rows for token in row["input_ids"])
    batch = collate(packed.to_list(), flat=True)
    assert torch.equal(batch["__hf_ext_row__"], (batch["input_ids"] - 1) // 100)
    assert torch.equal(batch["weight"], (batch["input_ids"] % 97) / 8)


def test_rows_without_weight_weigh_one_and_padding_nothing() -> None:
    batch = collate([{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4], "labels": [4]}], flat=False)
    assert batch["weight"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["__hf_ext_row__"].tolist() == [[-1, -1, -1], [-1, -1, -1]]
    assert float(batch["num_items"]) == 2


def test_extra_columns_travel_and_are_zero_where_a_row_has_none() -> None:
    rows = [{"input_ids": [1, 2], "labels": [1, 2], "extra": [0.5, -1.5]}, {"input_ids": [3, 4], "labels": [3, 4]}]
    for flat, expected in ((False, [[0.5, -1.5], [0, 0]]), (True, [[0.5, -1.5, 0, 0]])):
        assert collate(rows, flat, extra_columns=("extra",))["extra"].tolist() == expected


def test_padding_to_a_multiple_is_padding() -> None:
    inner = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=8)
    batch = WeightedCollator(inner)(
        [{"input_ids": [1, 2, 3], "labels": [1, 2, 3], "weight": 2.0, "__hf_ext_row__": 5}]
    )
    assert batch["weight"].tolist() == [[2, 2, 2, 0, 0, 0, 0, 0]]
    assert batch["__hf_ext_row__"].tolist() == [[5, 5, 5, -1, -1, -1, -1, -1]]
    assert float(batch["num_items"]) == 4


def test_packing_needs_a_length() -> None:
    rows = Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2], "__hf_ext_row__": 0}])
    with pytest.raises(ValueError, match="`max_length` can't be `None`"):
        finish_rows(rows, config_of(SFTConfig, "unused", max_length=None), packing=True)
