"""Which columns the retrieval trainers read as what, which rows are exemplars, and which row is shown which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from sentence_transformers.sentence_transformer.losses import (
    ContrastiveLoss,
    CoSENTLoss,
    MarginMSELoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from hf_ext import ExemplarStore
from hf_ext.guards.rows import RowError
from hf_ext.trainers.rare.setup import reads_labels
from tests.trainers.retrieval import encoder, pairs, trainer

ROWS = pairs(12, ids=False)
QUERIES, POSITIVES = ROWS["query"][:], ROWS["positive"][:]
NUMBERS = list(range(12))


def dataset(**columns: Any) -> Dataset:
    return Dataset.from_dict(columns)


@pytest.mark.parametrize(
    ("rows", "order"),
    [
        (dataset(answer=POSITIVES, question=QUERIES), "'question', 'answer'"),
        (dataset(title=POSITIVES, query=QUERIES, positive=POSITIVES), "'query', 'positive'"),
        (dataset(id=NUMBERS, title=POSITIVES, context=POSITIVES, question=QUERIES), "'question', 'context', 'id'"),
        (dataset(query=QUERIES, positive=POSITIVES, source=QUERIES), "'query', 'positive'"),
        (dataset(query=QUERIES, positive=POSITIVES, hard=QUERIES), "'query', 'positive'"),
        (
            dataset(negative=POSITIVES, positive=POSITIVES, anchor=QUERIES, label=[1] * 12),
            "'anchor', 'positive', 'negative', 'label'",
        ),
    ],
)
def test_names_and_order_that_disagree_are_refused_and_the_order_that_is_named_trains(
    rows: Dataset, order: str, tmp_path: Path
) -> None:
    for train, evaluation in ((rows, None), (ROWS, rows), (DatasetDict({"a": rows}), None)):
        with pytest.raises(ValueError, match=rf"Reorder .* dataset\.select_columns\(\[{order}\]\)"):
            trainer(tmp_path, train, kwargs={"eval_dataset": evaluation})
    with pytest.raises(ValueError, match="Reorder"):
        trainer(tmp_path, rows.to_iterable_dataset(), kwargs={"exemplars": ExemplarStore.from_dataset(ROWS)})


def test_the_caller_s_names_go_before_the_columns_own(tmp_path: Path) -> None:
    jeopardy = dataset(answer=QUERIES, question=POSITIVES, third=QUERIES)
    built = trainer(tmp_path, jeopardy, query_column="answer", positive_column="question")
    columns = built.pools[""].columns
    assert (columns.query, columns.positive, columns.negatives) == ("answer", "question", ("third",))
    assert built.pools[""].store.queries == QUERIES


@pytest.mark.parametrize(
    "rows",
    [
        dataset(query_id=QUERIES, query=QUERIES, positive_id=NUMBERS, positive=POSITIVES),
        dataset(qid=NUMBERS, query=QUERIES, pid=[f"d{i}" for i in NUMBERS], positive=POSITIVES),
        Dataset.from_pandas(pd.DataFrame({"query": QUERIES, "positive": POSITIVES}, index=[f"k{i}" for i in NUMBERS])),
        dataset(_id=[{"oid": "x"}] * 12, query=QUERIES, positive=POSITIVES),
    ],
)
def test_ids_are_kept_from_the_model_whatever_their_name(rows: Dataset, tmp_path: Path) -> None:
    built = trainer(tmp_path, rows, kwargs={"eval_dataset": rows})
    assert built.pools[""].columns.texts == ("query", "positive")
    assert ExemplarStore.from_dataset(rows).column("document") == built.pools[""].store.column("document")
    for batch in (next(iter(built.get_train_dataloader())), next(iter(built.get_eval_dataloader()))):
        assert {name.split("_")[0] for name in batch if name.endswith("input_ids")} == {"query", "positive"}


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"neg": [["x", "y"]] * 12}, TypeError, "column of its own, as negative_1 and negative_2, with dataset.map"),
        ({"is_duplicate": [1] * 12}, TypeError, "keep the pairs that match with dataset.filter"),
        ({"id": [1.5] * 12}, TypeError, "Column 'id' .* an id is a string or an integer"),
        ({"label": ["yes"] * 12}, TypeError, "'label' of the .* holds texts, and labels are numbers"),
        ({"label": [0] * 12}, RowError, "row 0, column 'label': .* found 0"),
        ({"score": [0.3] * 12}, RowError, r"column 'score': .* found 0\.3"),
        ({"negative": QUERIES, "label": [0] * 12}, RowError, "column 'label': .* found 0"),
    ],
)
def test_columns_that_nothing_reads_rightly_are_refused(
    columns: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    rows = dataset(query=QUERIES, positive=POSITIVES, **columns)
    with pytest.raises(error, match=message):
        trainer(tmp_path, rows)
    with pytest.raises(error, match=message):
        trainer(tmp_path, ROWS, kwargs={"eval_dataset": rows})


def test_pairs_labelled_0_are_dropped_where_bad_rows_are_and_named_where_a_stream_brings_them(tmp_path: Path) -> None:
    rows = dataset(query=QUERIES, positive=POSITIVES, label=[int(i % 3 > 0) for i in NUMBERS])
    built = trainer(tmp_path, rows, on_bad_row="drop")
    assert built.train_dataset["query"][:] == [query for i, query in enumerate(QUERIES) if i % 3]
    assert built.pools[""].store.queries == built.train_dataset["query"][:]
    assert (tmp_path / "bad_rows.jsonl").read_text().count("needs a label of 1") == 4
    stream = trainer(
        tmp_path, rows.to_iterable_dataset(), kwargs={"exemplars": ExemplarStore.from_dataset(ROWS)}
    )  # fmt: skip
    with pytest.raises(RowError, match="row 0, column 'label'"):
        next(iter(stream.get_train_dataloader()))


def test_a_loss_that_reads_labels_trains_on_all_rows_and_shows_those_that_match(tmp_path: Path) -> None:
    model = encoder()
    labels = [int(i % 3 > 0) for i in NUMBERS]
    rows = dataset(query=QUERIES, positive=POSITIVES, label=labels)
    built = trainer(tmp_path, rows, model=model, kwargs={"loss": ContrastiveLoss(model)})
    assert len(built.train_dataset) == 12
    assert built.pools[""].store.queries == [query for query, label in zip(QUERIES, labels, strict=True) if label]
    likeness = dataset(query=QUERIES, positive=POSITIVES, score=[i / 12 for i in NUMBERS])
    with pytest.raises(RowError, match=r"(?s)found 0\.08.*does not tell which pairs are exemplars"):
        trainer(tmp_path, likeness, model=model, kwargs={"loss": CoSENTLoss(model)})
    store = ExemplarStore.from_dataset(ROWS)
    given = trainer(tmp_path, likeness, model=model, kwargs={"loss": CoSENTLoss(model), "exemplars": store})
    assert given.pools[""].store is store
    margins = likeness.rename_column("score", "label").add_column("negative", QUERIES)
    margins = margins.select_columns(["query", "positive", "negative", "label"])
    assert len(trainer(tmp_path, margins, model=model, kwargs={"loss": MarginMSELoss(model)}).train_dataset) == 12
    ranking = MultipleNegativesRankingLoss(model)
    assert [reads_labels(loss) for loss in (None, ranking, MatryoshkaLoss(model, ranking, [32]))] == [False] * 3
    assert reads_labels(MatryoshkaLoss(model, CoSENTLoss(model), [32]))


def shown_ids(built: Any, rows: Any, collator: Any = None) -> list[list[str | None]]:
    made, _ = (collator or built.data_collator).augment(list(rows))
    return [[hit.id for hit in one.shown] for one in made]


def test_a_row_of_the_pool_is_told_by_its_place_and_another_set_s_numbers_are_no_ids_of_it(tmp_path: Path) -> None:
    settings = {"exclude": ["self"], "n_examples": 12, "example_rate": 1.0, "max_query_tokens": 256}
    numbered = dataset(query=QUERIES, positive=POSITIVES)
    built = trainer(tmp_path, numbered, on_bad_row="drop", **settings)
    for position, ids in enumerate(shown_ids(built, built.train_dataset)):
        assert str(position) not in ids
        assert len(ids) > 0
    evaluation = built.data_collator.for_evaluation()
    assert all(str(i) in ids for i, ids in enumerate(shown_ids(built, built.train_dataset, evaluation)))
    # ids of the training rows are not compared with the row numbers of a pool that has none
    backwards = dataset(id=NUMBERS[::-1], query=QUERIES, positive=POSITIVES)
    pool = ExemplarStore.from_dataset(numbered)
    foreign = trainer(tmp_path, backwards, kwargs={"exemplars": pool}, **settings)
    assert all(str(i) in ids for i, ids in enumerate(shown_ids(foreign, foreign.train_dataset)))
    # and are with ids that were given, whether integers or text
    given = ExemplarStore.from_dataset(backwards)
    same = trainer(tmp_path, backwards, kwargs={"exemplars": given}, **settings)
    for row, ids in zip(backwards, shown_ids(same, same.train_dataset), strict=True):
        assert str(row["id"]) not in ids
    assert not trainer(tmp_path, backwards).pools[""].store.numbered


def test_rows_left_out_as_bad_do_not_shift_the_places_of_the_others(tmp_path: Path) -> None:
    rows = dataset(query=[None, *QUERIES[1:]], positive=POSITIVES)
    settings = {"exclude": ["self"], "n_examples": 12, "example_rate": 1.0}
    built = trainer(tmp_path, rows, on_bad_row="drop", **settings)
    made, _ = built.data_collator.augment(list(built.train_dataset))
    for row, one in zip(built.train_dataset, made, strict=True):
        assert row["query"] not in {hit.query for hit in one.shown}


def test_evaluation_rows_are_checked_whenever_they_come_and_may_lack_negatives(tmp_path: Path) -> None:
    triplets = dataset(query=QUERIES, positive=POSITIVES, negative=POSITIVES[::-1])
    built = trainer(tmp_path, triplets, kwargs={"eval_dataset": ROWS})
    assert "negative_input_ids" not in next(iter(built.get_eval_dataloader()))
    later = ROWS.add_column("query_id", [str(i) for i in NUMBERS])
    assert built.evaluate(later)["eval_loss"] == built.evaluate(ROWS)["eval_loss"]
    with pytest.raises(RowError, match=r"eval dataset, row 0, column 'label'"):
        built.evaluate(ROWS.add_column("label", [0] * 12))
    with pytest.raises(ValueError, match="Reorder the columns of the eval dataset"):
        built.evaluate(ROWS.select_columns(["positive", "query"]))
    renamed = ROWS.rename_columns({"query": "question", "positive": "answer"})
    with pytest.raises(ValueError, match=r"rename them with dataset\.rename_columns"):
        trainer(tmp_path, triplets, kwargs={"eval_dataset": renamed})
