"""What is no document, or hardly one, has a reason in the drop ledger or stays, whatever it is; nothing crashes."""

from __future__ import annotations

import json

from datasets import load_dataset

from hf_ext.data.curation import DropLedger, GopherQuality, GopherRepetition, curate
from tests.pages import article

ROWS = [
    ({"text": ""}, "gopher_repetition:empty"),
    ({"text": " \t\n\u00a0"}, "gopher_repetition:empty"),
    ({"text": None}, "gopher_repetition:error:NoneType"),
    ({"text": 7}, "gopher_repetition:error:int"),
    ({"text": [article(1)]}, "gopher_repetition:error:list"),
    ({"text": "... !! ?? -- ,, ; : ()"}, "gopher_quality:word_count"),  # no word: nothing is repeated
    ({"text": "a line of any length " * 3000}, "gopher_repetition:too_long"),
    ({"text": article(2) + " \ud83d and a half"}, None),
    ({"text": article(3) + " \0 and more"}, None),
    ({"text": article(4)}, None),
]


def test_every_kind_of_bad_row_has_its_reason_and_the_others_stay(tmp_path):
    # a file a row: a list and a number are no values of one column
    folder = tmp_path / "rows"
    folder.mkdir()
    for number, (row, _) in enumerate(ROWS):
        (folder / f"{number:02d}.jsonl").write_text(json.dumps(row) + "\n{]\n")
    steps = [GopherRepetition(max_chars=50_000), GopherQuality(max_chars=50_000)]
    counts = curate(folder, steps, output=tmp_path / "out", on_bad_row="drop", show_progress=False)
    reasons = {
        (record.shard, record.row): f"{record.step}:{record.rule}" for record in DropLedger.read(tmp_path / "out")
    }
    shards = [f"{number:02d}.jsonl" for number in range(len(ROWS))]
    assert {shard: reasons.get((shard, 0)) for shard in shards} == dict(
        zip(shards, (reason for _, reason in ROWS), strict=True)
    )
    assert {reasons[shard, 1] for shard in shards} == {"read:error:JSONDecodeError"}
    assert (counts.rows_read, counts.rows_kept) == (2 * len(ROWS), 3)
    texts = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))["text"][:]
    assert texts == [ROWS[7][0]["text"].replace("\ud83d", "\ufffd"), ROWS[8][0]["text"], article(4)]
