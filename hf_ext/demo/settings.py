"""What one demo is: its sizes, its seed, and what it needs of the machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

RUNS = {"sft": "SFT", "flow": "FLOW", "context_free": "context-free", "both": "both"}
"""The runs in the order they are done, with their names in tables."""

ANCHORED = ("context_free", "both")
"""The runs whose model is kept: those that see context-free rows."""

PURPOSES = {
    "flow": "for targets with rows that teach nothing (here half): it leaves them, for what they cost the easy ones",
    "context_free": "for keeping what the model knew, whatever the rows are: look at the KL",
    "both": "for both",
}
"""What each run but plain SFT is for."""

FLOW_TAU = "ess:0.6"
"""FLOW's temperature: weights as unequal as if six rows in ten were left, near the half that is easy."""


@dataclass(frozen=True)
class DemoSettings:
    """
    Sizes of a demo. Two demos with equal settings give the same numbers on one machine.

    Args:
        model (`str`):
            `"smollm2-135m-instruct"` (from its wheel) or `"tiny"` (built in code).
        seed (`int`):
            Seed of rows, samples and order.
        max_steps (`int`), batch_size (`int`), learning_rate (`float`):
            The same for every run; AdamW, linear decay after `warmup_steps`. One epoch: `max_steps * batch_size` rows.
        warmup_steps (`int`):
            Steps over which the learning rate rises.
        num_held_out (`int`):
            Held-out target rows.
        context_free_tokens (`int`), fresh_tokens (`int`), max_new_tokens (`int`):
            Sampled tokens for training, fresh ones for the evaluation, and the longest sample.
        bf16 (`bool`):
            bfloat16 autocast throughout.
        memory_bytes (`int`), disk_bytes (`int`):
            Needed free room, measured with a margin.
        duration (`str`):
            What to expect on two cores, with a margin.
    """

    model: str
    seed: int
    max_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    num_held_out: int
    context_free_tokens: int
    fresh_tokens: int
    max_new_tokens: int
    bf16: bool
    memory_bytes: int
    disk_bytes: int
    duration: str

    @property
    def num_rows(self) -> int:
        """Training rows: each is seen once."""
        return self.max_steps * self.batch_size

    def to_dict(self) -> dict[str, Any]:
        """What the numbers depend on: the settings and the libraries' versions, for `json`."""
        sizes = {k: v for k, v in asdict(self).items() if k not in ("memory_bytes", "disk_bytes", "duration")}
        versions = {name: version(name) for name in ("hf-ext", "torch", "transformers", "trl")}
        return {**sizes, "flow_tau": FLOW_TAU, **versions}


def full_settings(seed: int = 0) -> DemoSettings:
    """The default: SmolLM2-135M-Instruct, all parameters."""
    return DemoSettings(
        model="smollm2-135m-instruct",
        seed=seed,
        max_steps=16,
        batch_size=4,
        learning_rate=1e-4,  # chosen on SFT alone: 3e-5 leaves 0.8 nats per token of the skill unlearned, this 0.1
        warmup_steps=2,
        num_held_out=32,
        context_free_tokens=2600,
        fresh_tokens=1300,
        max_new_tokens=48,
        bf16=cpu_has_bf16(),
        memory_bytes=4_500_000_000,  # the peak is 4.0 GB: weights, gradients and AdamW's two moments in float32
        disk_bytes=1_800_000_000,  # two kept models and one on its way out, 0.54 GB each
        duration="up to 8 minutes",
    )


def fast_settings(seed: int = 0) -> DemoSettings:
    """`--fast`: a tiny model, to see the whole path in a minute. Its numbers mean little."""
    return DemoSettings(
        model="tiny",
        seed=seed,
        max_steps=40,
        batch_size=8,
        learning_rate=2e-3,
        warmup_steps=4,
        num_held_out=64,
        context_free_tokens=6_000,
        fresh_tokens=2_000,
        max_new_tokens=32,
        bf16=False,
        memory_bytes=1_000_000_000,
        disk_bytes=50_000_000,
        duration="up to 90 seconds",
    )


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware; elsewhere autocast would be slower than float32."""
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # absent before: then float32
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))
