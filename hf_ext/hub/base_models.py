"""What a card takes over of the base model: Hub id, licence and languages, as far as files on this machine tell."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_ext.guards.yaml_file import YamlError
from hf_ext.hub.front_matter import LICENSE_KEYS, names_in, read_card

__all__ = ["base_model_card", "base_model_metadata", "is_hub_id"]

logger = logging.getLogger(__name__)

# What is taken over of a stranger's metadata: the Hub refuses a card whose licence or language is no such key.
MAX_NAME = 200
MAX_NAMES = 1000
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_WEB = re.compile(r"https?://[!-~]{1,500}")
_FILE_BESIDE = re.compile(r"(?:\./)?[A-Za-z0-9_-][A-Za-z0-9_. -]{0,200}")


def base_model_metadata(base_model: str | Path | None) -> tuple[str | None, str | list[str] | None]:
    """
    Hub id and licence of a base model, as far as files on this machine tell.

    Args:
        base_model (`str`, `Path` or `None`):
            Hub id or folder.

    Returns:
        `tuple[str | None, str | list[str] | None]`: the Hub id (for a folder, the one its card names), and the licence
        key or keys.
    """
    name, values = base_model_card(base_model)
    return name, values.get("license")


def base_model_card(base_model: str | Path | None) -> tuple[str | None, dict[str, Any]]:
    """
    Hub id of a base model, and what the card of a model tuned from it takes over, as far as files here tell.

    Args:
        base_model (`str`, `Path` or `None`):
            Hub id or folder.

    Returns:
        `tuple[str | None, dict[str, Any]]`: the Hub id (for a folder, the one its card names), and of `license`,
        `license_name`, `license_link` and `language` those that are known. A card that cannot be read tells nothing,
        and is named in the log: a stranger's card must not stop a save.
    """
    from huggingface_hub import try_to_load_from_cache

    if not base_model:  # a fresh model's name is the empty string, which is also this folder's path
        return None, {}
    if _is_folder(base_model):
        values = _card_metadata(Path(base_model) / "README.md")
        parents = names_in(values.get("base_model"))
        has_parent = len(parents) == 1 and is_hub_id(parents[0])
        parent = parents[0] if has_parent else None
        return parent, _taken_over(values, parent)
    if not isinstance(base_model, str) or not is_hub_id(base_model):
        return None, {}
    cached = try_to_load_from_cache(base_model, "README.md")
    return base_model, (_taken_over(_card_metadata(Path(cached)), base_model) if isinstance(cached, str) else {})


def _is_folder(name: str | Path) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # no permission, too long a name, a NUL
        return False


def _card_metadata(card: Path) -> dict[str, Any]:
    """The metadata of a card; empty, and a line in the log, where it cannot be read."""
    try:
        return read_card(card).metadata
    except (OSError, YamlError) as error:
        logger.warning("Licence and origin of the base model are not known: its card cannot be read. %s", error)
        return {}


def _taken_over(values: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """Licence and languages of a base model's card, where they are what they should be; `model` is its Hub id."""
    inherited: dict[str, Any] = {}
    name, link = values.get("license_name"), values.get("license_link")
    if isinstance(name, str) and len(name) <= MAX_NAME and name.isprintable() and name:
        inherited["license_name"] = name
    if isinstance(link, str) and _WEB.fullmatch(link):
        inherited["license_link"] = link
    elif isinstance(link, str) and model is not None and _FILE_BESIDE.fullmatch(link):
        inherited["license_link"] = f"https://huggingface.co/{model}/blob/main/{link.removeprefix('./')}"
    licence, languages = values.get("license"), values.get("language")
    if isinstance(languages, list):
        languages = ["no" if language is False else language for language in languages]  # YAML's way with Norwegian
    else:
        languages = "no" if languages is False else languages
    # one key or a list of keys: the Hub refuses a whole card for anything else
    for key, value in (("license", licence), ("language", languages)):
        names = names_in(value)
        entries = value if isinstance(value, list) else [value]
        if names and names == entries and len(names) <= MAX_NAMES and all(map(_KEY.fullmatch, names)):
            inherited[key] = value
    if inherited.get("license") in (None, "unknown"):
        inherited = {key: value for key, value in inherited.items() if key not in LICENSE_KEYS}
    return inherited


def is_hub_id(name: str) -> bool:
    """Whether `name` can be a Hub id: the right letters, and nothing of that name on this disk."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()
