"""Names of recipe files: looked up inside the package first, then on disk. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hf_ext.recipes
from hf_ext.guards.near_names import did_you_mean
from hf_ext.guards.yaml_file import read_yaml
from hf_ext.method import Method, known_methods

ACCELERATE_FOLDER = "accelerate_configs"


def recipe_files() -> dict[str, Path]:
    """Every YAML file of the package by its name, `folder/name.yaml`, the accelerate configs last."""
    paths = [path for folder in hf_ext.recipes.__path__ for path in Path(folder).glob("*/*.yaml")]
    paths.sort(key=lambda path: (path.parent.name == ACCELERATE_FOLDER, path.parent.name, path.name))
    return {f"{path.parent.name}/{path.name}": path for path in paths}


def recipe_names() -> list[str]:
    """The names of [`recipe_files`]."""
    return list(recipe_files())


def find_recipe(name: str) -> Path:
    """
    The YAML file of that name: `flow/gsm8k.yaml` or `flow/gsm8k` inside the package, else a path on disk.

    Raises:
        ValueError: if there is none; the message lists close names.
    """
    packaged = recipe_files()
    for candidate in (name, f"{name}.yaml"):
        if candidate in packaged:
            return packaged[candidate]
    if _is_file(name):
        return Path(name)
    raise ValueError(
        f"no recipe {name!r} in the package and no such file"
        f"{did_you_mean(name, [packaged_name.removesuffix('.yaml') for packaged_name in packaged])} "
        "('hf-ext recipes list' names them all)"
    )


def take_config(arguments: Iterable[str]) -> tuple[list[str], str | None]:
    """
    Command-line arguments without `--config NAME`, and that name; both spellings, `--config=NAME` too.

    Raises:
        ValueError: if no name follows `--config`.
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
        ValueError: if there is no such file, or it is no YAML mapping of option names to values.
    """
    path = find_recipe(name)
    values = read_yaml(path, exponents_from=2)  # those of the first level are typed
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a YAML mapping of option names to values, found {type(values).__name__}")
    wrong = next((key for key in values if not isinstance(key, str)), "")
    if not isinstance(wrong, str):
        raise ValueError(f"{path}: the key {wrong!r:.80} is no name of an option")
    return path, values


def method_of(recipe: str) -> Method | None:
    """
    The method that reads a recipe of the package: its folder's, or a variant's of it that the file's name begins with.

    `infopo/gsm8k_pairs.yaml` is read by `infopo`, `infopo/online_gsm8k.yaml` by `infopo_online`, an accelerate config
    by none.
    """
    folder, _, file = recipe.removesuffix(".yaml").rpartition("/")
    methods = {method.name: method for method in known_methods()}
    return methods.get(f"{folder}_{file.split('_')[0]}", methods.get(folder))


def training_recipes() -> dict[str, Method]:
    """Those of [`recipe_names`] that a method trains with, and that method."""
    readers = {name: method_of(name) for name in recipe_names()}
    return {name: method for name, method in readers.items() if method is not None and method.recipe}


def find_accelerate_config(name: str) -> Path:
    """
    The accelerate config of that name: `fsdp2` inside the package, else a path on disk.

    Raises:
        ValueError: if there is none; the message lists those of the package.
    """
    packaged = {path.stem: path for path in recipe_files().values() if path.parent.name == ACCELERATE_FOLDER}
    stem = name.removesuffix(".yaml").removeprefix(f"{ACCELERATE_FOLDER}/")
    if stem in packaged:
        return packaged[stem]
    if _is_file(name):
        return Path(name)
    raise ValueError(
        f"no accelerate config {name!r} in the package and no such file; the package has {list(packaged)}"
    )


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a name too long for the disk
        return False
