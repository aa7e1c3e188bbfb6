"""Several processes that train together must train on the same rows."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def refuse_different_ranks(values: ArrayLike, subject: str) -> None:
    """
    Compare a result across the processes of a run; alone it does nothing.

    Args:
        values (array):
            What every process has computed for itself.
        what (`str`):
            Its name, as the message says it.

    Raises:
        RuntimeError: on every process, if one has another result than process 0.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    array = np.ascontiguousarray(values)
    digest = hashlib.sha256(f"{array.shape}{array.dtype}".encode() + array.tobytes()).hexdigest()
    digests: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest)
    other = [rank for rank, value in enumerate(digests) if value != digests[0]]
    if other:
        raise RuntimeError(
            f"{subject} differ between processes 0 and {other[0]}: they would train on different rows and wait for "
            "each other for ever. Give all processes the same dataset and the predictions of one gathered evaluation "
            "(predict_column gathers them), or relabel in process 0 and load its file in the others."
        )
