"""
`hf-ext train METHOD --schema`: the JSON schema (draft 2020-12) of a method's YAML file, and a check against it.

The schema says what the file may hold: every field of the method's dataclasses, with type, default, choices and help.
Point an editor at it and it completes keys and marks mistakes. The recipes check their `--config` with the same schema
through [`problem_of`], which needs no package and knows just the keywords that are written here.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Collection, Iterable
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, Union

from hf_ext.guards.near_names import did_you_mean
from hf_ext.guards.numbers import TextOrNumber

DRAFT = "https://json-schema.org/draft/2020-12/schema"
NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
INTEGER = r"^[-+]?[0-9]+$"

# PyYAML reads 2e-5 (no dot) as a string, and the parser makes a number of it: so may the schema.
SCALARS: dict[Any, dict[str, Any]] = {
    bool: {"type": ["boolean"]},
    int: {"type": ["integer", "string"], "pattern": INTEGER},
    float: {"type": ["number", "string"], "pattern": NUMBER},
    str: {"type": ["string"]},
    dict: {"type": ["object"]},
    type(None): {"type": ["null"]},
    Any: {},
}

ENVIRONMENT = {
    "type": ["object"],
    "description": "Environment variables to set before anything else.",
    "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}

JSON_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def config_schema(dataclass_types: Iterable[type], title: str) -> dict[str, Any]:
    """
    The schema of a YAML file that sets fields of these dataclasses.

    Args:
        dataclass_types (`Iterable[type]`):
            As given to the recipe's parser.
        title (`str`):
            The schema's title.

    Returns:
        `dict`: a JSON schema, draft 2020-12.
    """
    properties: dict[str, Any] = {}
    for kind in dataclass_types:
        properties |= _properties(kind)
    schema = {"type": ["object"], "additionalProperties": False, "properties": {**properties, "env": ENVIRONMENT}}
    return {"$schema": DRAFT, "title": title, **tidy(schema)}


def fields_schema(kind: type, skipped: Collection[str] = ()) -> dict[str, Any]:
    """
    The schema of a mapping that gives fields of a dataclass, as [`problem_of`] takes it.

    Args:
        kind (`type`):
            The dataclass.
        skipped (`Collection[str]`, *optional*):
            Fields that no file sets.
    """
    fields = [field for field in dataclasses.fields(kind) if field.init and field.name not in skipped]
    required = [field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING]
    properties = {name: schema for name, schema in _properties(kind).items() if name not in skipped}
    schema: dict[str, Any] = {"type": ["object"], "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def tidy(schema: object) -> Any:
    """The schema with `"type": "string"` in place of `"type": ["string"]`."""
    if isinstance(schema, dict):
        return {key: _only(value) if key == "type" else tidy(value) for key, value in schema.items()}
    return schema


def _only(names: object) -> Any:
    return names[0] if isinstance(names, list) and len(names) == 1 else names


def _properties(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: _field(field, hints[field.name]) for field in dataclasses.fields(kind) if field.init}


def _field(field: dataclasses.Field, hint: Any) -> dict[str, Any]:
    schema = {**_type(str), "type": ["string", "number"]} if hint == TextOrNumber else _type(hint)
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    choices = field.metadata.get("choices")
    if choices is not None:
        schema = {"enum": list(choices)}
    if default is None:
        schema = _with_null(schema)
    if default is not dataclasses.MISSING:
        default = default.value if isinstance(default, Enum) else default
        default = [*default] if isinstance(default, tuple) else default
        schema["default"] = default
        if "enum" in schema and default not in schema["enum"]:
            schema["enum"] = [*schema["enum"], default]
    if field.metadata.get("help"):
        schema["description"] = " ".join(field.metadata["help"].replace("%%", "%").split())  # argparse doubles it
    return schema


def _type(hint: Any) -> dict[str, Any]:
    """The schema of a type hint; a class that YAML cannot write becomes `null`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _union([_type(argument) for argument in arguments])
    if origin is Literal:
        return dict(SCALARS[bool]) if all(isinstance(choice, bool) for choice in arguments) else {"enum": [*arguments]}
    if origin is list and arguments == (str,):  # `lora_target_modules: all-linear`: one name needs no brackets
        return {"type": ["array", "string"], "items": _type(str)}
    if origin in (list, tuple):
        return {"type": ["array"], "items": _type(arguments[0])}
    if origin is dict:
        return {**SCALARS[dict], **({"additionalProperties": further} if (further := _type(arguments[1])) else {})}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    if hint in SCALARS:
        return dict(SCALARS[hint])
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and hint.__module__.startswith("trl."):
        return fields_schema(hint)
    if isinstance(hint, type) and issubclass(hint, PurePath):
        return dict(SCALARS[str])
    return dict(SCALARS[type(None)])


def _union(members: list[dict[str, Any]]) -> dict[str, Any]:
    """Members merged into one schema: types side by side, and the choices of an enum where there is one."""
    choices = [choice for member in members for choice in member.get("enum", ())]
    if choices:  # `SchedulerType | str` means: one of its values
        return {"enum": [*choices, *([None] if SCALARS[type(None)] in members else [])]}
    merged: dict[str, Any] = {"type": list(dict.fromkeys(name for member in members for name in member["type"]))}
    for member in members:
        merged |= {key: value for key, value in member.items() if key != "type"}
    entries = [member.get("additionalProperties") for member in members if member.get("type") == ["object"]]
    if any(entry != entries[0] for entry in entries):  # mappings of two kinds: either, so their entries are anything
        merged.pop("additionalProperties", None)
    if SCALARS[str] in members:  # any string, not only one that is a number
        merged.pop("pattern", None)
    return merged


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], *([] if None in schema["enum"] else [None])]}
    return {**schema, "type": list(dict.fromkeys([*schema.get("type", ()), "null"]))}


def problem_of(value: object, schema: dict[str, Any]) -> str | None:
    """
    Say what is wrong with a value, or `None`.

    Stricter than JSON schema in one thing: 8.0 is no integer, for the code behind it counts with it.

    Args:
        value (`object`):
            As YAML gives it.
        schema (`dict`):
            One that `config_schema` wrote, or a part of it.
    """
    if "enum" in schema:
        if any(type(choice) is type(value) and choice == value for choice in schema["enum"]):
            return None
        quote = ", which is how YAML reads a bare no: write 'no'" if value is False and "no" in schema["enum"] else ""
        return f"expected one of {_listing(schema['enum'])}, found {_shown(value)}{quote}"
    names = schema.get("type", list(JSON_TYPES))
    names = [names] if isinstance(names, str) else names
    if not any(_is(value, name) for name in names):
        return f"expected {_listing(names, ' or ')}, found {_shown(value)}"
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return f"expected a number, found {_shown(value)}"
    if isinstance(value, list) and "items" in schema:
        problems = ((i, problem_of(entry, schema["items"])) for i, entry in enumerate(value))
        return next((f"entry {i}: {problem}" for i, problem in problems if problem), None)
    return _object_problem(value, schema) if isinstance(value, dict) else None


def converted(value: object, schema: dict[str, Any]) -> Any:
    """
    A value without problem, where numbers inside of lists and mappings that were written as texts are numbers.

    `argparse` makes a number of a text itself, but only of one that is the whole value.

    Args:
        value (`object`):
            One of which [`problem_of`] says nothing.
        schema (`dict`):
            As [`problem_of`] takes it.
    """
    if isinstance(value, list):
        return [_number(converted(entry, schema.get("items", {})), schema.get("items", {})) for entry in value]
    if not isinstance(value, dict):
        return value
    properties, further = schema.get("properties", {}), schema.get("additionalProperties", {})
    schemas = {key: properties.get(key, further or {}) for key in value}
    return {key: _number(converted(entry, schemas[key]), schemas[key]) for key, entry in value.items()}


def _number(value: object, schema: dict[str, Any]) -> Any:
    if not isinstance(value, str) or schema.get("pattern") not in (NUMBER, INTEGER):
        return value
    return int(value) if schema["pattern"] == INTEGER else float(value)


def _object_problem(value: dict[Any, Any], schema: dict[str, Any]) -> str | None:
    properties, further = schema.get("properties", {}), schema.get("additionalProperties", {})
    missing = [name for name in schema.get("required", ()) if name not in value]
    if missing:
        return f"{missing[0]!r} is missing"
    for key, entry in value.items():
        if not isinstance(key, str) or not re.search(schema.get("propertyNames", {}).get("pattern", ""), key):
            return f"{_shown(key)} is no usable key"
        if key not in properties and further is False:
            return f"unknown key {_shown_key(key)}{did_you_mean(key, properties)}"
        problem = problem_of(entry, properties.get(key, further))
        if problem:
            return f"{key}: {problem}"
    return None


def _shown_key(key: str) -> str:
    return repr(key if len(key) <= 60 else f"{key[:57]}...")


def _is(value: object, name: str) -> bool:
    return isinstance(value, JSON_TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _listing(names: list[Any], between: str = ", ") -> str:
    return between.join(map(str, names))


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
