r"""
Stochastic EM: a batch at a time, for rows that do not fit in memory or come as a stream.

Linear experts have finite sufficient statistics: their running mean forgets old batches at the rate
$\rho_t = (t + 2)^{-0.6}$, and the M-step solves it. Gate, logistic and softmax experts have none: they take gradient
steps on the batch's expected likelihood, with its responsibilities held. With one step a batch that **is** stochastic
gradient descent on the likelihood, by Fisher's identity.

Reference: Cappé and Moulines 2009, *On-line EM algorithm for latent data models* (the rate, and why it converges).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_ext.moe.arguments import DEFAULT_RIDGE, EMArguments
from hf_ext.moe.em import MixtureFit
from hf_ext.moe.m_steps import solve_experts
from hf_ext.moe.objective import Targets
from hf_ext.moe.parameters import MixtureParameters, MixtureShape
from hf_ext.moe.rows import Reduce, alone, mixture_rows
from hf_ext.moe.state import check_settings, pack_settings

_RATE = 0.6
_DELAY = 2


class StochasticMixtureFit:
    """
    A fit of one start, a batch a call.

    Args:
        X (`torch.Tensor` of shape `(n, d)`), y (`torch.Tensor` of shape `(n,)` or `(n, m)`):
            Rows that standardise the features, whiten the coordinates and give the start: a sample of the data, of
            more rows than coefficients. They are not trained on.
        shape ([`MixtureShape`]):
            Of the mixture.
        arguments ([`EMArguments`], *optional*):
            `ridge`, `whiten`, `standardize`, `learning_rate` and `inner_steps` count.
        m_every (`int`, *optional*, defaults to 1):
            Batches between two M-steps of linear experts.
        reduce (`Callable`, *optional*):
            Sum over processes, each with its own batches.
        generator (`torch.Generator`, *optional*):
            Of the start.

    Raises:
        ValueError: if `m_every` is below 1, `ridge` is `"auto"`, or rows cannot be used (see [`mixture_rows`]).
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        shape: MixtureShape,
        arguments: EMArguments | None = None,
        *,
        m_every: int = 1,
        reduce: Reduce = alone,
        generator: torch.Generator | None = None,
    ) -> None:
        if m_every < 1:
            raise ValueError(f"m_every must be at least 1 batch, got {m_every}.")
        self.arguments = arguments or EMArguments(method="em", restarts=1)
        if isinstance(self.arguments.ridge, str):
            raise ValueError(
                f"a stochastic fit has no held-out rows to choose a ridge by: give a number, as {DEFAULT_RIDGE:g}."
            )
        self.m_every = m_every
        self._fit = MixtureFit(X, y, shape, self.arguments, reduce=reduce, generator=generator)
        self.shape = shape
        self._reduce = reduce
        self.point = self._fit.state.point[:1].clone()
        self.batches = 0
        self.statistics: tuple[Tensor, ...] | None = None

    def update(self, X: Tensor, y: Tensor, *, sample_weight: Tensor | None = None) -> float:
        """
        Learn from a batch.

        Args:
            X (`torch.Tensor` of shape `(batch, d)`), y (`torch.Tensor` of shape `(batch,)` or `(batch, m)`):
                Raw rows of this process.
            sample_weight (`torch.Tensor` of shape `(batch,)`, *optional*):
                Non-negative row weights.

        Returns:
            `float`: the batch's negative log-likelihood before the step, in nats a row, in the labels' unit.

        Raises:
            ValueError: if a row of the batch cannot be used; see [`mixture_rows`].
        """
        standardisation = self._fit.objective.rows.standardisation
        rows = mixture_rows(
            X, y, self.shape, sample_weight=sample_weight, standardisation=standardisation, reduce=self._reduce
        )
        objective = self._fit.objective.on_rows(rows)
        ridge = self.point.new_tensor([self._fit.ridge])
        look = objective.e_step(self.point, ridge)
        nll = float(look.value) - self._fit.penalty(self.point[0], ridge[0]) + self._fit.label_nats()
        targets = Targets(look.responsibilities)
        rate = (self.batches + _DELAY) ** -_RATE
        gradient = look.gradient
        gate_size = self.shape.gate_rows * objective.width
        is_linear = self.shape.expert_type == "linear"
        for step in range(self.arguments.steps_for(self.shape.expert_type)):
            if step:
                gradient = objective.expected(self.point, ridge, targets).gradient
            if is_linear:
                gradient = torch.cat([gradient[:, :gate_size], torch.zeros_like(gradient[:, gate_size:])], dim=1)
            self.point = self.point - self.arguments.learning_rate * rate * gradient
        self.batches += 1
        if is_linear:
            self._solve(objective.normal_equations(targets), rate, ridge)
        return nll

    def _solve(self, equations: tuple[Tensor, ...], rate: float, ridge: Tensor) -> None:
        if self.statistics is None:
            self.statistics = equations
        else:
            self.statistics = tuple(
                (1 - rate) * mean + rate * latest for mean, latest in zip(self.statistics, equations, strict=True)
            )
        if self.batches % self.m_every == 0:
            gram, cross, squares, counts = self.statistics
            self.point = solve_experts(self._fit.objective, self.point, ridge, (gram, cross, squares, counts))

    def parameters(self) -> MixtureParameters:
        """The mixture so far, on raw features."""
        return self._fit.parameters(self.point[0])

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors."""
        state = {"point": self.point.clone(), "batches": torch.tensor(self.batches)}
        for name, values in zip(("gram", "cross", "squares", "counts"), self.statistics or (), strict=False):
            state[name] = values.clone()
        return {**state, "settings": pack_settings(self._settings())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """
        Go on from a state.

        Raises:
            ValueError: if it is of other settings; each is listed.
        """
        check_settings(state["settings"], self._settings())
        self.point = state["point"].to(self.point)
        self.batches = int(state["batches"])
        if "gram" in state:
            self.statistics = tuple(state[name].to(self.point) for name in ("gram", "cross", "squares", "counts"))

    def _settings(self) -> dict[str, str | int | float | bool | None]:
        return {**self._fit.settings(), "m_every": self.m_every}
