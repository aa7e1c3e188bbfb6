"""A mixture of experts on an encoder's features, as a model of transformers: what a fit leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel, initialization
from transformers.utils import ModelOutput, can_return_tuple

from hf_ext.losses.moe_likelihood import moe_log_probs, moe_log_responsibilities
from hf_ext.losses.weighted_nll import at_least_float32
from hf_ext.moe.configuration_moe import MoEConfig
from hf_ext.moe.parameters import MixtureParameters
from hf_ext.moe.rows import check_finite, class_numbers

ENCODER_FOLDER = "encoder"


@dataclass
class MoEOutput(ModelOutput):
    r"""
    What the model gives for a batch.

    Args:
        loss (`torch.Tensor`, scalar, *optional*):
            Mean negative log-likelihood of the labels under the mixture, nats a row.
        logits (`torch.Tensor` of shape `(batch, num_labels)`):
            Log-probabilities of the classes in nats, so that their softmax is the mixture and their cross entropy the
            loss; of linear experts the mixture's mean, in the unit of the labels.
        router_logits (`torch.Tensor` of shape `(batch, k)`):
            Of the gate, in nats.
        expert_logits (`torch.Tensor` of shape `(batch, k, m)`):
            Outputs of each expert: logits, or means.
        log_responsibilities (`torch.Tensor` of shape `(batch, k)`, *optional*):
            Given the labels: $\log r$, in nats.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    router_logits: Tensor | None = None
    expert_logits: Tensor | None = None
    log_responsibilities: Tensor | None = None


class MixtureHead(nn.Module):
    """Gate and linear experts on standardised features; a symmetric pair is stored as one gate row and one expert."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.shape = config.shape()
        exact = torch.float32  # whatever torch's default is: see `_keep_in_fp32_modules_strict`
        self.gate = nn.Linear(config.input_dim, self.shape.gate_rows, dtype=exact)
        self.experts = nn.Linear(config.input_dim, self.shape.expert_rows, dtype=exact)
        self.register_buffer("mean", torch.zeros(config.input_dim, dtype=exact))
        self.register_buffer("scale", torch.ones(config.input_dim, dtype=exact))
        # its logarithm, so that no step of a gradient method makes it negative
        variances = self.shape.num_variances
        self.log_variance = nn.Parameter(torch.zeros(variances, dtype=exact)) if variances else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Gate logits `(batch, k)` and expert outputs `(batch, k, m)` of raw features `(batch, d)`, in float32."""
        with torch.autocast(features.device.type, enabled=False):  # 16 bits would move a standardised feature by 1%
            exact = at_least_float32(features)
            standardised = ((exact - self.mean) / self.scale).to(self.gate.weight.dtype)
            gate = at_least_float32(self.gate(standardised))
            experts = at_least_float32(self.experts(standardised))
        experts = experts.unflatten(1, (-1, self.shape.num_outputs))
        if self.shape.symmetric:
            return torch.cat([gate / 2, -gate / 2], 1), torch.cat([experts, -experts], 1)
        return gate, experts

    def variance(self) -> Tensor | None:
        """Variance of each expert `(k,)`; `None` where the experts are not linear."""
        if self.log_variance is None:
            return None
        return at_least_float32(self.log_variance).exp().expand(self.shape.num_experts)

    def squared_coefficients(self) -> tuple[Tensor, Tensor]:
        """Sums of the squares of the gate's and all experts' coefficients without intercepts: what a ridge is of."""
        gate = at_least_float32(self.gate.weight).square().sum()
        experts = at_least_float32(self.experts.weight).square().sum()
        # of a symmetric pair: rows of half the gate's on either side, and the expert twice
        return (gate / 2, 2 * experts) if self.shape.symmetric else (gate, experts)

    @torch.no_grad()
    def parameters_in_float64(self) -> MixtureParameters:
        """The mixture that is stored here, as a fit gives it."""
        gate, experts = (
            torch.cat([layer.weight, layer.bias[:, None]], 1).double().cpu() for layer in (self.gate, self.experts)
        )
        experts = experts.unflatten(0, (-1, self.shape.num_outputs))
        if self.shape.symmetric:
            gate = torch.cat([gate / 2, -gate / 2])
            experts = torch.cat([experts, -experts])
        variance = self.variance()
        return MixtureParameters(
            gate, experts, None if variance is None else variance.double().cpu(),
            self.mean.double().cpu(), self.scale.double().cpu(), self.shape.expert_type,
        )  # fmt: skip

    @torch.no_grad()
    def store(self, parameters: MixtureParameters) -> None:
        """Copy a mixture of the same shape, rounded to the precision of this module."""
        gate = parameters.gate
        experts = parameters.experts
        if self.shape.symmetric:
            gate = gate[:1] - gate[1:]
            experts = experts[:1]
        for layer, values in ((self.gate, gate), (self.experts, experts.flatten(0, 1))):
            layer.weight.copy_(values[:, :-1])
            layer.bias.copy_(values[:, -1])
        self.mean.copy_(parameters.mean)
        self.scale.copy_(parameters.scale)
        if self.log_variance is not None and parameters.variance is not None:
            self.log_variance.copy_(parameters.variance[: len(self.log_variance)].log())


class MoEPreTrainedModel(PreTrainedModel):
    """Where transformers learns how a mixture of experts is initialised and loaded."""

    config_class = MoEConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # Also where the encoder is loaded in 16 bits: mean and scale of features need more digits.
    _keep_in_fp32_modules_strict = ["mixture"]  # noqa: RUF012 (as transformers declares it)

    def _init_weights(self, module: nn.Module) -> None:
        # Equal experts are a stationary point of the likelihood: they must differ.
        if not isinstance(module, MixtureHead):
            return
        initialization.zeros_(module.mean)
        initialization.ones_(module.scale)
        for layer, size in ((module.gate, 0.1), (module.experts, 0.5)):
            initialization.normal_(layer.weight, std=size / layer.in_features**0.5)
            initialization.zeros_(layer.bias)
        if module.log_variance is not None:
            initialization.zeros_(module.log_variance)


class MoEForSequenceClassification(MoEPreTrainedModel):
    r"""
    A mixture of linear, logistic or softmax experts on `embeddings`, or on what an encoder makes of its inputs.

    $$p(y \mid x) = \sum_i g_i(x)\, p(y \mid x, i)$$

    `logits` are the mixture's log-probabilities, so stock pipelines, trainers and metrics give its own numbers. Of
    linear experts they are its mean, and the loss is the mixture's likelihood, not a squared error.

    Saved, the folder holds the whole model; `encoder/` in it holds the encoder once more, as a stock folder that opens
    without hf-ext. The folder itself opens with `AutoModelForSequenceClassification` after `import hf_ext`.

    Args:
        config ([`~hf_ext.moe.configuration_moe.MoEConfig`]):
            Of the model.
        encoder (`PreTrainedModel`, *optional*):
            An encoder with its weights, of the class that `AutoModel` opens; by default a fresh one is made from
            `config.encoder_config`, if there is one.

    Raises:
        ValueError: if the encoder is of another class than `config.encoder_config` says.

    Reference: Fruytier, Mokhtari and Sanghavi 2025 (arXiv 2411.06056), section 2.
    """

    accepts_loss_kwargs = False  # the loss is a mean over the rows of the batch

    def __init__(self, config: MoEConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.encoder = _fresh_encoder(config) if encoder is None else _checked_encoder(encoder, config)
        self.mixture = MixtureHead(config)
        if encoder is None:
            self.post_init()
        else:
            # its weights are there: none is to be drawn, whatever transformers remembers of how they came about
            with initialization.no_init_weights():
                self.post_init()
            self._init_weights(self.mixture)
        self._freeze()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As of any model of transformers; `freeze_encoder` may be given anew."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model._freeze()  # transformers 5.23 loads every weight as one that is trained
        return loaded

    @classmethod
    def from_mixture(
        cls, parameters: MixtureParameters, encoder: PreTrainedModel | None = None, **config: Any
    ) -> Self:
        """
        A model of a fitted mixture.

        Args:
            parameters ([`~hf_ext.moe.parameters.MixtureParameters`]):
                What a fit returned.
            encoder (`PreTrainedModel`, *optional*):
                Whose pooled output the features of the fit were.
            **config:
                Further fields of [`~hf_ext.moe.configuration_moe.MoEConfig`], such as `id2label` and `pooling`.

        Raises:
            ValueError: if the fields do not go with the mixture or the encoder.
        """
        num_experts, num_outputs, width = parameters.experts.shape
        fields: dict[str, Any] = {
            "input_dim": width - 1,
            "num_experts": num_experts,
            "expert_type": parameters.expert_type,
            "encoder_config": None if encoder is None else encoder.config.to_dict(),
        }
        if "id2label" not in config:
            fields["num_labels"] = 2 if parameters.expert_type == "logistic" else num_outputs
        if parameters.variance is not None:
            fields["shared_variance"] = bool((parameters.variance == parameters.variance[0]).all())
        model = cls(MoEConfig(**(fields | config)), encoder)
        model.set_mixture(parameters)
        return model

    def set_mixture(self, parameters: MixtureParameters) -> None:
        """
        Take over a fitted mixture; one of fewer experts makes the model smaller.

        Raises:
            ValueError: if its features, labels or experts are of another kind than the model's, or a symmetric model
                or one of a shared variance is given a mixture that is neither.
        """
        num_experts, num_outputs, width = parameters.experts.shape
        shape = self.mixture.shape
        model_kind = (self.config.input_dim, shape.expert_type, shape.num_outputs)
        mixture_kind = (width - 1, parameters.expert_type, num_outputs)
        if model_kind != mixture_kind:
            raise ValueError(
                "the mixture has (features, expert_type, outputs) = "
                f"{mixture_kind}, but the model {model_kind}: make a model with from_mixture."
            )
        if num_experts != shape.num_experts:
            self.config.num_experts = num_experts
            self.config.symmetric = False
            self.mixture = MixtureHead(self.config).to(self.mixture.mean)
        self._check_ties(parameters)
        self.mixture.store(parameters)

    def mixture_parameters(self) -> MixtureParameters:
        """Gate and experts as a fit gives them, in float64 on the CPU."""
        return self.mixture.parameters_in_float64()

    def train(self, mode: bool = True) -> Self:
        """As of any module; a frozen encoder stays in evaluation, so that its dropout adds no noise."""
        super().train(mode)
        if mode and self.encoder is not None and not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()
        return self

    def get_input_embeddings(self) -> nn.Module | None:
        """The encoder's, which PEFT and gradient checkpointing ask for."""
        return None if self.encoder is None else self.encoder.get_input_embeddings()

    def features(self, **inputs: Any) -> Tensor:
        """
        The encoder's pooled output, shape `(batch, d)`.

        Args:
            **inputs:
                What the encoder reads: `input_ids`, `attention_mask`, `pixel_values`, ...

        Raises:
            ValueError: if the model has no encoder, or nothing for it to read is given.
        """
        if self.encoder is None:
            raise ValueError(f"this model has no encoder: pass embeddings of shape (batch, {self.config.input_dim}).")
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if not inputs.keys() & {"input_ids", "inputs_embeds", "pixel_values"}:
            raise ValueError("pass input_ids, inputs_embeds or pixel_values for the encoder, or embeddings.")
        hidden = at_least_float32(self.encoder(**inputs).last_hidden_state)
        vectors = pooled(hidden, inputs.get("attention_mask"), self.config.pooling)
        return F.normalize(vectors, dim=-1) if self.config.normalize else vectors

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        embeddings: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> MoEOutput:
        """
        The mixture of a batch.

        Args:
            input_ids, attention_mask, token_type_ids, pixel_values, inputs_embeds:
                What the encoder reads.
            embeddings (`torch.Tensor` of shape `(batch, d)`):
                Features; they stand in for the encoder's output.
            labels (`torch.Tensor` of shape `(batch,)`, linear experts also `(batch, m)`, *optional*):
                Classes from 0, or numbers.
            **kwargs:
                Further inputs of the encoder.

        Returns:
            [`MoEOutput`]

        Raises:
            ValueError: if features are of another width or not finite, or a label is no class (-100 among them); the
                message names the row of the batch.
        """
        if embeddings is None:
            embeddings = self.features(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids,
                pixel_values=pixel_values, inputs_embeds=inputs_embeds, **kwargs,
            )  # fmt: skip
        if embeddings.ndim != 2 or embeddings.shape[1] != self.config.input_dim:
            raise ValueError(
                f"embeddings {tuple(embeddings.shape)} must be (batch, {self.config.input_dim}): the model was made "
                "for features of that width."
            )
        check_finite(embeddings, "embeddings")
        router_logits, expert_logits = self.mixture(embeddings)
        expert_type = self.config.expert_type
        if expert_type == "linear":
            logits = (router_logits.softmax(-1).unsqueeze(-1) * expert_logits).sum(1)
        else:
            logits = moe_log_probs(router_logits, expert_logits, expert_type=expert_type)
        loss = None
        log_responsibilities = None
        if labels is not None:
            labels = self._checked_labels(labels, len(logits))
            log_responsibilities, log_likelihood = moe_log_responsibilities(
                router_logits, expert_logits, labels, expert_type=expert_type, variance=self.mixture.variance()
            )
            loss = -log_likelihood.mean()
        return MoEOutput(loss, logits, router_logits, expert_logits, log_responsibilities)

    def _freeze(self) -> None:
        if self.encoder is not None and self.config.freeze_encoder:
            self.encoder.requires_grad_(False)
            self.encoder.eval()

    def _check_ties(self, parameters: MixtureParameters) -> None:
        if self.config.symmetric:
            total = torch.cat([parameters.gate.sum(0), parameters.experts.sum(0).flatten()])
            size = max(float(parameters.gate.abs().max()), float(parameters.experts.abs().max()))
            if float(total.abs().max()) > 1e-6 * size:
                raise ValueError("the experts' coefficients are not opposite, but the model has symmetric=True.")
        variance = parameters.variance
        if variance is not None and self.config.shared_variance and bool((variance != variance[0]).any()):
            raise ValueError("the experts' variances differ, but the model has shared_variance=True.")

    def _checked_labels(self, labels: Tensor, rows: int) -> Tensor:
        if len(labels) != rows:
            raise ValueError(f"labels {tuple(labels.shape)} must hold one label for each of {rows} rows.")
        if self.config.expert_type != "linear":
            return class_numbers(labels, self.config.num_labels)
        numbers = labels.reshape(rows, -1)
        check_finite(numbers, "labels")
        return numbers

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As of any model of transformers; the encoder is saved once more, in `encoder/`, as a stock folder."""
        repo_id = kwargs.pop("repo_id", Path(save_directory).name) if push_to_hub else None
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        if self.encoder is not None:
            prefix = "encoder."
            weights = None
            if state_dict is not None:
                weights = {name.removeprefix(prefix): value for name, value in state_dict.items()
                           if name.startswith(prefix)}  # fmt: skip
            self.encoder.save_pretrained(
                Path(save_directory) / ENCODER_FOLDER, is_main_process=is_main_process, state_dict=weights
            )
        if repo_id is not None:  # now that the folder is whole
            self.push_to_hub(repo_id, token=kwargs.get("token"))


def _fresh_encoder(config: MoEConfig) -> PreTrainedModel | None:
    if config.encoder_config is None:
        return None
    return AutoModel.from_config(AutoConfig.for_model(**config.encoder_config), trust_remote_code=False)


def _checked_encoder(encoder: PreTrainedModel, config: MoEConfig) -> PreTrainedModel:
    with torch.device("meta"):  # its class alone is wanted
        stock = _fresh_encoder(config)
    if type(stock) is not type(encoder):
        raise ValueError(
            f"the encoder is a {type(encoder).__name__}, which no saved folder would open as: pass the model that "
            f"AutoModel loads ({type(stock).__name__})."
        )
    return encoder


def pooled(hidden: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """
    One vector a row of an encoder's last hidden states.

    Args:
        hidden (`torch.Tensor` of shape `(batch, seq_len, d)`, or `(batch, d, height, width)` of a convolutional net):
            Last hidden states.
        attention_mask (`torch.Tensor` of shape `(batch, seq_len)`, *optional*):
            0 where a position is padding, on either side.
        pooling (`str`):
            `"mean"`, `"cls"` or `"last"`.

    Returns:
        `torch.Tensor` of shape `(batch, d)`.
    """
    if hidden.ndim == 4:
        return hidden.mean((2, 3))
    mask = hidden.new_ones(hidden.shape[:2]) if attention_mask is None else attention_mask.to(hidden.dtype)
    if pooling == "mean":
        weights = mask.unsqueeze(-1)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    position = mask.argmax(1) if pooling == "cls" else (mask * positions).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), position]


AutoModelForSequenceClassification.register(MoEConfig, MoEForSequenceClassification, exist_ok=True)
