"""Exemplars on the Hub: pushed only when told, read at the commit of the weights, or from a dataset repository."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ext import QueryAugmenter, RareEncoder
from hf_ext.hub.push import PushError
from tests.hub.conftest import hub  # noqa: F401 (a fixture)
from tests.retrieval.test_encoder import QUERIES, model
from tests.trainers.retrieval import encoder

pytest.importorskip("bm25s")


def test_a_push_must_say_whether_exemplars_go_along(hub):  # noqa: F811
    ours = model()
    with pytest.raises(ValueError, match=r"24 exemplars, texts in clear \(licence: unknown\)"):
        ours.push_to_hub("me/rare")
    assert "me/rare" not in hub.repos
    ours.push_to_hub("me/rare", include_exemplars=False)
    files = set(hub.files("me/rare"))
    assert "exemplars/rare_config.json" in files
    assert not any(name.endswith(".parquet") for name in files)
    with pytest.raises(PushError, match="the repository is public, and a private one was asked for"):
        ours.push_to_hub("me/rare", include_exemplars=True)
    assert set(hub.files("me/rare")) == files
    ours.push_to_hub("me/rare", include_exemplars=True, private=False)
    files = set(hub.files("me/rare"))
    assert sum(name.endswith(".parquet") for name in files) == 1
    assert not any(name.endswith((".pkl", ".bin", ".pt")) for name in files)
    again = RareEncoder("me/rare", device="cpu")
    np.testing.assert_array_equal(again.encode_query(QUERIES), ours.encode_query(QUERIES))
    assert QueryAugmenter.from_pretrained("me/rare")(QUERIES[0]) == ours.augmenter()(QUERIES[0])


def test_exemplars_of_a_dataset_repository_are_read_at_their_commit(hub, tmp_path):  # noqa: F811
    ours = model()
    before = ours.encode_query(QUERIES)
    source = ours.push_exemplars("me/pool")
    name, _, commit = source.partition("@")
    assert (name, len(commit)) == ("me/pool", 40)
    ours.save(str(tmp_path))
    assert [path.name for path in (tmp_path / "exemplars").iterdir()] == ["rare_config.json"]
    again = RareEncoder(str(tmp_path), device="cpu")
    assert again.exemplars_source == source
    np.testing.assert_array_equal(again.encode_query(QUERIES), before)
    other = RareEncoder.from_model(model(), "me/pool", again.settings)
    assert other.exemplars_source == source
    with pytest.raises(FileNotFoundError, match="neither a folder with exemplars nor"):
        RareEncoder.from_model(model(), "nowhere")


def test_a_stock_repository_opens_and_has_no_exemplars(hub, tmp_path, monkeypatch):  # noqa: F811
    from huggingface_hub import constants

    from hf_ext import push_folder

    encoder().save(str(tmp_path))
    push_folder(tmp_path, "me/stock")
    ours = RareEncoder("me/stock", device="cpu")
    assert ours.exemplars is None
    np.testing.assert_allclose(ours.encode_query(QUERIES), encoder().encode_query(QUERIES), atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"no exemplars/rare_config\.json"):
        QueryAugmenter.from_pretrained("me/stock")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert RareEncoder("me/stock", device="cpu", local_files_only=True).exemplars is None
