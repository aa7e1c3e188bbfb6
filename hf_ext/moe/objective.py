r"""
Value and gradient of a mixture's likelihood, and of the expected likelihood that an M-step raises.

The objective is a mean over rows, in nats a row, with a penalty on all coefficients but the intercepts:

$$L = -\sum_n v_n \log p(y_n \mid x_n) + \tfrac{\lambda}{2} (\lVert W \rVert^2 + \lVert B \rVert^2), \quad
  \sum v_n = 1$$

Parameters are vectors `free` of shape `(R, rows, d)`: R restarts, each a gate's vectors and then those of the
experts. With whitening they are coordinates $\varphi$ with $\theta = \varphi P$, $P = (C + \bar\lambda I)^{-1/2}$, $C$
the covariance of the features and $\bar\lambda$ its mean eigenvalue. The objective is the same function; a first-order
method sees a curvature that is nearly the same in all directions.

A *pass* is one evaluation of value and gradient over all rows: two products of features with `columns` vectors. Work
of another size counts by its products, a Gram matrix, which is symmetric, at half.
"""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_ext.moe.expert_terms import expert_terms, mixed_terms
from hf_ext.moe.parameters import MixtureShape
from hf_ext.moe.rows import MixtureRows, Reduce, alone

logger = logging.getLogger(__name__)

MOST_SQUARED = 8192  # features whose Gram matrix is formed: of more it takes gigabytes, and its eigenvalues an hour


class Evaluation(NamedTuple):
    """
    What a pass gives for each of A restarts.

    Args:
        value (`torch.Tensor` of shape `(A,)`):
            Objective in nats a row, the penalty included.
        gradient (`torch.Tensor` of shape `(A, P)`):
            In the coordinates: free vectors flattened, then the log-variances.
        shares (`torch.Tensor` of shape `(A, k)`):
            $n_i / n$: weighted mean of the responsibilities.
    """

    value: Tensor
    gradient: Tensor
    shares: Tensor


class Look(NamedTuple):
    r"""
    What an E-step at $t$ gives: the likelihood's value and gradient, and what the rows say.

    Args:
        value, gradient, shares:
            As in [`Evaluation`].
        expected_value, gate_value (`torch.Tensor` of shape `(A,)`):
            $-Q(t \mid t)$ and the gate's part of it: where an M-step starts.
        responsibilities (`torch.Tensor` of shape `(n, A, k)`):
            Of the rows on this process.
        row_log_likelihood (`torch.Tensor` of shape `(n, A)`):
            $\log p(y \mid x)$ in nats.
    """

    value: Tensor
    gradient: Tensor
    shares: Tensor
    expected_value: Tensor
    gate_value: Tensor
    responsibilities: Tensor
    row_log_likelihood: Tensor

    def take(self, index: Tensor) -> Look:
        """Some of the restarts."""
        return Look(
            self.value[index],
            self.gradient[index],
            self.shares[index],
            self.expected_value[index],
            self.gate_value[index],
            self.responsibilities[:, index],
            self.row_log_likelihood[:, index],
        )


@dataclass(frozen=True)
class Targets:
    """
    Expected sufficient statistics that an M-step fits.

    Args:
        weights (`torch.Tensor` of shape `(n, A, k)`):
            Weight of each row for gate and experts: the responsibilities; with a partial step mixed with the gate.
        labels (`torch.Tensor` of shape `(n, A, k, m)`, *optional*):
            Weight times expected label of each output, where it is not `weights` times the row's own label: mass of
            class 1 (logistic), of each class (softmax), or the mean (linear).
        squares (`torch.Tensor` of shape `(A, k)`, *optional*):
            Mean over rows of weight times expected squared length of the label; with `labels` of linear experts.
    """

    weights: Tensor
    labels: Tensor | None = None
    squares: Tensor | None = None

    def take(self, index: Tensor) -> Targets:
        """Some of the restarts."""
        labels = None if self.labels is None else self.labels[:, index]
        return Targets(self.weights[:, index], labels, None if self.squares is None else self.squares[index])


class Objective:
    """
    The likelihood of a data set as a function of coordinates.

    Args:
        rows ([`MixtureRows`]):
            Of this process.
        shape ([`MixtureShape`]):
            Of the mixture.
        whiten (`bool`):
            Whether the coordinates are whitened, where there are not too many features for that.
        variance_floor (`float`):
            Least variance of a linear expert, in the squared unit of the standardised labels.
        reduce (`Callable`, *optional*):
            Sum over processes, called once a pass.
    """

    def __init__(
        self, rows: MixtureRows, shape: MixtureShape, *, whiten: bool, variance_floor: float, reduce: Reduce = alone
    ) -> None:
        self.rows = rows
        self.shape = shape
        self.reduce = reduce
        self.least_log_variance = math.log(variance_floor)
        self.width = rows.X.shape[1]  # d, the intercept included
        self.penalised = torch.ones_like(rows.X[:1, :].sum(0))
        self.penalised[-1] = 0
        self.setup_passes = 0.0
        self.whitening: Tensor | None = None
        self.unwhitening: Tensor | None = None
        self.feature_variances = self.penalised[:-1]
        if self.width - 1 > MOST_SQUARED:
            if shape.expert_type == "linear":
                raise ValueError(
                    f"linear experts solve equations as large as the square of the features, and {self.width - 1:,} "
                    f"are more than {MOST_SQUARED:,}: reduce them, for instance to their principal components."
                )
            if whiten:
                logger.warning(
                    "%d features are more than %d: the fit is not in whitened coordinates, and takes more iterations.",
                    self.width - 1, MOST_SQUARED,
                )  # fmt: skip
        elif whiten:
            self._whiten()

    @property
    def size(self) -> int:
        """Coordinates of a restart, P."""
        return (self.shape.gate_rows + self.shape.expert_rows) * self.width + self.shape.num_variances

    def of_shape(self, shape: MixtureShape) -> Objective:
        """The objective of another mixture on the same rows, in the same coordinates of the features."""
        other = copy.copy(self)
        other.shape = shape
        return other

    def on_rows(self, rows: MixtureRows) -> Objective:
        """The objective of the same mixture on other rows, in the same coordinates."""
        other = copy.copy(self)
        other.rows = rows
        return other

    def nll(self, point: Tensor) -> Tensor:
        """Negative log-likelihood in nats a row, without the penalty, at coordinates `(A, P)`: half a pass."""
        vectors, log_variance = self.vectors(point)
        experts = self.shape.num_experts
        total = point.new_zeros(len(point))
        for block in self.rows.blocks(vectors[..., 0].numel()):
            logits = (self.rows.X[block] @ vectors.flatten(0, 1).T).unflatten(1, vectors.shape[:2])
            outputs = logits[..., experts:].unflatten(-1, (experts, -1))
            log_likelihood, _ = expert_terms(outputs, self.rows.y[block], log_variance, self.shape.expert_type)
            joint = logits[..., :experts].log_softmax(-1) + log_likelihood
            total -= self.rows.weights[block] @ joint.logsumexp(-1)
        return self.reduce(total)

    def effective_dimension(self, ridge: float) -> float:
        """Coefficients that a penalty leaves free, of one output; without whitening those of uncorrelated features."""
        variances = self.feature_variances
        return 1.0 + float((variances / (variances + ridge)).nan_to_num(0.0).sum())

    def _whiten(self) -> None:
        X = self.rows.X[:, :-1]
        weights = self.rows.weights
        gram = torch.zeros(self.width - 1, self.width - 1, dtype=X.dtype, device=X.device)
        for block in self.rows.blocks(self.width):
            gram += X[block].T @ (X[block] * weights[block, None])
        mean = torch.zeros_like(gram[0]) + weights @ X
        gram, mean = self.reduce(torch.cat([gram, mean[None]])).split([self.width - 1, 1])
        eigenvalues, vectors = torch.linalg.eigh(gram - mean.T @ mean)
        self.feature_variances = eigenvalues.clamp(min=0)
        scale = (self.feature_variances + eigenvalues.mean().clamp(min=1e-300)).sqrt()
        self.whitening = torch.eye(self.width, dtype=X.dtype, device=X.device)
        self.unwhitening = self.whitening.clone()
        self.whitening[:-1, :-1] = (vectors / scale) @ vectors.T
        self.unwhitening[:-1, :-1] = (vectors * scale) @ vectors.T
        self.setup_passes += self.gram_passes(1)

    def gram_passes(self, count: int) -> float:
        """Passes that `count` Gram matrices of the features cost."""
        return count * self.width / (4 * self.shape.columns)

    @property
    def gate_passes(self) -> float:
        """Passes that an evaluation of the gate alone costs."""
        return 1 / (1 + self.shape.num_outputs)

    # --- coordinates ---------------------------------------------------------------------------------------------

    def pack(self, free: Tensor, log_variance: Tensor) -> Tensor:
        """Coordinates `(R, P)` of free vectors `(R, rows, d)` and log-variances `(R, V)`."""
        coordinates = free if self.unwhitening is None else free @ self.unwhitening
        return torch.cat([coordinates.flatten(1), log_variance], dim=1)

    def free_vectors(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Free vectors `(R, rows, d)` and log-variances `(R, V)` at coordinates `(R, P)`."""
        size = (self.shape.gate_rows + self.shape.expert_rows) * self.width
        free = point[:, :size].unflatten(1, (-1, self.width))
        return free if self.whitening is None else free @ self.whitening, point[:, size:]

    def vectors(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of gate and experts `(R, columns, d)` and log-variance of each expert `(R, k)` at coordinates."""
        free, log_variance = self.free_vectors(point)
        clamped = log_variance.clamp(min=self.least_log_variance)
        return self.shape.expand(free), clamped.expand(len(point), self.shape.num_experts) if (
            self.shape.num_variances
        ) else torch.zeros(len(point), self.shape.num_experts, dtype=point.dtype, device=point.device)

    # --- a pass --------------------------------------------------------------------------------------------------

    def likelihood(self, point: Tensor, ridge: Tensor) -> Evaluation:
        """
        Objective at coordinates: the mixture's negative log-likelihood with its penalty.

        Args:
            point (`torch.Tensor` of shape `(A, P)`):
                Coordinates of A restarts.
            ridge (`torch.Tensor` of shape `(A,)`):
                Penalty in nats a row on a squared coefficient over two.
        """
        return self._sweep(point, ridge, None, None)[0]

    def e_step(self, point: Tensor, ridge: Tensor) -> Look:
        """The E-step: as [`likelihood`], with the responsibilities and likelihoods of the rows."""
        n = len(self.rows.X)
        responsibilities = point.new_empty(n, len(point), self.shape.num_experts)
        row_log_likelihood = point.new_empty(n, len(point))
        evaluation, starts = self._sweep(point, ridge, None, (responsibilities, row_log_likelihood))
        return Look(*evaluation, starts[:, 0], starts[:, 1], responsibilities, row_log_likelihood)

    def expected(self, point: Tensor, ridge: Tensor, targets: Targets) -> Evaluation:
        r"""
        Penalised negative expected log-likelihood $-Q(\theta \mid t)$ of targets made at $t$.

        At $\theta = t$ its gradient is that of [`likelihood`], and its value that of the likelihood plus the mean
        entropy of the responsibilities.
        """
        return self._sweep(point, ridge, targets, None)[0]

    def _sweep(
        self, point: Tensor, ridge: Tensor, targets: Targets | None, store: tuple[Tensor, Tensor] | None
    ) -> tuple[Evaluation, Tensor]:
        """Value, gradient and shares; and the values `(A, 2)` from which an M-step starts, where `store` is given."""
        vectors, log_variance = self.vectors(point)
        restarts, columns, width = vectors.shape
        experts = self.shape.num_experts
        sums = point.new_zeros(restarts, 3 + 2 * experts)  # three values, shares, slopes in the log-variances
        gradient = torch.zeros_like(vectors)
        for block in self.rows.blocks(restarts * columns):
            residual, block_sums = self._block(block, vectors, log_variance, targets, store)
            sums += block_sums
            gradient += (residual.flatten(1).T @ self.rows.X[block]).view_as(gradient)
        packed = self.reduce(torch.cat([sums, gradient.flatten(1)], dim=1))
        sums, flat_gradient = packed.split([3 + 2 * experts, columns * width], dim=1)
        penalty = 0.5 * ridge[:, None] * (vectors.square() * self.penalised).sum(2)
        value = sums[:, 0] + penalty.sum(1)
        starts = sums[:, 1:3] + torch.stack([penalty.sum(1), penalty[:, :experts].sum(1)], dim=1)
        gradient = flat_gradient.view_as(vectors) + ridge[:, None, None] * vectors * self.penalised
        coordinates = self.pull_back(gradient, self._variance_slopes(point, sums[:, 3 + experts :]))
        return Evaluation(value, coordinates, sums[:, 3 : 3 + experts]), starts

    def pull_back(self, gradient: Tensor, slopes: Tensor) -> Tensor:
        """Gradient `(R, P)` in the coordinates, of one in the vectors `(R, columns, d)` and log-variances `(R, V)`."""
        free = self.shape.fold(gradient)
        if self.whitening is not None:
            free = free @ self.whitening  # symmetric: its own transpose
        return torch.cat([free.flatten(1), slopes], dim=1)

    def _variance_slopes(self, point: Tensor, slopes: Tensor) -> Tensor:
        count = self.shape.num_variances
        if count == 0:
            return slopes[:, :0]
        if count == 1:
            slopes = slopes.sum(1, keepdim=True)
        # At the floor the variance cannot fall further: no slope, so that a line search does not chase it.
        return torch.where(point[:, -count:] < self.least_log_variance, 0.0, slopes)

    def _block(
        self,
        block: slice,
        vectors: Tensor,
        log_variance: Tensor,
        targets: Targets | None,
        store: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Weighted slopes in the outputs `(n, A, columns)` and sums `(A, 3 + 2k)` of a block of rows."""
        experts = self.shape.num_experts
        X = self.rows.X[block]
        row_weights = self.rows.weights[block, None, None]
        logits = (X @ vectors.flatten(0, 1).T).unflatten(1, vectors.shape[:2])
        log_gate = logits[..., :experts].log_softmax(-1)
        outputs = logits[..., experts:].unflatten(-1, (experts, -1))
        y = self.rows.y[block]
        starts = X.new_zeros(len(vectors), 2)
        own_labels = None if targets is None or targets.labels is None else targets.labels[block]
        if targets is None:
            log_likelihood, prediction = expert_terms(outputs, y, log_variance, self.shape.expert_type)
            joint = log_gate + log_likelihood
            row_log_likelihood = joint.logsumexp(-1)
            responsibilities = (joint - row_log_likelihood.unsqueeze(-1)).exp_()
            terms = row_log_likelihood
            if store is not None:
                store[0][block] = responsibilities
                store[1][block] = row_log_likelihood
                weighted = responsibilities * row_weights
                # An expert that is impossible for a row has a joint of -inf and no part in it.
                finite = joint.clamp(min=torch.finfo(joint.dtype).min)
                starts = -torch.stack([(weighted * finite).sum((0, 2)), (weighted * log_gate).sum((0, 2))], dim=1)
        else:
            responsibilities = targets.weights[block]
            if own_labels is None:
                log_likelihood, prediction = expert_terms(outputs, y, log_variance, self.shape.expert_type)
                terms = (responsibilities * (log_gate + log_likelihood)).sum(-1)
            else:
                likelihood, prediction = mixed_terms(outputs, responsibilities, own_labels, self.shape.expert_type)
                terms = (responsibilities * log_gate).sum(-1) + likelihood.sum(-1)
        weighted = responsibilities * row_weights
        slopes = torch.zeros_like(weighted)
        if self.shape.expert_type == "linear":
            inverse = (-log_variance).exp()
            squares = prediction.square().sum(-1)
            slopes = 0.5 * weighted * (self.shape.num_outputs - squares * inverse)
            prediction = prediction * inverse.unsqueeze(-1)
        if own_labels is not None:
            pull = prediction * responsibilities.unsqueeze(-1) - own_labels
        elif self.shape.expert_type == "softmax":
            index = y.view(-1, 1, 1, 1).expand(*outputs.shape[:-1], 1)
            pull = prediction.mul_(responsibilities.unsqueeze(-1))
            pull.scatter_add_(-1, index, -responsibilities.unsqueeze(-1))
        else:
            pull = prediction * responsibilities.unsqueeze(-1)
        residual = torch.empty_like(logits)
        torch.sub(log_gate.exp_(), responsibilities, out=residual[..., :experts])
        residual[..., experts:] = pull.flatten(2)
        residual *= row_weights
        value = -(terms * self.rows.weights[block, None]).sum(0)
        return residual, torch.cat([value[:, None], starts, weighted.sum(0), slopes.sum(0)], dim=1)

    # --- the gate alone ------------------------------------------------------------------------------------------

    def gate_expected(self, gate_point: Tensor, ridge: Tensor, targets: Targets) -> Evaluation:
        """The gate's part of [`expected`], at coordinates `(A, gate_rows * d)` of the gate alone."""
        free = gate_point.unflatten(1, (-1, self.width))
        gate = self.shape.expand_gate(free if self.whitening is None else free @ self.whitening)
        restarts, experts, width = gate.shape
        sums = gate_point.new_zeros(restarts, 1 + experts)
        gradient = torch.zeros_like(gate)
        for block in self.rows.blocks(restarts * experts):
            X = self.rows.X[block]
            log_gate = (X @ gate.flatten(0, 1).T).unflatten(1, (restarts, experts)).log_softmax(-1)
            weighted = targets.weights[block] * self.rows.weights[block, None, None]
            sums += torch.cat([-(weighted * log_gate).sum((0, 2))[:, None], weighted.sum(0)], dim=1)
            residual = log_gate.exp() * self.rows.weights[block, None, None] - weighted
            gradient += (residual.flatten(1).T @ X).view_as(gate)
        packed = self.reduce(torch.cat([sums, gradient.flatten(1)], dim=1))
        sums, flat_gradient = packed.split([1 + experts, experts * width], dim=1)
        value = sums[:, 0] + 0.5 * ridge * (gate.square() * self.penalised).sum((1, 2))
        gradient = flat_gradient.view_as(gate) + ridge[:, None, None] * gate * self.penalised
        gradient = self.shape.fold_gate(gradient)
        if self.whitening is not None:
            gradient = gradient @ self.whitening
        return Evaluation(value, gradient.flatten(1), sums[:, 1:])

    # --- the normal equations of linear experts --------------------------------------------------------------------

    def normal_equations(self, targets: Targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""
        Sums that the M-step of linear experts needs, of A restarts.

        Returns:
            `tuple` of four: $X^\top R_i X$ `(A, k, d, d)`, $X^\top R_i y$ `(A, k, m, d)`, $y^\top R_i y$ `(A, k)` and
            the weight sums $n_i / n$ `(A, k)`, each a mean over the rows of all processes.
        """
        restarts, experts = targets.weights.shape[1:]
        width = self.width
        outputs = self.shape.num_outputs
        gram = self.rows.X.new_zeros(restarts * experts * width, width)
        cross = self.rows.X.new_zeros(restarts * experts * outputs, width)
        sums = self.rows.X.new_zeros(2, restarts, experts)
        for block in self.rows.blocks(restarts * experts * (width + outputs)):
            X = self.rows.X[block]
            y = self.rows.y[block]
            weighted = targets.weights[block] * self.rows.weights[block, None, None]  # (n, A, k)
            gram += (weighted.flatten(1)[:, :, None] * X[:, None, :]).flatten(1).T @ X
            if targets.labels is None:
                label_mass = weighted.unsqueeze(-1) * y[:, None, None, :]
                sums[1] += (weighted * y.square().sum(-1)[:, None, None]).sum(0)
            else:
                label_mass = targets.labels[block] * self.rows.weights[block, None, None, None]
            cross += label_mass.flatten(1).T @ X
            sums[0] += weighted.sum(0)
        packed = self.reduce(torch.cat([gram.flatten(), cross.flatten(), sums.flatten()]))
        gram, cross, sums = packed.split([gram.numel(), cross.numel(), sums.numel()])
        counts, squares = sums.view(2, restarts, experts)
        return (
            gram.view(restarts, experts, width, width),
            cross.view(restarts, experts, outputs, width),
            squares if targets.squares is None else targets.squares,
            counts,
        )
