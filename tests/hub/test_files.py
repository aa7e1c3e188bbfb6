"""What leaves a folder for the Hub: no secret, no link out of it, nothing that a run knows of its rows."""

from __future__ import annotations

import gzip
import io
import json
import logging
import secrets
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_ext.data.relabeling import make_key_file
from hf_ext.hub.credentials import find_credential
from hf_ext.hub.files import files_to_push, matches, strings
from hf_ext.hub.push import PushError, push_dataset, push_folder
from tests.hub.fake_hub import FakeHub

HEX_KEY = "0123456789abcdef" * 4
HF_TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz12345678"
GITHUB_TOKEN = "ghp_" + "a1B2c3D4e5F6" * 3
AWS_KEY = "AKIA" + "QWERTYUIOPASDF12"
PEM = "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----\n"


def write(root: Path, *names: str, text: str = "x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("depth", ["", "a/", "a/b/"])
@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_names_of_secrets_and_leftovers_stay_at_any_depth(tmp_path: Path, depth: str, repo_type: str) -> None:
    names = (
        ".env .env.local prod.env .envrc .ENV .netrc _netrc .pypirc .git-credentials .npmrc id_rsa id_ed25519.pub "
        "Id_RSA server.pem labels.key labels.key.bak labels.KEY .ssh/known_hosts .aws/credentials .git/HEAD "
        ".cache/huggingface/x .venv/bin/python __pycache__/m.pyc .hf-ext.lock .hf-ext/notes x.lock x.tmp "
        "checkpoint-5/config.json checkpoint-5/deep/er bad_rows.jsonl bad_rows.rank1.jsonl training_args.json "
        ".env~ .envrc.local .netrc.bak .pypirc~ labels.key~ .bash_history .python_history kaggle.json .s3cfg "
        ".streamlit/secrets.toml config.json~ .config.json.swp .#config.json .vscode/x.json .ruff_cache/x "
        "node_modules/a/b.js trainer_state.json report/fresh_samples/x.json _saving/config.json "
        "_push-checkpoint-1/config.json"
    )
    write(tmp_path, "config.json", *(depth + name for name in names.split()))
    assert set(files_to_push(tmp_path, repo_type=repo_type)) == {"config.json"}


@pytest.mark.parametrize("depth", ["", "a/"])
def test_what_a_run_knows_of_every_row_stays_with_a_model_and_may_be_a_dataset(tmp_path: Path, depth: str) -> None:
    rows = [
        "round-000/answers/shard-00000.jsonl", "round-000/pairs.jsonl", "round-000/train/config.json",
        "rounds/round-1/predictions/train/data.arrow", "folds/0/x.json", "consensus.json", "original_losses/x.json",
        "context_free/manifest.json", "online.json", "answers.jsonl", "predictions/rows.csv", "samples/manifest.json",
        "samples/shard-00000.arrow", "predictions.jsonl", "pairs.jsonl", "wandb/run-1/files/wandb-metadata.json",
        "states-0a1b2c-00000.safetensors",
    ]  # fmt: skip
    write(tmp_path, "config.json", "sub/notes.md", *(depth + name for name in rows))
    assert set(files_to_push(tmp_path)) == {"config.json", "sub/notes.md"}
    assert {depth + "answers.jsonl", depth + "samples/manifest.json"} <= set(files_to_push(tmp_path, (), "dataset"))


def test_names_that_only_resemble_those_go(tmp_path: Path) -> None:
    names = {"environment.json", "env/a.txt", "keys.md", "monkey", "gitignore", ".gitattributes", ".gitignore",
             "checkpoint.md", "roundness/a.txt", "lockfile", "1_Pooling/config.json", "sub/__init__.py",
             "history.json", "a.swph", "cache/a.txt"}  # fmt: skip
    write(tmp_path, *names)
    assert set(files_to_push(tmp_path)) == names


def test_a_git_file_of_a_worktree_stays_as_the_folder_does(tmp_path: Path) -> None:
    write(tmp_path, "config.json", ".git", "sub/module/.git")
    assert set(files_to_push(tmp_path)) == {"config.json"}


def test_ignore_comes_on_top_of_what_stays_anyway(hub: FakeHub, tmp_path: Path) -> None:
    write(tmp_path, "config.json", "mine.jsonl", "bad_rows.jsonl", "checkpoint-1/model.safetensors", ".env")
    push_folder(tmp_path, "me/tiny", ignore="mine.jsonl")
    assert set(hub.files("me/tiny")) == {"config.json"}
    push_folder(tmp_path, "me/rows", repo_type="dataset", ignore=["mine.jsonl"])
    assert set(hub.files("me/rows", "dataset")) == {"config.json"}
    push_dataset(tmp_path, "me/more", ignore=("mine.jsonl",))
    assert set(hub.files("me/more", "dataset")) == {"config.json", "README.md"}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("logs/", "logs/a logs/b/c sub/logs/a"),
        ("sub/logs/", "sub/logs/a x/sub/logs/a"),
        ("./logs/", "logs/a logs/b/c"),
        ("/logs/", "logs/a logs/b/c"),
        ("logs", "logs/a logs/b/c"),
        ("logs/*", "logs/a logs/b/c"),
        ("logs/**", "logs/a logs/b/c"),
        ("**/logs", "logs/a logs/b/c sub/logs/a"),
        ("**/a", "a logs/a sub/logs/a catalogs/a"),
        ("a", "a"),
        ("log?/", "logs/a logs/b/c sub/logs/a"),
        ("a/", ""),
        ("", ""),
        ("/", ""),
    ],
)
def test_a_pattern_means_the_file_or_the_folder_that_git_would_take_it_for(pattern: str, names: str) -> None:
    every = ("a", "logs/a", "logs/b/c", "sub/logs/a", "catalogs/a", "logs.txt")
    expected = set(names.split()) & set(every)
    assert {name for name in every if matches(name, [pattern])} == expected


@pytest.mark.parametrize("argument", ["ignore", "delete", "public_columns"])
def test_a_text_is_one_pattern_and_no_list_of_letters(hub: FakeHub, tmp_path: Path, argument: str) -> None:
    write(tmp_path / "first", "old-1.txt", "config.json", "data/rows.txt", "o", "b")
    push_folder(tmp_path / "first", "me/rows", repo_type="dataset")
    write(tmp_path / "second", "config.json", "logs/a.txt", "data/new.txt")
    push_folder(tmp_path / "second", "me/rows", repo_type="dataset", **{argument: "old-*.txt"})
    here = {"config.json", "logs/a.txt", "data/new.txt"}
    expected = here | {"data/rows.txt", "o", "b"} | (set() if argument == "delete" else {"old-1.txt"})
    assert set(hub.files("me/rows", "dataset")) == expected
    assert strings("abc", argument) == ("abc",)
    with pytest.raises(TypeError, match=f"{argument} takes a text or a list of texts; 3 is none"):
        push_folder(tmp_path / "second", "me/rows", repo_type="dataset", **{argument: ["a", 3]})


@pytest.mark.parametrize(
    ("text", "kind", "line"),
    [
        (HEX_KEY, "label privacy", 1),
        (f"\n  {HEX_KEY.upper()}\n", "label privacy", 1),
        (f"{HEX_KEY[:40]}\n{HEX_KEY[40:]}\r\n", "label privacy", 1),
        (HEX_KEY * 2, "label privacy", 1),
        (f"export HF_EXT_LABEL_KEY='{HEX_KEY}'", "label privacy", 1),
        (f'import os\nos.environ["HF_EXT_LABEL_KEY"] = "{HEX_KEY}"', "label privacy", 2),
        (json.dumps({"source": [f'os.environ["HF_EXT_LABEL_KEY"] = "{HEX_KEY}"\n']}), "label privacy", 1),
        (json.dumps({"source": [f"%env HF_EXT_LABEL_KEY {HEX_KEY}"]}), "label privacy", 1),
        (f'os.environ.setdefault("HF_EXT_LABEL_KEY", "{HEX_KEY}")', "label privacy", 1),
        (f"name,value\nHF_EXT_LABEL_KEY,{HEX_KEY}", "label privacy", 2),
        (f"env:\n- name: HF_EXT_LABEL_KEY\n  value: {HEX_KEY}", "label privacy", 2),
        (f"env:\n  HF_EXT_LABEL_KEY: >-\n    {HEX_KEY}", "label privacy", 2),
        (f"hf_ext_label_key: {HEX_KEY}", "label privacy", 1),
        (f"$ echo $HF_EXT_LABEL_KEY\n{HEX_KEY}", "label privacy", 1),
        ("token=hf_" + "jwt_eyJhbGciOiJFZERTQSJ9.eyJyZWFk", "Hugging Face token", 1),
        (f'{{"a": 1,\n "token": "{HF_TOKEN}"}}', "Hugging Face token", 2),
        (f"# notes\n\nlog in with {HF_TOKEN}.", "Hugging Face token", 3),
        (f"remote = https://x:{GITHUB_TOKEN}@github.com", "GitHub token", 1),
        (f"a\naws_access_key_id={AWS_KEY}", "AWS access key", 2),
        (PEM, "private key", 1),
        ('{"private_key": "-----BEGIN PRIVATE' + ' KEY-----\\nMII"}', "private key", 1),
        ("-----BEGIN PGP PRIVATE" + " KEY BLOCK-----", "private key", 1),
    ],
)
@pytest.mark.parametrize("name", ["sub/other_name", "README.md", "rows.jsonl"])
def test_a_key_or_token_inside_a_file_stops_the_push_and_is_not_repeated(
    hub: FakeHub, tmp_path: Path, text: str, kind: str, line: int, name: str
) -> None:
    write(tmp_path, "config.json")
    write(tmp_path, name, text=text)
    for repo_type in ("model", "dataset"):
        with pytest.raises(PushError, match=f"{name}, line {line}, holds .*{kind}") as caught:
            push_folder(tmp_path, "me/tiny", repo_type=repo_type)
        assert not {HEX_KEY, HF_TOKEN, GITHUB_TOKEN, AWS_KEY} & set(str(caught.value).split())
    assert not hub.requests
    if "label" in kind:
        assert str(caught.value).endswith("If it is a checksum, write the name of its file beside it.")
    push_folder(tmp_path, "me/tiny", ignore=name)
    assert set(hub.files("me/tiny")) == {"config.json"}


def test_every_key_that_we_make_is_known_whatever_its_file_is_called(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / f"file-{number}"
        make_key_file(path)
        assert find_credential(path) == ("a secret key for label privacy", "line 1")
    (tmp_path / "wide").write_bytes(secrets.token_hex(64).encode("utf-16"))
    assert find_credential(tmp_path / "wide") is not None


@pytest.mark.parametrize(
    "content",
    [
        HEX_KEY[:-2].encode(),  # too short for a key
        f"{HEX_KEY}  model.safetensors\n".encode(),  # a checksum with its file
        b"hf_" + b"x" * 34,  # a placeholder
        b"hf_ext.data.relabeling.privatize_with_a_long_name",
        b"HF_EXT_LABEL_KEY=" + b"0" * 64,
        f"HF_EXT_LABEL_KEY is in the environment; sha256: {HEX_KEY}".encode(),
        json.dumps({"sha256": HEX_KEY, "vocab": {HEX_KEY[::-1]: 1}}).encode(),
        "".join(f"{row % 2}\n" for row in range(100)).encode(),  # labels, one a line
        " ".join(map(str, range(10, 50))).encode(),
        b"AKIAIOSFODNN7EXAMPLE",  # of AWS's own documentation
        b"-----BEGIN PUBLIC KEY-----\nMII",
        b"\0" + HF_TOKEN.encode(),
        gzip.compress(b"text", mtime=0),  # the time would be part of the test's name
        b"",
    ],
)
def test_what_is_no_credential_is_pushed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert find_credential(tmp_path / "file") is None


def _zip(path: Path, members: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)


def _tar(path: Path, members: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))


@pytest.mark.parametrize(("suffix", "pack"), [(".zip", _zip), (".tar", _tar), (".tgz", _tar)])
def test_an_archive_with_a_secret_in_it_stops_the_push_and_one_without_goes(
    hub: FakeHub, tmp_path: Path, suffix: str, pack: Callable[[Path, dict[str, str]], None]
) -> None:
    harmless = {"a/rows.csv": "id,label\n1,2\n", "b.txt": "x" * 5_000_000}
    write(tmp_path / "folder", "config.json")
    archive = tmp_path / "folder" / f"all{suffix}"
    for member, text, kind in (
        ("a/.env", "A=1", "what is named like a secret"),
        (".ssh/known_hosts", "x", "what is named like a secret"),
        ("deep/er/notes.txt", f"\nlog in with {HF_TOKEN}", "a Hugging Face token"),
        ("key", HEX_KEY, "a secret key for label privacy"),
    ):
        pack(archive, harmless | {member: text})
        with pytest.raises(PushError, match=f"all{suffix}, member '{member}'.* holds {kind}"):
            push_folder(tmp_path / "folder", "me/tiny")
    assert not hub.requests
    pack(archive, harmless)
    push_folder(tmp_path / "folder", "me/tiny")
    assert set(hub.files("me/tiny")) == {"config.json", f"all{suffix}"}


def test_a_compressed_text_is_looked_into_and_no_more_of_a_bomb_than_a_bound_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes.gz").write_bytes(gzip.compress(f"a\n{HF_TOKEN}".encode()))
    assert find_credential(tmp_path / "notes.gz") == ("a Hugging Face token", "line 2")
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(100_000_000), 1))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"some text" * 1000)[:-20])
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    start = time.process_time()
    for name in ("bomb.gz", "cut.gz", "cut.zip"):
        assert find_credential(tmp_path / name) is None
    assert time.process_time() - start < 5


def test_links_out_of_the_folder_and_to_secrets_stay_and_links_inside_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    write(tmp_path, "outside.txt", "elsewhere/a.txt")
    write(root, "config.json", ".env", "checkpoint-1/a.txt", "sub/real.txt")
    targets = {"out.txt": tmp_path / "outside.txt", "folder": tmp_path / "elsewhere", "plain.txt": root / ".env",
               "state.txt": root / "checkpoint-1" / "a.txt", "nothing": root / "absent", "up": root.parent,
               "good.txt": root / "sub" / "real.txt"}  # fmt: skip
    for name, target in targets.items():
        (root / name).symlink_to(target)
    (root / "circle").symlink_to(root / "circle")
    assert set(files_to_push(root, repo_type="dataset")) == {"config.json", "sub/real.txt", "good.txt"}
    said = caplog.text
    assert all(name in said for name in ("out.txt", "folder/", "nothing", "up/", ".env", "plain.txt"))
    (tmp_path / "way").symlink_to(root)
    assert set(files_to_push(tmp_path / "way")) == {"config.json", "sub/real.txt", "good.txt"}


def test_a_download_in_the_hubs_cache_made_of_links_is_pushed(hub: FakeHub, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    push_folder(folder, "me/tiny")
    snapshot = Path(snapshot_download("me/tiny"))
    assert (snapshot / "config.json").is_symlink()
    push_folder(snapshot, "me/again")
    assert hub.files("me/again") == hub.files("me/tiny")


def test_what_stays_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "config.json", "sub/labels.key", "optimizer.pt", "checkpoint-1/a", "__pycache__/b",
          "_pictures/a.png", "_notes.md")  # fmt: skip
    with caplog.at_level(logging.INFO):
        files_to_push(tmp_path)
    warnings = " ".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "sub/labels.key (named like secrets)" in warnings
    assert "optimizer.pt (pickles" in warnings
    assert "checkpoint-1/" not in warnings
    assert "_pictures/, _notes.md (at the top" in warnings
    assert "__pycache__/, checkpoint-1/ (leftovers" in caplog.text


def test_a_folder_that_cannot_be_read_is_no_folder_without_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "config.json", "closed/rows.txt")
    import os

    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="closed"):
        files_to_push(tmp_path)


# --- who can see it --------------------------------------------------------------------------------------------------


def push_rows(folder: Path, repo: str, **kwargs: Any) -> Any:
    from datasets import Dataset

    return push_dataset(
        Dataset.from_dict({"text": ["a"]}), repo, folder=folder / f"rows-{len(list(folder.iterdir()))}", **kwargs
    )


def push_model(folder: Path, repo: str, **kwargs: Any) -> Any:
    return push_folder(folder, repo, **kwargs)


@pytest.mark.parametrize(("push", "kind"), [(push_rows, "dataset"), (push_model, "model")])
@pytest.mark.parametrize("route", [{}, {"create_pr": True}, {"revision": "dev"}])
def test_private_onto_a_public_repository_is_refused_before_anything_is_sent(
    hub: FakeHub, folder: Path, push: Callable[..., Any], kind: str, route: dict[str, Any]
) -> None:
    hub.make_repo("me/open", kind)
    hub.fail("info", 503)
    with pytest.raises(PushError, match=f"{kind} me/open was not pushed: the repository is public"):
        push(folder, "me/open", private=True, **route)
    assert hub.repo("me/open", kind).refs.keys() == {"main"}
    assert hub.count("preupload") == hub.count("commit") == 0
    hub.make_repo("me/closed", kind, private=True)
    push(folder, "me/closed", private=True)
    push(folder, "me/closed", private=False, commit_message="again")  # stays private, which hurts nobody
    assert hub.repo("me/closed", kind).private
    push(folder, "me/open")
    assert len(hub.titles("me/open", kind)) == 1


# --- where the base model lies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", ["", "checkpoint/adapter/"])
def test_an_adapter_names_its_base_model_as_the_hub_does_and_no_place_of_this_machine(
    hub: FakeHub, tmp_path: Path, depth: str
) -> None:
    def pushed(base: str) -> Any:
        write(
            tmp_path / "out", f"{depth}adapter_config.json", text=json.dumps({"base_model_name_or_path": base, "r": 2})
        )
        push_folder(tmp_path / "out", "me/adapter")
        local = json.loads((tmp_path / "out" / f"{depth}adapter_config.json").read_text())
        assert local["base_model_name_or_path"] == base, "here the base model must still be found"
        content = json.loads(hub.files("me/adapter")[f"{depth}adapter_config.json"])
        assert content["r"] == 2
        return content["base_model_name_or_path"]

    base = tmp_path / "secret-place" / "base"
    write(base, "README.md", text="---\nbase_model: org/original\n---\n")
    assert pushed(str(base)) == "org/original"
    (base / "README.md").unlink()
    assert pushed(str(base)) == "base"
    assert pushed("/gone/since/base") == "base"
    assert pushed("C:\\Users\\me\\base") == "base"
    assert pushed("../up/base") == "base"
    assert pushed("org/original") == "org/original"
    write(tmp_path / "out", f"{depth}adapter_config.json", text="no JSON")
    push_folder(tmp_path / "out", "me/adapter")
    assert hub.files("me/adapter")[f"{depth}adapter_config.json"] == b"no JSON"
