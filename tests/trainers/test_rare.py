"""RARe's trainers: what they refuse, prepare, log, save; sparse encoders, streams, distillation."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SentenceTransformerTrainingArguments,
    SparseEncoder,
)
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from hf_ext.data.exemplars import ExemplarStore
from hf_ext.guards.rows import RowError
from hf_ext.retrieval import RareEncoder
from hf_ext.trainers.rare import (
    ContextDistillationTrainer,
    RareConfig,
    RareSparseTrainer,
    RareTrainer,
)
from hf_ext.trainers.rare.collator import COUNTS
from hf_ext.trainers.rare.distill import context_targets
from tests.trainers.retrieval import (
    config,
    encoder,
    encoder_folder,
    pairs,
    pooled_by_hand,
    sparse_config,
    sparse_encoder,
    texts_of,
    trainer,
)
from tests.trainers.runs import logged, train, weights_of

TASK = "Instruct: Find the place\nQuery: "

# --- refused ---------------------------------------------------------------------------------------------------------


def store_of(rows: Dataset) -> ExemplarStore:
    return ExemplarStore({"query": rows["query"], "document": rows["positive"]})


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (lambda: CrossEncoder(encoder_folder(), num_labels=1, device="cpu"), "does not train a CrossEncoder"),
        (lambda: MultiVectorEncoder(encoder_folder(), device="cpu"), "score in MaxSim"),
        (sparse_encoder, "Use RareSparseTrainer"),
        (lambda: torch.nn.Linear(2, 2), "Pass a SentenceTransformer"),
    ],
)
def test_another_kind_of_model_is_refused_with_a_sentence(model: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=sentence):
        RareTrainer(model(), config(tmp_path), train_dataset=pairs(8))


def test_a_stream_without_a_store_is_refused_and_with_one_it_trains(tmp_path: Path) -> None:
    rows = pairs(16)
    with pytest.raises(TypeError, match=r"exemplars=None.*IterableDataset"):
        trainer(tmp_path, rows.to_iterable_dataset())
    built = trainer(tmp_path, rows.to_iterable_dataset(), kwargs={"exemplars": store_of(rows)}, example_rate=1.0)
    losses = train(built)
    assert len(losses) == 4
    assert logged(built, "rare/augmented_share") == [1.0] * 4


@pytest.mark.parametrize(
    ("rows", "kind", "sentence"),
    [
        (pairs(8).add_column("positive2", [[1.0]] * 8), TypeError, "'positive2' of the train dataset is not text"),
        (pairs(8).select_columns(["positive", "id"]), ValueError, "needs two text columns"),
        (Dataset.from_dict({"query": [1, 2], "positive": ["a", "b"]}), ValueError, "two text columns"),
        (
            Dataset.from_list([{"query": "a", "passages": {"passage_text": ["b"]}, "query_type": "PERSON"}] * 2),
            TypeError,
            "'passages' .* write the text of a document into a column 'positive'",
        ),
        (pairs(8).select([]), ValueError, "train dataset is empty"),
        (["no dataset"], TypeError, "make one with Dataset.from_list"),
    ],
)
def test_rows_that_are_no_pairs_are_refused(rows: Any, kind: type[Exception], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=sentence):
        trainer(tmp_path, rows)


def test_columns_in_an_order_that_the_loss_would_misread_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"select_columns\(\['query', 'positive'\]\)"):
        trainer(tmp_path, pairs(8).select_columns(["positive", "query"]), query_column="query")


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("column", ["query", "positive"])
def test_a_row_without_a_text_is_named_or_dropped(column: str, value: Any, tmp_path: Path) -> None:
    rows = pairs(8).to_list()
    rows[5][column] = value
    with pytest.raises(RowError, match=rf"row 5, column '{column}'"):
        trainer(tmp_path, Dataset.from_list(rows))
    built = trainer(tmp_path, Dataset.from_list(rows), on_bad_row="drop")
    assert built.train_dataset["__hf_ext_row__"] == [0, 1, 2, 3, 4, 6, 7]
    assert (tmp_path / "bad_rows.jsonl").is_file()


def test_stores_and_instructions_must_name_the_data_sets(tmp_path: Path) -> None:
    rows = DatasetDict({"a": pairs(8), "b": pairs(8, seed=1)})
    with pytest.raises(ValueError, match="each has a pool of its own"):
        trainer(tmp_path, rows, kwargs={"exemplars": store_of(pairs(8))})
    with pytest.raises(ValueError, match="a store for 'c'"):
        trainer(tmp_path, rows, kwargs={"exemplars": {"c": store_of(pairs(8))}})
    with pytest.raises(ValueError, match="instruction names 'c'"):
        trainer(tmp_path, rows, instruction={"c": "Find"})
    with pytest.raises(ValueError, match="has no pool of exemplars"):
        trainer(tmp_path, rows, kwargs={"eval_dataset": {"c": pairs(4)}})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"example_rate": 1.5}, "rate"),
        ({"n_examples": -1}, "n_examples must be"),
        ({"n_examples_mode": "some"}, "'fixed' or 'uniform'"),
        ({"example_retriever": "tfidf"}, "example_retriever must be one of"),
        ({"exclude": ["others"]}, "exclude knows self, same_text"),
        ({"loss_scale": 0.0}, "loss_scale must be"),
        ({"example_order": "middle"}, "order must be"),
        ({"max_document_tokens": 0}, "max_document_tokens"),
        ({"instruction": "{no json"}, "is none"),
        ({"max_query_tokens": 999}, "more than the model's 256 positions"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        trainer(tmp_path, pairs(8), **changes)


def test_another_trainer_s_arguments_and_another_collator_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="needs a RareConfig"):
        RareTrainer(encoder(), sparse_config(tmp_path), train_dataset=pairs(8))
    with pytest.raises(TypeError, match="leave data_collator out"):
        trainer(tmp_path, 8, kwargs={"data_collator": lambda rows: rows})


# --- prepared --------------------------------------------------------------------------------------------------------


def test_the_host_s_arguments_get_rare_s_defaults(tmp_path: Path) -> None:
    args = SentenceTransformerTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", learning_rate=3e-4)
    built = RareTrainer(encoder(), args, train_dataset=pairs(8))
    assert isinstance(built.args, RareConfig)
    assert (built.args.learning_rate, built.args.n_examples, built.args.example_rate) == (3e-4, 5, 0.7)


def test_the_default_loss_is_cached_within_a_budget_of_tokens(tmp_path: Path) -> None:
    loss = trainer(tmp_path, 8, mini_batch_num_tokens=300, loss_scale=25.0).loss
    assert isinstance(loss, CachedMultipleNegativesRankingLoss)
    assert (loss.scale, loss.mini_batch_num_tokens) == (25.0, 300)


def test_the_model_s_own_prompts_are_used_and_a_new_one_is_kept_in_it(tmp_path: Path) -> None:
    model = encoder()
    model.prompts |= {"query": "ask: ", "document": "text: "}
    built = trainer(tmp_path, 8, model=model, example_rate=0.0)
    batch = built.data_collator(list(built.train_dataset))
    assert texts_of(batch, "query", model) == ["ask: " + text for text in built.train_dataset["query"]]
    assert texts_of(batch, "positive", model) == ["text: " + text for text in built.train_dataset["positive"]]
    fresh = trainer(tmp_path, 8, instruction="Find the place")
    fresh.save_model(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert saved.prompts["query"] == "Instruct: Find the place\nQuery: "
    query = "where is it"
    alone = saved.encode_query(query)
    assert np.array_equal(alone, saved.encode("Instruct: Find the place\nQuery: " + query))


def test_a_prompt_that_inference_would_not_use_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = encoder()
    model.prompts["query"] = "ask: "
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, 8, model=model, instruction="Find the place")
    assert "encode_query would use the latter" in caplog.text


def test_each_side_has_its_length_which_is_saved(tmp_path: Path) -> None:
    built = trainer(tmp_path, 8, max_query_tokens=200, max_document_tokens=9, example_rate=1.0)
    batch = built.data_collator(list(built.train_dataset))
    assert batch["positive_input_ids"].shape[1] == 9
    assert batch["query_input_ids"].shape[1] > 30
    built.save_model(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert (saved[0].query_length, saved[0].document_length) == (200, 9)


@pytest.mark.parametrize("text_only", [True, False])
def test_a_chat_template_is_left_out_or_warned_of(
    text_only: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        built = trainer(tmp_path, 8, model=encoder(chat=True), text_only=text_only, instruction="Find the place")
    batch = built.data_collator(list(built.train_dataset))
    texts = texts_of(batch, "query", built.model)
    assert all(text.startswith("Instruct: Find the place\nQuery: ") == text_only for text in texts)
    if not text_only:
        assert "Set text_only=True" in caplog.text
        return
    assert "left out" in caplog.text
    built.save_model(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert saved[0].modalities == ["text"]
    kept = built.model.eval().encode_query(["where is it"])
    assert np.array_equal(saved.encode_query(["where is it"]), kept)


def test_the_caller_s_arguments_and_rows_stay_as_they_are(tmp_path: Path) -> None:
    rows, args = DatasetDict({"a": pairs(8), "b": pairs(8, seed=1)}), config(tmp_path, instruction="Find")
    RareTrainer(encoder(), args, train_dataset=rows)
    assert args.prompts is None
    assert not args.router_mapping
    assert rows["a"].column_names == ["id", "query", "positive"]
    assert "dataset_name" not in rows["a"][0]


# --- trained ---------------------------------------------------------------------------------------------------------


def test_the_log_says_what_the_batches_held(tmp_path: Path) -> None:
    built = trainer(tmp_path, 24, max_steps=6, logging_steps=2, example_rate=0.5)
    seen: list[torch.Tensor] = []
    compute_loss = built.compute_loss

    def watched(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(inputs[COUNTS].clone())
        return compute_loss(model, inputs, *args, **kwargs)

    built.compute_loss = watched
    built.train()
    shares = [float((torch.cat(seen[i : i + 2])[:, 1] > 0).float().mean()) for i in (0, 2, 4)]
    assert logged(built, "rare/augmented_share") == pytest.approx(shares)
    assert logged(built, "rare/empty_hits") == [0.0] * 3


def test_the_first_query_of_each_data_set_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = DatasetDict({"a": pairs(8, mark="xx"), "b": pairs(8, mark="zz")})
    trainer(tmp_path, rows, max_steps=1, instruction="Find the place").train()
    said = capsys.readouterr().out
    assert said.index("First query with exemplars of a") < said.index("First query with exemplars of b")
    assert said.count("Instruct: Find the place") == 2


def test_a_nan_stops_before_the_step_and_names_the_rows(tmp_path: Path) -> None:
    from hf_ext.guards.finite import NonFiniteError

    built = trainer(tmp_path, 24, max_steps=6)
    compute_loss = built.compute_loss

    def spoil(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if 13 in inputs["__hf_ext_row__"].tolist():
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)
        return compute_loss(model, inputs, *args, **kwargs)

    built.compute_loss = spoil
    with pytest.raises(NonFiniteError, match="loss") as stopped:
        built.train()
    assert 13 in stopped.value.row_indices
    assert len(stopped.value.row_indices) == 4


def test_the_card_shows_settings_and_no_row(tmp_path: Path) -> None:
    built = trainer(tmp_path, pairs(24, mark="zyzzyva"), instruction="Find the place", model_license="mit")
    built.train()
    built.save_model(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "zyzzyva" not in card
    assert "license: mit" in card
    assert "| `exemplars` | 24 |" in card
    assert "| `rare/augmented_share` |" in card
    assert "| `example_rate` | 0.7 |" in card
    assert str(tmp_path) not in card


def test_a_sparse_encoder_learns_through_the_same_collator(tmp_path: Path) -> None:
    model = sparse_encoder()
    args = sparse_config(tmp_path, example_rate=1.0, instruction="Find the place", max_steps=3)
    built = RareSparseTrainer(model, args, train_dataset=pairs(16))
    before = weights_of(model)
    batch = built.data_collator(list(built.train_dataset))
    assert all(text.count("Query: ") == 3 for text in texts_of(batch, "query", model))
    losses = train(built)
    assert np.isfinite(losses).all()
    assert any(not torch.equal(value, before[name]) for name, value in weights_of(model).items())
    assert logged(built, "rare/augmented_share") == [1.0] * 3
    built.save_model(str(tmp_path / "saved"))
    saved = SparseEncoder(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(saved.encode("x").to_dense(), model.eval().encode("x").to_dense())
    with pytest.raises(ValueError, match="needs a model with dense vectors"):
        RareSparseTrainer(sparse_encoder(), sparse_config(tmp_path, example_retriever="dense"), train_dataset=pairs(8))


@pytest.mark.parametrize("choice", ["bm25", "dense"])
def test_what_was_trained_is_what_encodes(choice: str, tmp_path: Path) -> None:
    built = trainer(
        tmp_path, 24, instruction="Find the place", example_rate=1.0, example_retriever=choice, pool_examples=True
    )
    built.train()
    built.model.eval()
    encoder_ = built.to_encoder(example_weight=0.4)
    query = "where is the calm kite"
    vector, shown = encoder_.encode_query(query, return_examples=True)
    body = built.data_collator.formatter(query, shown, prompt=TASK, tokenizer=built.data_collator.tokenizer).body
    assert body.count("Query: ") == 2
    bare, full = built.model.encode([TASK + query, TASK + body])
    mixed = 0.6 * bare + 0.4 * full
    assert np.allclose(vector, mixed / np.linalg.norm(mixed), atol=1e-6)
    if choice == "bm25":
        encoder_.save_pretrained(str(tmp_path / "saved"))
        plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
        assert np.array_equal(plain.encode_query(query), encoder_.encode_query(query, examples=False))
        assert np.allclose(RareEncoder(str(tmp_path / "saved"), device="cpu").encode_query(query), vector, atol=1e-6)


# --- distilled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [True, False])
def test_targets_are_the_teacher_s_vectors_of_the_text_with_exemplars(pooled: bool, tmp_path: Path) -> None:
    teacher, rows = encoder(), pairs(10)
    caps = {"max_example_query_tokens": 100, "max_example_document_tokens": 100}
    args = config(tmp_path, n_examples=1, pool_examples=pooled, **caps)
    made = context_targets(teacher, rows, args=args, prompt="ask: ")
    hits = store_of(rows).search(rows["query"], 2)
    for i, row in enumerate(made):
        other = next(hit for hit in hits[i] if hit.row != i)
        before = f"Query: {other.query}\nPositive Document: {other.document}\n\nQuery: "
        wanted = teacher.encode("ask: " + before + row["query"])
        if not pooled:
            wanted = pooled_by_hand(teacher, "ask: ", before, row["query"])
        assert np.allclose(row["label"][0], wanted, atol=1e-6)
        assert np.allclose(row["label"][1], teacher.encode(row["positive"]), atol=1e-6)


def test_a_blend_of_weight_zero_is_the_bare_query(tmp_path: Path) -> None:
    teacher, rows = encoder(), pairs(6)
    made = context_targets(teacher, rows, args=config(tmp_path), weight=0.0)
    assert np.allclose(np.array(made["label"])[:, 0], teacher.encode(rows["query"]), atol=1e-6)
    with pytest.raises(ValueError, match="lies in"):
        context_targets(teacher, rows, args=config(tmp_path), weight=1.5)


def test_a_distilled_student_comes_near_its_teacher_s_vectors_without_exemplars(tmp_path: Path) -> None:
    teacher, student, rows = encoder(), encoder(), pairs(24)
    args = config(
        tmp_path, max_steps=40, learning_rate=2e-3, optim="adamw_torch", per_device_train_batch_size=8,
        instruction="Find the place",
    )  # fmt: skip
    built = ContextDistillationTrainer(student, args, train_dataset=rows, teacher=teacher)
    wanted = np.array(built.train_dataset["label"])

    def nearness(column: int, vectors: np.ndarray) -> float:
        return float((wanted[:, column] * vectors).sum(axis=1).mean())

    before = nearness(0, student.encode_query(rows["query"]))
    built.train()
    student.eval()
    assert nearness(0, student.encode_query(rows["query"])) > before + 0.5 * (1 - before)
    assert nearness(1, student.encode_document(rows["positive"])) > 0.9
    built.save_model(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.array_equal(saved.encode_query(rows["query"][:3]), student.encode_query(rows["query"][:3]))


def test_a_saved_model_knows_how_its_queries_were_shown_exemplars(tmp_path: Path) -> None:
    rows = pairs(24)
    built = trainer(tmp_path, rows, n_examples=1, min_example_score=0.1, instruction="Find the place")
    built.train()
    built.save_model(str(tmp_path / "saved"))
    files = {path.relative_to(tmp_path / "saved").as_posix() for path in (tmp_path / "saved").rglob("*")}
    assert {name for name in files if name.startswith("exemplars/")} == {"exemplars/rare_config.json"}, "no rows"
    with_pool = RareEncoder(str(tmp_path / "saved"), exemplars=store_of(rows), device="cpu")
    assert with_pool.settings == built.encoder_settings()
    query = "where is the calm kite"
    built.model.eval()
    assert np.allclose(with_pool.encode_query(query), built.to_encoder().encode_query(query), atol=1e-6)
    bare = RareEncoder(str(tmp_path / "saved"), device="cpu")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.array_equal(bare.encode_query(query), plain.encode_query(query))


def test_a_trained_rare_encoder_is_saved_without_the_rows_of_its_pool(tmp_path: Path) -> None:
    rows = pairs(16)
    model = RareEncoder.from_model(encoder(), store_of(rows))
    model.save(str(tmp_path / "before"))
    assert list((tmp_path / "before").rglob("exemplars*.parquet")), "the control: by itself it saves them"
    args = config(tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=1)
    made = RareTrainer(model, args, train_dataset=rows)
    made.train()
    made.save_model()
    files = [path.name for path in Path(made.args.output_dir).rglob("*") if path.is_file()]
    assert files.count("rare_config.json") == 3, "two checkpoints and the model"
    assert not [name for name in files if name.endswith(".parquet")]


def test_the_base_model_s_own_card_is_not_passed_on_as_the_tuned_model_s(tmp_path: Path) -> None:
    """sentence-transformers writes the card of the folder it loaded a model from into every folder it saves."""
    shutil.copytree(encoder_folder(), tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text(
        "---\nlicense: mit\ntags: [theirs]\n---\n# The base\n\nNot for tuned ones.\n"
    )
    model = SentenceTransformer(str(tmp_path / "base"), device="cpu")
    trainer(tmp_path, 8, model=model).save_model(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "license: mit" in card
    assert "theirs" not in card
    assert "Not for tuned ones" not in card


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"---\na: 2024-13-40\n---\n", b"---\na: &a [*a]\n---\n", b"---\nx: [\n---\n"]
)
def test_a_strange_card_of_the_base_model_stops_no_retriever(tmp_path: Path, content: bytes) -> None:
    shutil.copytree(encoder_folder(), tmp_path / "base")
    (tmp_path / "base" / "README.md").write_bytes(content)
    model = SentenceTransformer(str(tmp_path / "base"), device="cpu")
    trainer(tmp_path, 8, model=model).save_model(str(tmp_path / "saved"))
    assert "license: unknown" in (tmp_path / "saved" / "README.md").read_text()
