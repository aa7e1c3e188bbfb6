"""
Does a generator learn better pictures from pruned rows? Fashion-MNIST, part of the pictures replaced by noise.

A class-conditional variational autoencoder (fully connected, 784-256-16, a prior of its own for each class) is
trained for the same number of steps on the rows that a selector keeps of 10,000, shared among the labels in
proportion. Selectors see 64 hidden units of a small network trained for five epochs on the corrupted rows. Distance:
Frechet (mean and covariance) in the 64 hidden units of a convolutional classifier trained on 10,000 other, clean
rows, between as many generated pictures as there are clean test pictures, of the same labels, and those. Lower is
better. Wrong pictures: half are uniform noise, half another row's picture with an opaque square and inverted grey.
Arms: every row ("full"), the clean rows alone ("clean", which nobody can know), random, and the mean (herding) and the
median (gm) as target, each with rows as they are and with rows of length one: herding and gm_raw, herding_unit and gm.

A seed draws the rows, the corruption, the networks and the samples; arms of a seed share all of it. Intervals: 95 %,
Student's t over seeds, of the differences within a seed.

Last line, one JSON object (means over seeds; 20 % of the rows kept):
  benchmark, seeds, keep
  <corrupted share>_<arm>                 Frechet distance
  gm_over_<arm>_<share>                   ratio of distances to random, herding, herding_unit (below 1: gm is better)
  gm_raw_over_herding_<share>             the same with rows as they are on both sides
  wrong_kept_<share>_<arm>                share of the rows kept that are wrong, in %
  floor                                   distance between clean training rows and the test rows
  cpu_minutes                             processor time of all arms and seeds, one thread

    HF_EXT_DATA=... python benchmarks/pruning_generation.py            # resumable, writes .json and .png
    HF_EXT_DATA=... python benchmarks/pruning_generation.py --quick    # under a minute, fewer steps, not the claim
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from common import finish, parser, piece
from pruning_robustness import Corrupted, fashion_mnist, network
from scipy.linalg import sqrtm
from scipy.stats import t as student
from torch.nn import functional as F

from hf_ext.data.pruning.selectors import select_rows

SHARES = (0.0, 0.2, 0.4)
SELECTED: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "herding": ("herding", {}),
    "herding_unit": ("herding", {"metric": "unit"}),
    "gm": ("gm", {}),
    "gm_raw": ("gm", {"metric": "raw"}),
}
ARMS = ("full", "clean", *SELECTED)
KEEP = 0.2
LATENT = 16
GRID = 8  # pictures a class in the figure


class Generator(torch.nn.Module):
    """Class-conditional variational autoencoder of 28 x 28 pictures in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(794, 256), torch.nn.ReLU(), torch.nn.Linear(256, 2 * LATENT)
        )
        self.decoder = torch.nn.Sequential(
            torch.nn.Linear(LATENT + 10, 256), torch.nn.ReLU(), torch.nn.Linear(256, 784)
        )
        self.prior = torch.nn.Embedding(10, 2 * LATENT)  # mean and log variance: one prior for all blends the classes
        torch.nn.init.zeros_(self.prior.weight)

    def loss(self, pictures: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Negative evidence lower bound, nats a picture (Bernoulli likelihood of grey values)."""
        kind = F.one_hot(labels, 10).float()
        mean, log_variance = self.encoder(torch.cat([pictures, kind], 1)).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        logits = self.decoder(torch.cat([code, kind], 1))
        misfit = F.binary_cross_entropy_with_logits(logits, pictures, reduction="sum")
        center, log_spread = self.prior(labels).chunk(2, 1)
        ratio = ((mean - center) ** 2 + log_variance.exp()) / log_spread.exp()
        kl = 0.5 * (ratio - 1 - log_variance + log_spread).sum()
        return (misfit + kl) / len(pictures)

    def sample(self, labels: torch.Tensor) -> torch.Tensor:
        """One picture a label: the decoder's mean at a code drawn from the label's prior."""
        kind = F.one_hot(labels, 10).float()
        center, log_spread = self.prior(labels).chunk(2, 1)
        code = center + torch.randn(len(labels), LATENT) * (log_spread / 2).exp()
        return self.decoder(torch.cat([code, kind], 1)).sigmoid()


class Judge(torch.nn.Module):
    """Small convolutional classifier; its 64 hidden units are the space of the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, 2, 1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, 2, 1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(32 * 49, 64),
            torch.nn.ReLU(),
        )
        self.head = torch.nn.Linear(64, 10)

    def features(self, pictures: torch.Tensor) -> np.ndarray:
        """Hidden units in float64, shape `(n, 64)`."""
        with torch.no_grad():
            parts = [self.body(part.view(-1, 1, 28, 28)) for part in pictures.split(500)]
        return torch.cat(parts).double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of two normal distributions with the moments of the rows: Heusel et al. 2017, eq. 6."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(sqrtm(first @ second))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * np.trace(root))


def spoilt(pictures: np.ndarray, labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Spoil a share of the pictures in place; which ones."""
    wrong = rng.permutation(len(pictures))[: round(share * len(pictures))]
    noise, other = np.array_split(wrong, 2)
    pictures[noise] = rng.random((len(noise), 784), dtype=np.float32)
    for row, source in zip(other, rng.permutation(len(pictures))[: len(other)], strict=True):
        picture = 1 - pictures[source].reshape(28, 28)
        top, left = rng.integers(0, 14, 2)
        picture[top : top + 14, left : left + 14] = rng.random()
        pictures[row] = picture.ravel()
    mask = np.zeros(len(pictures), bool)
    mask[wrong] = True
    return mask


def trained(model: Any, loss: Any, rows: int, steps: int, rate: float) -> Any:
    """Adam on batches of 128 rows, drawn epoch by epoch; the rate falls linearly."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    order, place = torch.randperm(rows), 0
    for step in range(steps):
        if place + 128 > rows:
            order, place = torch.randperm(rows), 0
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        value = loss(order[place : place + 128])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        place += 128
    return model


def judge_of(pictures: np.ndarray, labels: np.ndarray, seed: int, steps: int) -> Judge:
    """The judge, trained on clean rows that no generator sees."""
    torch.manual_seed(seed)
    judge, inputs, targets = Judge(), torch.from_numpy(pictures).view(-1, 1, 28, 28), torch.from_numpy(labels)
    return trained(
        judge,
        lambda rows: F.cross_entropy(judge.head(judge.body(inputs[rows])), targets[rows]),
        len(labels),
        steps,
        2e-3,
    )


def picked(arm: str, rows: Corrupted, hidden: np.ndarray, seed: int) -> np.ndarray:
    """Row numbers that an arm trains on."""
    if arm == "full":
        return np.arange(len(rows.labels))
    if arm == "clean":
        return np.flatnonzero(~rows.wrong)
    method, options = SELECTED[arm]
    return select_rows(method, hidden, round(KEEP * len(hidden)), groups=rows.labels, seed=seed, **options).indices


def one_seed(arrays: dict[str, np.ndarray], seed: int, n: int, steps: int) -> dict[str, Any]:
    """Every share of wrong rows and every arm of one seed."""
    started = time.process_time()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(arrays["train"]))
    mine, other = order[:n], order[-min(n, len(order) - n) :]
    judge = judge_of(arrays["train"][other], arrays["train_labels"][other], seed, steps)
    test, test_labels = torch.from_numpy(arrays["test"]), torch.from_numpy(arrays["test_labels"])
    real = judge.features(test)
    with torch.no_grad():
        right = judge.head(judge.body(test.view(-1, 1, 28, 28))).argmax(1) == test_labels
    floor = frechet(judge.features(torch.from_numpy(arrays["train"][mine])), real)
    found: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    for share in SHARES:
        pictures, labels = arrays["train"][mine].copy(), arrays["train_labels"][mine]
        wrong = spoilt(pictures, labels, share, np.random.default_rng([seed, 1]))
        rows = Corrupted(pictures, labels, wrong, arrays["test"], arrays["test_labels"], 10)
        hidden = network(rows, (128, 64), 5, seed)["hidden"]
        for arm in ARMS:
            kept = picked(arm, rows, hidden, seed)
            if arm != "clean" or share:  # with nothing spoilt it is "full" over again
                inputs, targets = torch.from_numpy(pictures[kept]), torch.from_numpy(labels[kept])
                torch.manual_seed(seed)
                model = Generator()
                trained(model, lambda b, m=model, x=inputs, y=targets: m.loss(x[b], y[b]), len(kept), steps, 3e-3)
                with torch.no_grad():
                    made = model.sample(test_labels)
            distance = frechet(judge.features(made), real)
            one = {"seed": seed, "corrupted": share, "arm": arm, "frechet": round(distance, 4)}
            found.append(one | {"rows": len(kept), "wrong_kept": round(100 * float(wrong[kept].mean()), 3)})
            if seed == 0 and share == SHARES[-1] and arm != "clean":
                first = [int(np.flatnonzero(arrays["test_labels"] == c)[i]) for c in range(10) for i in range(GRID)]
                figures[arm] = (255 * made[first].numpy()).astype(np.uint8).tolist()
    cpu = round(time.process_time() - started, 1)
    judged = round(100 * float(right.float().mean()), 2)
    return {"rows": found, "floor": floor, "judge_accuracy": judged, "cpu_seconds": cpu, "figures": figures}


def headline_of(rows: list[dict[str, Any]], floors: list[float], cpu_seconds: float) -> dict[str, Any]:
    """Means over seeds, ratios of means."""
    seeds = sorted({row["seed"] for row in rows})
    headline: dict[str, Any] = {"benchmark": "pruning_generation", "seeds": len(seeds), "keep": KEEP}
    for share in SHARES:
        own = {arm: [row for row in rows if (row["arm"], row["corrupted"]) == (arm, share)] for arm in ARMS}
        mean = {arm: fmean(row["frechet"] for row in of) for arm, of in own.items()}
        name = f"{round(100 * share)}"
        headline |= {f"{name}_{arm}": round(value, 3) for arm, value in mean.items()}
        for rival in ("random", "herding", "herding_unit"):
            headline[f"gm_over_{rival}_{name}"] = round(mean["gm"] / mean[rival], 4)
        headline[f"gm_raw_over_herding_{name}"] = round(mean["gm_raw"] / mean["herding"], 4)
        if share:
            for arm in SELECTED:
                headline[f"wrong_kept_{name}_{arm}"] = round(fmean(row["wrong_kept"] for row in own[arm]), 1)
    return headline | {"floor": round(fmean(floors), 3), "cpu_minutes": round(cpu_seconds / 60, 1)}


def differences_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Distance of gm less that of each other arm, within a seed, with its 95 % half-width."""
    by = {(row["corrupted"], row["arm"], row["seed"]): row["frechet"] for row in rows}
    seeds, found = sorted({row["seed"] for row in rows}), []
    for share in SHARES:
        for arm in ARMS:
            if arm != "gm":
                gaps = [by[share, "gm", seed] - by[share, arm, seed] for seed in seeds]
                half = student.ppf(0.975, len(gaps) - 1) * stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
                one = {"corrupted": share, "gm_less": arm, "mean": round(fmean(gaps), 4)}
                found.append(one | {"half_width": round(float(half), 4)})
    return found


def plot(figures: dict[str, Any], path: Path) -> None:
    """Pictures that each arm's generator makes of the same codes, a line a class."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(figures), figsize=(2.6 * len(figures), 3.6))
    for axis, (arm, pictures) in zip(axes, figures.items(), strict=True):
        tiles = np.array(pictures, np.uint8).reshape(10, GRID, 28, 28).transpose(0, 2, 1, 3).reshape(280, GRID * 28)
        axis.imshow(tiles, cmap="gray_r")
        axis.set_title(arm)
        axis.axis("off")
    figure.suptitle(f"{SHARES[-1]:.0%} wrong pictures, {KEEP:.0%} kept", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> None:
    """Run every missing seed, then print table and headline."""
    options = parser(__doc__ or "", "pruning_generation")
    options.add_argument("--seeds", type=int, default=3)
    args = options.parse_args()
    warnings.simplefilter("ignore")  # a target that cannot be reached is part of the matter
    torch.set_num_threads(1)
    n, steps = (1000, 30) if args.quick else (10_000, 1200)
    arrays = fashion_mnist(args.work)
    done = []
    for seed in range(1 if args.quick else args.seeds):
        settings = {"seed": seed, "n": n, "steps": steps, "keep": KEEP, "shares": SHARES, "arms": ARMS}
        done.append(piece(args.work, f"seed-{seed}", settings, lambda s=seed: one_seed(arrays, s, n, steps)))
        print(f"seed {seed}: {done[-1]['cpu_seconds']} s of processor time, {done[-1]['seconds']} s", flush=True)
    rows = [row for one in done for row in one["rows"]]
    headline = headline_of(rows, [one["floor"] for one in done], sum(one["cpu_seconds"] for one in done))
    differences = differences_of(rows)
    for one in differences:
        print(json.dumps(one))
    judged = [one["judge_accuracy"] for one in done]
    floors = [round(one["floor"], 4) for one in done]
    result = {"rows": rows, "differences": differences, "judge_accuracy": judged, "floors": floors}
    output = finish(args, result, headline)
    if output:
        plot(done[0]["figures"], output.with_suffix(".png"))


if __name__ == "__main__":
    main()
