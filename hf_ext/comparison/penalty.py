"""L2-SP and EWC as a callback for any trainer: a pull of every weight to its original value, beside the optimiser."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_ext.data.provenance import is_peft
from hf_ext.evaluation.models import ready
from hf_ext.guards.numbers import NON_NEGATIVE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_ext.data.context_free import ContextFreeStore

__all__ = ["QuadraticPenaltyCallback", "context_free_fisher"]

logger = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)


class QuadraticPenaltyCallback(TrainerCallback):
    r"""
    L2-SP, or with `fisher` EWC: a quadratic penalty on how far the weights are from the original model's.

    $$\frac{\lambda}{2} \sum_i F_i\,(\theta_i - \theta^*_i)^2,\qquad F_i = 1 \text{ in L2-SP}$$

    Decoupled from the optimiser, as weight decay is in AdamW: before each of its steps the penalty's own gradient step
    is taken, $\theta \leftarrow \theta - \min(\eta\lambda F, 1) \odot (\theta - \theta^*)$ with the learning rate
    $\eta$ of that parameter's group. Under SGD without momentum this is gradient descent on the sum of loss and
    penalty, exactly; under Adam the pull is not divided by the root of the gradients' second moment, which would make
    it alike for all weights, and it is never clipped with the gradients.

    Args:
        weight (`float`):
            $\lambda$. In nats per squared weight for L2-SP; with the Fisher information of [`context_free_fisher`] it
            has no unit, and 1 is the second-order form of one KL(original || new) in nats per token.
        fisher (`Mapping[str, torch.Tensor]`, *optional*):
            $F$ by the names of `named_parameters()`, non-negative; parameters that are missing are not pulled.

    Requirements: all weights trained themselves (no adapter, which starts from a change of zero anyway: scale it with
    `wise_ft`), in float32, for half precision rounds most pulls away; whole on each process (no FSDP, no DeepSpeed).
    Takes one more copy of the trained weights, two with `fisher`.

    Metrics: `penalty`, its value in nats.

    Raises:
        ValueError: if `weight` is out of bounds, an adapter or sharded weights are trained, `fisher` does not fit the
            model, or the callback was added to a trainer that resumes (pass it in `callbacks=`).

    Example:

    ```python
    >>> fisher = context_free_fisher(model, store)
    >>> trainer = SFTTrainer(model, args, train_dataset=rows, callbacks=[QuadraticPenaltyCallback(1.0, fisher)])
    ```

    Relations: a step of the penalty alone is WiSE-FT with $\alpha = 1 - \eta\lambda$.

    Reference: Li et al. 2018, *Explicit Inductive Bias for Transfer Learning with Convolutional Networks*, Equation 3
    (arXiv 1802.01483); Kirkpatrick et al. 2017, *Overcoming catastrophic forgetting in neural networks*, Equation 3
    (arXiv 1612.00796).
    """

    def __init__(self, weight: float, fisher: Mapping[str, Tensor] | None = None) -> None:
        problem = NON_NEGATIVE.problem_of(weight)
        if problem is not None:
            raise ValueError(f"The weight of the penalty {problem}.")
        self.weight = weight
        self.fisher = fisher
        self._original: dict[str, Tensor] = {}

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Keep the weights that the trainer was given: a resumed run loads others later."""
        self._keep(args, model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Keep them now, where the callback was added to a trainer that was there already."""
        if not self._original and state.global_step > 0:
            raise ValueError(
                "The run resumes, so the weights in hand are no longer the original ones: pass the penalty in the "
                "trainer's callbacks=, where it sees the model before a checkpoint is loaded."
            )
        if not self._original:
            self._keep(args, model)
        devices = {name: parameter.device for name, parameter in model.named_parameters()}
        self._original = {name: values.to(devices[name]) for name, values in self._original.items()}
        if self.fisher is not None:
            self.fisher = {name: values.to(devices[name]) for name, values in self.fisher.items()}

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Pull every trained weight to its original value."""
        rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name not in self._original or id(parameter) not in rates:
                    continue
                # of half precision, too, so that it is rounded once, and a small Fisher information is no zero
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                difference = parameter.to(dtype) - self._original[name].to(parameter.device, dtype)
                share: Any = float(rates[id(parameter)]) * self.weight
                if self.fisher is not None:
                    share = (self.fisher[name].to(parameter.device, dtype) * share).clamp(max=1.0)
                else:
                    share = min(share, 1.0)
                parameter.sub_(share * difference)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Show the penalty beside the loss."""
        if logs is not None and "loss" in logs and model is not None:
            logs["penalty"] = self.value(model)
            if state.log_history:
                state.log_history[-1]["penalty"] = logs["penalty"]  # a copy, made before callbacks were asked

    @torch.no_grad()
    def value(self, model: nn.Module) -> float:
        """The penalty of a model's weights, in nats."""
        total = 0.0
        for name, parameter in model.named_parameters():
            if name in self._original:
                squares = (parameter - self._original[name].to(parameter.device)).double() ** 2
                total += float((squares if self.fisher is None else squares * self.fisher[name].to(squares)).sum())
        return self.weight / 2 * total

    def _keep(self, args: TrainingArguments, model: Any) -> None:
        if args.fsdp or args.deepspeed:
            raise ValueError("The penalty needs whole weights on each process: train without FSDP and DeepSpeed.")
        if any(is_peft(module, "BaseTunerLayer") for module in model.modules()):
            raise ValueError(
                "The penalty pulls the model's own weights, and an adapter is trained: train without one, or scale "
                "the adapter afterwards (wise_ft)."
            )
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name, values in (self.fisher or {}).items():
            if name not in trained or values.shape != trained[name].shape:
                raise ValueError(f"fisher[{name!r}] fits no trained weight: compute it on the model that is trained.")
            if not bool((values >= 0).all() & values.isfinite().all()):
                raise ValueError(f"fisher[{name!r}] holds numbers that are negative or not finite.")
        coarse = sorted({str(value.dtype) for value in trained.values() if value.dtype in HALF})
        if coarse:
            logger.warning(
                "The penalty pulls weights of %s, which keeps no change below about a thousandth of a weight: most "
                "pulls are smaller and are lost. Train float32 weights; bf16=True computes in bfloat16 all the same.",
                " and ".join(coarse),
            )
        names = trained if self.fisher is None else self.fisher
        self._original = {name: trained[name].detach().clone() for name in names}


def context_free_fisher(
    model: PreTrainedModel,
    context_free: ContextFreeStore | Dataset | str | Path,
    *,
    max_rows: int | None = None,
    max_length: int | None = None,
    show_progress: bool = True,
) -> dict[str, Tensor]:
    r"""
    The diagonal of the Fisher information per token, from rows that the model itself has written: no data is needed.

    $$F_i = \frac{\sum_x (\partial_i \log p_{\theta^*}(x))^2}{\sum_x |x|},\qquad x \sim p_{\theta^*}$$

    Since the rows are samples of the model, this is the Fisher information itself and not the "empirical" one, so
    $\frac12 \sum_i F_i\,\delta_i^2$ is KL(original || new) in nats per token to second order, without cross terms.

    Args:
        model (`PreTrainedModel`):
            The original model; nothing in it changes. Dropout is off.
        context_free ([`ContextFreeStore`], `Dataset`, `str` or `Path`):
            Its samples: a store or its folder, or a dataset with `input_ids` and `labels`.
        max_rows (`int`, *optional*), max_length (`int`, *optional*):
            The first rows only, and of each the first tokens. A forward and a backward pass a row.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `dict[str, torch.Tensor]`: by the names of `named_parameters()`, on the model's device, float32; those that do
        not require a gradient are left out.

    Raises:
        ValueError: if there is no row, or the store was sampled from other weights.
    """
    from hf_ext.data.context_free import ContextFreeStore

    if isinstance(context_free, str | Path):
        context_free = ContextFreeStore(context_free)
    if isinstance(context_free, ContextFreeStore):
        context_free.check_model(model)
        context_free = context_free.to_dataset()
    rows = context_free.select(range(min(max_rows or len(context_free), len(context_free)))).with_format(None)
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in weights.items()}
    num_tokens = 0
    bar = tqdm(rows, desc="Fisher information", unit="row", disable=not show_progress)
    with ready(model), torch.enable_grad():
        for row in bar:
            ids, labels = (torch.tensor([row[name][:max_length]]) for name in ("input_ids", "labels"))
            is_supervised = labels[0, 1:] != -100
            if not bool(is_supervised.any()):
                continue
            device = model.get_input_embeddings().weight.device
            logits = model(input_ids=ids.to(device), use_cache=False).logits[0, :-1]
            log_probs = logits.float().log_softmax(-1)[is_supervised.to(logits.device)]
            targets = labels[0, 1:][is_supervised].to(log_probs.device)
            log_likelihood = log_probs.gather(1, targets[:, None]).sum()
            gradients = torch.autograd.grad(log_likelihood, list(weights.values()))
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total.addcmul_(gradient.float(), gradient.float())
            num_tokens += int(is_supervised.sum())
    if num_tokens == 0:
        raise ValueError("No context-free row has a supervised token, so there is no Fisher information: sample some.")
    return {name: total / num_tokens for name, total in sums.items()}
