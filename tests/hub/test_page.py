"""Every block of `docs/hub.md` runs, in order, against the Hub on the loopback interface."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.hub.fake_hub import FakeHub
from tests.tiny import tiny_model, tiny_sentences
from tests.trainers.runs import TOKENIZER

PAGE = Path(__file__).parents[2] / "docs" / "hub.md"


def test_the_page_runs_from_top_to_bottom(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model(TOKENIZER).save_pretrained("original")
    TOKENIZER.save_pretrained("original")
    rows = [json.dumps({"prompt": f"{i}. ", "completion": text}) for i, text in enumerate(tiny_sentences(8))]
    Path("train.jsonl").write_text("\n".join(rows))
    blocks = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"hub.md, block {number}", "exec"), names)
    assert hub.titles("me/tuned") == ["First try"]  # the second push had nothing to add
    assert hub.repo("me/tuned").private
    assert "data/train-00000-of-00001.parquet" in hub.files("me/rows", "dataset")
    assert hub.repo("me/samples", "dataset").private


def test_the_page_says_what_the_code_does() -> None:
    from hf_ext.hub import retry

    page = PAGE.read_text(encoding="utf-8")
    waits = [retry.BACKOFF * 2**n for n in range(retry.ATTEMPTS - 1)]
    assert f"{retry.ATTEMPTS} times in all, after about 2, 4, 8, 16 and 32 s" in page
    assert waits == [2, 4, 8, 16, 32]
    assert f"no answer for {retry.REQUEST_SECONDS:.0f} s" in page
    assert f"up to {retry.LONGEST_RETRY_AFTER / 60:.0f} minutes" in page
