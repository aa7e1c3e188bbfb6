"""Configuration of InfoPO, for pairs and for single labelled responses."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

from trl import DPOConfig, KTOConfig

from hf_ext.losses.infopo import ESTIMATORS, LARGEST_EXPONENT, UNPAIRED_ESTIMATORS, check_estimator
from hf_ext.trainers.base.config import HostArguments, RowSettings, check_choice

logger = logging.getLogger(__name__)

INFOPO = "infopo"  # its word in `loss_type`
HOST_UNPAIRED_LOSS = "apo_zero_unpaired"  # KTOTrainer's loss without a KL batch; its value is not used
GUARD_MODES = ("off", "warn", "stop")


@dataclass
class InfoPOSettings(HostArguments):
    """
    The fields that [`InfoPOConfig`] and [`InfoPOUnpairedConfig`] share; stands before the host's configuration.

    Parameters:
        estimator (`str`, *optional*, defaults to `"nwj"`):
            The bound on mutual information whose negative is the loss: one of `hf_ext.losses.infopo.ESTIMATORS`.
        length_normalized (`bool`, *optional*, defaults to `False`):
            Divide log-ratios by the number of completion tokens. Raise `beta` too (10 or so): at 0.1 the push on the
            rejected response never retires.
        reference_free (`bool`, *optional*, defaults to `False`):
            Put the reference's log-probabilities to 0 and skip its forward. Needs `length_normalized=True`. The loss
            is then no bound on mutual information, and neither it nor the guard has anything to log.
        max_exponent (`float`, *optional*, defaults to `10.0`):
            Exponents above it are continued by the tangent of exp.
        likelihood_guard (`str`, *optional*, defaults to `"warn"`):
            What [`LikelihoodGuardCallback`] does once the chosen responses have become less likely: `"off"`, `"warn"`
            or `"stop"`.
        guard_tolerance (`float`, *optional*, defaults to `0.0`):
            Drop that is tolerated, in nats per token.
        guard_patience (`int`, *optional*, defaults to `3`):
            Consecutive logs below the tolerance before the guard acts.
    """

    estimator: str = field(
        default="nwj",
        metadata={
            "help": "Bound on mutual information whose negative is the loss. 'nwj': constant pull on the chosen "
            "response, a push on the rejected one that retires. 'infonce' is DPO and 'jsd' bco_pair, both full at "
            "log 2 = 0.693 nats; 'lsif' and 'nwj_mixture' are for ablations.",
            "choices": list(ESTIMATORS),
        },
    )
    length_normalized: bool = field(
        default=False,
        metadata={
            "help": "Divide log-ratios by the number of completion tokens. Then raise beta to about 0.1 times the "
            "mean completion length (10 is a good start): at 0.1 the push on the rejected response never retires."
        },
    )
    reference_free: bool = field(
        default=False,
        metadata={
            "help": "Put the reference's log-probabilities to 0 and skip its forward. Needs length_normalized=True. "
            "The loss is then no bound on mutual information: infopo/mi is not logged, and the guard is off."
        },
    )
    max_exponent: float = field(
        default=10.0,
        metadata={
            "help": "Exponents above it are continued by the tangent of exp: same value and slope there, no overflow, "
            f"and never a zero gradient. In (0, {LARGEST_EXPONENT:g}]."
        },
    )
    likelihood_guard: str = field(
        default="warn",
        metadata={
            "help": "Once the chosen responses have become less likely than under the reference model: 'off' does "
            "nothing, 'warn' says so once with remedies, 'stop' also ends training.",
            "choices": list(GUARD_MODES),
        },
    )
    guard_tolerance: float = field(
        default=0.0,
        metadata={"help": "Drop of the chosen responses' mean log-probability that is tolerated, in nats per token."},
    )
    guard_patience: int = field(
        default=3,
        metadata={
            "help": "Consecutive logs below the tolerance before the guard acts (evaluations, where there are)."
        },
    )

    def check_settings(self, *, paired: bool) -> None:
        """Refuse values that cannot be honoured, for pairs or for single responses."""
        check_estimator(self.estimator, paired=paired)
        for name, value in (("beta", self.beta), ("max_exponent", self.max_exponent)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive, finite number, got {value!r}.")
        if self.max_exponent > LARGEST_EXPONENT:
            raise ValueError(f"max_exponent must be at most {LARGEST_EXPONENT:g}, got {self.max_exponent!r}.")
        if not (math.isfinite(self.guard_tolerance) and self.guard_tolerance >= 0):
            raise ValueError(f"guard_tolerance must be finite and at least 0, got {self.guard_tolerance!r}.")
        if self.guard_patience < 1:
            raise ValueError(f"guard_patience must be at least 1, got {self.guard_patience!r}.")
        check_choice(self, "likelihood_guard", GUARD_MODES)
        if self.reference_free:
            self._check_reference_free()
        if self.estimator == "lsif" and self.beta > 1 and not self.length_normalized:
            logger.warning(
                "estimator='lsif' with beta=%s on sequence sums: exp(2 * beta * log-ratio) is the first to overflow, "
                "and most pairs will be beyond max_exponent. Lower beta to 0.1, or set length_normalized=True.",
                self.beta,
            )

    def _check_reference_free(self) -> None:
        if not self.length_normalized:
            raise ValueError(
                "reference_free=True on sequence sums: exp(beta * log-probability) of a whole sequence is 0 from the "
                "start. Set length_normalized=True."
            )
        for name in ("precompute_ref_log_probs", "sync_ref_model"):
            if getattr(self, name):
                raise ValueError(f"reference_free=True leaves no reference model for {name}=True. Choose one of them.")


@dataclass
class InfoPOConfig(RowSettings, InfoPOSettings, DPOConfig):
    r"""
    Configuration of [`InfoPOTrainer`]: [`~trl.DPOConfig`] and the fields of [`InfoPOSettings`] and [`RowSettings`].

    Parameters:
        loss_type (`list[str]`, *optional*, defaults to `["infopo"]`):
            `"infopo"`, alone or mixed with losses of `DPOTrainer`: `["infopo", "sft"]` with `loss_weights=[1.0, 0.1]`.
            Without `"infopo"` the trainer is `DPOTrainer`.
        beta (`float`, *optional*, defaults to `0.1`):
            $\beta$ of the critic $f = \beta \log(\pi/\pi_{ref})$ of whole sequences, in 1/nat; with
            `length_normalized` it multiplies nats per token, and wants to be 10 or so.
    """

    loss_type: list[str] = field(
        default_factory=lambda: [INFOPO],
        metadata={
            "help": "'infopo', alone or mixed with losses of DPOTrainer by loss_weights, as in ['infopo', 'sft']. "
            "Without 'infopo' the trainer is DPOTrainer."
        },
    )

    def __post_init__(self) -> None:
        losses = [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)
        self.check_settings(paired=True)
        if losses.count(INFOPO) > 1:
            raise ValueError("loss_type names 'infopo' twice: give it once, with its weight in loss_weights.")
        if INFOPO in losses:
            self._refuse_beside_infopo(losses)
        super().__post_init__()

    def _refuse_beside_infopo(self, losses: list[str]) -> None:
        refused = {
            "ld_alpha": (self.ld_alpha is not None, "it re-weights tokens of one response by the other's length"),
            "use_weighting": (self.use_weighting, "give rows a 'weight' column instead"),
            "f_divergence_type": (
                self.f_divergence_type != "reverse_kl",
                "its scores are differences of rewards, which this loss does not use; leave it at 'reverse_kl'",
            ),
            "label_smoothing": (
                self.label_smoothing != 0 and losses == [INFOPO],
                "it is a parameter of the losses 'robust', 'exo_pair' and 'aot'; set it to 0",
            ),
        }
        for name, (hit, remedy) in refused.items():
            if hit:
                value = getattr(self, name)
                raise ValueError(f"{name}={value!r} does not go with loss_type={losses!r}: {remedy}.")


@dataclass
class InfoPOUnpairedConfig(RowSettings, InfoPOSettings, KTOConfig):
    r"""
    Configuration of [`InfoPOUnpairedTrainer`]: [`~trl.KTOConfig`], the fields of [`InfoPOSettings`] and
    [`RowSettings`], and one more.

    Parameters:
        positive_fraction (`float`, *optional*):
            $\rho$: the share of good rows in the data set. Counted where the data set has a length; a stream needs it.
        loss_type (`str`, *optional*, defaults to `"apo_zero_unpaired"`):
            The host's loss whose forward is used; it is the one without a KL batch, and its value is not.
    """

    positive_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Share of good rows in the train dataset, in (0, 1). Counted where it has a length; a stream "
            "needs it."
        },
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "Sampler of the train dataset. KTOConfig's default is 'sequential', for a KL batch that is not "
            "used here; rows sorted by label would be seen one class after the other.",
            "choices": ["random", "sequential", "group_by_length"],
        },
    )
    loss_type: str = field(
        default=HOST_UNPAIRED_LOSS,
        metadata={
            "help": "The host's loss whose forward is used, without a KL batch; its value is not used.",
            "choices": [HOST_UNPAIRED_LOSS],
        },
    )

    def __post_init__(self) -> None:
        if self.estimator not in UNPAIRED_ESTIMATORS:
            check_estimator(self.estimator, paired=False)
        self.check_settings(paired=False)
        if self.loss_type != HOST_UNPAIRED_LOSS:
            raise ValueError(
                f"loss_type={self.loss_type!r}: InfoPOUnpairedTrainer's loss is chosen by estimator. Leave loss_type "
                "out, or use KTOTrainer."
            )
        for name in ("desirable_weight", "undesirable_weight"):
            if getattr(self, name) != 1.0:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is KTO's: here the classes are balanced by positive_fraction. "
                    "Give rows a 'weight' column to count some more."
                )
        if self.positive_fraction is not None and not 0 < self.positive_fraction < 1:
            raise ValueError(f"positive_fraction must lie between 0 and 1, got {self.positive_fraction!r}.")
        super().__post_init__()
