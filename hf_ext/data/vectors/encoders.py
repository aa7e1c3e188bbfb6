"""What turns rows into vectors: sentence-transformers, transformers, pipelines and functions, behind one call."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from hf_ext.guards.extras import naming_extras
from hf_ext.guards.models import loading_model

REVISION = "1"  # changes whenever the vectors would


@dataclass(frozen=True)
class Encoder:
    """
    An encoder as this package calls it.

    Attributes:
        reads (`str`):
            `"text"`: lists of strings; `"image"`: lists of images; `"batch"`: what a function of the user's gets.
        encode (`Callable`):
            Values to vectors `(b, d)`.
        identity (`Callable[[], str | None]`):
            Hash of all that the vectors depend on; `None` where there is none, and the vectors are not kept.
    """

    reads: str
    encode: Callable[[Any], Any]
    identity: Callable[[], str | None]

    def __call__(self, values: Mapping[str, Any] | Sequence[Any], rows: int) -> np.ndarray:
        """
        Vectors of a batch, shape `(rows, d)` float32.

        Raises:
            ValueError: if the encoder gave something else.
        """
        vectors = self.encode(values)
        if hasattr(vectors, "detach"):
            vectors = vectors.detach().float().cpu().numpy()
        try:
            array = np.asarray(vectors)
        except ValueError as error:
            raise ValueError(f"The encoder must return vectors of one length for {rows} rows: {error}") from error
        if array.ndim != 2 or len(array) != rows or array.shape[1] == 0 or array.dtype.kind != "f":
            raise ValueError(
                f"The encoder must return floating point vectors of shape ({rows}, d) for {rows} rows, got "
                f"{array.dtype} of shape {array.shape}."
            )
        with np.errstate(over="ignore"):  # an overflow is reported with its row
            return np.ascontiguousarray(array, dtype=np.float32)


# A name or folder, a pair of a model and its processor, a model that can be called, a pipeline, or a function.
EncoderLike: TypeAlias = str | Path | Sequence[Any] | Callable[..., Any] | Encoder


def as_encoder(encoder: EncoderLike, images: bool = False) -> Encoder:
    """
    Wrap an encoder.

    Args:
        encoder:
            A `SentenceTransformer`; a pair of a transformers model and its tokenizer, image processor or processor; a
            feature-extraction pipeline; the name or folder of a model ([`load_encoder`]); or a function.
        images (`bool`, *optional*, defaults to `False`):
            Whether images are to be encoded: a model of both (CLIP) is asked for the right half.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(encoder, Encoder):
        return encoder
    source: Any = load_encoder(encoder) if isinstance(encoder, (str, Path)) else encoder
    if _is(source, "sentence_transformers", "SentenceTransformer"):
        return _of_sentence_transformer(source, images)
    if _is(source, "transformers", "Pipeline"):
        processors = [getattr(source, name, None) for name in ("processor", "tokenizer", "image_processor")]
        source = (source.model, next(part for part in processors if part is not None))
    if isinstance(source, (tuple, list)) and len(source) == 2:
        model, processor = source
        return _of_transformers(model, processor, images)
    if _is(source, "transformers", "PreTrainedModel") or _is(source, "torch.nn", "Module"):
        raise ValueError(
            f"encoder={type(source).__name__} needs what prepares its input: pass (model, tokenizer) or "
            "(model, image_processor), or a function batch -> vectors."
        )
    if not callable(source):
        raise ValueError(
            f"encoder={source!r} is no encoder: pass a sentence-transformers model, (model, tokenizer), a "
            "feature-extraction pipeline, a name, or a function batch -> vectors."
        )
    return Encoder("batch", source, lambda: _hash_of_callable(source))


def load_encoder(name: str | Path, device: str | None = None) -> EncoderLike:
    """
    Load an encoder by its Hub name or folder: with sentence-transformers where it has a `modules.json`, else with
    transformers, as a pair of the model and its processor. Vectors are float32; no remote code is run.

    Raises:
        ValueError: if it cannot be loaded.
    """
    import torch
    from transformers.utils import cached_file

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    place = torch.device(device) if device is not None else accelerator or torch.device("cpu")
    with loading_model(name, "encoder"):
        modules = cached_file(
            str(name), "modules.json",
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if modules is not None:
            with naming_extras():
                from sentence_transformers import SentenceTransformer
            return SentenceTransformer(str(name), device=str(place))
        from transformers import AutoModel, AutoProcessor

        model = AutoModel.from_pretrained(str(name), dtype=torch.float32, trust_remote_code=False)
        return model.to(place).eval(), AutoProcessor.from_pretrained(str(name), trust_remote_code=False)


def _is(value: object, module: str, name: str) -> bool:
    # An object of a class cannot exist before its library is imported: so asking costs no import.
    library = sys.modules.get(module)
    return library is not None and isinstance(value, getattr(library, name))


def _of_sentence_transformer(model: Any, images: bool) -> Encoder:
    def encode(values: list[Any]) -> Any:
        return model.encode(values, batch_size=max(1, len(values)), show_progress_bar=False, convert_to_numpy=True)

    def identity() -> str:
        from hf_ext.data.provenance import model_hash

        settings = [str(model), model.default_prompt_name, model.prompts, model.truncate_dim]
        return _digest(model_hash(model), settings, _hash_of_processor(model.tokenizer))

    return Encoder("image" if images else "text", encode, identity)


def _of_transformers(model: Any, processor: Any, images: bool) -> Encoder:
    part = getattr(processor, "image_processor" if images else "tokenizer", None) or processor
    if not _is(model, "torch.nn", "Module") or not callable(part):
        raise ValueError(
            f"encoder=({type(model).__name__}, {type(processor).__name__}) is no pair of a model and its "
            "tokenizer or image processor."
        )
    if images == hasattr(part, "get_vocab"):
        raise ValueError(
            f"{type(part).__name__} cannot prepare {'images' if images else 'text'}. Pass the "
            f"{'image processor' if images else 'tokenizer'} of {type(model).__name__} beside it."
        )

    def identity() -> str:
        from hf_ext.data.provenance import model_hash

        return _digest(
            model_hash(model), [type(model).__name__, model.config.to_json_string()], _hash_of_processor(part)
        )

    return Encoder("image" if images else "text", _Pooled(model, part, images), identity)


@dataclass(frozen=True)
class _Pooled:
    """The model's own features of a text or image (CLIP), else the mean of its last hidden states without padding."""

    model: Any
    processor: Any
    images: bool

    def __call__(self, values: list[Any]) -> Any:
        import torch

        from hf_ext._upstream.adapters import model_as_before

        model = self.model
        with model_as_before(model), torch.no_grad():
            model.eval()
            inputs = self._inputs(values)
            features = getattr(model, "get_image_features" if self.images else "get_text_features", None)
            if features is not None:
                out = features(**inputs)
                return out if torch.is_tensor(out) else out.pooler_output
            return self._mean(model(**inputs), inputs)

    def _inputs(self, values: list[Any]) -> dict[str, Any]:
        if self.images:
            return dict(self.processor(images=[_rgb(v) for v in values], return_tensors="pt").to(self.model.device))
        longest = getattr(self.model.config, "max_position_embeddings", None) or 512
        limit = min(self.processor.model_max_length, longest)  # without one, transformers has a number of 30 digits
        has_pad_token = self.processor.pad_token is not None
        if not has_pad_token:  # a decoder's tokenizer often has none; any will do, the mask hides padding
            self.processor.pad_token = self.processor.eos_token
        try:
            batch = self.processor(values, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        finally:
            if not has_pad_token:
                self.processor.pad_token = None
        names = set(self.processor.model_input_names) | {"attention_mask"}
        return {name: value.to(self.model.device) for name, value in batch.items() if name in names}

    def _mean(self, out: Any, inputs: Mapping[str, Any]) -> Any:
        hidden = out.last_hidden_state.float()
        if hidden.ndim == 4:  # (b, d, height, width) of a convolutional network
            return hidden.mean((2, 3))
        mask = inputs.get("attention_mask")
        if mask is None:
            return hidden.mean(1)
        weights = mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def _rgb(image: Any) -> Any:  # pictures in other modes have one or four channels
    return image.convert("RGB") if hasattr(image, "convert") else image


def _hash_of_processor(processor: Any) -> str:
    from hf_ext.data.provenance import tokenizer_hash

    if hasattr(processor, "get_vocab"):
        return tokenizer_hash(processor, with_chat_template=False) + str(processor.model_max_length)
    return str(processor.to_json_string()) if hasattr(processor, "to_json_string") else repr(processor)


def _hash_of_callable(function: Callable[..., Any]) -> str | None:
    """As `datasets` does it: an importable function by its name, a lambda by its code; `None` if it cannot be."""
    from datasets.fingerprint import Hasher

    try:
        return Hasher.hash(function)
    except Exception:  # whatever the pickling of a user's object raises
        return None


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
