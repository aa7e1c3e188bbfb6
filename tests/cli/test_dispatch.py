"""The door: verbs are listed without being imported, and run with what they were given."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from hf_ext.cli import VERBS, main, make_parser


def fake_verb(monkeypatch, run):
    """Put a module in the place of the `eval` verb."""

    def add_parser(subparsers):
        parser = subparsers.add_parser("eval", help="fake")
        parser.add_argument("--depth", type=int)
        parser.set_defaults(run=run)

    module = ModuleType("hf_ext.cli.eval")
    module.add_parser = add_parser
    monkeypatch.setitem(sys.modules, "hf_ext.cli.eval", module)


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    words = capsys.readouterr().out.split()
    assert set(VERBS) <= set(words)


def test_no_verb_prints_the_help_and_fails(capsys):
    assert main([]) == 2
    assert "usage: hf-ext" in capsys.readouterr().err


def test_an_unknown_verb_names_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "'evaluate'" in message
    assert "eval" in message.split("choose from")[1]


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_the_verb_gets_its_arguments_and_its_result_is_the_exit_status(monkeypatch, returned, status):
    seen = []
    fake_verb(monkeypatch, lambda options: seen.append(options.depth) or returned)
    assert main(["eval", "--depth", "4"]) == status
    assert seen == [4]


def test_ctrl_c_ends_with_status_130_and_no_traceback(monkeypatch, capsys):
    def interrupt(options: SimpleNamespace) -> int:
        raise KeyboardInterrupt

    fake_verb(monkeypatch, interrupt)
    assert main(["eval"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_listed_verb_has_a_module_with_a_parser(verb):
    assert verb in make_parser(verb).format_help()
