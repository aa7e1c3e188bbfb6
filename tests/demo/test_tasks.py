"""The generated skill: the same rows for a seed, splits that share nothing, lines that follow from their notes."""

from __future__ import annotations

import re

import pytest

from hf_ext.demo.tasks import HARD_SHARE, house_rows

NOTE = re.compile(r"Note: (.+)\.\nHouse line:")
LINE = re.compile(r" \[(IN|OUT)\] (\w+) / (\w+day) / (\d+ \w+ \w+) \[filed\]")


def goods_of(prompt):
    return re.search(r"\d+ (\w+ \w+) (?:arrived|left)", prompt).group(1)


def test_the_same_seed_gives_the_same_rows_and_another_seed_does_not():
    assert house_rows(64, seed=3).to_list() == house_rows(64, seed=3).to_list()
    assert house_rows(64, seed=3)["prompt"] != house_rows(64, seed=4)["prompt"]


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1), (5, 9)])
def test_held_out_rows_are_about_goods_that_no_training_row_names(seeds):
    train, held_out = house_rows(500, seed=seeds[0]), house_rows(500, seed=seeds[1], split="held_out")
    known = {goods_of(prompt) for prompt in train["prompt"]}
    asked = {goods_of(prompt) for prompt in held_out["prompt"]}
    assert len(known) > 50
    assert len(asked) > 50
    assert not known & asked


@pytest.mark.parametrize(("rows", "hard"), [(16, 8), (32, 16), (64, 32), (1, 0), (0, 0)])
def test_half_of_the_rows_are_hard(rows, hard):
    assert sum(house_rows(rows, seed=0)["hard"]) == hard
    assert HARD_SHARE == 1 / 2


def test_an_easy_line_says_what_its_note_says_and_a_hard_one_does_not():
    for row in house_rows(300, seed=1):
        note = NOTE.fullmatch(row["prompt"]).group(1)
        line = LINE.fullmatch(row["completion"])
        if row["hard"]:
            assert line is None
            assert not set(row["completion"].split()) & set(re.findall(r"\w+", note))
        else:
            direction, *facts = line.groups()
            assert all(fact in note for fact in facts)
            assert ("arrived from" in note) == (direction == "IN")


def test_hard_rows_stand_anywhere_among_the_rows():
    flags = house_rows(64, seed=0)["hard"]
    assert any(flags[:32])
    assert any(flags[32:])


@pytest.mark.parametrize(("arguments", "message"), [({"split": "test"}, "split"), ({"hard_share": 1.5}, "hard_share")])
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        house_rows(4, seed=0, **arguments)


@pytest.mark.real
def test_the_embedded_model_finds_hard_rows_hard_enough_for_flow_to_weigh(smollm2):
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_ext import add_flow_weights, add_original_losses

    rows = house_rows(16, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    rows = add_original_losses(rows, AutoModelForCausalLM.from_pretrained(smollm2), tokenizer, show_progress=False)
    means = np.divide(rows["original_nll_sum"], rows["original_num_tokens"])
    hard = np.array(rows["hard"])
    assert means[hard].min() > means[~hard].max()
    weights = np.array(add_flow_weights(rows)["weight"])
    assert weights.sum() ** 2 / (len(weights) * (weights**2).sum()) < 0.92
    assert all(len(tokenizer(r["prompt"] + r["completion"])["input_ids"]) < 45 for r in rows)
