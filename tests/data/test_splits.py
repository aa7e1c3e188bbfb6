"""A method that changes one split leaves splits that `push_to_hub` and `load_dataset` take."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from hf_ext.data.exemplars import add_in_context_examples
from hf_ext.data.pruning import prune
from hf_ext.data.relabeling import KeyRef, RandomizedResponse, RRChannel, privatize, relabel
from hf_ext.data.relabeling.ledger import has_spent
from hf_ext.data.splits import with_split

os.environ["HF_EXT_SPLITS_TEST_LABEL_KEY"] = hashlib.sha256(b"splits").hexdigest()
KEY = KeyRef(env="HF_EXT_SPLITS_TEST_LABEL_KEY")
NOISE = RandomizedResponse(2.0, 3, KEY)


def rows(name: str, n: int = 12) -> Dataset:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"id": [f"{name}{i}" for i in range(n)], "label": [i % 3 for i in range(n)]}
    columns |= {"query": [f"q {i}" for i in range(n)], "positive": [f"p {i}" for i in range(n)]}
    columns |= {"embedding": rng.normal(size=(n, 3)).astype(np.float32).tolist(), "pred": [i % 3 for i in range(n)]}
    columns |= {"probs": [[0.8 if j == i % 3 else 0.1 for j in range(3)] for i in range(n)]}
    return Dataset.from_dict(columns).cast_column("label", ClassLabel(names=["a", "b", "c"]))


VERBS = {
    "prune": lambda splits: prune(splits, 5, show_progress=False),
    "prune again": lambda splits: prune(prune(splits, 5, show_progress=False), 3, show_progress=False),
    "privatize": lambda splits: privatize(splits, NOISE),
    "privatize another": lambda splits: privatize(splits, NOISE, split="test"),
    "consensus": lambda splits: relabel(splits, "consensus"),
    "bayes_soft": lambda splits: relabel(splits, "bayes_soft", RRChannel(2.0, 3)),
    "distributions": lambda splits: relabel(splits, "bayes_soft", RRChannel(2.0, 3), soft="column"),
    "released": lambda splits: relabel(privatize(splits, NOISE), "bayes_soft", RRChannel(2.0, 3)),
    "exemplars": lambda splits: add_in_context_examples(splits),
}


# Of no row no label can be randomised.
@pytest.mark.parametrize(
    ("verb", "rows_of_test"), [*((v, 12) for v in VERBS), *((v, 0) for v in VERBS if v != "privatize another")]
)
def test_splits_have_one_schema_afterwards_and_the_others_keep_their_rows(verb: str, rows_of_test: int) -> None:
    splits = DatasetDict({"train": rows("a"), "test": rows("b").select(range(rows_of_test))})
    done = VERBS[verb](splits)
    assert list(done) == ["train", "test"]
    assert done["train"].features == done["test"].features
    other = "train" if verb == "privatize another" else "test"
    assert done[other].select_columns(splits[other].column_names)[:] == splits[other][:]


def test_a_ledger_beside_labels_that_were_never_randomised_says_that_nothing_was_spent() -> None:
    done = privatize(DatasetDict({"train": rows("a"), "test": rows("b")}), NOISE)
    assert has_spent(done["train"])
    assert not has_spent(done["test"])
    assert set(done["test"]["label_dp_epsilon"]) == {0.0}
    assert set(done["test"]["label_dp_channel"]) == {""}
    both = privatize(done, RandomizedResponse(2.0, 3, KEY, salt="test"), split="test")
    assert has_spent(both["test"])
    assert both["train"][:] == done["train"][:]
    weighted = relabel(DatasetDict({"train": rows("a"), "test": rows("b")}), "bayes_soft", RRChannel(2.0, 3))
    assert set(weighted["test"]["weight"]) == {1.0}


def test_columns_that_a_split_has_already_stay_as_they_are() -> None:
    splits = {"train": Dataset.from_dict({"x": [1]}), "test": Dataset.from_dict({"x": [2], "y": ["mine"]})}
    done = with_split(splits, "train", splits["train"].add_column("y", ["new"]))
    assert done["test"]["y"][:] == ["mine"]
