"""Weights reach the right tokens, and the loss is the stated formula: against loops over full logits."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from hf_ext.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from tests.tiny import tiny_messages_dataset, tiny_prompt_completion_dataset, tiny_sentences, tiny_text_dataset
from tests.trainers.oracle import Document, document, step_loss
from tests.trainers.runs import TOKENIZER, assert_same_weights, build, config_of, train

WEIGHTS = [0.0, 0.25, 1.0, 1.5, 0.1, 3.0, 0.7, 0.9]
EOS = TOKENIZER.eos_token


def text_rows() -> tuple[Dataset, list[Document]]:
    dataset = tiny_text_dataset(8)
    return dataset, [document(TOKENIZER(row["text"] + EOS)["input_ids"]) for row in dataset]


def chat_document(messages: list[dict], prompt: list[dict] | None = None, assistant_only: bool = False) -> Document:
    found = TOKENIZER.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=assistant_only
    )
    ids = found["input_ids"]
    labels = list(ids)
    if assistant_only:
        labels = [i if bit else -100 for i, bit in zip(ids, found["assistant_masks"], strict=True)]
    if prompt is not None:
        head = TOKENIZER.apply_chat_template(prompt, tokenize=True, return_dict=True, add_generation_prompt=True)
        n = len(head["input_ids"])
        assert ids[:n] == head["input_ids"]
        labels[:n] = [-100] * n
    return document(ids, labels)


def messages_rows() -> tuple[Dataset, list[Document]]:
    dataset = tiny_messages_dataset(8)
    return dataset, [chat_document(row["messages"]) for row in dataset]


def assistant_rows() -> tuple[Dataset, list[Document]]:
    dataset = tiny_messages_dataset(8)
    docs = [chat_document(row["messages"], assistant_only=True) for row in dataset]
    assert all(-100 in doc.labels and set(doc.labels) != {-100} for doc in docs)
    return dataset, docs


def from_value_rows() -> tuple[Dataset, list[Document]]:
    speakers = {"user": "human", "assistant": "gpt"}
    plain = tiny_messages_dataset(8)
    turns = [[{"from": speakers[m["role"]], "value": m["content"]} for m in row["messages"]] for row in plain]
    return Dataset.from_dict({"conversations": turns}), [chat_document(row["messages"]) for row in plain]


def prompt_completion_rows() -> tuple[Dataset, list[Document]]:
    dataset = tiny_prompt_completion_dataset(8)
    docs = []
    for row in dataset:
        n = len(TOKENIZER(row["prompt"])["input_ids"])
        ids = TOKENIZER(row["prompt"] + row["completion"] + EOS)["input_ids"]
        while ids[:n] != TOKENIZER(row["prompt"])["input_ids"][:n]:
            n -= 1
        docs.append(document(ids, [-100] * n + ids[n:]))
    return dataset, docs


def conversational_rows() -> tuple[Dataset, list[Document]]:
    dataset = tiny_prompt_completion_dataset(8, conversational=True)
    return dataset, [chat_document(row["prompt"] + row["completion"], row["prompt"]) for row in dataset]


def ids_rows(labelled: bool) -> tuple[Dataset, list[Document]]:
    ids = [TOKENIZER(text)["input_ids"] for text in tiny_sentences(8)]
    if not labelled:
        return Dataset.from_dict({"input_ids": ids}), [document(row) for row in ids]
    labels = [[-100 if t % 3 == 1 else token for t, token in enumerate(row)] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels}), [
        document(row, label) for row, label in zip(ids, labels, strict=True)
    ]


DATA_TYPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (text_rows, {}),
    "messages": (messages_rows, {}),
    "assistant_only": (assistant_rows, {"assistant_only_loss": True}),
    "from_value": (from_value_rows, {}),
    "prompt_completion": (prompt_completion_rows, {}),
    "conversational_prompt_completion": (conversational_rows, {}),
    "pretokenised": (lambda: ids_rows(labelled=False), {}),
    "pretokenised_with_labels": (lambda: ids_rows(labelled=True), {}),
}


def first_loss(dataset: Any, tmp_path: Any, **settings: Any) -> tuple[float, Any]:
    """Loss of one step over the whole set (4 micro-batches of 2), and the model it was computed with."""
    settings = {"max_length": 128, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4} | settings
    args = config_of(WeightedSFTConfig, tmp_path, max_steps=1, learning_rate=0.0, **settings)
    trainer = build(WeightedSFTTrainer, args, dataset)
    return train(trainer)[0], trainer.model


def weighted(docs: list[Document], weights: list[float] = WEIGHTS) -> list[Document]:
    return [document(doc.ids, doc.labels, weight) for doc, weight in zip(docs, weights, strict=True)]


@pytest.mark.parametrize("data_type", DATA_TYPES)
def test_row_weights_reach_their_rows_tokens(data_type: str, tmp_path: Any) -> None:
    make, settings = DATA_TYPES[data_type]
    dataset, docs = make()
    loss, model = first_loss(dataset.add_column("weight", WEIGHTS), tmp_path, **settings)
    assert loss == pytest.approx(step_loss(model, weighted(docs)), abs=2e-6)
    assert abs(loss - step_loss(model, docs)) > 1e-4, "these weights change nothing: the test could not fail"


LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "padding_free": {"padding_free": True, "max_length": None},
    "packed": {"packing": True, "max_length": 96, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
    "one_batch": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
}


@pytest.mark.parametrize("reduction", ["token", "row"])
@pytest.mark.parametrize("normalize", ["weights", "tokens"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_is_the_stated_formula(layout: str, normalize: str, reduction: str, tmp_path: Any) -> None:
    dataset, docs = prompt_completion_rows()
    loss, model = first_loss(
        dataset.add_column("weight", WEIGHTS), tmp_path, normalize=normalize, reduction=reduction, **LAYOUTS[layout]
    )
    assert loss == pytest.approx(step_loss(model, weighted(docs), normalize, reduction), abs=2e-6)


@pytest.mark.parametrize("normalize", ["weights", "tokens"])
def test_split_documents_keep_their_weight_in_every_fragment(normalize: str, tmp_path: Any) -> None:
    dataset, docs = prompt_completion_rows()
    length = 10
    fragments = [
        document(doc.ids[s : s + length], doc.labels[s : s + length], weight)
        for doc, weight in zip(docs, WEIGHTS, strict=True)
        for s in range(0, len(doc.ids), length)
    ]
    loss, model = first_loss(
        dataset.add_column("weight", WEIGHTS),
        tmp_path,
        normalize=normalize,
        packing=True,
        packing_strategy="bfd_split",
        max_length=length,
        per_device_train_batch_size=64,
        gradient_accumulation_steps=1,
    )
    assert len(fragments) > 2 * len(docs)
    assert loss == pytest.approx(step_loss(model, fragments, normalize), abs=2e-6)


def token_weights(docs: list[Document]) -> list[list[float]]:
    return [[((3 * t + 5 * i) % 7) / 4 for t in range(len(doc.ids))] for i, doc in enumerate(docs)]


@pytest.mark.filterwarnings("ignore:The `'keep_end'`:FutureWarning")
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("labelled", [False, True])
def test_token_weights_are_cut_with_their_tokens(labelled: bool, mode: str, tmp_path: Any) -> None:
    dataset, docs = ids_rows(labelled)
    weights, length = token_weights(docs), 12
    cut = slice(None, length) if mode == "keep_start" else slice(-length, None)
    expected = [document(d.ids[cut], d.labels[cut], w[cut]) for d, w in zip(docs, weights, strict=True)]
    loss, model = first_loss(dataset.add_column("weight", weights), tmp_path, max_length=length, truncation_mode=mode)
    assert max(len(doc.ids) for doc in docs) > length
    assert loss == pytest.approx(step_loss(model, expected), abs=2e-6)


@pytest.mark.parametrize("packing_strategy", ["bfd", "bfd_split"])
@pytest.mark.parametrize("reduction", ["token", "row"])
def test_token_weights_are_packed_with_their_tokens(packing_strategy: str, reduction: str, tmp_path: Any) -> None:
    dataset, docs = ids_rows(labelled=True)
    weights, length = token_weights(docs), 20
    starts = {"bfd": lambda n: [0], "bfd_split": lambda n: range(0, n, length)}[packing_strategy]
    expected = [
        document(d.ids[s : s + length], d.labels[s : s + length], w[s : s + length])
        for d, w in zip(docs, weights, strict=True)
        for s in starts(len(d.ids))
    ]
    loss, model = first_loss(
        dataset.add_column("weight", weights),
        tmp_path,
        reduction=reduction,
        packing=True,
        packing_strategy=packing_strategy,
        max_length=length,
        per_device_train_batch_size=64,
        gradient_accumulation_steps=1,
    )
    assert loss == pytest.approx(step_loss(model, expected, "weights", reduction), abs=2e-6)


def test_the_denominator_is_the_accumulated_batchs_not_each_micro_batchs(tmp_path: Any) -> None:
    dataset, docs = text_rows()
    dataset = dataset.add_column("weight", WEIGHTS)
    args = config_of(
        WeightedSFTConfig, tmp_path, max_steps=1, learning_rate=0.0, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = build(WeightedSFTTrainer, args, dataset)
    loss = train(trainer)[0]
    docs = weighted(docs)
    own = [step_loss(trainer.model, docs[:2]), step_loss(trainer.model, docs[2:4])]
    assert loss == pytest.approx(step_loss(trainer.model, docs[:4]), abs=2e-6)
    assert abs(loss - sum(own) / 2) > 1e-4


def trained(dataset: Dataset, tmp_path: Any, **settings: Any) -> tuple[list[float], Any]:
    trainer = build(WeightedSFTTrainer, config_of(WeightedSFTConfig, tmp_path, **settings), dataset)
    return train(trainer), trainer.model


@pytest.mark.parametrize("reduction", ["token", "row"])
def test_doubling_every_weight_changes_nothing_when_normalised_by_weight(reduction: str, tmp_path: Any) -> None:
    dataset, _ = prompt_completion_rows()
    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "reduction": reduction}
    once, model = trained(dataset.add_column("weight", WEIGHTS), tmp_path, **settings)
    twice, doubled = trained(dataset.add_column("weight", [2 * w for w in WEIGHTS]), tmp_path, **settings)
    assert once == twice  # a power of two: exact
    assert_same_weights(model, doubled)


def test_doubling_every_weight_doubles_the_loss_when_normalised_by_tokens(tmp_path: Any) -> None:
    dataset, _ = prompt_completion_rows()
    settings = {"normalize": "tokens", "learning_rate": 0.0}
    once, _ = trained(dataset.add_column("weight", WEIGHTS), tmp_path, **settings)
    twice, _ = trained(dataset.add_column("weight", [2 * w for w in WEIGHTS]), tmp_path, **settings)
    assert [2 * loss for loss in once] == twice


def test_a_row_of_weight_zero_teaches_nothing(tmp_path: Any) -> None:
    dataset, _ = text_rows()
    weights = [1.0, 0.0] * 4
    changed = dataset.map(lambda row, i: {"text": row["text"] if weights[i] else "Something else."}, with_indices=True)
    settings = {"per_device_train_batch_size": 8, "max_steps": 3}
    one, model = trained(dataset.add_column("weight", weights), tmp_path, **settings)
    other, same = trained(changed.add_column("weight", weights), tmp_path, **settings)
    assert one == pytest.approx(other, abs=1e-6)
    for name, value in model.named_parameters():
        assert (value - dict(same.named_parameters())[name]).abs().max() < 1e-6
