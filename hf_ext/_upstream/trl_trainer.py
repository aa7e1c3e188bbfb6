"""Hooks that TRL's trainers share: metrics in their store, and their fused output head taken off with the trainer."""

from __future__ import annotations

from typing import Any

from hf_ext._upstream.fused_head import has_adapted_head, release_with
from hf_ext._upstream.trainer import BaseTrainerHooks

TOUCHED = (
    ("trl.SFTTrainer", "_metrics", "our metrics would not reach the log"),
    ("trl.DPOTrainer", "_metrics", "our metrics would not reach the log"),
    ("trl.KTOTrainer", "_metrics", "our metrics would not reach the log"),
)


class TRLTrainerHooks(BaseTrainerHooks):
    """
    The hooks of [`BaseTrainerHooks`] for a trainer of TRL, which keeps metrics between two logs; stands before it.

    - `add_metric(name, value)`: a metric that joins the next log line of training, as the ratios do;
    - where nothing else holds its models they go with the trainer, at once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if has_adapted_head(self.model, "TrainableTokensWrapper"):  # else an AttributeError in the first step
            raise ValueError(
                "trainable_token_indices also trains the output head's tokens here (the head is tied to the "
                "embeddings, or is named), and the loss multiplies by the head's own weight (trl 1.16, peft 0.21). "
                "Take a model whose embeddings are not tied and name the embeddings alone, or train both whole: "
                "modules_to_save=['embed_tokens', 'lm_head'], ensure_weight_tying=True."
            )
        models: list[Any] = [self.model, getattr(self, "ref_model", None)]
        for model in models:
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            if base is not None:
                release_with(self, base)

    def add_metric(self, name: str, value: float) -> None:
        """Add a value, the same on every process, to the next training log line."""
        self._metrics["train"][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the ratios of training summed over processes."""
        if self.model.training:
            for name, value in self.take_ratios("train").items():
                self._metrics["train"][name] = [value]
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate or predict, with TRL's own metrics under the call's prefix too."""
        host_metrics = self._metrics["eval"]
        host_metrics.clear()  # of a `predict`, which logs nothing
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if metric_key_prefix != "eval":
            # TRL logs its own under "eval_", whatever the prefix: those of one set overwrite another's (trl 1.16).
            means = {name: sum(values) / len(values) for name, values in host_metrics.items() if values}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output
