"""
DCLM's own mappers from a checkout of its repository, in the order of its configuration.

Only the files of the chain are imported, past the packages around them, which bring models and clouds. What those
files import for other mappers gets a stand-in, and so does fastText's function that cuts text into tokens.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import yaml

Page = dict[str, Any]
Mapper = Callable[[Page], list[Page]]

CONFIG = "baselines/baselines_configs/dclm_baseline_refinedweb.yaml"
PACKAGES = (
    "baselines",
    "baselines.core",
    "baselines.mappers",
    "baselines.mappers.enrichers",
    "baselines.mappers.filters",
    "core",
)
CONTENT_FILTERS = "baselines.mappers.filters.content_filters"
FILES = (
    "baselines.mappers.enrichers.enrichers",
    CONTENT_FILTERS,
    "baselines.mappers.filters.metadata_filters",
    "baselines.mappers.modifiers",
)
UNCALLED = {"bs4": ("BeautifulSoup",), "justext": ("justext",), "unidecode": ("unidecode",)}
LEFT_OUT = {"move_url_modifier", "detect_lang_whole_page_enricher", "language_filter"}
LISTS = {"curated": "domains", "strict": "strict", "hard": "hard", "soft": "soft"}
QUALITY_BEGINS, REPETITION = "page_length_filter", "massive_web_repetition_filters"
FASTTEXT_TOKENS = re.compile("[^ \n\r\t\v\f\0]+|\n")  # as fastText cuts, a line's end being a token


def _stand_ins(root: Path) -> dict[str, ModuleType]:
    """The packages with nothing of what their own first files import, and what no mapper of the chain calls."""
    modules = {name: ModuleType(name) for name in (*PACKAGES, *UNCALLED, "fasttext")}
    for name in PACKAGES:
        folder = name.replace(".", "/") if name != "core" else "baselines/core"
        modules[name].__path__ = [str(root / folder)]
    for name, members in UNCALLED.items():
        for member in members:
            setattr(modules[name], member, None)
    # the compiled package with this function cannot stand beside the one that predicts, which LanguageFilter needs
    fasttext: Any = modules["fasttext"]
    fasttext.FastText = SimpleNamespace(tokenize=FASTTEXT_TOKENS.findall)
    return modules


class Checkout:
    """
    The mappers of a checkout.

    Args:
        root (`Path`):
            Its folder, which holds `baselines/`.
    """

    def __init__(self, root: Path) -> None:
        if not (root / CONFIG).is_file():
            raise SystemExit(f"--dclm {root}: no {CONFIG} there. Give the folder of a clone of DCLM's repository.")
        self.root = root
        stand_ins = _stand_ins(root)
        installed = {name: sys.modules.pop(name) for name in stand_ins if name in sys.modules}
        sys.modules.update(stand_ins)
        self.modules = [importlib.import_module(name) for name in FILES]
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(installed)
        config = yaml.safe_load((root / CONFIG).read_text(encoding="utf-8"))
        self.steps: list[dict[str, Any]] = [step for step in config[0]["steps"] if step["func"] not in LEFT_OUT]

    def mapper(self, func: str, **arguments: Any) -> Mapper:
        """A mapper by its name in the configuration."""
        function = next(getattr(module, func) for module in self.modules if hasattr(module, func))
        if hasattr(function, "_is_factory"):
            return function(**arguments)
        return partial(function, **arguments)

    def lists(self) -> dict[str, list[str]]:
        """Its lists of words in addresses; the list of domains is not in the repository."""
        lists: dict[str, list[str]] = {"domains": []}
        for step in self.steps:
            name, path = self._list_of(step)
            if name and path.is_file():
                lists[name] = path.read_text(encoding="utf-8").splitlines()
        return lists

    def _list_of(self, step: dict[str, Any]) -> tuple[str | None, Path]:
        path = self.root / step.get("banlist_from_fname", "")
        return next((name for part, name in LISTS.items() if part in path.name), None), path

    def rules(self) -> list[Mapper]:
        """Quality, then repetition."""
        names = [step["func"] for step in self.steps]
        steps = self.steps[names.index(QUALITY_BEGINS) : names.index(REPETITION) + 1]
        return [self.mapper(**step) for step in steps]

    def chain(self, lists: dict[str, list[str]]) -> list[Mapper]:
        """The whole chain but language identification, with these lists in place of its own."""
        folder = os.getcwd()
        os.chdir(self.root)  # where the original looks for its list of top-level domains
        try:
            mappers = []
            for step in self.steps:
                arguments = dict(step)
                if arguments.pop("banlist_from_fname", None):
                    arguments["banlist"] = lists[self._list_of(step)[0] or ""]
                mappers.append(self.mapper(**arguments))
            return mappers
        finally:
            os.chdir(folder)

    def words_given(self, texts: Sequence[str]) -> Callable[[], AbstractContextManager[None]]:
        """A context in which word breaking costs nothing: what it gives for these texts is looked up."""
        content: Any = self.modules[FILES.index(CONTENT_FILTERS)]
        breaker = content.split_words
        default = inspect.signature(breaker).parameters["model"].default
        models = (default, "uniseg")
        table = {(text, m): breaker(text, model=m, ignore_punctuation=True) for text in texts for m in models}

        @contextmanager
        def context() -> Iterator[None]:
            content.split_words = lambda text, model=default, **_: table[text, model]
            try:
                yield
            finally:
                content.split_words = breaker

        return context
