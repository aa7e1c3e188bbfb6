"""The fit behind a training: made of this process's rows, written beside a checkpoint, and what is logged of it."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_ext.moe.diagnostics import diagnose
from hf_ext.moe.em import MixtureFit
from hf_ext.moe.parameters import MixtureShape
from hf_ext.moe.results import FitLog
from hf_ext.trainers.moe_em.config import MoEEMConfig
from hf_ext.trainers.moe_em.rows import FeatureRows

logger = logging.getLogger(__name__)

FIT_FILE = "moe_fit.safetensors"  # of a checkpoint: the fit in float64
_DIAGNOSED_NUMBERS = 2**27  # rows that are diagnosed, times numbers of a sweep over each: some seconds


def new_fit(
    args: MoEEMConfig, shape: MixtureShape, train_rows: FeatureRows, held_out_rows: list[FeatureRows]
) -> MixtureFit:
    """
    A fit of which each process holds a share of the rows.

    Raises:
        ValueError: if rows cannot be fitted, as [`~hf_ext.moe.em.MixtureFit`] says, or are fewer than the processes.
    """
    held_out = None
    if held_out_rows and not args.is_stochastic:
        features_of_sets, labels_of_sets, _ = zip(*(_share(rows, args) for rows in held_out_rows), strict=True)
        held_out = (torch.cat(features_of_sets), torch.cat(labels_of_sets))
    features, labels, weights = _share(train_rows, args)
    return MixtureFit(
        features,
        labels,
        shape,
        args.fit_arguments(),
        sample_weight=weights,
        held_out=held_out,
        reduce=partial(reduce, reduction="sum"),
        generator=torch.Generator().manual_seed(args.seed),
    )


def _share(rows: FeatureRows, args: MoEEMConfig) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, labels and weights of this process, on its device."""
    if len(rows) < args.world_size:
        raise ValueError(f"{len(rows)} rows are fewer than the {args.world_size} processes that share them.")
    share = rows.share(args.process_index, args.world_size)
    device = "cpu" if args.device.type == "mps" else args.device  # which has no float64
    assert rows.labels is not None
    features = torch.from_numpy(np.array(rows.features[share])).to(device)
    labels = torch.from_numpy(rows.labels[share]).to(device)
    return features, labels, None if rows.weights is None else torch.from_numpy(rows.weights[share]).to(device)


def write_fit(folder: Path, fit: MixtureFit, is_stochastic: bool, facts: dict[str, str]) -> None:
    """Write what a run resumes from, or of a stock optimiser what a resumed run is compared with."""
    state = fit.identity() if is_stochastic else fit.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, str(folder / FIT_FILE), metadata=facts)


def read_fit(folder: Path, fit: MixtureFit, is_stochastic: bool, facts: dict[str, str]) -> None:
    """
    Go on from what [`write_fit`] wrote.

    Raises:
        ValueError: if there is nothing, or it is of other settings, another encoder or other rows; each is listed.
    """
    file = folder / FIT_FILE
    if not file.is_file():
        raise ValueError(f"{folder} has no {FIT_FILE}: it is no checkpoint of a mixture that can be trained on.")
    try:
        with safe_open(file, "pt") as opened:
            stored = opened.metadata() or {}
        state = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read ({error}): resume from another checkpoint, or start anew.") from None
    missing = fit.identity().keys() - state.keys()
    if missing:
        raise ValueError(f"{file} is no state of a fit: it has no {sorted(missing)[0]!r}.")
    changes = [
        f"{name} was {stored.get(name)!r} and is {value!r}"
        for name, value in facts.items()
        if stored.get(name) != value
    ]
    if changes:
        raise ValueError(f"the fit cannot be resumed: {'; '.join(changes)}. Give the same settings, or start anew.")
    if is_stochastic:
        fit.check_same(state)
    else:
        fit.load_state_dict(state)


def step_logs(latest: FitLog) -> dict[str, Any]:
    """What is logged of an iteration."""
    logs = {
        "loss": latest.objective,
        "nll": latest.nll,
        "passes": latest.passes,
        "seconds": latest.seconds,
        "n_i_min": min(latest.n_i),
        "n_i_max": max(latest.n_i),
        "running": latest.running,
        "reseeds": latest.reseeds,
    }
    return logs if latest.held_out_nll is None else logs | {"held_out_nll": latest.held_out_nll}


def diagnostic_logs(fit: MixtureFit, is_main_process: bool) -> dict[str, float]:
    """What is logged of a fit at its end, finite numbers alone; the advice that follows is a warning."""
    size = fit.shape.columns * fit.objective.width
    # The same number of rows on every process: they add up their sums together.
    facts = diagnose(fit, max_rows=max(64, min(2048, _DIAGNOSED_NUMBERS // size)))
    if facts.advice and is_main_process and fit.arguments.method in ("em", "gradient_em", "gd"):
        logger.warning("%s", facts.advice)
    logs = {
        "gate_entropy": facts.gate_entropy,
        "responsibility_entropy": facts.responsibility_entropy,
        "separation": facts.separation,
        "snr_min": min(facts.snr),
        "snr_max": max(facts.snr),
        "mim_lambda_max": facts.mim_lambda_max,
        "predicted_iterations": facts.predicted_iterations,
    }
    return {name: value for name, value in logs.items() if math.isfinite(value)}
