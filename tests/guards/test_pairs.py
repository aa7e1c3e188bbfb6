"""Pairs that are the same after truncation, against the host's own collator."""

from __future__ import annotations

import random

from datasets import Dataset

from hf_ext._upstream.preference import DataCollatorForPreference
from hf_ext.guards.pairs import SameResponses


def test_pairs_are_the_same_where_the_hosts_batch_holds_the_same_tokens_and_mask() -> None:
    rng = random.Random(0)
    rows = []
    for _ in range(300):
        prompt = [rng.randint(5, 6) for _ in range(rng.randint(0, 3))]
        sides = [[rng.randint(5, 6) for _ in range(rng.randint(0, 4))] for _ in range(2)]
        rows.append({"prompt_ids": prompt, "chosen_ids": sides[0], "rejected_ids": sides[1]})
    for max_length, mode in ((None, "keep_start"), (3, "keep_start"), (4, "keep_end")):
        collate = DataCollatorForPreference(pad_token_id=0, max_length=max_length, truncation_mode=mode)
        is_same = SameResponses(max_length, mode == "keep_end")
        expected = []
        for row in rows:
            batch = collate([{"prompt_ids": [], "chosen_ids": [1], "rejected_ids": [1]} | row])
            agree = all((batch[name][0] == batch[name][1]).all() for name in ("input_ids", "attention_mask"))
            completion = batch["completion_mask"]
            expected.append(bool(agree and (completion[0] == completion[1]).all() and completion.any()))
        assert [is_same(row) for row in rows] == expected
        dataset = Dataset.from_list(rows)
        assert is_same.count(dataset, dataset) == sum(expected) > 0
