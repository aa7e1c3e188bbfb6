"""An encoder taken apart: the model of transformers in it, and what makes one vector of its output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Pipeline, PreTrainedModel

from hf_ext.data.vectors.encoders import EncoderLike, load_encoder
from hf_ext.guards.extras import naming_extras

_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last"}


@dataclass(frozen=True)
class StockEncoder:
    """
    What a [`~hf_ext.moe.modeling_moe.MoEForSequenceClassification`] stores of an encoder.

    Args:
        model (`PreTrainedModel`):
            With its weights.
        processor (`Any`):
            Its tokenizer, image processor or processor, saved beside it.
        pooling (`str`), normalize (`bool`):
            As in [`~hf_ext.moe.configuration_moe.MoEConfig`].
    """

    model: PreTrainedModel
    processor: Any
    pooling: str = "mean"
    normalize: bool = False


def stock_encoder(encoder: EncoderLike) -> StockEncoder:
    """
    Take an encoder apart.

    Args:
        encoder:
            A name or folder; a pair of a transformers model and its tokenizer or image processor, whose last hidden
            states are averaged without padding; a feature-extraction pipeline, likewise; or a `SentenceTransformer`
            of a `Transformer`, a `Pooling` (mean, first or last token) and perhaps a `Normalize`.

    Raises:
        ValueError: if it is none of these: its vectors can be embedded first, and a mixture trained on them.
    """
    source: Any = load_encoder(encoder) if isinstance(encoder, (str, Path)) else encoder
    if isinstance(source, Pipeline):
        processors = [getattr(source, name, None) for name in ("processor", "tokenizer", "image_processor")]
        source = (source.model, next(processor for processor in processors if processor is not None))
    if isinstance(source, (tuple, list)) and len(source) == 2 and isinstance(source[0], PreTrainedModel):
        if hasattr(source[0], "get_image_features"):  # whose vectors are no mean of hidden states
            raise _refusal(f"encoder={type(source[0]).__name__} is a model of texts and pictures")
        return StockEncoder(*source)
    if type(source).__name__ == "SentenceTransformer":
        return _of_sentence_transformer(source)
    raise _refusal(f"encoder={type(source).__name__} is no model of transformers with its tokenizer")


def _of_sentence_transformer(encoder: Any) -> StockEncoder:
    with naming_extras():
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    modules = list(encoder)
    normalize = isinstance(modules[-1], Normalize)
    if [type(module) for module in modules] != [Transformer, Pooling, *[Normalize] * normalize]:
        names = ", ".join(type(module).__name__ for module in modules)
        raise _refusal(f"the encoder's modules are {names}, not Transformer, Pooling and perhaps Normalize")
    transformer = modules[0]
    pooling = _POOLINGS.get(str(modules[1].pooling_mode))
    if pooling is None:
        raise _refusal(f"the encoder's pooling is {modules[1].pooling_mode!r}, not one of {', '.join(_POOLINGS)}")
    if encoder.default_prompt_name is not None or "message" in transformer.modality_config:
        raise _refusal("the encoder puts a prompt or a chat template around each text")
    if encoder.truncate_dim is not None:
        raise _refusal(f"the encoder cuts its vectors to truncate_dim={encoder.truncate_dim}")
    return StockEncoder(transformer.auto_model, transformer.processor, pooling, normalize)


def _refusal(problem: str) -> ValueError:
    return ValueError(
        f"{problem}: a saved model could not repeat it. Embed the rows with Dataset.map(EmbedRows(..., "
        "column='embeddings'), batched=True) and train on that column without an encoder."
    )
