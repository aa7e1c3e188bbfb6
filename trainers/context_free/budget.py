"""A KL in nats per token that is kept to, in place of a weight that has to be found."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from hf_ext.guards.disk import write_whole
from hf_ext.guards.inside import read_json

FILE = "kl_budget.json"
RATE = 0.1  # eta: taken from log lambda a step, where there is no KL
RISE = 2.0  # times faster than that it rises: a budget is a bound, and every run begins with a KL of 0, far below it
PROMPTNESS = 2.0  # rho: what the last step alone adds to log lambda, at the same KL
LARGEST = math.log(1e3)  # of |log lambda|
MOST_EXCESS = 1.0  # one wild estimate moves the weight no further


@dataclass
class KLBudget:
    r"""
    Dual ascent on $\log \lambda$: the weight rises where the KL is above the budget and falls where it is below.

    $$e = \mathrm{clip}\Big(\frac{\mathrm{KL}}{B} - 1, -1, 1\Big),\qquad
      \mu \leftarrow \mathrm{clip}(\mu + \eta\,(e + \max(e, 0)), -\mu_{\max}, \mu_{\max}),\qquad
      \lambda = \exp(\mathrm{clip}(\mu + \rho e, -\mu_{\max}, \mu_{\max}))$$

    $\mu$ is the logarithm of the multiplier of the constraint $\mathrm{KL} \le B$. The term $\rho e$, of the last step
    alone, is what an augmented Lagrangian adds: without it the KL, which answers to $\lambda$ some steps later, swings
    around the budget.

    Args:
        nats (`float`):
            $B$, the budget in nats per token.
        log_multiplier (`float`, *optional*, defaults to `0.0`):
            $\mu$, at first that of a weight of 1.
        excess (`float`, *optional*, defaults to `0.0`):
            $e$ of the last step.

    Reference: Bertsekas 1982, *Constrained Optimization and Lagrange Multiplier Methods*, chapter 2.
    """

    nats: float
    log_multiplier: float = 0.0
    excess: float = 0.0

    @property
    def weight(self) -> float:
        """$\\lambda$ of the next step."""
        return math.exp(_bounded(self.log_multiplier + PROMPTNESS * self.excess, LARGEST))

    def update(self, kl: float) -> None:
        """Take in the KL measured in a step, in nats per token."""
        self.excess = _bounded(kl / self.nats - 1, MOST_EXCESS)
        rate = RATE if self.excess < 0 else RISE * RATE
        self.log_multiplier = _bounded(self.log_multiplier + rate * self.excess, LARGEST)

    def save(self, folder: str | Path) -> None:
        """Write what the next step starts from into a checkpoint."""
        state = {"log_multiplier": self.log_multiplier, "excess": self.excess}
        write_whole(Path(folder) / FILE, json.dumps(state) + "\n")

    def load(self, folder: str | Path) -> None:
        """
        Go on from a checkpoint; the budget may be another one.

        Raises:
            ValueError: if the checkpoint is not of a run with a budget.
        """
        path = Path(folder) / FILE
        if not path.exists():
            raise ValueError(
                f"{folder} has no {FILE}: that run had no kl_budget, so the weight to go on with is not known. Resume "
                "with its kl_weight, or start again with kl_budget."
            )
        state = read_json(path)
        values = [state.get(name) for name in ("log_multiplier", "excess")]
        if not all(isinstance(value, float) and math.isfinite(value) for value in values):
            raise ValueError(f"{path} does not hold the two numbers of a KL budget: the checkpoint is damaged.")
        self.log_multiplier, self.excess = values


def _bounded(value: float, bound: float) -> float:
    return min(max(value, -bound), bound)
