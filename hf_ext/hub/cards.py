"""Model cards with valid metadata: licence, base model, method, paper and the forgetting report's numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from hf_ext.data.pruning.report import PruneReport
    from hf_ext.evaluation.report import ForgettingReport

__all__ = ["METHODS", "PAPERS", "base_model_metadata", "write_dataset_card", "write_model_card"]

METHODS = ("weighted_sft", "flow", "context_free", "infopo", "infopo_unpaired", "rare", "consensus")
"""Methods with a card template, `model_cards/<method>.jinja`."""

LIBRARIES = {
    "rare": ("sentence-transformers", "sentence-similarity"),
    "consensus": ("transformers", "text-classification"),
}
"""The library that opens a method's folder, and its task, where that is not a generator of transformers."""
TRAINERS = {"rare": "sentence-transformers", "consensus": "transformers"}
"""The library whose trainer a method extends, where that is not TRL."""

PAPERS: dict[str, dict[str, str]] = {
    "flow": {
        "title": "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting",
        "id": "2502.02797",
        "citation": """\
@inproceedings{sanyal2025upweighting,
    title     = {Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting},
    author    = {Sunny Sanyal and Hayden Prairie and Rudrajit Das and Ali Kavis and Sujay Sanghavi},
    booktitle = {International Conference on Machine Learning},
    year      = {2025},
    eprint    = {2502.02797},
    archivePrefix = {arXiv}
}""",
    },
    "context_free": {
        "title": "Context-Free Synthetic Data Mitigates Forgetting",
        "id": "2505.13811",
        "citation": """\
@misc{bansal2025contextfree,
    title  = {Context-Free Synthetic Data Mitigates Forgetting},
    author = {Parikshit Bansal and Sujay Sanghavi},
    year   = {2025},
    eprint = {2505.13811},
    archivePrefix = {arXiv}
}""",
    },
    "infopo": {
        "title": "InfoPO: On Mutual Information Maximization for Large Language Model Alignment",
        "id": "2505.08507",
        "citation": """\
@inproceedings{xiao2025infopo,
    title     = {InfoPO: On Mutual Information Maximization for Large Language Model Alignment},
    author    = {Teng Xiao and Zhen Ge and Sujay Sanghavi and Tian Wang and Julian Katz-Samuels and Marc Versage
                 and Qingjun Cui and Trishul Chilimbi},
    booktitle = {Proceedings of the Conference of the Nations of the Americas Chapter of the ACL (NAACL)},
    year      = {2025},
    eprint    = {2505.08507},
    archivePrefix = {arXiv}
}""",
    },
}
PAPERS["infopo_unpaired"] = PAPERS["infopo"]
PAPERS["pruning"] = {
    "title": "Geometric Median (GM) Matching for Robust k-Subset Selection from Noisy Data",
    "id": "2504.00564",
    "citation": """\
@inproceedings{acharya2025geometric,
    title     = {Geometric Median (GM) Matching for Robust k-Subset Selection from Noisy Data},
    author    = {Anish Acharya and Sujay Sanghavi and Alexandros G. Dimakis and Inderjit S. Dhillon},
    booktitle = {International Conference on Machine Learning},
    year      = {2025},
    eprint    = {2504.00564},
    archivePrefix = {arXiv}
}""",
}
PAPERS["rare"] = {
    "title": "RARe: Retrieval Augmented Retrieval with In-Context Examples",
    "id": "2410.20088",
    "citation": """\
@inproceedings{tejaswi2025rare,
    title     = {RARe: Retrieval Augmented Retrieval with In-Context Examples},
    author    = {Atula Tejaswi and Yoonsang Lee and Sujay Sanghavi and Eunsol Choi},
    booktitle = {Conference on Language Modeling},
    year      = {2025},
    eprint    = {2410.20088},
    archivePrefix = {arXiv}
}""",
}
PAPERS["consensus"] = {
    "title": "Retraining with Predicted Hard Labels Provably Increases Model Accuracy",
    "id": "2406.11206",
    "citation": """\
@inproceedings{das2025retraining,
    title     = {Retraining with Predicted Hard Labels Provably Increases Model Accuracy},
    author    = {Rudrajit Das and Inderjit S. Dhillon and Alessandro Epasto and Adel Javanmard and Jieming Mao
                 and Vahab Mirrokni and Sujay Sanghavi and Peilin Zhong},
    booktitle = {International Conference on Machine Learning},
    year      = {2025},
    eprint    = {2406.11206},
    archivePrefix = {arXiv}
}""",
}
"""Papers by method, in the shape of TRL's `_paper`: `title`, arXiv `id`, `citation`."""

CHAT_USAGE = """\
```python
from transformers import pipeline

generator = pipeline("text-generation", model="{model_name}")
messages = [{{"role": "user", "content": "Which season do you like best, and why?"}}]
print(generator(messages, max_new_tokens=128, return_full_text=False)[0]["generated_text"])
```"""

TEXT_USAGE = """\
```python
from transformers import pipeline

generator = pipeline("text-generation", model="{model_name}")
print(generator("The best season is", max_new_tokens=64)[0]["generated_text"])
```"""

ADAPTER_NOTE = "\n\nThe folder holds an adapter: `pip install peft` first; the base model is loaded with it."


def write_model_card(
    output_dir: str | Path,
    *,
    method: str,
    base_model: str | Path | None = None,
    license: str | None = None,
    settings: Mapping[str, Any] | None = None,
    paper: Mapping[str, str] | None = None,
    dataset_name: str | None = None,
    report: ForgettingReport | None = None,
    arm: str | None = None,
    tags: Iterable[str] = (),
    model_name: str | None = None,
    usage: str | None = None,
    task: str | None = None,
    library: str | None = None,
) -> Path:
    """
    Write `README.md` into a saved model's folder. Reads files only: no network.

    Args:
        output_dir (`str` or `Path`):
            The folder of the saved model; made if absent.
        method (`str`):
            One of `METHODS`: chooses the template.
        base_model (`str` or `Path`, *optional*):
            Hub id or folder of the model that was tuned. A folder's name is never written; if its own card names a Hub
            model, that one is.
        license (`str`, *optional*):
            Hub licence key such as `"apache-2.0"`. Taken from the base model's card if that lies in its folder or in
            the Hub cache, else `"unknown"`.
        settings (`Mapping`, *optional*):
            Rows of the settings table, name to value.
        paper (`Mapping`, *optional*):
            `title`, arXiv `id` and, if wanted, `citation`, as TRL's `_paper`. The method's own by default.
        dataset_name (`str`, *optional*):
            Hub id of the fine-tuning data.
        report (`ForgettingReport`, *optional*):
            Its table goes into the text, and the numbers of `arm` into the `model-index`.
        arm (`str`, *optional*):
            Which arm of `report` this model is; needed if it has several.
        tags (`Iterable[str]`, *optional*):
            Tags beside `hf-ext`, the method and, where TRL's trainer is behind it, `trl`.
        model_name (`str`, *optional*):
            Name in the title and the usage snippet, best a Hub id; the folder's name by default.
        usage (`str`, *optional*):
            Markdown of the usage section. By default a snippet: a chat one if the saved tokenizer has a chat template.
        task (`str`, *optional*):
            The Hub's name of what the model does; by default the method's, such as `"text-generation"`.
        library (`str`, *optional*):
            The Hub's name of the library that opens the folder; by default the method's, such as `"transformers"`.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: unknown method, or a report with several arms and no `arm`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    if method not in METHODS:
        raise ValueError(f"method={method!r} has no card template; choose one of {', '.join(METHODS)}.")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model_name = model_name or folder.resolve().name
    base, inherited = base_model_metadata(base_model)
    own_library, own_task = LIBRARIES.get(method, ("transformers", "text-generation"))
    host = TRAINERS.get(method, "trl")
    data = ModelCardData(
        library_name=library or own_library,
        license=license or inherited or "unknown",
        base_model=base,
        datasets=dataset_name if dataset_name and _is_hub_id(dataset_name) else None,
        tags=list(dict.fromkeys(["hf-ext", method, *(["trl"] if host == "trl" else []), *tags])),
        pipeline_tag=task or own_task,
        model_name=model_name,
        eval_results=report.eval_results(arm, **_target_names(dataset_name)) if report is not None else None,
    )
    body = _render(
        f"{method}.jinja",
        model_name=model_name,
        origin=f"It was fine-tuned from [{base}](https://huggingface.co/{base})." if base else "",
        dataset_name=_dataset_link(dataset_name),
        results=report.to_markdown().strip() if report is not None else "",
        usage=usage or _usage(folder, model_name),
        settings=[(name, _cell(value)) for name, value in (settings or {}).items()],
        host=host,
        versions=_versions(host),
        paper=_paper(method, paper),
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")
    path = folder / "README.md"
    card.save(path)
    return path


def write_dataset_card(
    output_dir: str | Path,
    *,
    dataset_name: str,
    license: str | None = None,
    source_model: str | Path | None = None,
    kind: str = "rows",
    data_files: Mapping[str, str] | None = None,
    splits: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    report: PruneReport | None = None,
    label_privacy: Iterable[tuple[str, str]] = (),
    tags: Iterable[str] = (),
) -> Path:
    """
    Write `README.md` into a dataset's folder. Reads files only: no network.

    Args:
        output_dir (`str` or `Path`):
            The folder of the dataset; made if absent.
        dataset_name (`str`):
            Name in the title and the usage snippet, best a Hub id.
        license (`str`, *optional*):
            Hub licence key. For context-free rows that of the source model by default, if its card is on this machine;
            else `"unknown"`.
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
        report ([`PruneReport`], *optional*):
            How the rows were pruned: a section with its numbers, and its plot if `report/pruning.png` is there.
        label_privacy (`Iterable[tuple[str, str]]`, *optional*):
            What randomised labels cost, from [`~hf_ext.hub.labels.label_privacy_facts`]: a section with these rows.
        tags (`Iterable[str]`, *optional*):
            Tags beside `hf-ext` and, for context-free rows, `synthetic`.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: unknown `kind`.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    if kind not in ("rows", "context_free"):
        raise ValueError(f"kind={kind!r} is no kind of dataset card; choose 'rows' or 'context_free'.")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    source, inherited = base_model_metadata(source_model)
    sampled = kind == "context_free"
    files = [{"split": split, "path": pattern} for split, pattern in (data_files or {}).items()]
    own_tags = ["synthetic", "context-free"] if sampled else ["pruned"] if report is not None else []
    privacy = list(label_privacy)
    own_tags += ["label-differential-privacy"] if privacy else []
    by_matching = report is not None and report.method in ("gm", "gm_official")
    data = DatasetCardData(
        license=license or (inherited if sampled else None) or "unknown",
        tags=list(dict.fromkeys(["hf-ext", *own_tags, *tags])),
        # Pruned rows may be images, and labels are of a classification that nobody has named.
        task_categories=["text-generation"] if report is None and not privacy else None,
        configs=[{"config_name": "default", "data_files": files}] if files else None,
    )
    body = _render(
        "dataset.jinja",
        dataset_name=dataset_name,
        context_free=sampled,
        source=f"[{source}](https://huggingface.co/{source})" if source else "",
        license_inherited=bool(sampled and inherited and not license),
        splits=list((splits or {}).items()),
        settings=[(name, _cell(value)) for name, value in (settings or {}).items()],
        pruning=[(name, _cell(value)) for name, value in report.summary()] if report is not None else [],
        pruned_by=_cell(report.by) if report is not None and report.by else "",
        plot="report/pruning.png" if (folder / "report" / "pruning.png").is_file() and report is not None else "",
        paper=_paper("context_free" if sampled else "pruning", None) if sampled or by_matching else None,
        label_privacy=[(name, _cell(value)) for name, value in privacy],
        versions=_versions(),
    )
    path = folder / "README.md"
    DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(path)
    return path


def base_model_metadata(base_model: str | Path | None) -> tuple[str | None, str | None]:
    """
    Hub id and licence of a base model, as far as files on this machine tell.

    Args:
        base_model (`str`, `Path` or `None`):
            Hub id or folder.

    Returns:
        `tuple[str | None, str | None]`: the Hub id (for a folder, the one its card names), and the licence key.
    """
    from huggingface_hub import try_to_load_from_cache

    if not base_model:  # a fresh model's name is the empty string, which is also this folder's path
        return None, None
    if Path(base_model).is_dir():
        values = _card_metadata(Path(base_model) / "README.md")
        named = values.get("base_model")
        named = named[0] if isinstance(named, list) and len(named) == 1 else named
        return (named if isinstance(named, str) and _is_hub_id(named) else None), _text(values.get("license"))
    if not isinstance(base_model, str) or not _is_hub_id(base_model):
        return None, None
    cached = try_to_load_from_cache(base_model, "README.md")
    values = _card_metadata(Path(cached)) if isinstance(cached, str) else {}
    return base_model, _text(values.get("license"))


def _card_metadata(card: Path) -> dict[str, Any]:
    """The YAML block of a card; empty where none can be read: a stranger's card must not stop a save."""
    if not card.is_file():
        return {}
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _paper(method: str, given: Mapping[str, str] | None) -> dict[str, str] | None:
    """The paper with its address; a citation left out is filled in where the paper is the method's own."""
    own = PAPERS.get(method, {})
    paper = {"citation": "", **(own if not given or given.get("id") == own.get("id") else {}), **(given or {})}
    return {**paper, "url": f"https://huggingface.co/papers/{paper['id']}"} if "id" in paper else None


def _is_hub_id(name: str) -> bool:
    """Whether `name` can be a Hub id: the right letters, and nothing of that name on this disk."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def _target_names(dataset_name: str | None) -> dict[str, str]:
    if not dataset_name or not _is_hub_id(dataset_name):
        return {}
    return {"dataset_id": dataset_name, "dataset_name": f"{dataset_name}, held-out rows"}


def _dataset_link(dataset_name: str | None) -> str:
    if not dataset_name or not _is_hub_id(dataset_name):
        return ""
    return f"[{dataset_name}](https://huggingface.co/datasets/{dataset_name})"


def _usage(folder: Path, model_name: str) -> str:
    """A snippet that fits the saved files."""
    config = folder / "tokenizer_config.json"
    chat = (folder / "chat_template.jinja").is_file() or (
        config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    )
    snippet = (CHAT_USAGE if chat else TEXT_USAGE).format(model_name=model_name)
    return snippet + ADAPTER_NOTE if (folder / "adapter_config.json").is_file() else snippet


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _versions(host: str = "trl") -> str:
    names = dict.fromkeys(("hf-ext", host, "transformers", "torch", "datasets"))
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = resources.files("hf_ext.model_cards")
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=False,  # noqa: S701  Markdown, not HTML: escaping would write &quot; into code
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**values)
    lines: list[str] = []
    for line in text.splitlines():  # an absent block leaves blank lines behind; one is enough
        if line.strip() or (lines and lines[-1].strip()):
            lines.append(line.rstrip())
    return "\n".join(lines).strip() + "\n"
