"""Secret keys: made once, never shown, and refused where they can be guessed."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pickle
import random
import stat
import traceback

import pytest
from datasets.fingerprint import Hasher

from hf_ext.cli import main
from hf_ext.data.relabeling import HashColumn, KeyRef, RandomizedResponse, make_key_file
from hf_ext.data.relabeling.keys import StandInKeyWarning, weakness_of
from tests.data.relabeling.oracle import key

SECRETS = [hashlib.sha256(text).hexdigest() for text in (b"one key", b"another key")]


def test_a_key_file_is_made_once_private_and_random(tmp_path) -> None:
    first, second = make_key_file(tmp_path / "a.key"), make_key_file(tmp_path / "b.key")
    assert len(first.read()) == 32
    assert first.read() != second.read()
    assert first.key_id != second.key_id
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError, match="may hold the key of a released dataset"):
        make_key_file(tmp_path / "a.key")


def test_the_key_is_in_no_repr_pickle_hash_or_cache(tmp_path) -> None:
    secret = SECRETS[0]
    (tmp_path / "k").write_text(secret)
    (tmp_path / "k").chmod(0o600)
    mechanism = RandomizedResponse(1.0, 3, KeyRef(file=tmp_path / "k"))
    mechanism({"id": ["a"], "label": [0]})
    for text in (repr(mechanism), str(mechanism.__dict__), mechanism.channel_id, mechanism.key.key_id):
        assert secret[:8] not in text
    for data in (pickle.dumps(mechanism), Hasher.hash(mechanism).encode()):
        assert bytes.fromhex(secret)[:4] not in data
        assert secret[:8].encode() not in data
    again = pickle.loads(pickle.dumps(mechanism))
    assert again == mechanism
    (tmp_path / "k").write_text(SECRETS[1])
    with pytest.raises(ValueError, match=f"key {mechanism.key.key_id} was asked for"):
        again({"id": ["a"], "label": [0]})


def test_the_fingerprint_moves_with_the_key(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("A_KEY", SECRETS[0])
    first = Hasher.hash(RandomizedResponse(1.0, 3, KeyRef(env="A_KEY")))
    assert Hasher.hash(RandomizedResponse(1.0, 3, KeyRef(env="A_KEY"))) == first
    monkeypatch.setenv("A_KEY", SECRETS[1])
    assert Hasher.hash(RandomizedResponse(1.0, 3, KeyRef(env="A_KEY"))) != first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("ab" * 31, "31 bytes; 32 to 64 are needed"),
        ("ab" * 65, "65 bytes"),
        ("my very secret pass phrase of many words", "not made of hexadecimal digits"),
        ("abc" * 33, "not made of hexadecimal digits"),
    ],
)
def test_a_key_that_is_missing_or_weak_is_refused_with_the_way_to_make_one(monkeypatch, text, words) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if text is not None:
        monkeypatch.setenv("A_KEY", text)
    with pytest.raises(ValueError, match=words) as caught:
        KeyRef(env="A_KEY")
    assert "--make-key" in str(caught.value)
    assert text is None or len(text) < 10 or text not in str(caught.value), "an error must not print a key"


def test_a_key_file_that_is_not_there_both_places_and_a_readable_file(tmp_path, caplog) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        KeyRef(file=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="not both"):
        KeyRef(env="A", file="b")
    (tmp_path / "k").write_text(SECRETS[0] + "\n")
    (tmp_path / "k").chmod(0o644)
    KeyRef(file=str(tmp_path / "k"))
    if os.name == "posix":
        assert "chmod 600" in caplog.text
    with pytest.raises(ValueError, match="end up in caches"):
        RandomizedResponse(1.0, 3, key().read())


# --- keys of no entropy -------------------------------------------------------------------------------------------

GUESSED = {
    "zeros": "00" * 32,
    "two digits": "ab" * 32,
    "a byte, 64 times": "5e" * 64,
    "a word": "deadbeef" * 8,
    "the digits": "0123456789abcdef" * 4,
    "sixteen bytes twice": SECRETS[0][:32] * 2,
    "counting": bytes(range(32)).hex(),
    "counting from 200": bytes(x % 256 for x in range(200, 240)).hex(),
    "counting down by seven": bytes((255 - 7 * i) % 256 for i in range(32)).hex(),
    "one bit": "00" * 31 + "01",
    "bits": ("0100" * 7 + "00010101" * 9),
    "digits of pi": "3141592653589793238462643383279502884197169399375105820974944592",
    "a sentence": b"correct horse battery staple, it is".hex(),
}


@pytest.mark.parametrize("name", GUESSED)
@pytest.mark.parametrize("place", ["env", "file"])
def test_a_key_that_can_be_guessed_is_refused_and_not_shown(name, place, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("A_KEY", GUESSED[name])
    (tmp_path / "k").write_text(GUESSED[name])
    (tmp_path / "k").chmod(0o600)
    with pytest.raises(ValueError, match="could be guessed") as caught:
        KeyRef(env="A_KEY") if place == "env" else KeyRef(file=str(tmp_path / "k"))
    assert "--make-key" in str(caught.value)
    assert GUESSED[name][:12] not in str(caught.value)


def test_a_stand_in_is_warned_of_in_the_environment_and_refused_in_a_file_and_by_the_command(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_KEY", "7" * 64)
    with pytest.warns(StandInKeyWarning, match="anybody can take the noise off"):
        KeyRef(env="A_KEY")
    (tmp_path / "k").write_text("7" * 64)
    with pytest.raises(ValueError, match="over and over"):
        KeyRef(file="k")
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "label": 0}\n')
    command = "data privatize --dataset rows.jsonl --epsilon 1 --num-classes 2 --output out.jsonl --key-env A_KEY"
    with pytest.warns(StandInKeyWarning):
        assert main(command.split()) == 2
    assert "stand-in" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_random_keys_are_never_taken_for_guessed_ones() -> None:
    draw = random.Random(0)
    assert not any(weakness_of(draw.randbytes(draw.choice([32, 33, 48, 64]))) for _ in range(20_000))


# --- a key in the wrong place -------------------------------------------------------------------------------------

MISTYPED = SECRETS[0][:40] + "g" + SECRETS[0][41:]


@pytest.mark.parametrize("secret", [SECRETS[0], SECRETS[0].upper(), MISTYPED])
@pytest.mark.parametrize(
    "attempt",
    [
        lambda text: KeyRef(file=text),
        lambda text: KeyRef(env=text),
        lambda text: KeyRef(env="A_KEY", file=text),
        lambda text: KeyRef(file=bytes.fromhex(SECRETS[0])),
        lambda text: KeyRef(env="A_KEY", key_id=text),
        lambda text: RandomizedResponse(1.0, 3, text),
        lambda text: HashColumn("id", text),
        lambda text: make_key_file(text),
        lambda text: make_key_file(f"folder/{text}"),
    ],
)
def test_a_key_in_place_of_its_place_is_in_no_error_and_no_log(
    secret, attempt, tmp_path, monkeypatch, caplog, capsys
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_KEY", SECRETS[1])
    with pytest.raises(ValueError, match="key") as caught:
        attempt(secret)
    said = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capsys.readouterr())
    assert secret[:20].lower() not in said.lower()
    assert secret[-20:].lower() not in said.lower()
    assert not list(tmp_path.iterdir()), "no file is named after a key"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--key-file", "KEY"],
        ["--key-env", "KEY"],
        ["--key", "KEY"],
        ["--key=KEY"],
        ["KEY"],
        ["--epsilon", "KEY"],
        ["--make-key", "KEY"],
        ["--output", "KEY.txt"],
        ["--dataset", "KEY"],
        ["--label", "KEY"],
        ["--drop-columns", "KEY"],
    ],
)
def test_a_command_repeats_no_key_wherever_it_was_typed(arguments, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_EXT_LABEL_KEY", SECRETS[1])
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "label": 0}\n')
    usual = {"--dataset": "rows.jsonl", "--epsilon": "1", "--num-classes": "2", "--output": "out.jsonl"}
    command = ["data", "privatize", *(word for pair in usual.items() for word in pair)]
    try:
        status = main([*command, *(word.replace("KEY", SECRETS[0]) for word in arguments)])
    except SystemExit as stopped:
        status = stopped.code
    said = "".join(capfd.readouterr())
    assert status == 2
    assert "error: " in said
    assert SECRETS[0][:20] not in said


def test_a_key_file_that_cannot_be_read_is_a_sentence(tmp_path, monkeypatch) -> None:
    (tmp_path / "k").write_text(SECRETS[0])
    (tmp_path / "k").chmod(0o600)

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refused)
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        KeyRef(file=str(tmp_path / "k"))
