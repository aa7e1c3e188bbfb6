"""transformers' own engine with a paged cache, on the model at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hf_ext.data.backends.protocol import RowRequest, SampledRow, row_seed
from hf_ext.data.provenance import original_model
from hf_ext.data.sampling import sampling_mode
from hf_ext.guards.engines import BackendError

if TYPE_CHECKING:
    from torch import nn

# On a processor the engine sizes its cache by the machine's memory and masks every row against all of it, which takes
# most of a minute before the first token. So it is told a size there.
PAGE = 32
ROWS_AT_ONCE = 32


class ContinuousBatchingBackend:
    """
    Rows from continuous batching of transformers (`generate_batch`): a row that ends makes room for the next one.

    It samples from the model in memory, so nothing else has to hold the weights. It has one seed a call, none a row.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model whose rows are wanted, on its device; adapters are switched off while it samples.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def description(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"name": "continuous_batching", "transformers": version("transformers")}

    def sample(self, rows: Sequence[RowRequest], temperature: float, eos_ids: Sequence[int]) -> list[SampledRow]:
        """
        Sample the rows.

        Raises:
            BackendError: if the engine failed; its own message stands in the log.
        """
        from transformers import GenerationConfig

        longest = max(row.max_new_tokens for row in rows)
        # Fresh: what is left out would be filled from the checkpoint's, top_k from transformers' default of 50.
        generation = GenerationConfig(
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=longest,
            eos_token_id=list(eos_ids) or None,
            pad_token_id=eos_ids[0] if eos_ids else 0,
        )
        base = original_model(self.model)
        with sampling_mode(self.model):
            outputs = base.generate_batch(
                inputs=[list(row.prompt) for row in rows],
                generation_config=generation,
                continuous_batching_config=self._sizes(rows, longest),
                warmup=False,
            )
        finished = list(outputs.values())
        errors = [output.error for output in finished if output.error is not None]
        if len(finished) != len(rows) or errors:
            raise BackendError(
                f"Continuous batching finished {len(finished) - len(errors)} of {len(rows)} rows"
                f"{f' ({errors[0][:200]})' if errors else ''}. What is stored is intact: repeat the call, with a "
                "smaller batch_size or another backend."
            )
        # The beginning of a sample is one of its own: a shorter limit of a row is a cut.
        return [
            SampledRow(
                tuple(output.generated_tokens[: row.max_new_tokens]), tuple(output.logprobs[: row.max_new_tokens])
            )
            for row, output in zip(rows, finished, strict=True)
        ]

    def _sizes(self, rows: Sequence[RowRequest], longest: int) -> Any:
        from transformers import ContinuousBatchingConfig

        seed = row_seed(*(row.seed for row in rows))
        if next(original_model(self.model).parameters()).device.type != "cpu":
            return ContinuousBatchingConfig(return_logprobs=True, seed=seed)
        length = max(len(row.prompt) for row in rows) + longest
        return ContinuousBatchingConfig(
            return_logprobs=True,
            seed=seed,
            page_size=PAGE,
            num_blocks=ROWS_AT_ONCE * math.ceil(length / PAGE),
            max_batch_tokens=max(256, length),
        )

    def close(self) -> None:
        """Nothing is held beyond a call."""
