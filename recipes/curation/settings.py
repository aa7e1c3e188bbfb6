"""The steps of a curation as a YAML file lists them, `- GopherQuality: {min_words: 60}`, and the file's schema."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_ext.guards.near_names import did_you_mean
from hf_ext.recipes.schema import DRAFT, converted, fields_schema, problem_of, tidy

if TYPE_CHECKING:
    from hf_ext.data.curation.steps import Step

NOT_IN_FILES = ("revision",)  # which says that our code has changed, and is never a user's to set


def step_types() -> dict[str, type[Step]]:
    """Every step of the library by the name of its class."""
    import hf_ext.data.curation as curation
    from hf_ext.data.curation.steps import RowStep, SetStep

    values = {name: getattr(curation, name) for name in curation.__all__}
    is_step = lambda value: isinstance(value, type) and issubclass(value, RowStep | SetStep)  # noqa: E731
    return {name: value for name, value in values.items() if is_step(value) and not inspect.isabstract(value)}


def read_steps(entries: object, place: str, changes: Mapping[str, Any] | None = None) -> list[Step]:
    """
    Make the steps that a YAML file lists.

    Args:
        entries (`object`):
            The list: each entry is the name of a class, or a mapping of one such name to its fields.
        place (`str`):
            Where the list stands, for messages, such as `"--config mine.yaml"`.
        changes (`Mapping[str, Any]`, *optional*):
            Values that fields of listed steps have instead, by names such as `"GopherQuality.min_words"`.

    Raises:
        ValueError: if an entry is no step, a field of it is unknown or has a value that it does not take, or a change
            is of a step that the list has not, or twice.
    """
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{place}: steps must be a list with a step or more, such as '- GopherQuality'")
    types = step_types()
    listed_steps = [_named_fields(entry, f"{place}: step {number}") for number, entry in enumerate(entries, 1)]
    for setting, value in (changes or {}).items():
        _field_owner(setting, listed_steps)[setting.partition(".")[2]] = value
    steps = []
    for number, (name, fields) in enumerate(listed_steps, 1):
        if name not in types:
            advice = "; steps of your own go to curate() in Python" if "." in name else did_you_mean(name, types)
            raise ValueError(f"{place}: step {number}: there is no step {name[:80]!r}{advice}")
        steps.append(_make(types[name], fields, f"{place}: step {number}, {name}"))
    return steps


def steps_schema() -> dict[str, Any]:
    """The JSON schema of the list of steps."""
    fields = {name: _fields_schema(kind) for name, kind in step_types().items()}
    one_of_them = {"type": ["object"], "properties": fields, "additionalProperties": False, "maxProperties": 1}
    entry = {"anyOf": [{"enum": [*fields]}, one_of_them]}
    return {"type": ["array"], "items": entry, "minItems": 1, "description": "What is done with each document."}


def file_schema(options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """
    The JSON schema, draft 2020-12, of a file for `hf-ext data curate --config`.

    Args:
        options (`Mapping`):
            Schema of each option of the command.
    """
    properties = {**options, "steps": steps_schema()}
    schema = {"type": ["object"], "additionalProperties": False, "properties": properties, "required": ["steps"]}
    return {"$schema": DRAFT, "title": "curation", **tidy(schema)}


def _field_owner(setting: str, listed_steps: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The fields of the step that a setting such as `GopherQuality.min_words` is of."""
    step_name, _, field = setting.partition(".")
    fields = [fields for name, fields in listed_steps if name == step_name]
    if not field or len(fields) != 1:
        names = [name for name, _ in listed_steps]
        problem = "the chain has it twice" if len(fields) > 1 else f"the chain has {', '.join(names)[:200]}"
        raise ValueError(f"--option {setting[:80]!r}: expected STEP.FIELD=VALUE with a step of the chain; {problem}")
    return fields[0]


def _named_fields(entry: object, place: str) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, dict) or len(entry) != 1 or not isinstance(next(iter(entry)), str):
        raise ValueError(f"{place}: expected a name, or one name with its fields, found {entry!r:.80}")
    name, fields = next(iter(entry.items()))
    if fields is not None and not isinstance(fields, dict):
        raise ValueError(f"{place}, {name[:80]}: expected a mapping of fields, found {fields!r:.80}")
    return name, dict(fields or {})


def _make(kind: type[Step], fields: Mapping[str, Any], place: str) -> Step:
    schema = _fields_schema(kind)
    problem = problem_of(dict(fields), schema)
    if problem is not None:
        raise ValueError(f"{place}: {problem}")
    hints = typing.get_type_hints(kind)
    try:
        step = kind(**{name: _value(value, hints[name]) for name, value in converted(dict(fields), schema).items()})
        _ = step.versions  # of its files: one that is missing is missed before a document is read
    except (ValueError, OSError) as error:
        raise ValueError(f"{place}: {error}") from error
    return step


def _fields_schema(kind: type[Step]) -> dict[str, Any]:
    """The schema of a step's fields; an index or a classifier is written as the place that it was saved to."""
    schema = fields_schema(kind, NOT_IN_FILES)
    for field in schema["properties"].values():
        if field.get("type") == ["null"]:
            field["type"] = ["string"]
    return schema


def _value(value: Any, hint: Any) -> Any:
    """A value of YAML as the field has it: no list where a tuple belongs, and what was saved in a place, loaded."""
    members = [hint, *typing.get_args(hint)]
    if isinstance(value, list) and any(typing.get_origin(member) is tuple for member in members):
        return tuple(value)
    is_text = str in members or typing.get_origin(hint) is typing.Literal
    if not isinstance(value, str) or is_text:
        return value
    loaders = [member.load for member in members if hasattr(member, "load")]
    if loaders:
        return loaders[0](value)
    from hf_ext.data.curation.quality_filter import load_classifier

    return load_classifier(value)
