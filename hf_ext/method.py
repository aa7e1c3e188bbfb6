"""
What a method is: one record, from which every table of methods derives. Imports nothing heavy.

A method that trains has its record in its own folder, `trainers/<method>/__init__.py`, as `METHOD`, or `METHODS` where
the folder has variants. What works on rows or measures models has one in `hf_ext/data/__init__.py`,
`hf_ext/evaluation/__init__.py` or `hf_ext/bandits/__init__.py`, for what lies below these imports numpy and more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pkgutil import iter_modules

__all__ = [
    "Method",
    "Paper",
    "known_methods",
    "method_exports",
    "method_named",
    "method_of_models",
    "private_settings",
    "trained_methods",
]

FOLDERS = ("hf_ext.trainers",)  # each package in them is a method's
PACKAGES = ("hf_ext.data", "hf_ext.evaluation", "hf_ext.bandits")  # these have the records of what does not train


@dataclass(frozen=True)
class Paper:
    """
    A method's paper.

    Args:
        title (`str`):
            As published.
        id (`str`):
            arXiv's, such as `"2502.02797"`.
        citation (`str`):
            BibTeX.
    """

    title: str
    id: str
    citation: str


@dataclass(frozen=True)
class Method:
    """
    Everything that the rest of the package has to know of a method.

    Args:
        name (`str`):
            The word for it on the command line, in recipes and on cards, such as `"flow"`.
        summary (`str`):
            What it does, in a line.
        commands (`tuple[str, ...]`):
            The commands that run it, after `hf-ext`; the first one reads its recipes.
        trainer, config (`str`):
            Names of its trainer (or of what runs several trainings) and its configuration in `hf_ext`; empty where
            nothing is trained.
        recipe (`str`):
            Module that `hf-ext train` launches.
        variant_of (`str`):
            The method that trains its models, where that is another one: their cards are that method's.
        card (`str`):
            Template of its models' card, `model_cards/<card>.jinja`.
        host (`str`):
            Library whose trainer it extends.
        library (`str`):
            The Hub's name of the library that opens its folder.
        task (`str`, *optional*):
            The Hub's name of what its models do; `None` where the class of the model tells.
        paper ([`Paper`], *optional*):
            Where the method comes from.
        telltale_settings (`tuple[str, ...]`):
            Settings that tell, together, which method wrote a `training_args.json`.
        card_settings (`tuple[str, ...]`):
            Settings of its own that its card shows; all that its host lacks where empty.
        host_settings (`tuple[str, ...]`):
            Settings of its host that its card shows too, beside those that every card shows.
        card_tags (`tuple[str, ...]`):
            Tags that cards of its models or rows get by what they are about, beside its name.
        private_settings (`tuple[str, ...]`):
            Settings that name places with rows or samples, which are neither pushed nor shown.
    """

    name: str
    summary: str
    commands: tuple[str, ...]
    trainer: str = ""
    config: str = ""
    recipe: str = ""
    variant_of: str = ""
    card: str = "base"
    host: str = "trl"
    library: str = "transformers"
    task: str | None = "text-generation"
    paper: Paper | None = None
    telltale_settings: tuple[str, ...] = ()
    card_settings: tuple[str, ...] = ()
    host_settings: tuple[str, ...] = ()
    card_tags: tuple[str, ...] = ()
    private_settings: tuple[str, ...] = ()

    @property
    def paper_words(self) -> dict[str, str]:
        """`title`, `id` and `citation` of the paper, as TRL's `_paper` has them; empty without one."""
        return {} if self.paper is None else asdict(self.paper)


def known_methods() -> tuple[Method, ...]:
    """Every record, those of the trainers first, in the order of their folders; looked up anew at each call."""
    return tuple(method for _, method in _records())


def trained_methods() -> tuple[Method, ...]:
    """The methods of `hf-ext train`."""
    return tuple(method for method in known_methods() if method.recipe)


def method_named(name: str) -> Method:
    """
    The record of that name.

    Raises:
        ValueError: if there is none; the message lists the names.
    """
    methods = {method.name: method for method in known_methods()}
    if name not in methods:
        raise ValueError(f"there is no method {name!r}; choose one of {', '.join(methods)}")
    return methods[name]


def method_of_models(name: str) -> Method:
    """
    The record of the method that trains the models of `name`: its own, or that of the method it is a variant of.

    Raises:
        ValueError: if no method of that name trains a model; the message lists those that do.
    """
    methods = {method.name: method for method in trained_methods()}
    if name not in methods:
        raise ValueError(f"no method {name!r} trains a model; choose one of {', '.join(methods)}")
    return methods[methods[name].variant_of or name]


def method_exports() -> dict[str, tuple[str, ...]]:
    """Package of each method that trains, and the names of trainer and configuration that it defines."""
    exports: dict[str, tuple[str, ...]] = {}
    for package, method in _records():
        if method.trainer and not method.variant_of:
            exports[package] = (*exports.get(package, ()), method.config, method.trainer)
    return exports


def private_settings() -> frozenset[str]:
    """The settings, of any method, that name places with rows or samples."""
    return frozenset(name for method in known_methods() for name in method.private_settings)


def _records() -> Iterator[tuple[str, Method]]:
    """Each record with the package that holds it."""
    folders = [entry for name in FOLDERS for entry in iter_modules(import_module(name).__path__, f"{name}.")]
    for package in (*(entry.name for entry in folders if entry.ispkg), *PACKAGES):
        names = vars(import_module(package))
        for method in (names["METHOD"],) if "METHOD" in names else names.get("METHODS", ()):
            yield package, method
