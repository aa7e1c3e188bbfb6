"""`RareEncoder`: a `SentenceTransformer` whose queries are shown exemplars."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from hf_ext._upstream.encoder import EncoderHooks
from hf_ext.data.exemplars import ExemplarStore, Formatted, TokenCounter
from hf_ext.guards.models import loading_model
from hf_ext.retrieval.augmenter import EncoderSettings, Examples, QueryAugmenter
from hf_ext.retrieval.card import RareModelCardData, with_section
from hf_ext.retrieval.repository import Where, read_exemplars, write_exemplars
from hf_ext.retrieval.vectors import MASK, Body, VectorCache, as_asked, blend, exemplar_mask, leave_exemplars_out

logger = logging.getLogger(__name__)

SEARCH_OPTIONS = ("exclude_ids", "exclude", "targets")


class RareEncoder(EncoderHooks):
    """
    A [`~sentence_transformers.SentenceTransformer`] that finds exemplars for a query and reads them with it.

    One repository serves three ways: plain `SentenceTransformer` reads the bare query (no hf-ext needed, no remote
    code); this class reads it with exemplars; [`QueryAugmenter`] gives the text alone. `encode` and `encode_document`
    are the parent's.

    Args:
        model_name_or_path (`str`, *optional*):
            Any sentence-transformers model, with or without `exemplars/`.
        exemplars ([`ExemplarStore`] or `str`, *optional*):
            Pool in place of the repository's own: a store, its folder, or `"user/dataset@revision"`.
        settings ([`EncoderSettings`], *optional*):
            In place of the repository's own.
        cache_size (`int`, *optional*, defaults to `0`):
            Query vectors that are kept in memory; 0 keeps none.
        **kwargs:
            As in [`~sentence_transformers.SentenceTransformer`].

    Attributes:
        exemplars ([`ExemplarStore`], *optional*): the pool.
        settings ([`EncoderSettings`]): how it is used; replace it to change it.
        exemplars_source (`str`, *optional*): dataset repository and commit of the pool.
        save_exemplars (`bool`): whether `save` writes the rows too, or the settings alone.

    Raises:
        FileNotFoundError: if the source that is named has no exemplars.
        ValueError: if they are damaged, too large, or of a higher version.
    """

    model_card_data_class = RareModelCardData

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        exemplars: ExemplarStore | str | Path | None = None,
        settings: EncoderSettings | None = None,
        cache_size: int = 0,
        **kwargs: Any,
    ) -> None:
        self._arguments = (exemplars, settings)
        self.exemplars: ExemplarStore | None = None
        self.exemplars_source: str | None = None
        self.settings = settings or EncoderSettings()
        self.save_exemplars = True
        self.cache = VectorCache(cache_size)
        self._shows_exemplars = True
        self._source = Where("", None, kwargs.get("token"), kwargs.get("cache_folder"), False)
        with nullcontext() if model_name_or_path is None else loading_model(model_name_or_path):
            super().__init__(model_name_or_path, **kwargs)
        self._pools_tokens = leave_exemplars_out(self)
        self._take_exemplars()

    @classmethod
    def from_model(
        cls,
        model: SentenceTransformer,
        exemplars: ExemplarStore | str | None = None,
        settings: EncoderSettings | None = None,
        **options: Any,
    ) -> RareEncoder:
        """
        An encoder over the modules of a model in memory, which are shared: what is trained on is what encodes.

        Args:
            model ([`~sentence_transformers.SentenceTransformer`]):
                The model.
            exemplars, settings, **options (*optional*):
                As in [`RareEncoder`].
        """
        return cls(
            modules=list(model.children()),
            device=str(model.device),
            prompts=dict(model.prompts),
            default_prompt_name=model.default_prompt_name,
            similarity_fn_name=model.similarity_fn_name,
            truncate_dim=model.truncate_dim,
            exemplars=exemplars,
            settings=settings,
            **options,
        )

    def read_files(self, name: str, **options: Any) -> None:
        """Remember where the weights come from: exemplars are read from the same commit."""
        self._source = Where(name, **options)

    def _take_exemplars(self) -> None:
        """Once the weights are there: a pool that is searched by vectors needs them."""
        exemplars, settings = self._arguments
        self._arguments = (None, None)
        pool = read_exemplars(self._source, exemplars, encode=self.encode_plain, encoder_name=self.fingerprint)
        if pool is not None:
            self.exemplars = pool.store
            self.settings = settings or EncoderSettings.from_dict(pool.settings)
            self.exemplars_source = pool.source
            if pool.store is None:
                logger.warning("%s: the exemplars are not in the repository; pass exemplars=.", self._source.name)
        if "message" in getattr(self[0], "modality_config", {}):
            logger.warning(
                "The model reads texts through its chat template: the prompt becomes a system turn, and the budgets "
                "of exemplars do not count it. Load it with a text-only modality_config, as RareTrainer does."
            )

    # --- text ------------------------------------------------------------------------------------------------------

    @property
    def query_tokens(self) -> int | None:
        """Tokens of a query that the model reads, special ones included; `None` is no limit."""
        limits = [getattr(self[0], "query_length", None) or self.max_seq_length]
        config: Any = getattr(self, "config", None)
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and getattr(config, "model_type", "") in _OFFSET_POSITIONS:
            positions -= (config.pad_token_id or 0) + 1
        limits.append(positions)
        # A tokenizer without a limit of its own says 10**30.
        return min((int(limit) for limit in limits if limit is not None and limit < 10**9), default=None)

    def effective_settings(self) -> EncoderSettings:
        """The settings with the formatter's budget no longer than what the model reads: so no target is ever cut."""
        formatter = self.settings.formatter
        limit = self.query_tokens
        if limit is None or (formatter.max_tokens is not None and formatter.max_tokens <= limit):
            return self.settings
        return dataclasses.replace(self.settings, formatter=dataclasses.replace(formatter, max_tokens=limit))

    def augmenter(self) -> QueryAugmenter:
        """The text side alone, as [`QueryAugmenter`]."""
        settings = self.effective_settings()
        counter = self._counter() if settings.formatter.has_budget else None
        return QueryAugmenter(self.exemplars, settings, tokenizer=counter, prompt=self.prompts.get("query") or "")

    def _counter(self) -> TokenCounter:
        entry = self.__dict__.get("_counter_entry")
        if entry is None or entry[0] is not self.tokenizer:
            entry = (self.tokenizer, TokenCounter(self.tokenizer))
            self.__dict__["_counter_entry"] = entry
        return entry[1]

    @contextmanager
    def no_examples(self) -> Iterator[RareEncoder]:
        """Inside, `encode_query` reads bare queries unless a call asks for exemplars: for mining and ablation."""
        shows_exemplars = self._shows_exemplars
        self._shows_exemplars = False
        try:
            yield self
        finally:
            self._shows_exemplars = shows_exemplars

    # --- vectors ---------------------------------------------------------------------------------------------------

    def encode_query(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        examples: Examples | None = None,
        return_examples: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        Vectors of queries, each read with its exemplars.

        Args:
            inputs (`str` or `Sequence[str]`):
                Queries.
            examples (`bool`, `int` or a list, *optional*, defaults to `True`):
                As many as the settings say; none (then exactly the parent's result, and any input it takes); this
                many; or these pairs or [`Exemplar`]s, nearest first, for every query. The default shows none where
                there is no pool.
            exclude_ids (`Iterable[str]`, *optional*):
                Ids of exemplars not to show; integers count as their digits, a single string as one id.
            targets, exclude (*optional*):
                As in [`ExemplarStore.search`], for measuring. By default nothing is excluded: a query may see its own
                past.
            return_examples (`bool`, *optional*, defaults to `False`):
                Also return what each query was shown, nearest first.
            prompt_name, prompt, **kwargs:
                As in [`~sentence_transformers.SentenceTransformer.encode_query`], several processes included: they
                are sent texts, not the pool.

        Returns:
            As the parent's: `(queries, dim)`, or `(dim,)` of one; with `return_examples` a pair of that and
            `list[list[Exemplar]]` (or `list[Exemplar]`).

        Raises:
            TypeError: if a query is no text.
            ValueError: if exemplars are asked for, and there is no pool.
        """
        search_options = {name: kwargs.pop(name) for name in SEARCH_OPTIONS if name in kwargs}
        if examples is None:
            examples = self._shows_exemplars and self.exemplars is not None
        single = self.is_singular_input(inputs)
        bare = isinstance(examples, bool | int) and not examples
        if bare and not (self.cache.size and single):
            vectors = super().encode_query(inputs, prompt_name, prompt, *args, **kwargs)
            return (vectors, [] if single else [[] for _ in inputs]) if return_examples else vectors
        queries = [inputs] if single else list(inputs)
        text_prompt = (self.prompts.get(prompt_name or "query") or "") if prompt is None else prompt
        texts = self.augmenter().augment(queries, examples, prompt=text_prompt, **search_options)
        vectors = self._vectors(queries, texts, (prompt_name, prompt, *args), kwargs)
        vectors = vectors[0] if single else vectors
        exemplars = [list(text.shown) for text in texts]
        return (vectors, exemplars[0] if single else exemplars) if return_examples else vectors

    def _vectors(self, queries: list[str], texts: Sequence[Formatted], prompts: tuple, kwargs: dict[str, Any]) -> Any:
        """Vectors of the bodies, blended with those of the bare queries where exemplars are shown."""
        leave_out = self._pools_tokens and not self.settings.pool_examples
        bodies = [Body.of(text) if leave_out and text.prefix else text.body for text in texts]
        mixed = [row for row, text in enumerate(texts) if text.shown]
        weight = self.settings.example_weight
        if weight == 1 or not mixed:
            return self._encoded(bodies, prompts, kwargs)
        if kwargs.get("output_value", "sentence_embedding") != "sentence_embedding":
            raise ValueError("A blend is of sentence embeddings: set example_weight to 1 for any other output_value.")
        precision = kwargs.get("precision") or "float32"
        # One call for both, so that they share batches; blended in full precision, then given the form asked for.
        all_texts = bodies + [queries[row] for row in mixed]
        all_vectors = self._encoded(all_texts, prompts, kwargs | {"precision": "float32", "convert_to_tensor": True})
        vectors = all_vectors[: len(bodies)].clone()
        vectors[mixed] = blend(all_vectors[len(bodies) :], vectors[mixed], weight)
        return as_asked(vectors, precision, kwargs)

    def _encoded(self, texts: list[str], prompts: tuple, kwargs: dict[str, Any]) -> Any:
        def encode(batch: list[str]) -> Any:
            return super(RareEncoder, self).encode_query(batch, *prompts, **kwargs)

        if not self.cache.size:
            return encode(texts)
        options = sorted((name, str(value)) for name, value in kwargs.items())
        state = (prompts, options, str(self.device), self.settings.pool_examples)
        return self.cache.vectors(texts, repr((state, str(self.dtype), self.prompts)), encode)

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """As the parent's; texts that begin with exemplars come with a mask of their tokens."""
        features = super().preprocess(inputs, prompt, **kwargs)
        prefixes = [getattr(text, "prefix", 0) for text in inputs]
        if any(prefixes):
            features[MASK] = exemplar_mask(features, prompt or "", inputs, prefixes, self._counter())
        return features

    def encode_plain(self, texts: Sequence[str]) -> Any:
        """Vectors of bare queries, `(queries, dim)`: what exemplars are searched by under `dense` and `hybrid`."""
        return super().encode_query(list(texts), show_progress_bar=False)

    def fingerprint(self) -> str:
        """SHA-256 of weights and query prompt: whether stored vectors of exemplars are still this model's."""
        digest = hashlib.sha256((self.prompts.get("query") or "").encode())
        weights = self.state_dict()
        if not weights:  # ONNX and OpenVINO hold theirs outside: never the same as stored, so always made again
            digest.update(os.urandom(16))
        for name, tensor in sorted(weights.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def train(self, mode: bool = True) -> RareEncoder:
        """As the parent's; cached vectors are of weights that are about to change."""
        if mode:
            self.cache.clear()
        return super().train(mode)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; cached vectors are dropped."""
        self.cache.clear()
        return super().load_state_dict(*args, **kwargs)

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> Any:
        """As the parent's. Exemplars are written here, so the workers are sent the weights alone."""
        exemplars = self.exemplars
        self.exemplars = None
        try:
            return super().start_multi_process_pool(target_devices)
        finally:
            self.exemplars = exemplars

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_counter_entry", None)
        return state | {"cache": VectorCache(self.cache.size)}

    # --- files -----------------------------------------------------------------------------------------------------

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """
        As the parent's, with `exemplars/`: the rows too if `save_exemplars`, cut to what is shown.

        The exemplars are training text in clear. A pool that comes from a dataset repository stays there, and its
        commit is written down.
        """
        super().save(path, *args, **kwargs)
        if path is None or (self.exemplars is None and self.exemplars_source is None):
            return
        settings = self.effective_settings()
        keeps = self.save_exemplars and self.exemplars_source is None and self.exemplars is not None
        store = self._to_keep() if keeps else None
        write_exemplars(path, store, settings.to_dict(), self.exemplars_source)
        card = Path(path) / "README.md"
        if card.is_file():
            text = with_section(card.read_text(encoding="utf-8"), self)
            card.write_text(text, encoding="utf-8")

    def _to_keep(self) -> ExemplarStore:
        settings = self.effective_settings()
        if settings.formatter.max_example_document_tokens is None:
            return self.exemplars  # type: ignore[return-value]
        return self.exemplars.clipped(settings.formatter, self._counter())  # type: ignore[union-attr]

    def push_to_hub(
        self,
        repo_id: str,
        token: str | None = None,
        private: bool | None = None,
        *,
        include_exemplars: bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **save: Any,
    ) -> str:
        """
        Push the model, as [`push_folder`] does; whether its exemplars go along must be said.

        Args:
            repo_id, token, private, commit_message, revision, create_pr:
                As in [`push_folder`]. With exemplars `private` is true unless told otherwise.
            include_exemplars (`bool`):
                Needed where there is a pool: they are training text in clear.
            **save:
                Of [`save`].

        Returns:
            `str`: address of the commit or of the pull request.

        Raises:
            ValueError: if there is a pool and `include_exemplars` is not set.
            PushError: as in [`push_folder`]; the written folder stays.
        """
        from hf_ext.hub.push import push_folder

        pool = self.exemplars if self.exemplars_source is None else None
        license_ = self.settings.provenance.get("license", "unknown")
        if pool is not None and include_exemplars is None:
            raise ValueError(
                f"The model holds {len(pool):,} exemplars, texts in clear (licence: {license_}). Pass "
                "include_exemplars=True to publish them with it, False to push the model alone, or push_exemplars "
                "for a dataset repository of their own."
            )
        if pool is not None and include_exemplars:
            private = True if private is None else private
            logger.warning("Pushing %s exemplars in clear (licence: %s).", f"{len(pool):,}", license_)
        save_exemplars = self.save_exemplars
        self.save_exemplars = bool(include_exemplars)
        folder = Path(tempfile.mkdtemp(prefix="hf_ext_push_"))
        try:
            self.save(str(folder), model_name=repo_id, **save)
        finally:
            self.save_exemplars = save_exemplars
        info = push_folder(
            folder,
            repo_id,
            token=token,
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or f"Add {type(self).__name__}",
            delete=("exemplars/*",),
            merge_card=True,
        )
        shutil.rmtree(folder)  # not reached where the push failed: its error names the folder
        return str(info.pr_url or info.commit_url)

    def push_exemplars(self, repo_id: str, *, private: bool = True, **options: Any) -> str:
        """
        Push the pool into a dataset repository of its own; from then on the model names that commit.

        Args:
            repo_id (`str`):
                Of the dataset.
            private (`bool`, *optional*, defaults to `True`):
                Whether a repository made here is private.
            **options:
                As in [`push_folder`].

        Returns:
            `str`: `"user/dataset@commit"`.
        """
        if self.exemplars is None:
            raise ValueError("There is no pool to push.")
        from hf_ext.hub.cards import write_dataset_card
        from hf_ext.hub.push import push_folder

        folder = Path(tempfile.mkdtemp(prefix="hf_ext_push_"))
        self._to_keep().save(folder, config={"rare": self.effective_settings().to_dict()})
        write_dataset_card(
            folder,
            license=self.settings.provenance.get("license"),
            dataset_name=repo_id,
            data_files={"train": "exemplars-*.parquet"},
            splits={"train": len(self.exemplars)},
        )
        defaults: dict[str, Any] = {"commit_message": "Upload exemplars", "merge_card": True}
        defaults |= {"delete": ("exemplars-*", "embeddings-*")}
        info = push_folder(folder, repo_id, repo_type="dataset", private=private, **(defaults | options))
        shutil.rmtree(folder)
        self.exemplars_source = f"{repo_id}@{info.oid}"
        return self.exemplars_source


# Position tables that begin behind the padding token's number.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl", "data2vec-text")
