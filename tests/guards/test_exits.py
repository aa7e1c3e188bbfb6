"""Exit statuses: 2 for the input, 1 for values that blew up, a traceback for bugs."""

from __future__ import annotations

import errno
from concurrent.futures.process import BrokenProcessPool

import pytest

from hf_ext.guards.disk import NotWritableError
from hf_ext.guards.exits import exit_status
from hf_ext.guards.finite import NonFiniteError
from hf_ext.guards.rows import RowError
from tests.tiny import tiny_tokenizer


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad"), 2),
        (FileNotFoundError("bad"), 2),
        (RowError("bad", 3, "text"), 2),
        (NonFiniteError("bad", "loss", 1, 0, [3]), 1),
        (NotWritableError("bad"), 2),
    ],
)
def test_the_message_is_one_line_on_stderr(capsys, error, status):
    assert exit_status(raising(error), "hf-ext x") == status
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hf-ext x: error: bad\n")


def test_what_the_system_refuses_is_a_line_and_not_a_traceback(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert exit_status((tmp_path / "file" / "a").touch, "hf-ext x") == 2
    assert exit_status(raising(OSError(errno.EROFS, "Read-only file system", "/a")), "hf-ext x") == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_worker_that_was_killed_is_a_line_and_not_a_traceback(capsys):
    error = RuntimeError("a process was killed: fewer of them")
    error.__cause__ = BrokenProcessPool("terminated abruptly")
    assert exit_status(raising(error), "hf-ext x") == 1
    assert capsys.readouterr().err == "hf-ext x: error: a process was killed: fewer of them\n"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('no system turn') }}", "TemplateError: no system turn"),
        ("{{ messages | nonsense }}", "TemplateAssertionError: "),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError: "),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError: "),
        ("{{ 1 + messages }}", "TypeError: "),
        ("{% if", "TemplateSyntaxError: "),
    ],
)
def test_a_chat_template_that_fails_is_a_line_and_not_a_traceback(capsys, template, problem):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    rows = [{"role": "user", "content": "a"}]
    assert exit_status(lambda: tokenizer.apply_chat_template(rows, tokenize=False), "hf-ext x") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hf-ext x: error: the tokenizer's chat template fails: {problem}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("bug"), RuntimeError("bug"), TypeError("bug"), PermissionError("disk")])
def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(error):
    with pytest.raises(type(error)):
        exit_status(raising(error), "hf-ext x")


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (3, 3)])
def test_the_result_is_the_status(result, status):
    assert exit_status(lambda: result, "hf-ext x") == status


def _interrupted_and_then(error):
    def command():
        try:
            raise KeyboardInterrupt
        finally:
            raise error

    return command


@pytest.mark.parametrize(
    "command",
    [raising(KeyboardInterrupt()), _interrupted_and_then(TimeoutError()), _interrupted_and_then(ValueError("x"))],
)
def test_ctrl_c_is_one_line_whatever_cleaning_up_raises(capsys, command):
    assert exit_status(command, "hf-ext x") == 130
    assert capsys.readouterr().err == "hf-ext x: interrupted\n"
