"""`--config` of `hf-ext data`: a YAML file that fills the options which the command line left alone."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from hf_ext.guards.numbers import Bounds


def read_config(
    options: argparse.Namespace,
    parser: argparse.ArgumentParser,
    skipped: Collection[str] = (),
    other_keys: Collection[str] = (),
) -> dict[str, Any]:
    """
    Fill options that the command line left at their default from the YAML file of `options.config`.

    Args:
        options (`argparse.Namespace`):
            As parsed; nothing is read where its `config` is `None`.
        parser (`argparse.ArgumentParser`):
            That parsed them.
        skipped (`Collection[str]`, *optional*):
            Options of the file that are checked and not taken.
        other_keys (`Collection[str]`, *optional*):
            Keys of the file that are no options; the caller reads them.

    Returns:
        `dict`: the file's values.

    Raises:
        ValueError: if there is no such file, it has a key that is no option, or a value that the option cannot have.
    """
    if options.config is None:
        return {}
    from hf_ext.guards.near_names import did_you_mean
    from hf_ext.recipes.files import read_settings
    from hf_ext.recipes.schema import problem_of

    _, values = read_settings(options.config)
    schemas = option_schemas(parser)
    actions = {action.dest: action for action in parser._actions}
    for name, value in values.items():
        if name in other_keys:
            continue
        if name not in schemas:
            close_names = did_you_mean(name, [*schemas, *other_keys])
            raise ValueError(f"--config {options.config}: no option {name[:80]!r}{close_names}")
        problem = problem_of(value, schemas[name])
        if problem:
            raise ValueError(f"--config {options.config}: {name}: {problem}")
        if name not in skipped and getattr(options, name) == parser.get_default(name):
            setattr(options, name, _checked(value, actions[name], f"--config {options.config}: {name}"))
    return values


def option_schemas(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """What a YAML file may hold for each option of the command line."""
    return {action.dest: _schema_of(action) for action in parser._actions if action.dest not in ("config", "help")}


def named_value(text: str) -> tuple[str, Any]:
    """
    The name and the value of a `--option NAME=VALUE`, as YAML reads the value.

    Raises:
        ValueError: if it is no name with a value.
    """
    from hf_ext.guards.yaml_file import parse_yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--option {text!r}: expected NAME=VALUE, such as trim=0.1")
    return name, parse_yaml(value, f"--option {name[:80]}", exponents_from=0)


def named_values(entries: list[str] | dict[str, Any]) -> dict[str, Any]:
    """
    The names and values of all `--option`, or of the mapping that a YAML file has in their place.

    Raises:
        ValueError: if one is no name with a value.
    """
    if isinstance(entries, dict):
        return {str(name): value for name, value in entries.items()}
    return dict(named_value(text) for text in entries)


def _checked(value: Any, action: argparse.Action, name: str) -> Any:
    """A value of the YAML file as the command line would have it: within its bounds; YAML reads 1e-1 as text."""
    if not isinstance(action.type, Bounds) or value is None:
        return value
    try:
        return action.type(str(value))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name} {error}") from error


def _schema_of(action: argparse.Action) -> dict[str, Any]:
    from hf_ext.recipes.schema import SCALARS

    if action.dest == "option":  # NAME=VALUE several times, or a mapping
        scalars = {"type": ["string", "number", "boolean", "null"]}
        return {"type": ["object", "array"], "items": SCALARS[str], "additionalProperties": scalars}
    if action.const is True:
        return dict(SCALARS[bool])
    schema = SCALARS[action.type.kind if isinstance(action.type, Bounds) else str]
    names = ["array", *schema["type"]] if action.nargs == "+" else schema["type"]
    return {**schema, "type": [*names, "null"] if action.default is None else names, "items": SCALARS[str]}
