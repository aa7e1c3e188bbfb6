"""MTEB over a model that reads exemplars. Needs the extra: `pip install "hf-ext[mteb]"`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_ext.data.exemplars import ExemplarStore
from hf_ext.guards.extras import naming_extras

with naming_extras():
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

    from hf_ext.retrieval.encoder import RareEncoder

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import Array, BatchedInput, PromptType
    from torch.utils.data import DataLoader

__all__ = ["RareMtebEncoder"]


class RareMtebEncoder(SentenceTransformerEncoderWrapper):
    """
    A [`RareEncoder`] as MTEB calls it: queries are read with exemplars, each task's with those of its own pool.

    MTEB names a query by its text alone, so a task's pool must not hold its test queries; what was shown and read is
    kept for inspection, because a benchmark whose strings nobody saw cannot be repeated.

    Args:
        model ([`RareEncoder`]):
            The model.
        pools (`Mapping[str, ExemplarStore]`, *optional*):
            Pool by task name, such as `"SciFact"`. Other tasks are read with the model's own pool, or bare if
            `only_named`.
        only_named (`bool`, *optional*, defaults to `True`):
            Whether tasks without a pool of their own are read bare.
        **kwargs:
            As in mteb's `SentenceTransformerEncoderWrapper`.

    Attributes:
        first_queries (`dict[str, str]`): the first query of each task as the model read it, prompt included.
        pool_sizes (`dict[str, int]`): exemplars that each task could be shown; 0 is a task read bare.

    Example:

    ```python
    >>> model = RareMtebEncoder(RareEncoder("user/model"), {"SciFact": ExemplarStore.from_beir("scifact")})
    >>> mteb.evaluate(model, mteb.get_tasks(tasks=["SciFact"]))
    ```
    """

    def __init__(
        self,
        model: RareEncoder,
        pools: Mapping[str, ExemplarStore] | None = None,
        *,
        only_named: bool = True,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, RareEncoder):
            raise TypeError(f"RareMtebEncoder wraps a RareEncoder, got {type(model).__name__}.")
        super().__init__(model, **kwargs)
        self.pools = dict(pools or {})
        self.only_named = only_named
        self.first_queries: dict[str, str] = {}
        self.pool_sizes: dict[str, int] = {}

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """Vectors as mteb's wrapper gives them, queries with the exemplars of their task."""
        name = task_metadata.name
        model = self.model
        default_pool = model.exemplars
        # mteb holds one model for all tasks, so the pool changes around each call.
        model.exemplars = self.pools.get(name, None if self.only_named else default_pool)
        try:
            if prompt_type is not None and prompt_type.value == "query":
                self.pool_sizes[name] = 0 if model.exemplars is None else len(model.exemplars)
                self.first_queries.setdefault(name, self._first(inputs, task_metadata, prompt_type))
            return super().encode(inputs, task_metadata=task_metadata, prompt_type=prompt_type, **kwargs)
        finally:
            model.exemplars = default_pool

    def _first(self, inputs: DataLoader[BatchedInput], task_metadata: TaskMetadata, prompt_type: PromptType) -> str:
        chosen = get_prompt_name(self.model_prompts, task_metadata, prompt_type) if self.model_prompts else None
        prompt = (self.model_prompts or {}).get(chosen)
        first = next((text for batch in inputs for text in batch["text"]), "")
        return str(self.model.augmenter()(first, self.model.exemplars is not None, prompt=prompt))
