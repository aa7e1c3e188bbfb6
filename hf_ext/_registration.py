"""
`AutoConfig`, `AutoModelForSequenceClassification` and pipelines know `em_moe` once `import hf_ext` has run.

transformers has no entry point for architectures of other packages, and to import it here would cost every user of
`import hf_ext` seconds. So a finder waits for the two modules that hold the tables, and enters ours after each of them
has run. Both are needed: `AutoConfig` is used without the models' table.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # at run time these take 10 ms
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

TOUCHED = (
    ("transformers.models.auto.configuration_auto.AutoConfig", "register", "em_moe folders would not open"),
    (
        "transformers.models.auto.modeling_auto.AutoModelForSequenceClassification",
        "register",
        "em_moe folders would not open as models",
    ),
)


# Module of transformers -> ours that enters itself into its table. Ours may have been imported first, and be what
# imports theirs: then it is half run when the table is there, and enters itself at its end.
_ENTRIES = {
    "transformers.models.auto.configuration_auto": "hf_ext.moe.configuration_moe",
    "transformers.models.auto.modeling_auto": "hf_ext.moe.modeling_moe",
}


class _LoaderThatEnters:
    """Runs a module as its own loader does, then imports ours."""

    def __init__(self, loader: Loader, entry: str) -> None:
        self.loader = loader
        self.entry = entry

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:  # whoever reads the source asks the module's own loader
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        import_module(self.entry)


class _FinderOfTables:
    """Finds the modules of `_ENTRIES` where the finders behind it do, and no other."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        entry = _ENTRIES.get(fullname)
        if entry is None:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:  # other packages may have hooks of their own
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _LoaderThatEnters(spec.loader, entry)  # type: ignore[assignment]
                return spec
        return None


def register() -> None:
    """Enter `em_moe` into tables that are loaded, and see to those that are not yet."""
    sys.meta_path.insert(0, _FinderOfTables())
    for name, entry in _ENTRIES.items():
        if name in sys.modules:
            import_module(entry)
