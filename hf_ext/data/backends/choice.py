"""An engine by the name that commands and recipes have for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from hf_ext.data.backends.protocol import SamplingBackend

OURS = "transformers"
BACKENDS = (OURS, "continuous_batching", "completions", "vllm")


def check_backend(name: str, url: str | None = None) -> None:
    """
    Refuse what [`sampling_backend`] would, before a model is loaded.

    Raises:
        ValueError: if there is no such engine, or it has a url and takes none, or has none and needs one.
    """
    if name not in BACKENDS:
        raise ValueError(f"There is no backend {name!r}: give one of {', '.join(BACKENDS)}.")
    if (name == "completions") != (url is not None):
        raise ValueError(
            "The backend 'completions' needs the url of its server, such as http://localhost:8000, and no other one "
            f"takes any: got the backend {name!r} and the url {url!r}."
        )


def sampling_backend(
    name: str, model: nn.Module, source: str, *, url: str | None = None, **engine_arguments: Any
) -> SamplingBackend | None:
    """
    Make an engine; `None` for our own loop.

    Args:
        name (`str`):
            One of `BACKENDS`.
        model (`PreTrainedModel` or `PeftModel`):
            The model at hand.
        source (`str`):
            Folder or Hub name it was loaded from, for an engine that loads it itself.
        url (`str`, *optional*):
            Of the server of `"completions"`.
        engine_arguments:
            Of [`VLLMBackend`], such as `revision`; other engines have no use for them.

    Raises:
        ValueError: as [`check_backend`].
        ImportError: if the engine is not installed.
    """
    check_backend(name, url)
    if name == "continuous_batching":
        from hf_ext.data.backends.continuous import ContinuousBatchingBackend

        return ContinuousBatchingBackend(model)
    if name == "vllm":
        from hf_ext.data.backends.vllm import VLLMBackend

        return VLLMBackend(source, **engine_arguments)
    if url is not None:
        from hf_ext.data.backends.completions import CompletionsBackend

        return CompletionsBackend(url)
    return None
