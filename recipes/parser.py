"""The parser of a recipe: TRL's, with configs found by name and nothing ignored."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from trl import TrlParser

from hf_ext.guards.near_names import did_you_mean
from hf_ext.guards.numbers import check_numbers
from hf_ext.guards.row_text import shorten
from hf_ext.recipes.files import read_settings, take_config
from hf_ext.recipes.schema import config_schema, converted, problem_of

EPILOG = """
--config FILE reads any of these from a YAML file: a name inside the package ('hf-ext recipes list'), else a path.
The command line wins over the file. A key or an option that nobody reads is an error.
"""

# What the configs of the host libraries raise, beside ValueError, for a setting that they cannot use.
REFUSALS = (
    TypeError,
    AttributeError,
    KeyError,
    ImportError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
)


class RecipeParser(TrlParser):
    """
    [`~trl.TrlParser`] for recipes: `--config flow/gsm8k.yaml` resolves inside the package first, then on disk.

    Unknown keys and options stop the run, options are not abbreviated, errors are one line. Without an accelerator
    `use_cpu` is on unless told otherwise: TRL's default precision, bf16, would else refuse to start there.
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any) -> None:
        super().__init__(dataclass_types, allow_abbrev=False, epilog=EPILOG, **kwargs)
        if not torch.accelerator.is_available():
            self.set_defaults(use_cpu=True)

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the file that `--config` reads."""
        return config_schema(self.dataclass_types, title=self.prog)

    def error(self, message: str) -> NoReturn:
        """One line on stderr and exit status 2: the usage of some 300 options helps nobody."""
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)

    def parse_args_and_config(
        self,
        args: Iterable[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
        separate_remaining_strings: bool = False,
    ) -> tuple[Any, ...]:
        """
        Parse arguments and the file after `--config`.

        Raises:
            ValueError: the file is missing, is no YAML mapping, or has an unknown key; or a value is refused by its
                config. An unknown option exits with status 2.
        """
        arguments, config = self._read_config(sys.argv[1:] if args is None else args)
        # TRL would read the file a second time, without bounds: it gets the values instead, in the same order.
        try:
            os.environ.update({name: str(value) for name, value in config.pop("env", {}).items()})
            self.set_defaults_with_config(**config)
            *parsed, _, unknown = super().parse_args_and_config(
                arguments, return_remaining_strings=True, separate_remaining_strings=True
            )
            for arguments_of_kind in parsed:
                check_numbers(arguments_of_kind)
        except json.JSONDecodeError as error:  # the host reads settings that begin with a brace, and names none
            raise ValueError(f"{shorten(error.doc)} is no JSON: {error.msg} at character {error.pos + 1}") from error
        except REFUSALS as error:
            raise ValueError(f"these settings cannot be used: {type(error).__name__}: {error}") from error
        if fail_with_unknown_args and not return_remaining_strings:
            self._refuse(unknown)
        if separate_remaining_strings:
            return (*parsed, [], unknown)
        return (*parsed, unknown) if return_remaining_strings else tuple(parsed)

    def check_arguments(self, args: Iterable[str]) -> None:
        """Refuse a missing config and unknown keys or options, without building any config: cheap before a launch."""
        arguments, _ = self._read_config(args)
        self._refuse(self.parse_known_args(arguments)[1])

    def _refuse(self, unknown: list[str]) -> None:
        if unknown:
            name = unknown[0].split("=")[0]
            self.error(f"unknown argument {name!r}{did_you_mean(name, self._option_string_actions)}")

    def _read_config(self, arguments: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
        """The arguments without `--config`, and what its file holds, checked."""
        others, name = take_config(arguments)
        if name is None:
            return others, {}
        path, config = read_settings(name)
        properties = self.schema()["properties"]
        for key, value in config.items():
            if key not in properties:
                raise ValueError(f"{path}: unknown key {key[:80]!r}{did_you_mean(key, properties)}")
            problem = problem_of(value, properties[key])
            if problem:  # argparse takes a default of any type, so this is the only check there is
                raise ValueError(f"{path}: {key}: {problem}")
        return others, {key: converted(value, properties[key]) for key, value in config.items()}
