"""The working folder of the documentation, as the current directory."""

from __future__ import annotations

import pytest

from tests.recipes.work import make_work_folder


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Folder with a tiny model and data, which is also the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return make_work_folder(tmp_path)
