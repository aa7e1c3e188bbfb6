r"""
The gate of a mixture of language models, which tells from a prompt who handles the row; and responsibilities.

The latent $z$ is one of a row, not of a token: $p(y \mid x) = \sum_i g_i(x)\, p_i(y \mid x)$, $x$ the prompt, $y$ the
completion.

Reference: Jacobs et al. 1991, *Adaptive Mixtures of Local Experts*; Jordan and Jacobs 1994 (EM for a gate and its
experts); Fruytier et al. 2025 (arXiv 2411.06056), section 3.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from hf_ext.guards.disk import write_whole
from hf_ext.guards.inside import read_json
from hf_ext.moe.lbfgs import Curvature
from hf_ext.moe.m_steps import m_step_lbfgs
from hf_ext.moe.objective import Objective, Targets
from hf_ext.moe.parameters import MixtureShape
from hf_ext.moe.rows import check_finite, mixture_rows

FORMAT_REVISION = 1
_STEPS = 2000  # of L-BFGS at most: the problem is convex, and whitened
_TOLERANCE = 1e-8  # of an entry of the gradient, nats a row
_LLOYD_STEPS = 100
_CLUSTER_STARTS = 8
_TENSORS = "gate.safetensors"
_CONFIG = "config.json"


@dataclass(frozen=True)
class PromptGate:
    """
    Multinomial logistic regression of the experts on embeddings of prompts; float64.

    Args:
        weight (`torch.Tensor` of shape `(k, d + 1)`):
            On standardised features; the last column multiplies 1.
        mean, scale (`torch.Tensor` of shape `(d,)`):
            A feature is standardised as `(x - mean) / scale`.
    """

    weight: Tensor
    mean: Tensor
    scale: Tensor

    def log_probs(self, X: Tensor) -> Tensor:
        r"""$\log g_i(x)$ in nats, shape `(n, k)`, of embeddings `(n, d)`."""
        standardised = (X.to(self.weight) - self.mean) / self.scale
        return (standardised @ self.weight[:, :-1].T + self.weight[:, -1]).log_softmax(-1)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `gate.safetensors` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "format_revision": FORMAT_REVISION,
            "num_experts": len(self.weight),
            "input_dim": len(self.mean),
            "features": "mean of the base model's last hidden states over the prompt's tokens",
        }
        write_whole(folder / _TENSORS, save({name: tensor.contiguous().cpu() for name, tensor in vars(self).items()}))
        write_whole(folder / _CONFIG, json.dumps(config, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> PromptGate:
        """
        A gate from its folder.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if another version wrote the folder, or its tensors are not those of a gate.
        """
        folder = Path(folder)
        config = read_json(folder / _CONFIG, subject="the configuration of a gate")
        revision = config.get("format_revision")
        if revision != FORMAT_REVISION:
            raise ValueError(f"{folder} holds a gate of format {revision!r}; this version reads {FORMAT_REVISION}.")
        tensors = load((folder / _TENSORS).read_bytes())
        experts = config.get("num_experts")
        width = config.get("input_dim")
        is_known = isinstance(width, int)
        shapes = {"weight": (experts, width + 1), "mean": (width,), "scale": (width,)} if is_known else {}
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
            raise ValueError(f"{folder / _TENSORS} does not hold a gate of {experts!r} experts on {width!r} features.")
        return cls(**{name: tensor.double() for name, tensor in tensors.items()})


def fit_gate(X: Tensor, responsibilities: Tensor, *, ridge: float) -> PromptGate:
    r"""
    The gate's M-step, solved to convergence: multinomial logistic regression on soft labels.

    $$\min_W\; -\frac1n \sum_n \sum_i r_{ni} \log g_i(x_n) + \tfrac{\lambda}{2} \lVert W \rVert^2$$

    on standardised features; intercepts are not penalised. Embeddings have more features than a small set has rows:
    without a penalty the gate would repeat the responsibilities, and the next E-step believe it.

    Args:
        X (`torch.Tensor` of shape `(n, d)`):
            Embeddings of the prompts.
        responsibilities (`torch.Tensor` of shape `(n, k)`):
            Rows sum to 1.
        ridge (`float`):
            $\lambda > 0$, nats a row on a squared coefficient over two.

    Returns:
        [`PromptGate`]: of one expert it is always 1.

    Raises:
        ValueError: if a number is not finite; the message names row and column.

    Reference: Fruytier et al. 2025 (arXiv 2411.06056), section 3, the gate's part of the M-step.
    """
    check_finite(X, "X")
    check_finite(responsibilities, "responsibilities")
    experts = responsibilities.shape[1]
    X = X.double()
    if experts == 1:
        return PromptGate(X.new_zeros(1, X.shape[1] + 1), torch.zeros_like(X[0]), torch.ones_like(X[0]))
    # Labels play no part in the gate; a shape needs some.
    shape = MixtureShape(experts, "softmax", num_outputs=2)
    rows = mixture_rows(X, torch.arange(len(X), device=X.device) % 2, shape)
    objective = Objective(rows, shape, whiten=True, variance_floor=1.0)
    start = X.new_zeros(1, experts * objective.width)
    descent = m_step_lbfgs(
        objective,
        start,
        X.new_tensor([ridge]),
        Targets(responsibilities.to(X)[:, None, :]),
        None,
        Curvature.empty(1, start.shape[1], start),
        steps=_STEPS,
        tolerance=X.new_tensor([_TOLERANCE]),
        gate_only=True,
    )
    assert objective.whitening is not None
    weight = descent.point.view(experts, objective.width) @ objective.whitening
    return PromptGate(weight, rows.standardisation.mean, rows.standardisation.scale)


def tempered_responsibilities(
    log_gate: Tensor, log_likelihood: Tensor, num_tokens: Tensor, temperature: float
) -> Tensor:
    r"""
    E-step whose evidence is cooled: $r_{ni} \propto g_i(x_n) \exp(\ell_{ni} / \tau_n)$, $\tau_n = \tau T_n$.

    Sums over tokens are hundreds of nats, and differences between experts tens: untempered, every $r$ would be 0 or 1
    from the first step, and no row would ever move. $\tau = 1/T_n$ is the E-step of the likelihood itself.

    Args:
        log_gate (`torch.Tensor` of shape `(n, k)`):
            $\log g_i(x_n)$ in nats.
        log_likelihood (`torch.Tensor` of shape `(n, k)`):
            $\ell_{ni} = \sum_t \log p_i(y_{nt} \mid \cdot)$ in nats.
        num_tokens (`torch.Tensor` of shape `(n,)`):
            Supervised tokens of each row, $T_n$.
        temperature (`float`):
            $\tau$, a share of the row's tokens.

    Returns:
        `torch.Tensor` of shape `(n, k)`: rows sum to 1.
    """
    evidence = log_likelihood / (temperature * num_tokens)[:, None]
    return (log_gate + evidence).softmax(-1)


def mixture_nll(log_gate: Tensor, log_likelihood: Tensor) -> Tensor:
    r"""$-\log \sum_i g_i(x_n) \exp \ell_{ni}$ of each row in nats, shape `(n,)`; nothing is tempered."""
    return -(log_gate + log_likelihood).logsumexp(-1)


def prompt_clusters(X: Tensor, experts: int, seed: int) -> Tensor:
    """
    Responsibilities to begin with: k-means on standardised embeddings, the best of eight starts; one-hot.

    Experts that start alike and see the same rows stay alike, so that something has to tell them apart first.

    Args:
        X (`torch.Tensor` of shape `(n, d)`):
            Embeddings of the prompts.
        experts (`int`):
            Number of clusters.
        seed (`int`):
            Of the first centres.

    Returns:
        `torch.Tensor` of shape `(n, experts)`, zeros and ones in float64.

    Raises:
        ValueError: if there are fewer different embeddings than clusters.

    Reference: Arthur and Vassilvitskii 2007, *k-means++: The Advantages of Careful Seeding*; Lloyd 1982.
    """
    X = X.double()
    features = (X - X.mean(0)) / X.std(0, correction=0).clamp(min=1e-12)
    generator = torch.Generator().manual_seed(seed)
    results = [_lloyd(features, _first_centres(features, experts, generator)) for _ in range(_CLUSTER_STARTS)]
    nearest = min(results, key=lambda result: result[1])[0]
    return torch.nn.functional.one_hot(nearest, experts).double()


def _first_centres(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    centres = features[torch.randint(len(features), (1,), generator=generator).to(features.device)]
    while len(centres) < count:
        distances = torch.cdist(features, centres).square().amin(1)
        if float(distances.max()) <= 1e-9 * features.shape[1]:
            raise ValueError(
                f"num_experts={count}, but the rows have only {len(centres)} different prompts: the gate could not "
                "tell the experts apart. Take fewer experts."
            )
        position = torch.multinomial(distances.cpu(), 1, generator=generator).to(features.device)
        centres = torch.cat([centres, features[position]])
    return centres


def _lloyd(features: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """Number of each row's cluster, and the sum of squared distances to their centres."""
    for _ in range(_LLOYD_STEPS):
        nearest = torch.cdist(features, centres).argmin(1)
        sizes = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, features)
        means = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
        if torch.equal(means, centres):
            break
        centres = means
    return nearest, float((features - centres[nearest]).square().sum())
