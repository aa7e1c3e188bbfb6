"""Exemplars that are read and not pooled: vectors against a mean taken by hand, in inference and in training."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from hf_ext import EncoderSettings, ExemplarStore, QueryAugmenter, RareEncoder, RareFormatter
from hf_ext.data.exemplars import Exemplar, TokenCounter
from hf_ext.retrieval.vectors import MASK, Body, exemplar_mask, leave_exemplars_out
from tests.trainers.retrieval import encoder, pairs, pooled_by_hand, trainer

pytest.importorskip("bm25s")

PROMPT = "Instruct: find it\nQuery: "
QUERIES = ["where is the calm kite number 3", "lamp", "where is the brisk tent at last, and who put it there"]
FORMATTER = RareFormatter(max_example_query_tokens=100, max_example_document_tokens=100)
SHOWN = [("where is it", "it lies there"), ("who is it", "the amber moss lies at 4")]  # nearest first
BEFORE = "".join(f"{query}\nPositive Document: {document}\n\nQuery: " for query, document in reversed(SHOWN))


def rare(base=None, prompt: str = PROMPT, **settings) -> RareEncoder:
    base = encoder() if base is None else base
    base.prompts["query"] = prompt
    store = ExemplarStore.from_dataset(pairs(24))
    return RareEncoder.from_model(base, store, EncoderSettings(k=2, formatter=FORMATTER, **settings))


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_a_vector_is_the_mean_of_the_tokens_that_are_no_exemplars():
    vectors = rare().encode_query(QUERIES, examples=SHOWN)
    for query, vector in zip(QUERIES, vectors, strict=True):
        np.testing.assert_allclose(vector, pooled_by_hand(encoder(), PROMPT, BEFORE, query), atol=1e-6)
    everything = rare(pool_examples=True).encode_query(QUERIES, examples=SHOWN)
    np.testing.assert_allclose(everything, encoder().encode([BEFORE + q for q in QUERIES], prompt=PROMPT), atol=1e-6)
    assert np.abs(vectors - everything).max() > 0.05


def test_without_a_prompt_the_first_label_belongs_to_the_exemplars():
    (vector,) = rare(prompt="").encode_query(QUERIES[:1], examples=SHOWN)
    np.testing.assert_allclose(vector, pooled_by_hand(encoder(), "", "Query: " + BEFORE, QUERIES[0]), atol=1e-6)


def test_a_model_that_leaves_the_prompt_out_pools_the_query_alone():
    base = encoder()
    base[1].include_prompt = False
    (vector,) = rare(base).encode_query(QUERIES[:1], examples=SHOWN)
    np.testing.assert_allclose(vector, pooled_by_hand(encoder(), "", PROMPT + BEFORE, QUERIES[0]), atol=1e-6)


def test_padding_on_the_left_changes_nothing():
    base = encoder()
    base.tokenizer.padding_side = "left"
    ours = rare(base)
    tokens = ours.preprocess([Body(BEFORE + query, len(BEFORE)) for query in QUERIES], PROMPT)
    assert int(tokens["attention_mask"][1, 0]) == 0, "padded on the left"
    for row, query in enumerate(QUERIES):
        kept = tokens["input_ids"][row][(tokens["attention_mask"][row] * (1 - tokens[MASK][row])).bool()]
        assert ours.tokenizer.decode(kept).replace(" ", "") == (PROMPT + query).replace(" ", "")


def test_queries_without_exemplars_are_the_parents_bit_for_bit_beside_others_with_them():
    ours = rare(floor=0.5)
    vectors, shown = ours.encode_query(["zzz qqq"], return_examples=True)
    assert shown == [[]]
    np.testing.assert_array_equal(vectors, encoder().encode(["zzz qqq"], prompt=PROMPT))
    mixed = [Body(BEFORE + "lamp", len(BEFORE)), PROMPT + BEFORE + "lamp"]  # as long, so that both are padded alike
    masks = ours.preprocess(mixed, "")[MASK].sum(dim=1)
    assert masks[0] > 0
    assert masks[1] == 0


def test_tokens_and_mask_come_out_as_they_went_in():
    ours = rare()
    tokens = ours.preprocess([Body(BEFORE + "lamp", len(BEFORE)), Body("kite")], PROMPT)
    before = tokens["attention_mask"].clone()
    with torch.no_grad():
        out = ours(dict(tokens))
    assert torch.equal(out["attention_mask"], before)
    assert out["token_embeddings"].shape[:2] == before.shape
    assert set(out) == set(tokens) | {"token_embeddings", "sentence_embedding"} | (set(out) & {"all_layer_embeddings"})


@pytest.mark.parametrize("mode", ["mean", "max", "mean_sqrt_len_tokens"])
def test_a_flattened_batch_is_pooled_as_a_padded_one(mode):
    pooling = Pooling(5, mode, include_prompt=False)
    leave_exemplars_out(pooling)
    lengths, spans = (9, 4, 7), ((2, 6), (0, 0), (2, 3))  # of rows, of their exemplars behind a prompt of 2
    states = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0))
    mask, out = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.int64)
    for row, (length, (first, last)) in enumerate(zip(lengths, spans, strict=True)):
        mask[row, :length] = 1
        out[row, first:last] = 1
    padded = pooling({"token_embeddings": states, "attention_mask": mask, MASK: out, "prompt_length": 2})
    keep = mask.bool()
    flat = pooling(
        {
            "token_embeddings": states[keep][None], MASK: out[keep][None], "prompt_length": 2,
            "cu_seq_lens_q": torch.tensor([0, 9, 13, 20], dtype=torch.int32),
            "seq_idx": torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None].int(),
        }
    )  # fmt: skip
    torch.testing.assert_close(flat["sentence_embedding"], padded["sentence_embedding"])
    assert flat["cu_seq_lens_q"].tolist() == [0, 9, 13, 20]
    assert flat["token_embeddings"].shape == (1, 20, 5)
    if mode == "mean":
        by_hand = torch.cat([states[0, 6:9]]).mean(dim=0)
        torch.testing.assert_close(padded["sentence_embedding"][0], by_hand)


def test_a_mask_of_a_flattened_batch_has_the_tokens_of_a_padded_one():
    ours = rare()
    bodies = [BEFORE + query for query in QUERIES]
    prefixes = [len(BEFORE), 0, len(BEFORE)]
    padded = ours.preprocess(bodies, PROMPT)
    counter = TokenCounter(ours.tokenizer)
    mask = exemplar_mask(padded, PROMPT, bodies, prefixes, counter)
    real = padded["attention_mask"].bool()
    ends = torch.nn.functional.pad(real.sum(dim=1).cumsum(0), (1, 0))
    flat = {"input_ids": padded["input_ids"][real][None], "cu_seq_lens_q": ends}
    assert torch.equal(exemplar_mask(flat, PROMPT, bodies, prefixes, counter)[0], mask[real])


def test_chat_messages_and_static_embeddings_are_left_as_they_are():
    ours = rare(encoder(chat=True))
    tokens = ours.preprocess([Body(BEFORE + "lamp", len(BEFORE))], PROMPT)
    assert "<|im_start|>" in ours.tokenizer.decode(tokens["input_ids"][0])
    assert tokens[MASK].sum() == 0
    flat = {"input_ids": torch.arange(7), "offsets": torch.tensor([0])}
    assert exemplar_mask(flat, PROMPT, [BEFORE], [3], TokenCounter(ours.tokenizer)).tolist() == [0] * 7


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cls", "lasttoken"])
def test_a_model_that_pools_one_token_needs_no_mask(mode):
    base = encoder()
    base[1] = Pooling(32, mode)
    assert not leave_exemplars_out(base)
    vectors = rare(base).encode_query(QUERIES, examples=SHOWN)
    np.testing.assert_allclose(vectors, base.encode([BEFORE + q for q in QUERIES], prompt=PROMPT), atol=1e-6)


def test_shared_modules_are_hooked_once_and_files_say_nothing_of_it(tmp_path: Path):
    base = encoder()
    assert leave_exemplars_out(base)
    first, second = rare(base), rare(base)
    assert len(base[1]._forward_pre_hooks) == len(base[1]._forward_hooks) == 1
    np.testing.assert_array_equal(first.encode_query(QUERIES), second.encode_query(QUERIES))
    first.save(str(tmp_path / "saved"))
    again = RareEncoder(str(tmp_path / "saved"), device="cpu")
    assert again.settings.pool_examples is False
    np.testing.assert_allclose(again.encode_query(QUERIES), first.encode_query(QUERIES), atol=1e-6)
    assert "exemplar" not in (tmp_path / "saved" / "modules.json").read_text(encoding="utf-8")


def test_a_body_remembers_its_exemplars_in_another_process():
    body = pickle.loads(pickle.dumps(Body("exemplars and query", 9)))
    assert (body, body.prefix, hash(body)) == ("exemplars and query", 9, hash("exemplars and query"))


def test_the_cache_tells_both_poolings_apart():
    ours = rare()
    ours.cache.size = 8
    first = ours.encode_query(QUERIES, examples=SHOWN)
    ours.settings = EncoderSettings(k=2, formatter=FORMATTER, pool_examples=True)
    second = ours.encode_query(QUERIES, examples=SHOWN)
    assert np.abs(first - second).max() > 0.05


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_the_loss_is_that_of_vectors_pooled_by_hand(cached: bool, tmp_path: Path):
    base = encoder()
    options = {"mini_batch_size": 3} if cached else {}
    loss = (CachedMultipleNegativesRankingLoss if cached else MultipleNegativesRankingLoss)(base, **options)
    built = trainer(
        tmp_path, 8, model=base, kwargs={"loss": loss}, instruction="find it", example_rate=0.5,
        per_device_train_batch_size=8, max_query_tokens=200,
        max_example_query_tokens=100, max_example_document_tokens=100,
    )  # fmt: skip
    base.eval()
    rows = list(built.train_dataset)
    made, _ = built.data_collator.augment(rows)
    assert 0 < sum(bool(one.shown) for one in made) < 8
    found = built.compute_loss(base, built.data_collator(rows))
    queries, documents = [], torch.tensor(encoder().encode([row["positive"] for row in rows]))
    for row, one in zip(rows, made, strict=True):
        assert one.body.endswith(row["query"])
        before = one.body.removesuffix(row["query"])
        queries.append(pooled_by_hand(encoder(), PROMPT, before, row["query"]))
    scores = 20.0 * torch.tensor(np.stack(queries)) @ documents.T
    torch.testing.assert_close(found.detach(), torch.nn.functional.cross_entropy(scores, torch.arange(8)))


def test_what_was_trained_is_what_encodes_with_its_exemplars_left_out(tmp_path: Path):
    built = trainer(tmp_path, 24, instruction="find it", example_rate=1.0)
    built.train()
    built.model.eval()
    ours = built.to_encoder()
    vector, shown = ours.encode_query(QUERIES[0], return_examples=True)
    formatter = built.data_collator.formatter
    body = formatter(QUERIES[0], shown, prompt=PROMPT, tokenizer=built.data_collator.tokenizer).body
    before = body.removesuffix(QUERIES[0])
    np.testing.assert_allclose(vector, pooled_by_hand(built.model, PROMPT, before, QUERIES[0]), atol=1e-6)


def test_a_trainer_told_to_pool_exemplars_sends_no_mask(tmp_path: Path):
    for pool, wanted in ((True, False), (False, True)):
        built = trainer(tmp_path, 8, example_rate=1.0, pool_examples=pool)
        batch = built.data_collator(list(built.train_dataset)[:4])
        assert (f"query_{MASK}" in batch) is wanted
        assert built.to_encoder().settings.pool_examples is pool


def test_one_token_models_send_no_mask(tmp_path: Path):
    base = encoder()
    base[1] = Pooling(32, "lasttoken")
    base[2] = Normalize()
    built = trainer(tmp_path, 8, model=base, example_rate=1.0)
    assert f"query_{MASK}" not in built.data_collator(list(built.train_dataset)[:4])


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_the_prefix_of_a_formatted_query_ends_where_the_target_begins():
    for brackets in (("", ""), ("[", "]")):
        formatter = RareFormatter(
            brackets=brackets, max_tokens=None, max_example_query_tokens=None, max_example_document_tokens=None
        )
        made = formatter("lamp", [Exemplar(0, 1.0, "a", "b"), Exemplar(1, 0.5, "c", "d")])
        assert made.body[made.prefix :] == brackets[0] + "lamp" + brackets[1]
        assert formatter("lamp").prefix == 0


def test_the_text_alone_warns_where_an_endpoint_would_pool_exemplars(tmp_path: Path, caplog):
    cases = (("a", False, "mean", True), ("b", True, "mean", False), ("c", False, "cls", False))
    for name, pool, mode, warned in cases:
        base = encoder()
        base[1] = Pooling(32, mode)
        rare(base, pool_examples=pool).save(str(tmp_path / name))
        caplog.clear()
        QueryAugmenter.from_pretrained(tmp_path / name)
        assert ("leaves exemplars out of its pooling" in caplog.text) is warned
    config = tmp_path / "a" / "1_Pooling" / "config.json"
    older = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    config.write_text(json.dumps(older), encoding="utf-8")
    caplog.clear()
    QueryAugmenter.from_pretrained(tmp_path / "a")
    assert "leaves exemplars out of its pooling" in caplog.text
