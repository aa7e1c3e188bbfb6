"""An encoder taken apart gives the vectors that it gave in one piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, pipeline

from hf_ext.data.vectors.encoders import as_encoder
from hf_ext.moe.encoders import stock_encoder
from hf_ext.moe.modeling_moe import MoEForSequenceClassification
from tests.moe.models import mixture_of, tiny_encoder
from tests.tiny import tiny_tokenizer

TEXTS = ["the red fox", "a lazy dog sleeps near the river and the old mill", "the"]


def features_of(encoder: object) -> np.ndarray:
    """Of the model that stores the encoder, by its own tokenizer."""
    parts = stock_encoder(encoder)
    model = MoEForSequenceClassification.from_mixture(
        mixture_of("softmax", d=32), parts.model, pooling=parts.pooling, normalize=parts.normalize
    )
    inputs = parts.processor(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).numpy()


@pytest.mark.parametrize("kind", ["pair", "pipeline"])
def test_a_models_hidden_states_are_averaged_without_padding(kind: str) -> None:
    encoder = (tiny_encoder(), tiny_tokenizer())
    if kind == "pipeline":
        encoder = pipeline("feature-extraction", model=encoder[0], tokenizer=encoder[1])
    np.testing.assert_allclose(features_of(encoder), as_encoder(encoder)(TEXTS, 3), atol=1e-5)


def test_a_model_of_texts_and_pictures_is_refused_whose_vectors_the_saved_model_would_not_give() -> None:
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(text_config=small, vision_config=small | {"image_size": 8, "patch_size": 8})
    with pytest.raises(ValueError, match=r"CLIPModel is a model of texts and pictures.*EmbedRows"):
        stock_encoder((CLIPModel(config), tiny_tokenizer()))


def encoder_folder(folder: Path, chat: bool = False) -> Path:
    """With a chat template, sentence-transformers puts it around every text."""
    tokenizer = tiny_tokenizer()
    if not chat:
        tokenizer.chat_template = None
    tiny_encoder().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder"))


def sentence_encoder(folder: Path, mode: str, *more: str) -> object:
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    parts = [modules.Transformer(str(folder)), modules.Pooling(32, mode)]
    parts += [getattr(modules, name)(*([32, 32] if name == "Dense" else [])) for name in more]
    return st.SentenceTransformer(modules=parts, device="cpu")


@pytest.mark.parametrize(("mode", "more"), [("mean", ["Normalize"]), ("cls", []), ("lasttoken", [])], ids=str)
def test_a_sentence_encoder_is_stored_with_its_pooling(mode: str, more: list[str], folder: Path) -> None:
    encoder = sentence_encoder(folder, mode, *more)
    expected = encoder.encode(TEXTS, convert_to_numpy=True)
    np.testing.assert_allclose(features_of(encoder), expected, atol=1e-5)


def test_what_a_model_cannot_store_is_refused_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    encoders = {
        "chat template around each text": sentence_encoder(encoder_folder(tmp_path, chat=True), "mean"),
        "Transformer, Pooling, Dense": sentence_encoder(folder, "mean", "Dense"),
        "pooling is 'max'": sentence_encoder(folder, "max"),
        "encoder=function": lambda batch: batch,
    }
    for message, encoder in encoders.items():
        with pytest.raises(ValueError, match=f"{message}.*EmbedRows"):
            stock_encoder(encoder)
