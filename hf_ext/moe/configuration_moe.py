"""What a saved mixture of experts is: the fields of its `config.json`. Imports no torch of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

if TYPE_CHECKING:
    from hf_ext.moe.parameters import MixtureShape

MODEL_TYPE = "em_moe"  # plain "moe" is what users search for sparse layers by
POOLINGS = ("mean", "cls", "last")


class MoEConfig(PreTrainedConfig):
    r"""
    Configuration of [`~hf_ext.moe.modeling_moe.MoEForSequenceClassification`].

    Args:
        input_dim (`int`, *optional*, defaults to 384):
            Features a row, $d$.
        num_experts (`int`, *optional*, defaults to 2):
            $k \ge 1$.
        expert_type (`str`, *optional*, defaults to `"softmax"`):
            `"softmax"`, `"logistic"` (two classes) or `"linear"` (numbers: `problem_type` is then `"regression"`).
        num_labels (`int`, *optional*, defaults to 2):
            Classes, or numbers a label of linear experts. As everywhere in transformers, `id2label` says it too.
        symmetric (`bool`, *optional*, defaults to `False`):
            Two linear or logistic experts with opposite coefficients.
        shared_variance (`bool`, *optional*, defaults to `True`):
            One variance for all linear experts.
        encoder_config (`dict` or `PreTrainedConfig`, *optional*):
            Of the encoder whose pooled output is the features. Without one the model reads `embeddings`.
        pooling (`str`, *optional*, defaults to `"mean"`):
            The encoder's last hidden states become one vector: their mean without padding, the first (`"cls"`), or the
            last (`"last"`) that is no padding.
        normalize (`bool`, *optional*, defaults to `False`):
            Whether that vector is divided by its length.
        freeze_encoder (`bool`, *optional*, defaults to `True`):
            Whether the encoder stays as it is, without dropout, while the rest is trained.

    Raises:
        ValueError: if the fields do not go together, or one is out of range.
    """

    model_type = MODEL_TYPE
    # A trainer's predictions are then the logits alone.
    keys_to_ignore_at_inference = ["router_logits", "expert_logits", "log_responsibilities"]  # noqa: RUF012

    input_dim: int = 384
    num_experts: int = 2
    expert_type: str = "softmax"
    symmetric: bool = False
    shared_variance: bool = True
    encoder_config: Any = None
    pooling: str = "mean"
    normalize: bool = False
    freeze_encoder: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if isinstance(self.encoder_config, PreTrainedConfig):
            self.encoder_config = self.encoder_config.to_dict()
        self._check()
        self.problem_type = "regression" if self.expert_type == "linear" else "single_label_classification"

    def shape(self) -> MixtureShape:
        """
        The mixture's shape.

        Raises:
            ValueError: if a number is out of range, or the experts are of no known type.
        """
        from hf_ext.moe.parameters import MixtureShape

        num_outputs = 1 if self.expert_type == "logistic" else self.num_labels
        return MixtureShape(self.num_experts, self.expert_type, num_outputs, self.symmetric, self.shared_variance)

    def _check(self) -> None:
        from hf_ext.guards.numbers import SIZE

        problem = SIZE.problem_of(self.input_dim)
        if problem is not None:
            raise ValueError(f"input_dim {problem}.")
        self.shape()
        if self.expert_type == "logistic" and self.num_labels != 2:
            raise ValueError(f"logistic experts have 2 classes, got num_labels={self.num_labels}.")
        expected = "regression" if self.expert_type == "linear" else "single_label_classification"
        if self.problem_type not in (None, expected):
            raise ValueError(
                f"problem_type={self.problem_type!r}: that of {self.expert_type} experts is {expected!r}."
            )
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} is not one of {', '.join(POOLINGS)}.")
        is_config = isinstance(self.encoder_config, dict) and "model_type" in self.encoder_config
        if self.encoder_config is not None and not is_config:
            raise ValueError("encoder_config has no model_type: pass the configuration of a transformers model.")


AutoConfig.register(MODEL_TYPE, MoEConfig, exist_ok=True)
