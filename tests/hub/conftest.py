"""The Hub's client turned to a Hub on the loopback interface, for one test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.fake_hub import TOKEN, FakeHub


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running fake Hub that stock clients in this process talk to, with waits of milliseconds between tries."""
    import huggingface_hub
    from huggingface_hub import constants

    from hf_ext.hub import retry

    with FakeHub() as running:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name, value in {
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path_factory.mktemp("hub_cache")),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", running.url)  # the module's own, made at import
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr(retry, "BACKOFF", 0.001)
        huggingface_hub.close_session()
        yield running
        huggingface_hub.close_session()
    assert not running.unknown, f"the fake Hub lacks {running.unknown}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a user would push it: three files, one of them in a folder of its own."""
    root = tmp_path / "saved"
    (root / "sub").mkdir(parents=True)
    (root / "config.json").write_text('{"a": 1}')
    (root / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
    (root / "sub" / "notes.md").write_text("notes")
    return root
