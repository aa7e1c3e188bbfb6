"""Model cards with valid metadata: licence, base model, method, paper, and the numbers of what was measured."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from hf_ext.guards.disk import write_whole, writing
from hf_ext.guards.inside import read_json
from hf_ext.guards.markdown import Markdown, code, escape, fenced, python_literal, well_formed
from hf_ext.guards.renamed import renamed_parameter
from hf_ext.guards.yaml_file import YamlError, read_text
from hf_ext.hub.base_models import base_model_card, base_model_metadata, is_hub_id
from hf_ext.hub.files import strings
from hf_ext.hub.front_matter import LICENSE_KEYS, MAX_CARD_BYTES, merge_cards
from hf_ext.method import Method, method_named, method_of_models

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from hf_ext.data.curation.report import CurationReport
    from hf_ext.data.pruning.report import PruneReport

__all__ = [
    "base_model_card",
    "base_model_metadata",
    "merge_cards",
    "write_dataset_card",
    "write_model_card",
]

logger = logging.getLogger(__name__)

CHAT_USAGE = """\
```python
from transformers import pipeline

generator = pipeline("text-generation", model={model_name})
messages = [{{"role": "user", "content": "Which season do you like best, and why?"}}]
print(generator(messages, max_new_tokens=128, return_full_text=False)[0]["generated_text"])
```"""

TEXT_USAGE = """\
```python
from transformers import pipeline

generator = pipeline("text-generation", model={model_name})
print(generator("The best season is", max_new_tokens=64)[0]["generated_text"])
```"""

ADAPTER_NOTE = "\n\nThe folder holds an adapter: `pip install peft` first; the base model is loaded with it."


class EvaluationReport(Protocol):
    """What a card shows of an evaluation, such as of [`~hf_ext.evaluation.report.ForgettingReport`]."""

    def to_markdown(self) -> str:
        """The table of its numbers."""

    def eval_results(self, name: str | None, /, *, dataset_name: str = ..., dataset_id: str = ...) -> list[EvalResult]:
        """The numbers of the model of that name, or of the only one, for the `model-index`."""


@renamed_parameter(arm="run")
def write_model_card(
    output_dir: str | Path,
    *,
    method: str,
    base_model: str | Path | None = None,
    license: str | list[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    paper: Mapping[str, str] | None = None,
    dataset_name: str | None = None,
    report: EvaluationReport | None = None,
    run: str | None = None,
    core_report: EvaluationReport | None = None,
    tags: str | Iterable[str] = (),
    model_name: str | None = None,
    usage: str | None = None,
    task: str | None = None,
    library: str | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Write `README.md` into a saved model's folder. Reads files only: no network.

    A card that is there is not lost: see [`~hf_ext.hub.front_matter.merge_cards`]. One that cannot be read is renamed.

    Args:
        output_dir (`str` or `Path`):
            The folder of the saved model; made if absent.
        method (`str`):
            Name of one that trains a model (`hf-ext methods` lists them): chooses the template.
        base_model (`str` or `Path`, *optional*):
            Hub id or folder of the model that was tuned. A folder's name is never written; if its own card names a Hub
            model, that one is.
        license (`str` or `list[str]`, *optional*):
            Hub licence key such as `"apache-2.0"`. Taken from the base model's card, with name and link, if that lies
            in its folder or in the Hub cache, else `"unknown"`.
        settings (`Mapping`, *optional*):
            Rows of the settings table, name to value.
        paper (`Mapping`, *optional*):
            `title`, arXiv `id` and, if wanted, `citation`, as TRL's `_paper`. The method's own by default.
        dataset_name (`str`, *optional*):
            Hub id of the fine-tuning data.
        report ([`EvaluationReport`], *optional*):
            Its table goes into the text, and the numbers of `run` into the `model-index`.
        run (`str`, *optional*):
            Which run of `report` this model is; needed if it has several.
        core_report ([`CoreReport`], *optional*):
            Of this model: a section with its table, and its scores in the `model-index`.
        tags (`str` or `Iterable[str]`, *optional*):
            Tags beside `hf-ext`, the method and, where TRL's trainer is behind it, `trl`.
        model_name (`str`, *optional*):
            Name in the title and the usage snippet, best a Hub id; the folder's name by default.
        usage (`str`, *optional*):
            Markdown of the usage section. By default a snippet: a chat one if the saved tokenizer has a chat template.
        task (`str`, *optional*):
            The Hub's name of what the model does; by default the method's, such as `"text-generation"`, where it has
            one.
        library (`str`, *optional*):
            The Hub's name of the library that opens the folder; by default the method's, such as `"transformers"`.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a card that is there is lost.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: if the method is unknown, or a report has several runs and no `run` is named.
    """
    from huggingface_hub import ModelCardData

    record = method_of_models(method)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model_name = model_name or folder.resolve().name
    base, inherited = base_model_card(base_model)
    data = ModelCardData(
        library_name=library or record.library,
        **_licence(license, inherited),
        language=inherited.get("language"),
        base_model=base,
        datasets=dataset_name if dataset_name and is_hub_id(dataset_name) else None,
        tags=list(dict.fromkeys([*_first_tags(record), *strings(tags, "tags")])),
        pipeline_tag=task or record.task,
        model_name=model_name,
        eval_results=_eval_results(report, run, core_report, dataset_name) or None,
    )
    body = _render(
        f"{record.card}.jinja",
        method=record,
        model_name=model_name,
        origin=Markdown(f"It was fine-tuned from {_link(base)}.") if base else "",
        dataset_name=_dataset_link(dataset_name),
        results=Markdown(report.to_markdown().strip()) if report is not None else "",
        core_results=Markdown(core_report.to_markdown().strip()) if core_report is not None else "",
        usage=Markdown(usage or _usage(folder, model_name)),
        settings=[(name, value) for name, value in (settings or {}).items()],
        versions=_versions(record.host),
        paper=_paper(record, paper),
    )
    return _write(folder, data.to_dict(), body, license, overwrite)


def write_dataset_card(
    output_dir: str | Path,
    *,
    dataset_name: str,
    license: str | list[str] | None = None,
    source_model: str | Path | None = None,
    kind: str = "rows",
    data_files: Mapping[str, str] | None = None,
    splits: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    seeds: Iterable[tuple[str, str, str]] = (),
    report: PruneReport | CurationReport | None = None,
    label_privacy: Iterable[tuple[str, str]] = (),
    tags: str | Iterable[str] = (),
    overwrite: bool = False,
) -> Path:
    """
    Write `README.md` into a dataset's folder. Reads files only: no network.

    A card that is there is not lost: see [`~hf_ext.hub.front_matter.merge_cards`]. One that cannot be read is renamed.

    Args:
        output_dir (`str` or `Path`):
            The folder of the dataset; made if absent.
        dataset_name (`str`):
            Name in the title and the usage snippet, best a Hub id.
        license (`str` or `list[str]`, *optional*):
            Hub licence key. For context-free rows that of the source model by default, with name and link, if its card
            is on this machine; else `"unknown"`.
        source_model (`str` or `Path`, *optional*):
            Hub id or folder of the model that wrote the rows. A folder's name is never written.
        kind (`str`, *optional*, defaults to `"rows"`):
            `"context_free"` for samples of a model: the card then warns that they may hold memorised text.
        data_files (`Mapping[str, str]`, *optional*):
            Split to the pattern of its files.
        splits (`Mapping[str, int]`, *optional*):
            Split to its number of rows.
        settings (`Mapping[str, Any]`, *optional*):
            Facts about how the rows were made, name to value.
        seeds (`Iterable[tuple[str, str, str]]`, *optional*):
            What context-free rows begin with, from [`~hf_ext.data.starts.seed_lines`]: a table with name, tokens and
            share of each.
        report ([`PruneReport`] or [`CurationReport`], *optional*):
            How the rows were pruned or curated: a section with its numbers, and its plot if that is in `report/`.
        label_privacy (`Iterable[tuple[str, str]]`, *optional*):
            What randomised labels cost, from [`~hf_ext.hub.labels.label_privacy_facts`]: a section with these rows.
        tags (`str` or `Iterable[str]`, *optional*):
            Tags beside `hf-ext` and, for context-free rows, `synthetic`.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a card that is there is replaced, whoever wrote it.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: if `kind` is unknown.
    """
    from huggingface_hub import DatasetCardData

    if kind not in ("rows", "context_free"):
        raise ValueError(f"kind={kind!r} is no kind of dataset card; choose 'rows' or 'context_free'.")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    source, inherited = base_model_card(source_model)
    sampled = kind == "context_free"
    files = [{"split": split, "path": pattern} for split, pattern in (data_files or {}).items()]
    privacy = list(label_privacy)
    made_by = method_named("context_free") if sampled else None if report is None else method_named(report.file_name)
    plot = None if report is None else f"report/{report.file_name}.png"
    kind_tags = [*made_by.card_tags] if made_by is not None else []
    kind_tags += method_named("label_privacy").card_tags if privacy else ()
    has_paper = sampled or (report is not None and report.follows_paper)
    data = DatasetCardData(
        **_licence(license, inherited if sampled else {}),
        tags=list(dict.fromkeys(["hf-ext", *kind_tags, *strings(tags, "tags")])),
        # Of other rows nobody has said what they are for: they may be labelled images, pairs or exemplars.
        task_categories=["text-generation"] if sampled else None,
        configs=[{"config_name": "default", "data_files": files}] if files else None,
    )
    body = _render(
        "dataset.jinja",
        dataset_name=dataset_name,
        context_free=sampled,
        source=_link(source) if source else "",
        license_inherited=bool(sampled and inherited.get("license") and not license),
        splits=list((splits or {}).items()),
        settings=[(name, value) for name, value in (settings or {}).items()],
        seeds=list(seeds),
        report_kind="" if report is None else report.file_name,
        summary=[(name, value) for name, value in report.summary()] if report is not None else [],
        pruned_by=getattr(report, "by", None) or "",
        plot=plot if plot is not None and (folder / plot).is_file() else "",
        paper=_paper(made_by) if made_by is not None and has_paper else None,
        label_privacy=[(name, value) for name, value in privacy],
        versions=_versions(),
    )
    return _write(folder, data.to_dict(), body, license, overwrite)


def _licence(license: str | list[str] | None, inherited: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of the licence: the one asked for, else the inherited one with its name and link."""
    if license and license != inherited.get("license"):
        return {"license": license}  # without the name and link that stand beside the base model's
    return {"license": "unknown"} | {key: inherited[key] for key in LICENSE_KEYS if key in inherited}


def _write(
    folder: Path, values: dict[str, Any], body: str, license: str | list[str] | None, overwrite: bool = False
) -> Path:
    """Put a card into its folder, whole or not at all, with what a card that is there has to keep."""
    from huggingface_hub.utils import yaml_dump

    path = folder / "README.md"
    text = f"---\n{yaml_dump(_well_formed(values), sort_keys=False).strip()}\n---\n\n{body}"
    try:
        if not overwrite:
            text = merge_cards(text, read_text(path, MAX_CARD_BYTES), license=license)
    except FileNotFoundError:
        pass
    except (OSError, YamlError) as error:
        aside = next(name for name in _names_aside(folder) if not os.path.lexists(name))
        os.replace(path, aside)
        logger.warning("%s could not be read and is now %s; a new one was written. %s", path, aside.name, error)
    with writing("the card", path):
        write_whole(path, text)  # renamed into place: a link there, as in the Hub's cache, is not written through
    return path


def _well_formed(value: Any) -> Any:
    """The metadata with texts that every reader of YAML takes."""
    if isinstance(value, Mapping):
        return {_well_formed(key): _well_formed(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_well_formed(entry) for entry in value]
    return well_formed(value) if isinstance(value, str) else value


def _names_aside(folder: Path) -> Iterator[Path]:
    return (folder / f"README.old{'' if number == 1 else f'-{number}'}.md" for number in itertools.count(1))


def _first_tags(method: Method) -> list[str]:
    return ["hf-ext", method.name, *(["trl"] if method.host == "trl" else [])]


def _paper(method: Method, paper_words: Mapping[str, str] | None = None) -> dict[str, str] | None:
    """The paper with its address; a citation left out is filled in where the paper is the method's own."""
    published = method.paper_words
    is_published = not paper_words or paper_words.get("id") == published.get("id")
    paper = {"citation": "", **(published if is_published else {}), **(paper_words or {})}
    if "id" not in paper:
        return None
    return {**paper, "url": Markdown(f"https://huggingface.co/papers/{quote(well_formed(str(paper['id'])), safe='')}")}


def _eval_results(
    report: EvaluationReport | None, run: str | None, core_report: EvaluationReport | None, dataset_name: str | None
) -> list[EvalResult]:
    """Entries of the `model-index`: those of the run, then CORE's."""
    results = [] if report is None else report.eval_results(run, **_target_names(dataset_name))
    return results + ([] if core_report is None else core_report.eval_results(None))


def _target_names(dataset_name: str | None) -> dict[str, str]:
    if not dataset_name or not is_hub_id(dataset_name):
        return {}
    return {"dataset_id": dataset_name, "dataset_name": f"{dataset_name}, held-out rows"}


def _dataset_link(dataset_name: str | None) -> str:
    if not dataset_name or not is_hub_id(dataset_name):
        return ""
    return _link(dataset_name, "datasets/")


def _link(name: str, kind: str = "") -> Markdown:
    """A link to a repository whose name is one."""
    return Markdown(f"[{escape(name)}](https://huggingface.co/{kind}{name})")


def _usage(folder: Path, model_name: str) -> str:
    """A snippet that fits the saved files."""
    chat = (folder / "chat_template.jinja").is_file()
    if not chat and (folder / "tokenizer_config.json").is_file():
        try:
            chat = bool(read_json(folder / "tokenizer_config.json").get("chat_template"))
        except (ValueError, OSError) as error:
            logger.warning("The card shows no chat: %s", error)
    snippet = (CHAT_USAGE if chat else TEXT_USAGE).format(model_name=python_literal(model_name))
    return snippet + ADAPTER_NOTE if (folder / "adapter_config.json").is_file() else snippet


def _versions(host: str = "trl") -> str:
    names = dict.fromkeys(("hf-ext", host, "transformers", "torch", "datasets"))
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = import_module("hf_ext.model_cards").__path__  # by its name: the templates lie on a floor above
    environment = Environment(
        loader=FileSystemLoader([*templates]),
        autoescape=False,  # noqa: S701  that is for HTML, and would write &quot; into code
        finalize=escape,  # every text that is not Markdown of ours
        undefined=StrictUndefined,  # a name that a template has and this call lacks is an error, not a blank
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": code, "fenced": fenced, "python": python_literal}
    text = environment.get_template(template).render(**values)
    lines: list[str] = []
    for line in text.splitlines():  # an absent block leaves blank lines behind; one is enough
        if line.strip() or (lines and lines[-1].strip()):
            lines.append(line.rstrip())
    return "\n".join(lines).strip() + "\n"
