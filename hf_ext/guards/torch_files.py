"""What loading a file of `torch.save` would do, read from its opcodes without loading it."""

from __future__ import annotations

import zipfile
from pathlib import Path

# What transformers allows besides torch's own list while it loads `rng_state.pth` (5.23, `safe_globals`).
RANDOM_STATE = (
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype",
    "_codecs.encode",
)  # fmt: skip
RANDOM_DTYPES = "numpy.dtypes."


def torch_file_problem(path: Path) -> str | None:
    """
    Why a torch file must not be loaded, or `None`.

    It must be a zip archive as `torch.save` writes it, nothing packed (so it unpacks to no more than its size), whose
    pickle names nothing but what torch allows with `weights_only=True`, and numpy's random state.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return f"is no torch file: {path.stat().st_size:,} bytes that torch.save did not write"
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        return "is packed, as torch.save never does: it was not loaded, for it may fill the memory"
    if len({member.filename for member in members}) != len(members):
        return "holds two files of one name: torch.save did not write it"
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # the reader of opcodes raises whatever the bytes provoke
        return f"holds a pickle that torch does not read safely ({type(error).__name__}): it was not loaded"
    names = [name for name in names if name not in RANDOM_STATE and not name.startswith(RANDOM_DTYPES)]
    if names:
        return f"holds a pickle that calls {sorted(names)[0]!r}: it was not loaded, for that may run code"
    return None
