"""The text of a card: its metadata and its body, and how a card of ours is merged with one that is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hf_ext.guards.disk import write_whole
from hf_ext.guards.yaml_file import MAX_BYTES, YamlError, fast_loader, parse_yaml, read_text
from hf_ext.method import known_methods, trained_methods

__all__ = [
    "LICENSE_KEYS",
    "MAX_CARD_BYTES",
    "CardText",
    "merge_cards",
    "names_in",
    "read_card",
    "sections_of",
    "split_card",
    "without_host_card",
]

MAX_CARD_BYTES = 16 * MAX_BYTES
BEGIN = "<!-- hf-ext writes what follows, up to its closing line, anew each time -->"
END = "<!-- hf-ext: end -->"
# As in huggingface_hub 2.4, which has it from the Hub's server.
_BLOCK = re.compile(r"^\s*---(?:\r\n|\r|\n)([\S\s]*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")
_EMPTY = re.compile(r"^\s*---(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")
# Tags and words of cards that a program wrote and nobody is known to have touched.
_GENERATED_TAGS = {"hf-ext", "generated_from_trainer"}
# Those of PEFT 0.21 and sentence-transformers 6.2, which carry no such tag.
_GENERATED_TEXT = re.compile(r"^# Model Card for Model ID|^This is a \[[^\]]*\]\(https://www\.sbert\.net", re.I | re.M)
# What a card of ours says about the files it stands beside: of an earlier one nothing of it holds.
_FACTS = {"library_name", "base_model", "datasets", "pipeline_tag", "model_name", "model-index", "configs"}
_FACTS |= {"dataset_info", "task_categories", "licence"}
LICENSE_KEYS = ("license", "license_name", "license_link")
# Headings of our templates; a section under any other heading was added by hand.
_HEADINGS = {
    "What it learned and what it forgot",
    "DCLM CORE",
    "Use",
    "Training settings",
    "Limitations",
    "Versions",
    "Citation",
}
_HEADINGS |= {"Rows", "How they were made", "Pruning", "Label privacy", "Licence", "Exemplars"}


class CardText(NamedTuple):
    """A card taken apart: `metadata` as a dictionary, its YAML as `block`, and the `body` below it."""

    metadata: dict[str, Any]
    body: str
    block: str = ""


def split_card(text: str, name: str = "README.md") -> CardText:
    """
    Take a card apart, where the Hub would.

    Args:
        text (`str`):
            The whole card.
        name (`str`, *optional*):
            What the message calls it.

    Returns:
        `CardText`: without metadata where the text begins with none.

    Raises:
        YamlError: if its metadata is no YAML that can be used, or no mapping with texts for keys.
    """
    text = text.removeprefix("\ufeff")
    match = _BLOCK.match(text)
    if match is None:
        empty = _EMPTY.match(text)
        return CardText({}, text if empty is None else text[empty.end() :])
    values = parse_yaml(match[1], f"the metadata of {name}")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise YamlError(f"the metadata of {name} must be a mapping, found {type(values).__name__}")
    wrong = next((key for key in values if not isinstance(key, str)), "")
    if not isinstance(wrong, str):
        raise YamlError(f"the metadata of {name} has the key {wrong!r:.80}; keys must be text")
    return CardText(values, text[match.end() :], match[1])


def read_card(path: str | Path) -> CardText:
    """
    Read a card from a file and take it apart.

    Args:
        path (`str` or `Path`):
            Of a card of at most 16 MB.

    Returns:
        `CardText`: empty where there is no such file.

    Raises:
        YamlError: if it is too long or no UTF-8, or its metadata cannot be used.
        OSError: if there is something that cannot be read.
    """
    try:
        text = read_text(path, MAX_CARD_BYTES)
    except FileNotFoundError:
        return CardText({}, "")
    return split_card(text, str(path))


def merge_cards(new_text: str, existing: str, *, license: str | list[str] | None = None) -> str:
    """
    The card that stands once `new_text`, a card of ours, is put where `existing` stood.

    A card that somebody wrote is kept: its text, below it ours between two comments (which the next writing replaces),
    and its metadata; what it lacks is added, and what says which files there are (`configs`, `dataset_info`,
    `model-index`) is ours. Of a card that hf-ext wrote before, the sections and metadata that somebody added are kept,
    and the licence where the new card knows none. A card of another trainer's making gives its licence only.

    Args:
        new_text (`str`):
            The new card, from [`~hf_ext.hub.cards.write_model_card`] or `write_dataset_card`.
        existing (`str`):
            The card that is there.
        license (`str` or `list[str]`, *optional*):
            The licence that was asked for by name; it replaces that of the card that is there.

    Returns:
        `str`: the whole card.

    Raises:
        YamlError: if the metadata of `existing` cannot be read, for then nobody knows what to keep.
    """
    new_card, old_card = split_card(new_text), split_card(existing, "the card that is there")
    if not old_card.metadata and not old_card.body.strip():
        return new_text
    tags = set(names_in(old_card.metadata.get("tags")))
    generated = bool(tags & _GENERATED_TAGS) or _GENERATED_TEXT.search(old_card.body) is not None
    if generated and BEGIN not in old_card.body:
        values = _renewed(new_card.metadata, old_card.metadata, is_ours="hf-ext" in tags)
        body = _with_sections(new_card.body, old_card.body) if "hf-ext" in tags else new_card.body
    else:
        values = _completed(new_card.metadata, old_card.metadata)
        body = _with_block(new_card.body, old_card.body)
    if license is not None:
        values["license"] = license
        if license != old_card.metadata.get("license"):
            values = {
                key: value for key, value in values.items() if key not in LICENSE_KEYS[1:] or key in new_card.metadata
            }
    return f"---\n{_to_yaml(values, old_card)}\n---\n\n{body.strip()}\n"


def names_in(value: object) -> list[str]:
    """The names in a metadata field, which may be one name or a list of them; what is no text is left out."""
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str) and name]


@contextmanager
def without_host_card(folder: str | Path) -> Iterator[None]:
    """
    Around a host library's saving: the card that was in `folder` is there afterwards, or none.

    PEFT 0.21 and sentence-transformers 6.2 write one of their own, the latter the base model's, word for word: that
    would be taken for a card that somebody wrote.

    Args:
        folder (`str` or `Path`):
            Where the model is saved.
    """
    path = Path(folder) / "README.md"
    try:
        card = path.read_bytes()
    except FileNotFoundError:
        card = None
    except OSError:  # a folder, or no permission: the host cannot write it either
        yield
        return
    try:
        yield
    finally:
        if card is None:
            path.unlink(missing_ok=True)
        elif path.read_bytes() != card:
            write_whole(path, card)


# --- metadata --------------------------------------------------------------------------------------------------------


def _renewed(new_values: Mapping[str, Any], old_values: Mapping[str, Any], is_ours: bool) -> dict[str, Any]:
    """The metadata of a new card over an old one that a program wrote; `is_ours` if that was hf-ext."""
    values = dict(new_values)
    for key in ("base_model", "datasets"):  # a list that holds the new name says more than the name
        if isinstance(old_values.get(key), list) and new_values.get(key) in old_values[key]:
            values[key] = old_values[key]
    if is_ours:
        topic_tags = {tag for method in known_methods() for tag in method.card_tags}
        own_tags = {"hf-ext", "trl", *_method_names(), *topic_tags}
        tags = [tag for tag in names_in(old_values.get("tags")) if tag not in own_tags]
        values["tags"] = list(dict.fromkeys([*names_in(new_values.get("tags")), *tags]))
        values |= {key: value for key, value in old_values.items() if key not in {*_FACTS, *LICENSE_KEYS, "tags"}}
    same_base = names_in(old_values.get("base_model"))[:1] == names_in(new_values.get("base_model"))[:1]
    is_missing = _is_unknown(new_values.get("license")) and not _is_unknown(old_values.get("license"))
    if is_missing and (is_ours or same_base):
        values["license"] = old_values["license"]
    if values.get("license") == old_values.get("license"):
        values = {key: old_values[key] for key in LICENSE_KEYS[1:] if key in old_values} | values
    return values


def _method_names() -> frozenset[str]:
    return frozenset(method.name for method in trained_methods())


def _is_unknown(license: object) -> bool:
    return license in (None, "unknown")


def _completed(new_values: Mapping[str, Any], old_values: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a card that somebody wrote, with what it lacks."""
    values = dict(old_values)
    if _is_unknown(old_values.get("license")):
        values |= {key: new_values[key] for key in LICENSE_KEYS if key in new_values}
    missing = [key for key in new_values if key not in values and key not in LICENSE_KEYS]
    values |= {key: new_values[key] for key in missing}
    if "configs" in new_values:
        values.pop("dataset_info", None)
    values |= {key: new_values[key] for key in ("configs", "model-index") if key in new_values}
    new_tags = names_in(new_values.get("tags"))
    replaced_tags = _method_names().difference(new_tags)
    tags = [tag for tag in names_in(old_values.get("tags")) if tag not in replaced_tags]
    values["tags"] = list(dict.fromkeys([*tags, *new_tags]))
    return values


def _to_yaml(values: Mapping[str, Any], old_card: CardText) -> str:
    """Metadata as YAML; what has not changed stands as somebody wrote it, with comments, quotes and old booleans."""
    from huggingface_hub.utils import yaml_dump

    texts = _written_entries(old_card)
    dumped = {key: yaml_dump({key: value}, sort_keys=False) for key, value in values.items()}
    entries = [
        texts.get(key, dumped[key]) if old_card.metadata.get(key) == values[key] else dumped[key] for key in values
    ]
    text = "\n".join(entry.strip("\r\n") for entry in entries)
    try:
        if parse_yaml(text, "the new card") == values:
            return text
    except YamlError:  # an alias whose anchor stood in an entry that went
        pass
    return yaml_dump(dict(values), sort_keys=False).strip()


def _written_entries(card: CardText) -> dict[str, str]:
    """Each key of a card's metadata to the lines it stands on, where it stands on lines of its own."""
    import yaml

    root = yaml.compose(card.block, Loader=fast_loader()) if card.block else None
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        return {}
    lines = card.block.splitlines()
    starts = [key.start_mark.line for key, _ in root.value]
    ends = [*starts[1:], len(lines)]
    return {
        key.value: "\n".join(lines[start:end])
        for (key, _), start, end in zip(root.value, starts, ends, strict=True)
        if key.start_mark.column == 0
    }


# --- text ------------------------------------------------------------------------------------------------------------


def _with_block(new_body: str, old_body: str) -> str:
    """Somebody's text, and ours without its title between the two comments."""
    _, _, block = new_body.strip().partition("\n")
    block = f"{BEGIN}\n\n{block.strip()}\n\n{END}"
    head, _, rest = old_body.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:  # without its closing line nobody knows where our text ended and theirs begins
        return f"{(head + rest).strip()}\n\n{block}"
    return f"{head}{block}{tail}"


def _with_sections(new_body: str, old_body: str) -> str:
    """Our new text, and below it the sections of the old one that no template of ours has."""
    our_headings = {*_HEADINGS, *(heading for heading, _ in sections_of(new_body))}
    added = [text for heading, text in sections_of(old_body) if heading not in our_headings]
    return "\n\n".join([new_body.strip(), *added])


def sections_of(body: str) -> list[tuple[str, str]]:
    """
    The sections of a card's body.

    Args:
        body (`str`):
            Markdown.

    Returns:
        `list[tuple[str, str]]`: heading and text, with its heading, of each `## ` section; what stands in a fence is
        no heading.
    """
    sections: list[tuple[str, list[str]]] = []
    fence = ""
    for line in body.splitlines():
        mark = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if mark is not None:
            fence = "" if fence and mark[1].startswith(fence) else fence or mark[1]
        if not fence and line.startswith("## "):
            sections.append((line[3:].strip(), []))
        if sections:
            sections[-1][1].append(line)
    return [(heading, "\n".join(lines).strip()) for heading, lines in sections]
