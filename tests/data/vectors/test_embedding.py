"""Vectors by an encoder: the right ones for each kind of model, computed once, continued after a kill."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
    pipeline,
)

from hf_ext.data.pruning import EmbedBatches, EmbedRows, embed_rows, gm_matching, load_encoder, prune
from hf_ext.data.vectors import embedding
from hf_ext.data.vectors.encoders import as_encoder
from hf_ext.guards.rows import RowError
from tests.tiny import tiny_sentences, tiny_tokenizer

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "hf_ext_pruning"


def bert(seed=0):
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    model = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=24, **SIZE))
    return model, tokenizer


def texts(n=11, **columns):
    return Dataset.from_dict({"text": tiny_sentences(n, seed=4), **columns})


def pictures(n=6):
    rng = np.random.default_rng(0)
    images = [PILImage.fromarray(rng.integers(0, 255, (20 + i, 24, 3), dtype=np.uint8)) for i in range(n)]
    images[1] = images[1].convert("L")
    return Dataset.from_dict({"image": images, "label": list(range(n))}, Features(image=Image(), label=Value("int64")))


def image_processor(size=16):
    from transformers import ViTImageProcessor

    try:
        return ViTImageProcessor(size={"height": size, "width": size})
    except ImportError:
        from transformers import ViTImageProcessorPil

        return ViTImageProcessorPil(size={"height": size, "width": size})


def lengths(batch):
    """An importable encoder: what a text's letters add up to."""
    return np.array([[len(text), text.count("a"), 1.0] for text in batch["text"]], dtype=np.float32)


def one_by_one(model, tokenizer, values):
    """Mean of the last hidden states of each text on its own: no padding anywhere."""
    model.eval()
    with torch.no_grad():
        states = [model(**tokenizer(v, truncation=True, max_length=24, return_tensors="pt")).last_hidden_state[0]
                  for v in values]  # fmt: skip
    return np.stack([state.mean(0).numpy() for state in states])


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_text_model_gives_the_mean_of_its_last_states_without_padding(batch_size):
    model, tokenizer = bert()
    model.train()
    found = embed_rows(texts(), (model, tokenizer), batch_size=batch_size)
    assert found.dtype == np.float32
    assert not found.flags.writeable
    assert model.training, "its mode is as before"
    np.testing.assert_allclose(found, one_by_one(*bert(), texts()["text"]), atol=1e-5)


def test_several_columns_are_joined_by_newlines():
    dataset = texts(answer=tiny_sentences(11, seed=9))
    model, tokenizer = bert()
    found = embed_rows(dataset, (model, tokenizer), input_column=["text", "answer"])
    joined = [f"{row['text']}\n{row['answer']}" for row in dataset]
    np.testing.assert_allclose(found, one_by_one(model, tokenizer, joined), atol=1e-5)


def test_a_pipeline_gives_what_its_model_does():
    model, tokenizer = bert()
    made = pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
    found = embed_rows(texts(), made, batch_size=4)
    model.eval()  # the pipeline leaves a new model in training mode, with dropout
    own = np.stack(
        [np.mean(made(v, tokenize_kwargs={"truncation": True, "max_length": 24})[0], axis=0) for v in texts()["text"]]
    )
    np.testing.assert_allclose(found, own, atol=1e-5)


def sentence_model():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Pooling, Transformer

    return sentence_transformers, Transformer, Pooling


def test_a_sentence_transformer_gives_what_its_encode_does(tmp_path):
    library, transformer, pooling = sentence_model()
    model, tokenizer = bert()
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    parts = transformer(str(tmp_path / "bert"), max_seq_length=20)
    made = library.SentenceTransformer(modules=[parts, pooling(16, pooling_mode="cls")], device="cpu")
    expected = made.encode(list(texts()["text"]), show_progress_bar=False)
    np.testing.assert_allclose(embed_rows(texts(), made, batch_size=4), expected, atol=1e-5)
    made.save(str(tmp_path / "whole"))
    loaded = load_encoder(tmp_path / "whole", device="cpu")
    assert isinstance(loaded, library.SentenceTransformer)
    np.testing.assert_allclose(embed_rows(texts(), tmp_path / "whole"), expected, atol=1e-5)


def test_a_folder_of_a_plain_model_is_loaded_with_its_tokenizer(tmp_path):
    model, tokenizer = bert()
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    found = embed_rows(texts(), str(tmp_path / "bert"))
    np.testing.assert_allclose(found, one_by_one(model, tokenizer, texts()["text"]), atol=1e-5)
    with pytest.raises(ValueError, match="encoder 'no/such' cannot be loaded"):
        embed_rows(texts(), "no/such")


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_an_image_model_gives_the_mean_of_its_last_states(kind):
    torch.manual_seed(0)
    if kind == "vit":
        model = ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZE), add_pooling_layer=False)
    else:
        model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    processor = image_processor()
    found = embed_rows(pictures(), (model, processor), batch_size=4)
    with torch.no_grad():
        pixels = processor(images=[p.convert("RGB") for p in pictures()["image"]], return_tensors="pt")
        states = model.eval()(**pixels).last_hidden_state
    expected = states.mean((2, 3)) if kind == "resnet" else states.mean(1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_model_of_both_gives_the_features_of_the_right_half():
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    small = {**SIZE, "projection_dim": 8}
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": 4},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    model, processor = CLIPModel(config).eval(), image_processor()
    found = embed_rows(pictures(), (model, processor))
    with torch.no_grad():
        pixels = processor(images=[p.convert("RGB") for p in pictures()["image"]], return_tensors="pt")["pixel_values"]
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_prune_by_a_function_is_matching_its_vectors():
    dataset = texts(60)
    picks = gm_matching(lengths(dataset[:]), 12).indices
    pruned = prune(dataset, 12, encoder=lengths)
    assert pruned["text"][:] == [dataset["text"][int(i)] for i in sorted(picks)]
    assert pruned.column_names == ["text", "prune_rank"]


# Kept and found again


def test_vectors_are_found_again_until_rows_column_or_encoder_change(cache):
    calls = []

    class Counting:
        def __call__(self, batch):
            calls.append(len(batch["text"]))
            return lengths(batch)

        def __reduce__(self):
            return (Counting, ())

    dataset = texts()
    first = embed_rows(dataset, lengths)
    assert len(list(cache.iterdir())) == 1
    again = embed_rows(texts(), lengths)
    np.testing.assert_array_equal(first, again)
    assert len(list(cache.iterdir())) == 1
    embed_rows(dataset.select(range(5)), lengths)
    embed_rows(dataset, EmbedRowsAsEncoder())
    assert len(list(cache.iterdir())) == 3
    for model in (bert(), bert(), bert(seed=1)):
        embed_rows(dataset, model)
    assert len(list(cache.iterdir())) == 5, "the same weights again are the same encoder"


class EmbedRowsAsEncoder:
    """Another importable encoder."""

    def __call__(self, batch):
        return lengths(batch)


def test_an_encoder_that_cannot_be_hashed_is_used_and_nothing_is_left_behind(cache, caplog):
    unpicklable = (i for i in range(3))

    def held(batch):
        return lengths(batch) if unpicklable else None

    found = embed_rows(texts(), held)
    np.testing.assert_array_equal(found, lengths(texts()[:]))
    if os.name != "nt":
        assert list(cache.iterdir()) == []
    assert "cannot be hashed" in caplog.text


def test_another_process_finds_the_file(cache, tmp_path):
    code = (
        "import os, sys\n"
        "from tests.data.vectors.test_embedding import bert, embed_rows, texts\n"
        "embed_rows(texts(), bert(), cache_dir=sys.argv[1]); print(*sorted(os.listdir(sys.argv[1])))"
    )
    embed_rows(texts(), bert(), cache_dir=tmp_path / "mine")
    (name,) = [path.name for path in (tmp_path / "mine").iterdir()]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mine")], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONHASHSEED": "3", "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.stdout.split() == [name], done.stderr


@pytest.mark.parametrize("cut", [0, 5, 40, 128, 200, 226])
def test_a_killed_encoding_goes_on_after_the_last_whole_piece(cache, monkeypatch, cut):
    monkeypatch.setattr(embedding, "_PIECE_ROWS", 8)
    dataset, done = texts(30), []

    def stopping(batch):
        if len(done) >= 3:
            raise KeyboardInterrupt
        done.append(len(batch["text"]))
        return lengths(batch)

    monkeypatch.setattr(embedding, "_key", lambda *_: "vectors-fixed")
    with pytest.raises(KeyboardInterrupt):
        embed_rows(dataset, stopping, batch_size=4)
    partial = cache / "vectors-fixed.partial"
    assert partial.stat().st_size == 128 + 8 * 3 * 4  # one whole piece
    with open(partial, "ab") as file:
        file.write(b"\x01" * 5)  # a write that a power cut broke off
    if cut:
        os.truncate(partial, min(cut, partial.stat().st_size))
    seen = []

    def counting(batch):
        seen.append(len(batch["text"]))
        return lengths(batch)

    found = embed_rows(dataset, counting, batch_size=4)
    np.testing.assert_array_equal(found, lengths(dataset[:]))
    assert sum(seen) == (22 if cut in (0, 226) else 30)
    assert not partial.exists()


# What cannot be used


@pytest.mark.parametrize("value", [None])
def test_a_row_without_a_text_is_named(value):
    rows = texts().to_list()
    rows[7] = {"text": value}
    with pytest.raises(RowError, match="row 7, column 'text': expected a string, found None") as caught:
        embed_rows(Dataset.from_list(rows), bert(), batch_size=2)
    assert caught.value.row_index == 7


def test_a_row_without_an_image_is_named():
    rows = pictures().to_list()
    rows[3]["image"] = None
    dataset = Dataset.from_list(rows, features=pictures().features)
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    with pytest.raises(RowError, match="row 3, column 'image': expected an image, found None"):
        embed_rows(dataset, (model, image_processor()))


@pytest.mark.parametrize(
    ("encoder", "options", "words"),
    [
        (lambda b: np.ones((3, 2)), {}, r"shape \(11, d\) for 11 rows, got float64 of shape \(3, 2\)"),
        (lambda b: np.ones((11, 2), dtype=int), {}, "must return floating point vectors"),
        (lambda b: np.ones(11), {}, r"of shape \(11,\)"),
        (lambda b: [[1.0, 2.0], *[[1.0]] * 10], {}, "must return vectors of one length for 11 rows"),
        (lambda b: np.ones((len(b["text"]), len(b["text"]))), {"batch_size": 6}, "of 5 numbers after those of 6"),
        (5, {}, "encoder=5 is no encoder"),
        (torch.nn.Linear(2, 2), {}, r"encoder=Linear needs what prepares its input: pass \(model, tokenizer\)"),
        ((1, 2), {}, r"encoder=\(int, int\) is no pair"),
        (lengths, {"input_column": "words"}, "input_column='words'"),
        (lengths, {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_refused(encoder, options, words):
    with pytest.raises(ValueError, match=words):
        embed_rows(texts(), encoder, **options)


def test_no_rows_are_refused_and_leave_no_file(cache):
    with pytest.raises(ValueError, match="The dataset is empty"):
        embed_rows(texts().select([]), lengths)
    assert not cache.exists() or not list(cache.iterdir())


def test_the_column_to_read_must_be_clear_and_fit_the_processor():
    dataset = Dataset.from_dict({"a": ["x"], "b": ["y"]})
    with pytest.raises(ValueError, match=r"candidates: \['a', 'b'\]\. Name it with input_column="):
        embed_rows(dataset, bert())
    with pytest.raises(ValueError, match="none of them holds text or images"):
        embed_rows(Dataset.from_dict({"n": [1]}), bert())
    with pytest.raises(ValueError, match="cannot prepare images"):
        embed_rows(pictures(), bert())
    with pytest.raises(ValueError, match="cannot prepare text"):
        embed_rows(texts(), (bert()[0], image_processor()))


def test_a_vector_of_an_encoder_that_is_not_finite_is_named_by_its_row():
    def spoiled(batch):
        found = lengths(batch)
        found[4, 1] = np.nan
        return found

    with pytest.raises(RowError, match="row 4, column 'embedding': dimension 1 of the vector is nan"):
        prune(texts(), 3, encoder=spoiled)


# The callables


def test_a_map_adds_the_vectors_that_embed_rows_gives():
    model = bert()
    mapped = texts().map(EmbedRows(model, "text"), batched=True, batch_size=3)
    np.testing.assert_allclose(np.array(mapped["embedding"]), embed_rows(texts(), model), atol=1e-5)
    stream = texts().to_iterable_dataset().map(EmbedRows(lengths), batched=True, batch_size=3)
    np.testing.assert_array_equal([row["embedding"] for row in stream], lengths(texts()[:]))


def test_under_ray_s_contract_numpy_columns_go_in_and_out():
    batch = {"text": np.array(texts()["text"][:], dtype=object), "label": np.arange(11)}
    out = EmbedBatches(bert(), "text", "vector")(batch)
    assert list(out) == ["text", "label", "vector"]
    assert out["label"] is batch["label"]
    assert out["vector"].shape == (11, 16)
    assert out["vector"].dtype == np.float32
    np.testing.assert_allclose(out["vector"], embed_rows(texts(), bert()), atol=1e-5)
    assert EmbedBatches(lengths)(batch)["embedding"].tolist() == lengths(batch).tolist()


def test_a_map_by_name_loads_the_model_once(tmp_path, monkeypatch):
    model, tokenizer = bert()
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    loads = []
    monkeypatch.setattr(embedding, "load_encoder", lambda name: loads.append(name) or load_encoder(name))
    mapped = texts().map(EmbedRows(str(tmp_path / "bert"), "text"), batched=True, batch_size=3)
    assert loads == [str(tmp_path / "bert")]
    np.testing.assert_allclose(np.array(mapped["embedding"]), embed_rows(texts(), (model, tokenizer)), atol=1e-5)


def test_the_module_s_place_in_earlier_versions_still_gives_it():
    from hf_ext.data.pruning import embedding as earlier_module

    assert earlier_module.embed_rows is embed_rows


def test_a_wrapped_encoder_is_taken_as_it_is():
    wrapped = as_encoder(lengths)
    assert as_encoder(wrapped) is wrapped


@pytest.mark.parametrize("damage", ["cut", "longer", "fewer rows", "float64", "empty", "another file"])
def test_a_kept_file_that_is_not_whole_is_computed_again_and_said_so(cache, caplog, damage):
    right = np.array(embed_rows(texts(), lengths))
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if damage == "fewer rows":
        np.save(path, right[:-1])
    elif damage == "float64":
        np.save(path, right.astype(np.float64))
    else:
        content = {"cut": whole[:-1], "longer": whole + b"0000", "empty": b"", "another file": b"PK\x03\x04" * 99}
        path.write_bytes(content[damage])
    np.testing.assert_array_equal(embed_rows(texts(), lengths), right)
    assert str(path) in caplog.text
    assert "computed again" in caplog.text
    assert path.read_bytes() == whole
