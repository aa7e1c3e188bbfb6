"""Names of recipe files: looked up inside the package first, then on disk. Imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_ext.guards.yaml_file import read_yaml

ACCELERATE_FOLDER = "accelerate_configs"
# Method, as in `hf-ext train METHOD` -> the module that trains with it.
MODULES = {
    "weighted_sft": "hf_ext.recipes.weighted_sft.train",
    "flow": "hf_ext.recipes.flow.train",
    "context_free": "hf_ext.recipes.context_free.train",
    "infopo": "hf_ext.recipes.infopo.train",
    "infopo_unpaired": "hf_ext.recipes.infopo.unpaired",
    "infopo_online": "hf_ext.recipes.infopo.online",
    "rare": "hf_ext.recipes.rare.train",
    "consensus": "hf_ext.recipes.consensus.train",
}
METHODS = tuple(MODULES)
DATA_FOLDERS = ("pruning",)  # settings of `hf-ext data`, which trains nothing


def package_folder() -> Path:
    """Folder of the installed `hf_ext.recipes`."""
    return Path(str(files("hf_ext.recipes")))


def recipe_names() -> list[str]:
    """Every YAML file of the package as `folder/name.yaml`, the accelerate configs last."""
    names = (path.relative_to(package_folder()).as_posix() for path in package_folder().glob("*/*.yaml"))
    return sorted(names, key=lambda name: (name.startswith(ACCELERATE_FOLDER), name))


def find_recipe(name: str) -> Path:
    """
    The YAML file of that name: `flow/gsm8k.yaml` or `flow/gsm8k` inside the package, else a path on disk.

    Raises:
        ValueError: there is none; the message lists close names.
    """
    for candidate in (name, f"{name}.yaml"):
        if candidate in recipe_names():
            return package_folder() / candidate
    if _is_file(name):
        return Path(name)
    raise ValueError(
        f"no recipe {name!r} in the package and no such file"
        f"{did_you_mean(name, [n.removesuffix('.yaml') for n in recipe_names()])} "
        "('hf-ext recipes list' names them all)"
    )


def take_config(arguments: Iterable[str]) -> tuple[list[str], str | None]:
    """
    Command-line arguments without `--config NAME`, and that name; both spellings, `--config=NAME` too.

    Raises:
        ValueError: no name follows `--config`.
    """
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in words:
        return words, None
    place = words.index("--config") + 1
    if place == len(words) or words[place].startswith("--"):
        raise ValueError("argument --config: expected the name of a recipe or a file")
    return words[: place - 1] + words[place + 1 :], words[place]


def read_settings(name: str) -> tuple[Path, dict[str, Any]]:
    """
    The YAML file that [`find_recipe`] finds, and the settings in it.

    Raises:
        ValueError: there is no such file, or it is no YAML mapping of option names to values.
    """
    path = find_recipe(name)
    values = read_yaml(path, exponents_from=2)  # those of the first level are typed
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a YAML mapping of option names to values, found {type(values).__name__}")
    wrong = next((key for key in values if not isinstance(key, str)), "")
    if not isinstance(wrong, str):
        raise ValueError(f"{path}: the key {wrong!r:.80} is no name of an option")
    return path, values


def method_of(recipe: str) -> str:
    """
    The method that reads a recipe of the package: its folder's, or a variant's of it that the file's name begins with.

    `infopo/gsm8k_pairs.yaml` is read by `infopo`, `infopo/online_gsm8k.yaml` by `infopo_online`.
    """
    folder, _, file = recipe.removesuffix(".yaml").rpartition("/")
    variant = f"{folder}_{file.split('_')[0]}"
    return variant if variant in MODULES else folder


def training_recipes() -> list[str]:
    """Those of [`recipe_names`] that a method trains with."""
    return [name for name in recipe_names() if name.split("/")[0] not in (ACCELERATE_FOLDER, *DATA_FOLDERS)]


def find_accelerate_config(name: str) -> Path:
    """
    The accelerate config of that name: `fsdp2` inside the package, else a path on disk.

    Raises:
        ValueError: there is none; the message lists those of the package.
    """
    known = [Path(n).stem for n in recipe_names() if n.startswith(ACCELERATE_FOLDER)]
    stem = name.removesuffix(".yaml").removeprefix(f"{ACCELERATE_FOLDER}/")
    if stem in known:
        return package_folder() / ACCELERATE_FOLDER / f"{stem}.yaml"
    if _is_file(name):
        return Path(name)
    raise ValueError(f"no accelerate config {name!r} in the package and no such file; the package has {known}")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a name too long for the disk
        return False


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?`, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
