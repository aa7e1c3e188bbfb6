r"""
How much regret no consistent policy can avoid, and the plays that would attain it.

To tell that arm $j$ is not the best, a policy needs $\log T$ nats against every set of means under which it would be:
with $c_i = N_i / \log T$ that is a covering linear programme, or, where the best arm does not see itself, a convex one
that is reached by cutting planes.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_ext.bandits.information import SideInformation, float_array, require_information
from hf_ext.guards.extras import naming_extras

__all__ = ["Bound", "BoundKind", "lower_bound"]

FloatArray = NDArray[np.float64]
BoundKind: TypeAlias = Literal["lp", "graves_lai"]

_MET = 1e-9  # relative shortfall at which a constraint is met
_REDUCED = 1e-12  # reduced cost that counts as zero; every demand is scaled to 1
_PIVOT = 1e-11  # entry, relative to the largest of its column, that is too small to divide by
_MOST_PLAYS = 1e300  # a nat, of a plan between arms that are level
_MOST_ROUNDS = 200  # of cuts; 16 were the most on 40 random matrices

logger = logging.getLogger(__name__)
_reported_problems: set[str] = set()


@dataclass(frozen=True, eq=False)
class Bound:
    r"""
    The least regret per $\log T$, and how it comes about.

    Args:
        value (`float`):
            $C^*$ in units of reward per nat: the regret of a consistent policy is at least about $C^* \log T$.
        allocation (array of shape `(K,)`):
            Plays of each arm per nat that attain it; 0 for the best arm, whose plays cost nothing.
        multipliers (array of shape `(K,)`):
            How much of `value` each arm costs because it must be told apart (the best arm: because its own mean must
            be known). They add up to `value`.
        binding (`tuple[str, ...]`):
            Names of the arms whose multiplier is not 0: observing these better would lower the bound.
        kind (`str`):
            `"lp"` or `"graves_lai"`.
    """

    value: float
    allocation: FloatArray
    multipliers: FloatArray
    binding: tuple[str, ...]
    kind: BoundKind


class CoveringSolution(NamedTuple):
    """
    The optimum of a covering programme.

    Args:
        value (`float`):
            Cost of the allocation.
        allocation (array of shape `(n,)`):
            How much of each source to buy.
        multipliers (array of shape `(m,)`):
            Cost of one more unit of each demand.
    """

    value: float
    allocation: FloatArray
    multipliers: FloatArray


def lower_bound(
    means: ArrayLike,
    info: SideInformation,
    kind: BoundKind = "graves_lai",
    tie: Literal["raise", "merge"] = "raise",
) -> Bound:
    r"""
    The constant $C^*$ of the asymptotic lower bound on regret, $\liminf R_T / \log T \ge C^*$.

    With gaps $D_i = \mu_* - \mu_i$ and $I = P^\top c$, `kind="lp"` minimises $\sum_i c_i D_i$ subject to
    $I_j D_j^2 / 2 \ge 1$ for every arm that the best arm does not show ($D_*$ stands for the gap of the second best).
    `kind="graves_lai"` asks instead, for every other arm j, that

    $$\min_{\mu_j \le m \le \mu_*} I_j (m - \mu_j)^2 / 2 + \sum_{k \ne j} I_k (\mu_k - m)_+^2 / 2 \ge 1,$$

    because an adversary may lower the best arm as well as raise another. The two are equal where the best arm shows
    itself; otherwise the second is larger, at most twofold. Both are 0 exactly where the best arm shows itself and all
    others. Observations with a bias do not count: what they tell is bounded while T grows.

    Args:
        means (array of shape `(K,)`):
            Mean rewards, finite; more is better.
        info ([`SideInformation`]):
            What playing an arm tells.
        kind (`str`, *optional*, defaults to `"graves_lai"`):
            The exact bound, or the linear programme below it.
        tie (`str`, *optional*, defaults to `"raise"`):
            `"merge"` takes arms with the best mean for one arm that shows what each of them shows.

    Returns:
        [`Bound`]: the constant, with its allocation.

    Raises:
        TypeError: if `info` is a matrix.
        ValueError: if a mean is not finite, there is not one mean an arm, two arms tie for the best, or gaps or
            precisions are too small for float64.
        MissingExtraError: if the simplex gives up, as on badly scaled input, and scipy is not installed.

    Reference: Graves and Lai 1997, *Asymptotically Efficient Adaptive Choice of Control Laws in Controlled Markov
    Chains*, theorem 1; Wu, György and Szepesvári 2015 (arXiv 1510.08108), section 3. The cutting planes, and the
    case of a best arm that does not show itself, are derived here.
    """
    require_information(info)
    if kind not in get_args(BoundKind):
        raise ValueError(f"kind must be 'lp' or 'graves_lai', got {kind!r}.")
    if tie not in ("raise", "merge"):
        raise ValueError(f"tie must be 'raise' or 'merge', got {tie!r}.")
    mu = float_array("means", means)
    with np.errstate(over="ignore"):
        has_finite_gaps = mu.shape == (info.num_arms,) and np.isfinite(mu).all() and np.isfinite(np.ptp(mu))
    if not has_finite_gaps:
        raise ValueError(f"means must be {info.num_arms} finite numbers, one an arm, got {mu.tolist()!r}."[:400])
    best = mu >= mu.max() - 8 * np.finfo(np.float64).eps * np.abs(mu).max()
    if best.sum() > 1 and tie == "raise":
        names = ", ".join(repr(info.names[arm]) for arm in np.flatnonzero(best))
        raise ValueError(f"{names} tie for the best mean, and no number of plays tells them apart. Pass tie='merge'.")
    mu[best] = mu.max()
    scale = float(np.ptp(mu))
    if scale == 0:
        return Bound(0.0, np.zeros_like(mu), np.zeros_like(mu), (), kind)
    # In units of the widest gap and of the best observation neither a square nor its reciprocal leaves float64.
    sharpest = float(info.unbiased_precision.max())
    problem = _Problem((mu - mu.max()) / scale, best, info.unbiased_precision / sharpest)
    solution, owners = problem.relaxed() if kind == "lp" else problem.exact()
    with np.errstate(over="ignore"):
        plays_per_nat = solution.allocation / sharpest / scale / scale
    if not np.isfinite(plays_per_nat).all():
        raise ValueError("the gaps are so small that the plays to tell them apart exceed float64. Use another unit.")
    multipliers = np.bincount(owners, solution.multipliers, len(mu)) / sharpest / scale
    binding = tuple(info.names[arm] for arm in np.flatnonzero(multipliers > _MET * multipliers.sum()))
    return Bound(float(solution.value / sharpest / scale), plays_per_nat, multipliers, binding, kind)


def covering_plan(gaps: FloatArray, leader: int, precision: FloatArray) -> FloatArray:
    """The linear programme's plays per nat, shape `(K,)`, at gaps above 0; the leader's gap is not looked at."""
    best = np.arange(len(gaps)) == leader
    # Powers of two near the widest gap and the best observation: exact, and no square leaves float64.
    scale = np.frexp(np.where(best, 0.0, gaps).max())[1]
    sharpness = np.frexp(precision.max())[1]
    units = np.where(best, 0.0, -np.ldexp(gaps, -scale))
    solution, _ = _Problem(units, best, np.ldexp(precision, -sharpness)).relaxed()
    with np.errstate(over="ignore"):
        plays_per_nat = np.ldexp(solution.allocation, -sharpness - 2 * scale)
    return np.minimum(plays_per_nat, _MOST_PLAYS)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Means with the best at 0, shape `(K,)`; which arms are best; the precisions."""

    means: FloatArray
    best: NDArray[np.bool_]
    precision: FloatArray

    @property
    def free(self) -> NDArray[np.bool_]:
        """Arms of which the best arms' own plays, free of regret, tell without limit."""
        return np.asarray((self.precision[self.best] > 0).any(axis=0))

    def relaxed(self) -> tuple[CoveringSolution, NDArray[np.intp]]:
        """Optimum of the linear programme, with the arm that owns each constraint."""
        weights, owners = self._constraints()
        return self._covering(weights), owners

    def exact(self) -> tuple[CoveringSolution, NDArray[np.intp]]:
        """Optimum of the exact bound by cutting planes: each level m gives one linear constraint."""
        weights, owners = self._constraints()
        solution = self._covering(weights)
        for _ in range(_MOST_ROUNDS):
            nats, cuts = self._hardest(self.precision.T @ solution.allocation)
            broken = np.flatnonzero(nats < 1 - _MET)
            if not len(broken):
                return solution, owners
            weights = np.vstack([weights, cuts[broken]])
            owners = np.concatenate([owners, broken])
            solution = self._covering(weights)
        raise ArithmeticError(
            f"the bound's constraints are still broken by {1 - nats.min():.1e} after {_MOST_ROUNDS} rounds of cuts. "
            "The means or the precisions differ by too many orders of magnitude; kind='lp' gives at least half of it."
        )

    def _constraints(self) -> tuple[FloatArray, NDArray[np.intp]]:
        """The linear programme's weights of each arm's information, `(constraints, K)`, and their owners."""
        rivals = np.flatnonzero(~self.best)
        owners = rivals[~self.free[rivals]]
        weights = np.zeros((len(owners), len(self.means)))
        weights[np.arange(len(owners)), owners] = self.means[owners] ** 2 / 2
        if not self.free[self.best].any():
            # The nearest rival overtakes a best arm that is lowered to it, and only looks at the best arms contradict.
            weights = np.vstack([weights, self.best * self.means[rivals].max() ** 2 / 2])
            owners = np.append(owners, np.argmax(self.best))
        return weights, owners

    def _covering(self, weights: FloatArray) -> CoveringSolution:
        """The cheapest plays whose information, weighted by each row, is 1 nat a row."""
        rivals = ~self.best
        solution = covering_lp(-self.means[rivals], self.precision[rivals] @ weights.T, np.ones(len(weights)))
        allocation = np.zeros_like(self.means)
        allocation[rivals] = solution.allocation
        return solution._replace(allocation=allocation)

    def _hardest(self, information: FloatArray) -> tuple[FloatArray, FloatArray]:
        """
        For each arm j, the nats against the likeliest means under which it is the best, shape `(K,)`, and the weights
        of the information `(K, K)` that make them up.
        """
        mu = self.means
        falling = np.argsort(-mu, kind="stable")
        amount = np.where(self.free, 0.0, information)
        sums = np.cumsum(amount[falling])
        moments = np.cumsum((amount * mu)[falling])
        # The level at which j and the arms above it meet is their pooled mean. Pooling one more arm raises it as long
        # as that arm lies above, so the largest over all heads of the order is where the derivative is 0.
        totals = amount[:, None] + sums
        pooled_moments = (amount * mu)[:, None] + moments
        pooled = np.divide(pooled_moments, totals, out=np.full_like(totals, -np.inf), where=totals > 0)
        level = np.clip(pooled.max(axis=1), mu, mu.max())
        level[self.free] = mu[self.free]  # known without limit: it cannot be raised
        # Nor can an arm that is known without limit be lowered.
        floor = mu[self.free].max(initial=-np.inf)
        impossible = self.best | (self.free & (mu < floor))
        level = np.where(self.free, level, np.maximum(level, floor))
        cuts = np.maximum(mu - level[:, None], 0) ** 2 / 2
        np.fill_diagonal(cuts, (level - mu) ** 2 / 2)
        cuts[:, self.free] = 0
        nats = cuts @ information
        return np.where(impossible, np.inf, nats), cuts


def covering_lp(costs: FloatArray, coverage: FloatArray, demand: FloatArray) -> CoveringSolution:
    r"""
    The cheapest cover: $\min_x \sum_i x_i c_i$ subject to $\sum_i x_i A_{ij} \ge b_j$ and $x \ge 0$.

    Its dual, $\max_y \sum_j b_j y_j$ subject to $A y \le c$ and $y \ge 0$, has a feasible origin because costs are not
    negative: the simplex method on it needs no first phase, and the reduced costs of its slacks are $x$.

    Args:
        costs (array of shape `(n,)`):
            Above 0.
        coverage (array of shape `(n, m)`):
            Not negative; row = source, column = demand.
        demand (array of shape `(m,)`):
            Above 0.

    Returns:
        [`CoveringSolution`]: checked against both programmes; from HiGHS where the simplex did not pass the check.

    Raises:
        ValueError: if no source covers a demand, or by less than float64 holds.
        MissingExtraError: if HiGHS is called for and scipy is not installed.
    """
    if not len(demand):
        return CoveringSolution(0.0, np.zeros_like(costs), np.zeros(0))
    for column in np.flatnonzero(~(coverage > 0).any(axis=0)):
        raise ValueError(
            f"no source covers demand {column} by an amount that float64 holds: precisions or gaps differ by too many "
            "orders of magnitude."
        )
    # Each demand and each cost is 1: the check below is then relative, however far apart the gaps are.
    scaled = coverage / costs[:, None] / demand
    pair = _simplex(scaled)
    if pair is None or not _is_optimal(scaled, *pair):
        digest = hashlib.sha256(np.ascontiguousarray(scaled).tobytes()).hexdigest()[:12]
        if digest not in _reported_problems:
            _reported_problems.add(digest)
            logger.warning("The simplex method gave up on the covering programme %s; HiGHS solves it.", digest)
        pair = _highs(scaled)
    bought, prices = pair
    return CoveringSolution(float(prices.sum()), bought / costs, prices / demand)


def _is_optimal(scaled: FloatArray, bought: FloatArray, prices: FloatArray) -> bool:
    """Whether both are feasible and cost the same, which proves each of them optimal."""
    is_covered = (bought @ scaled >= 1 - _MET).all() and (bought >= -_MET).all()
    is_affordable = (scaled @ prices <= 1 + _MET).all() and (prices >= -_MET * prices.sum()).all()
    return bool(is_covered and is_affordable and abs(bought.sum() - prices.sum()) <= _MET * prices.sum())


def _simplex(scaled: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """Both optima of `max sum(y)` subject to `scaled @ y <= 1`, or `None` where it does not come to an end."""
    rows, columns = scaled.shape
    # Columns are divided by their largest entry, so that one threshold serves for all pivots.
    widths = scaled.max(axis=0)
    tableau = np.zeros((rows + 1, columns + rows + 1))
    tableau[:-1, :columns] = scaled / widths
    tableau[:-1, columns:-1] = np.eye(rows)
    tableau[:-1, -1] = 1
    tableau[-1, :columns] = 1 / widths
    reduced = tableau[-1, :-1]
    thresholds = np.append(_REDUCED / widths, np.full(rows, _REDUCED))
    basis = np.arange(columns, columns + rows)
    for pivot in range(50 * (rows + columns)):
        # The steepest column is fast and may cycle; the first one (Bland) never does.
        entering = int(np.argmax(reduced - thresholds if pivot < 5 * (rows + columns) else reduced > thresholds))
        if reduced[entering] <= thresholds[entering]:
            prices = np.zeros(columns + rows)
            prices[basis] = tableau[:-1, -1]
            return np.maximum(-reduced[columns:], 0), prices[:columns] / widths
        column = tableau[:, entering].copy()
        usable = column[:-1] > _PIVOT
        if not usable.any():
            return None
        ratios = np.divide(tableau[:-1, -1], column[:-1], out=np.full(rows, np.inf), where=usable)
        ties = np.flatnonzero(ratios == ratios.min())
        leaving = ties[np.argmin(basis[ties])]
        tableau[leaving] /= column[leaving]
        column[leaving] = 0
        tableau -= column[:, None] * tableau[leaving]
        basis[leaving] = entering
    return None


def _highs(scaled: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The same by scipy's HiGHS."""
    with naming_extras():
        from scipy.optimize import linprog
    rows, columns = scaled.shape
    # At HiGHS's default of 1e-7 cuts that are broken by less are never met, and rounds go on for ever.
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    result = linprog(np.ones(rows), -scaled.T, -np.ones(columns), method="highs", options=options)
    if result.status != 0:
        raise ArithmeticError(f"HiGHS did not solve the covering programme: {result.message}")
    return result.x, -result.ineqlin.marginals
