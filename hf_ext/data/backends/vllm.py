"""vLLM in this process."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from hf_ext.data.backends.protocol import RowRequest, SampledRow
from hf_ext.guards.engines import BackendError

MEMORY = 0.6  # of the GPU's: the model at hand needs room beside the engine's, for the probe


class VLLMBackend:
    """
    Rows from vLLM in this process. It loads the weights itself, beside the model at hand, which the probe needs.

    Args:
        model (`str`):
            Folder or Hub name of the very weights that are tuned.
        engine_arguments:
            Of `vllm.LLM`, such as `tensor_parallel_size`, `dtype`, `gpu_memory_utilization` (0.6 here).

    Raises:
        ImportError: if vLLM is not installed.
    """

    def __init__(self, model: str, **engine_arguments: Any) -> None:
        try:
            self.vllm: Any = import_module("vllm")
        except ImportError as error:
            raise ImportError(
                "The backend 'vllm' needs vLLM in this environment: pip install vllm. Or serve the model elsewhere "
                "('vllm serve MODEL --generation-config vllm') and take the backend 'completions'."
            ) from error
        # "vllm": the checkpoint's generation config may hold a top_k, a top_p or a penalty.
        arguments = {"generation_config": "vllm", "logprobs_mode": "raw_logprobs", "gpu_memory_utilization": MEMORY}
        self.llm: Any = self.vllm.LLM(model=model, **(arguments | engine_arguments))

    @property
    def description(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"name": "vllm", "vllm": str(getattr(self.vllm, "__version__", "unknown"))}

    def sample(self, rows: Sequence[RowRequest], temperature: float, eos_ids: Sequence[int]) -> list[SampledRow]:
        """
        Sample the rows.

        Raises:
            BackendError: if the engine failed, or read other ids than it was given.
        """
        parameters = [
            self.vllm.SamplingParams(
                n=1,
                temperature=temperature,
                top_p=1.0,
                top_k=0,
                min_p=0.0,
                repetition_penalty=1.0,
                max_tokens=row.max_new_tokens,
                min_tokens=0,
                seed=row.seed,
                stop_token_ids=list(eos_ids),
                logprobs=0,  # of the sampled token alone
                detokenize=False,
            )
            for row in rows
        ]
        prompts = [{"prompt_token_ids": list(row.prompt)} for row in rows]
        try:
            outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        except Exception as error:  # whatever the engine raises
            raise BackendError(
                f"vLLM could not sample {len(rows):,} rows ({type(error).__name__}: {str(error)[:200]}). What is "
                "stored is intact: repeat the call, also with another backend."
            ) from error
        return [_row(number, row, output) for number, (row, output) in enumerate(zip(rows, outputs, strict=True))]

    def close(self) -> None:
        """Let go of the engine and its memory."""
        self.llm = None
        gc.collect()


def _row(number: int, request: RowRequest, output: Any) -> SampledRow:
    if list(output.prompt_token_ids) != list(request.prompt):
        raise BackendError(
            f"vLLM, row {number:,}: it read the ids {list(output.prompt_token_ids)[:8]} where it was given "
            f"{list(request.prompt)[:8]}. Does it add a beginning token?"
        )
    completion = output.outputs[0]
    ids = tuple(int(token) for token in completion.token_ids)
    if completion.logprobs is None:
        return SampledRow(ids)
    logps = tuple(float(entry[token].logprob) for token, entry in zip(ids, completion.logprobs, strict=True))
    return SampledRow(ids, logps)
