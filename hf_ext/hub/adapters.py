"""An adapter's configuration on its way to the Hub: the base model by its name there, not by its place here."""

from __future__ import annotations

import json
from pathlib import Path, PureWindowsPath

from hf_ext.guards.inside import read_json

__all__ = ["adapter_config_to_push"]

_BASE = "base_model_name_or_path"


def adapter_config_to_push(path: Path) -> bytes | None:
    """
    What is pushed in place of an `adapter_config.json` whose base model is a folder of this machine.

    Args:
        path (`Path`):
            Any file of a push.

    Returns:
        `bytes` or `None`: the configuration with the Hub's name of the base model, if the card in its folder names it,
        else with the folder's own name; `None` where the file may go as it is.
    """
    if path.name != "adapter_config.json":
        return None
    from hf_ext.hub.base_models import base_model_metadata

    try:
        values = read_json(path)
    except ValueError:
        return None  # a file of that name which PEFT did not write
    base = values.get(_BASE)
    if not isinstance(base, str) or not base:
        return None
    place = PureWindowsPath(base)  # knows the separators of both worlds
    if not (place.anchor or base.startswith(("~", ".")) or Path(base).is_dir()):
        return None
    values[_BASE] = base_model_metadata(base)[0] or place.name
    return (json.dumps(values, indent=2) + "\n").encode()
