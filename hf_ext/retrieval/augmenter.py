"""How queries are shown exemplars, and the text that this makes, for servers that encode elsewhere. No torch."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from hf_ext.data.exemplars import (
    NOTHING_EXCLUDED,
    Exclude,
    Exemplar,
    ExemplarStore,
    Formatted,
    RareFormatter,
    Target,
    TokenCounter,
)
from hf_ext.guards.inside import read_json, require_file
from hf_ext.guards.models import loading_model
from hf_ext.retrieval.repository import Where, file_of, read_exemplars

logger = logging.getLogger(__name__)

ONE_TOKEN = {"cls", "lasttoken", "pooling_mode_cls_token", "pooling_mode_lasttoken"}  # no exemplar's, in any case

Examples: TypeAlias = "bool | int | Sequence[Exemplar] | Sequence[tuple[str, str]]"


@dataclass(frozen=True)
class EncoderSettings:
    """
    How queries are shown exemplars at inference.

    Args:
        k (`int`, *optional*, defaults to `5`):
            Exemplars of a query.
        formatter ([`RareFormatter`], *optional*):
            The text; that of training.
        floor (`float`, *optional*):
            The gate: a query whose nearest exemplar has a lower score is read bare. One number, tuned on dev. BM25
            scores are not comparable between pools: tune it again for another one.
        min_score (`float`, *optional*):
            Exemplars of a lower score are not shown; the nearer ones still are.
        mmr (`float`, *optional*):
            As in [`ExemplarStore.search`].
        example_weight (`float`, *optional*, defaults to `1.0`):
            The blend: share of a query's vector, in (0, 1], that comes from its text with exemplars; the rest comes
            from the bare query. It bounds the worst case and costs one more short forward. Tuned on dev.
        pool_examples (`bool`, *optional*, defaults to `False`):
            Whether the exemplars' tokens enter the vector of a model that pools many tokens; as in training. One whose
            pooling takes the first or the last token reads them alone in any case.
        training (`dict`, *optional*):
            What training did: `example_rate`, `exclude`, and the like.
        provenance (`dict`, *optional*):
            Of the exemplars: data sets, revisions, `license`.
    """

    k: int = 5
    formatter: RareFormatter = field(default_factory=RareFormatter)
    floor: float | None = None
    min_score: float | None = None
    mmr: float | None = None
    example_weight: float = 1.0
    pool_examples: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"k is a number of exemplars, 0 or more; got {self.k!r}.")
        if not (math.isfinite(self.example_weight) and 0 < self.example_weight <= 1):
            raise ValueError(
                f"example_weight is a share in (0, 1], got {self.example_weight!r}. For none, pass examples=False."
            )
        if self.mmr is not None and not 0 <= self.mmr <= 1:
            raise ValueError(f"mmr lies in [0, 1], got {self.mmr!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Settings as JSON has them."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return values | {"formatter": self.formatter.to_dict()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> EncoderSettings:
        """
        Settings from [`to_dict`]'s result.

        Raises:
            ValueError: if this version does not know one of the settings, or if they are not of [`to_dict`]'s form.
        """
        try:
            unknown = set(settings) - {entry.name for entry in dataclasses.fields(cls)}
            if unknown:
                raise ValueError(
                    f"rare_config.json has a setting {sorted(unknown)[0]!r} unknown here. Upgrade hf-ext."
                )
            values = dict(settings)
            if "formatter" in values:
                values["formatter"] = RareFormatter.from_dict(values["formatter"])
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"rare_config.json holds no settings that hf-ext wrote: {error}.") from error


class QueryAugmenter:
    """
    Strings in, strings out: what [`RareEncoder`] reads, for TEI, vLLM or any hosted endpoint.

    Args:
        exemplars ([`ExemplarStore`], *optional*):
            The pool. Without one, only exemplars that a call names are shown.
        settings ([`EncoderSettings`], *optional*):
            How.
        tokenizer (*optional*):
            The model's, where the formatter has budgets.
        prompt (`str`, *optional*):
            The model's query prompt.

    Example:

    ```python
    >>> augmenter = QueryAugmenter.from_pretrained("user/model")
    >>> augmenter(["where do red pandas live"])  # prompt, exemplars, query
    >>> augmenter(["where do red pandas live"], with_prompt=False)  # for an endpoint that adds the prompt itself
    ```
    """

    def __init__(
        self,
        exemplars: ExemplarStore | None,
        settings: EncoderSettings | None = None,
        *,
        tokenizer: object = None,
        prompt: str = "",
    ) -> None:
        self.exemplars = exemplars
        self.settings = settings or EncoderSettings()
        self.counter = self.settings.formatter.counter(tokenizer)
        self.prompt = prompt

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        exemplars: ExemplarStore | str | None = None,
        revision: str | None = None,
        token: bool | str | None = None,
        cache_folder: str | None = None,
        local_files_only: bool = False,
        encode: Callable[[Sequence[str]], Any] | None = None,
    ) -> QueryAugmenter:
        """
        Read a repository that [`RareEncoder`] wrote, without its weights.

        Args:
            name (`str` or `Path`):
                Folder, or id on the Hub.
            exemplars ([`ExemplarStore`] or `str`, *optional*):
                Another pool: a store, its folder, or `"user/dataset@revision"`.
            revision, token, cache_folder, local_files_only (*optional*):
                As in `SentenceTransformer`.
            encode (`Callable`, *optional*):
                Texts to vectors, where the pool is searched by vectors: the endpoint's, on bare queries with the
                prompt.

        Raises:
            FileNotFoundError: if there is no `exemplars/rare_config.json`, or no tokenizer.
            ValueError: if what is there is damaged, too large, or of a higher version.
        """
        from tokenizers import Tokenizer

        source = Where(str(name), revision, token, cache_folder, local_files_only)
        pool = read_exemplars(source, exemplars, encode=encode)
        if pool is None:
            raise FileNotFoundError(f"{name} has no exemplars/rare_config.json: RareEncoder.save writes it.")
        settings = EncoderSettings.from_dict(pool.settings)
        tokenizer = None
        if settings.formatter.has_budget:
            path = file_of(source, "tokenizer.json", _first_module(source)) or file_of(source, "tokenizer.json")
            if path is None:
                raise FileNotFoundError(f"{name} has no tokenizer.json, which the budgets of its exemplars need.")
            with loading_model(path, "tokenizer"):
                tokenizer = TokenCounter(Tokenizer.from_file(str(require_file(path))))
        if not settings.pool_examples and _pools_tokens(source):
            logger.warning(
                "%s leaves exemplars out of its pooling, and an endpoint that encodes finished strings does not: its "
                "vectors are not RareEncoder's. Train with pool_examples=True for such endpoints.",
                name,
            )
        prompts = _json(source, "config_sentence_transformers.json", {}).get("prompts") or {}
        return cls(pool.store, settings, tokenizer=tokenizer, prompt=prompts.get("query") or "")

    def augment(
        self,
        queries: Sequence[str],
        examples: Examples = True,
        *,
        prompt: str | None = None,
        exclude_ids: Iterable[str | int] = (),
        **search: Any,
    ) -> list[Formatted]:
        """
        Bodies with what they show.

        Args:
            queries (`Sequence[str]`):
                Targets.
            examples (`bool`, `int` or a list, *optional*, defaults to `True`):
                As many as the settings say; none; this many; or these, nearest first, for every query.
            prompt (`str`, *optional*):
                What the model puts before the body; its own query prompt by default.
            exclude_ids (`Iterable[str]`, *optional*):
                Ids of exemplars that are not shown; integers count as their digits, a single string as one id.
            **search:
                `targets`, `exclude`: as in [`ExemplarStore.search`]. At inference nothing else is left out by default.

        Raises:
            TypeError: if a query is no text.
            ValueError: if exemplars are asked for by number, and there is no pool.
        """
        for row, query in enumerate(queries):
            if not isinstance(query, str):
                raise TypeError(
                    f"query {row:,}: exemplars stand before texts, found {type(query).__name__} {str(query)[:80]!r}. "
                    "Pass strings, or examples=False."
                )
        prompt = self.prompt if prompt is None else prompt
        hits = self._hits(queries, examples, exclude_ids, **search)
        formatter = self.settings.formatter
        return [
            formatter(query, exemplars, prompt=prompt, tokenizer=self.counter)
            for query, exemplars in zip(queries, hits, strict=True)
        ]

    def _hits(
        self,
        queries: Sequence[str],
        examples: Examples,
        exclude_ids: Iterable[str | int],
        exclude: Exclude = NOTHING_EXCLUDED,
        targets: Sequence[Target | None] | None = None,
    ) -> list[Sequence[Exemplar]]:
        if isinstance(examples, bool):
            examples = self.settings.k if examples else 0
        if not isinstance(examples, int):
            return [_as_exemplars(examples)] * len(queries)
        if examples < 0:
            raise ValueError(f"examples is a number of exemplars, 0 or more; got {examples}.")
        if examples == 0:
            return [()] * len(queries)
        if self.exemplars is None:
            raise ValueError(
                "There is no pool to take exemplars from: pass exemplars=ExemplarStore(...), or examples=False."
            )
        hit_lists = self.exemplars.search(
            queries,
            examples,
            targets=targets,
            exclude=exclude,
            exclude_ids=exclude_ids,
            min_score=self.settings.min_score,
            mmr=self.settings.mmr,
        )
        floor = self.settings.floor
        return [hits if floor is None or (hits and hits[0].score >= floor) else [] for hits in hit_lists]

    def __call__(
        self, queries: str | Sequence[str], examples: Examples = True, *, with_prompt: bool = True, **options: Any
    ) -> Any:
        """
        The text of one query, or of each.

        Args:
            queries (`str` or `Sequence[str]`):
                Targets.
            examples, **options:
                As in [`augment`].
            with_prompt (`bool`, *optional*, defaults to `True`):
                Whether the model's prompt comes first: what a model reads that adds none itself.
        """
        if isinstance(queries, str):
            return self([queries], examples, with_prompt=with_prompt, **options)[0]
        prompt = options.get("prompt")
        prefix = (self.prompt if prompt is None else prompt) if with_prompt else ""
        return [prefix + text.body for text in self.augment(queries, examples, **options)]


def _as_exemplars(examples: Sequence[Exemplar] | Sequence[tuple[str, str]]) -> list[Exemplar]:
    exemplars = []
    for row, example in enumerate(examples):
        if isinstance(example, Exemplar):
            exemplars.append(example)
        elif isinstance(example, tuple | list) and len(example) == 2 and all(isinstance(t, str) for t in example):
            exemplars.append(Exemplar(row, 0.0, *example))
        else:
            raise TypeError(
                f"example {row}: expected a pair of texts, query and document, or an Exemplar, found "
                f"{type(example).__name__} {str(example)[:80]!r}."
            )
    return exemplars


def _json(source: Where, name: str, default: dict | list) -> Any:
    path = file_of(source, name)
    return default if path is None else read_json(path, type(default))


def _pools_tokens(source: Where) -> bool:
    """Whether vectors are made of more than one token; older files name each mode in a key of its own."""
    for module in _json(source, "modules.json", []):
        if str(module.get("type", "")).endswith(".Pooling"):
            config = _json(source, f"{module.get('path', '')}/config.json", {})
            older = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
            modes = config.get("pooling_mode", older)
            return bool(({modes} if isinstance(modes, str) else set(modes)) - ONE_TOKEN)
    return False


def _first_module(source: Where) -> str:
    modules = _json(source, "modules.json", [])
    return str(modules[0].get("path", "")) if modules else ""
