"""Curation under Ray Data: what comes back is what one process gives, whatever the workers do."""

from __future__ import annotations

import logging

import numpy as np
import pytest

ray = pytest.importorskip("ray")

from datasets import Dataset, load_dataset  # noqa: E402

from hf_ext.data.curation.backends.ray import curate_on_ray  # noqa: E402
from hf_ext.data.curation.drop_ledger import DropLedger  # noqa: E402
from hf_ext.data.curation.pipeline import curate  # noqa: E402
from hf_ext.data.vectors.embedding import EmbedBatches  # noqa: E402
from tests.peers.steps import Fatal, FirstOfEach, Shorten  # noqa: E402

# a worker imports torch anew whenever Ray has ended an idle one: on a busy machine that is most of the time
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    yield
    ray.shutdown()


def documents(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    words = ["ab", "cut", "to", "other", "word", "again", "further", "text"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(count - 1)]
    texts.insert(count // 2, "the end")
    return [{"id": number, "text": text, "url": f"u{number}"} for number, text in enumerate(texts)]


def by_hand(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """Shorten, then the first of each first word, document by document."""
    kept, drops, numbers, seen = [], [], {}, {}
    for row in rows:
        text = row["text"]
        if len(text) < 3:
            drops.append({"id": row["id"], "step": "shorten", "rule": "short", "value": len(text), "threshold": 3})
            continue
        word = text[:40].split(" ")[0]
        seen[word] = seen.get(word, 0) + 1
        numbers.setdefault(word, len(numbers))
        if seen[word] > 1:
            drop = {"step": "first_of_each", "rule": "again", "value": seen[word], "threshold": 1}
            drops.append({"id": row["id"], **drop})
            continue
        out = word if word == "cut" else text[:40]
        kept.append({**row, "text": out, "length": len(text), "number": numbers[word]})
    return kept, drops


def shuffled(rows: list[dict], blocks: int) -> ray.data.Dataset:
    order = np.random.default_rng(1).permutation(len(rows))
    return ray.data.from_items([rows[place] for place in order], override_num_blocks=blocks)


def test_rows_and_drops_are_those_of_a_loop_and_a_killed_worker_changes_nothing(tmp_path):
    rows = documents(3000)
    kept, drops = by_hand(rows)
    steps = [Fatal(marker=str(tmp_path / "killed")), Shorten(), FirstOfEach()]
    curation = curate_on_ray(shuffled(rows, 6), steps, key="id")
    assert (tmp_path / "killed").exists()
    assert curation.rows.take_all() == kept
    assert [{name: row[name] for name in drops[0]} for row in curation.drops.take_all()] == drops
    assert len(kept) + len(drops) == len(rows)


def test_rows_and_drops_are_those_of_curate(tmp_path):
    rows = documents(400)
    rows = [{**row, "id": f"{row['id']:05d}"} for row in rows]
    rows[7]["text"] = None
    for row in rows[100:200]:
        row["text"] = ""
    steps = [Shorten(on_bad_row="drop"), FirstOfEach(on_bad_row="drop")]
    curation = curate_on_ray(ray.data.from_items(rows, override_num_blocks=4), steps, key="id")
    curate(Dataset.from_list(rows), steps, output=tmp_path / "out", id_column="id")
    kept = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")).to_list()
    assert curation.rows.take_all() == kept
    drops = [record._asdict() for record in DropLedger.read(tmp_path / "out")]
    assert curation.drops.take_all() == [
        {name: value for name, value in drop.items() if name not in ("shard", "row")} for drop in drops
    ]
    assert {drop["rule"] for drop in drops} >= {"empty", "error:NoneType", "again"}


def test_a_missing_key_a_repeated_one_and_a_taken_name_are_refused():
    rows = ray.data.from_items([{"id": 1, "text": "abc"}, {"id": 1, "text": "abcd"}])
    with pytest.raises(ValueError, match=r"key='key': the dataset has no such column \(it has \['id', 'text'\]\)"):
        curate_on_ray(rows, [Shorten()], key="key")
    with pytest.raises(ValueError, match="two rows have the value 1"):
        curate_on_ray(rows, [FirstOfEach()], key="id")
    with pytest.raises(ValueError, match="has a column 'curation_drop'"):
        curate_on_ray(rows.add_column("curation_drop", lambda batch: [0.0] * len(batch)), [Shorten()], key="id")


def test_an_error_names_the_row_by_its_key():
    rows = ray.data.from_items([{"id": "a", "text": "abc"}, {"id": "b", "text": None}])
    with pytest.raises(ray.exceptions.RayTaskError, match="the row whose id is 'b'"):
        curate_on_ray(rows, [Shorten()], key="id").rows.take_all()


def test_where_every_document_goes_the_drops_hold_them_and_no_row_is_left():
    rows = ray.data.from_items([{"id": number, "text": "a"} for number in range(5)])
    curation = curate_on_ray(rows, [Shorten(), FirstOfEach()], key="id")
    assert curation.rows.take_all() == []
    assert [row["id"] for row in curation.drops.take_all()] == list(range(5))


def test_embed_batches_gives_each_row_its_vector():
    def encoder(texts):
        return np.array([[len(text), text.count("a")] for text in texts], dtype=np.float32)

    rows = documents(300)
    embedded = ray.data.from_items(rows).map_batches(
        EmbedBatches, fn_constructor_args=(encoder, "text"), concurrency=1, batch_size=64
    )
    vectors = {row["id"]: list(row["embedding"]) for row in embedded.take_all()}
    assert vectors == {row["id"]: [len(row["text"]), row["text"].count("a")] for row in rows}
