"""How a mixture is fitted."""

from __future__ import annotations

from dataclasses import dataclass

from hf_ext.guards.near_names import did_you_mean
from hf_ext.guards.numbers import COUNT, NON_NEGATIVE, POSITIVE, SIZE, WHOLE_NUMBER, Bounds

METHODS = ("auto", "em", "em+lbfgs", "lbfgs", "gradient_em", "gd")
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # that `ridge="auto"` compares
DEFAULT_RIDGE = 1e-4
_STEP = Bounds(float, 0, 2, "a number above 0 and below 2", above=True, below=True)
_BOUNDS = {
    "em_iterations": WHOLE_NUMBER,
    "inner_steps": SIZE,
    "ridge": NON_NEGATIVE,
    "eta": _STEP,
    "restarts": SIZE,
    "finalists": SIZE,
    "tol": NON_NEGATIVE,
    "max_iterations": COUNT,
    "max_reseeds": WHOLE_NUMBER,
    "learning_rate": POSITIVE,
    "patience": SIZE,
}


@dataclass(frozen=True)
class EMArguments:
    """
    Settings of a fit.

    Args:
        method (`str`):
            `"em"`: EM to the end. `"em+lbfgs"`: `em_iterations` of EM, then L-BFGS on the likelihood. `"lbfgs"`: that
            alone. `"auto"`: half of the restarts by either, one alone by `"lbfgs"`. `"gradient_em"`: an E-step, then
            `inner_steps` gradient steps. `"gd"`: one gradient step each time.
        em_iterations (`int`):
            Iterations of EM before L-BFGS takes over. More of them lead classifiers into poorer optima.
        inner_steps (`int`, *optional*):
            Steps of an M-step: by default 3 for the gate of linear experts, otherwise 2. More of them fit
            responsibilities that are still wrong.
        ridge (`float` or `"auto"`):
            Penalty in nats a row on half a squared coefficient of standardised features (and labels). scikit-learn's
            `C` is `1 / (n * ridge)`. `"auto"` compares five from 1e-5 to 0.1 on held-out rows.
        eta (`float`):
            Length of EM's step in (0, 2): 1 is EM; below it damped; above it over-relaxed, with EM where that fails.
        restarts, finalists (`int`):
            Random starts, and how many of them are fitted to the end. Half of the others are given up after 12 passes
            each, half of the rest after 24, and so on: successive halving.
        tol (`float`):
            Nats a row: a restart that gains less three times in a row has converged.
        max_iterations (`int`):
            Most iterations.
        max_reseeds (`int`):
            Times that a dead expert of a restart starts again from the rows explained worst.
        prune (`bool`):
            Whether experts that are dead at the end are left out of the result.
        whiten (`bool`):
            Whether steps are taken in whitened coordinates; the objective is the same.
        standardize (`bool`):
            Whether features, and labels of linear experts, are standardised.
        learning_rate (`float`):
            Step of `"gd"` and `"gradient_em"`.
        patience (`int`):
            Iterations without a better value on held-out rows after which a restart stops.

    Raises:
        ValueError: if the method is unknown, a number is out of range, or `eta` is given to another method than EM.
    """

    method: str = "auto"
    em_iterations: int = 2
    inner_steps: int | None = None
    ridge: float | str = DEFAULT_RIDGE
    eta: float = 1.0
    restarts: int = 8
    finalists: int = 1
    tol: float = 1e-7
    max_iterations: int = 1000
    max_reseeds: int = 2
    prune: bool = False
    whiten: bool = True
    standardize: bool = True
    learning_rate: float = 1.0
    patience: int = 10

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            close = did_you_mean(self.method, METHODS)
            raise ValueError(f"method={self.method!r} is not one of {', '.join(METHODS)}{close}.")
        for name, bounds in _BOUNDS.items():
            value = getattr(self, name)
            if value is None or (name == "ridge" and value == "auto"):
                continue
            problem = bounds.problem_of(value)
            if problem is not None:
                raise ValueError(f"{name} {problem}{' or auto' if name == 'ridge' else ''}.")
            if isinstance(value, str):
                raise ValueError(f"{name} must be a number, got {value!r}.")
        if self.eta != 1 and self.method in ("lbfgs", "gradient_em", "gd"):
            raise ValueError(f"eta is the length of EM's step, and method={self.method!r} makes none.")

    def steps_for(self, expert_type: str) -> int:
        """Steps of an M-step."""
        return self.inner_steps or (3 if expert_type == "linear" else 2)
