import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ext.data.pruning import gm_matching
from hf_ext.data.pruning.groups import quotas
from tests.data.pruning.oracle import cloud

SIZES = st.dictionaries(st.integers(0, 50), st.integers(1, 500), min_size=1, max_size=12)


@given(SIZES, st.data(), st.sampled_from(["proportional", "equal"]), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_no_remainder_is_lost_and_no_group_gives_more_than_it_has(sizes, data, budget, at_least):
    least = max(1, at_least) * len(sizes)
    total = sum(sizes.values())
    if total < least:
        return
    k = data.draw(st.integers(least, total))
    counts, notes = quotas(k, sizes, budget, at_least)
    assert sum(counts.values()) == k
    for label, size in sizes.items():
        assert min(at_least, size) <= counts[label] <= size
        if budget == "proportional" and not at_least:
            assert abs(counts[label] - k * size / total) < 1
    if budget == "equal":
        free = [counts[label] for label in sizes if counts[label] < sizes[label]]
        assert not free or max(free) - min(free) <= 1  # groups with rows to spare share alike
        full = [label for label in sizes if counts[label] == sizes[label] < k / len(sizes)]
        assert len(notes) >= len(full)


def test_remainders_go_to_the_largest_fractions():
    assert quotas(10, {"a": 33, "b": 33, "c": 34}, "proportional")[0] == {"a": 3, "b": 3, "c": 4}
    assert quotas(7, {"a": 10, "b": 20, "c": 40}, "proportional")[0] == {"a": 1, "b": 2, "c": 4}


def test_a_small_group_gives_all_and_the_others_share_the_rest():
    counts, notes = quotas(90, {"a": 5, "b": 100, "c": 100}, "equal")
    assert (counts["a"], sorted([counts["b"], counts["c"]])) == (5, [42, 43])
    assert notes == ["group 'a' has fewer rows than its share: all 5 were taken"]


def test_at_least_one_row_a_group_only_when_asked():
    sizes = {"big": 10_000, "small": 3}
    assert quotas(20, sizes, "proportional")[0] == {"big": 20, "small": 0}
    assert quotas(20, sizes, "proportional", 1)[0] == {"big": 19, "small": 1}


@pytest.mark.parametrize("labels", [np.arange(600) % 4, [f"class {i % 4}" for i in range(600)]], ids=["int", "str"])
@pytest.mark.parametrize("threads", [1, 2])
def test_each_group_is_matched_as_if_alone(labels, threads):
    rows = cloud(600, 6)
    matching = gm_matching(rows, 60, groups=labels, num_threads=threads)
    names = sorted(set(matching.group))
    assert matching.group.tolist() == [name for name in names for _ in range(15)]
    for name in names:
        own = np.flatnonzero(np.array(labels) == name)
        alone = gm_matching(rows[own], 15)
        assert matching.indices[matching.group == name].tolist() == own[alone.indices].tolist()
        assert matching.groups[name].moment_error == alone.moment_error
        assert matching.groups[name].verdict == "matched"
    assert matching.prune_rank.tolist() == [*range(15)] * 4


def test_numbers_of_ones_own_and_notes():
    rows, labels = cloud(300, 4), np.repeat([0, 1], [10, 290])
    asked = gm_matching(rows, None, groups=labels, budget={0: 2, 1: 5})
    assert asked.group.tolist() == [0, 0, 1, 1, 1, 1, 1]
    noted = gm_matching(rows.astype(np.float64), 50, groups=labels, budget="equal")
    assert noted.notes == (
        "rows cast from float64 to float32",
        "group 0 has fewer rows than its share: all 10 were taken",
    )


def test_values_of_several_groups_are_dictionaries_with_a_warning_for_one_more_version():
    matching = gm_matching(cloud(300, 4), 20, groups=np.repeat([0, 1], [10, 290]), center=np.full(4, 0.1))
    with pytest.warns(FutureWarning, match=r"read matching.groups\[label\].center"):
        assert matching.center[0].tolist() == [0.1] * 4
    with pytest.warns(FutureWarning):
        assert matching.median == {0: None, 1: None}
    with pytest.raises(AttributeError, match="no attribute 'centre'"):
        _ = matching.centre


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 2, "budget": "equal"}, r"k=2 rows cannot be shared among 3 groups; the largest are 'c' \(30 rows\)"),
        ({"k": 6, "budget": "half"}, "budget must be 'proportional'"),
        ({"k": None, "budget": "equal"}, "k is missing"),
        ({"k": 5, "budget": {"a": 2}}, r"k=5, but the numbers in budget add up to 2"),
        ({"k": None, "budget": {"z": 2}}, "names the group 'z'"),
        ({"k": None, "budget": {"a": 11}}, "asks for 11 rows of group 'a', which has 10"),
        ({"k": None, "budget": {"a": 0}}, "no rows at all"),
    ],
)
def test_numbers_that_cannot_be_had_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        quotas(arguments["k"], {"a": 10, "b": 20, "c": 30}, arguments["budget"])


@pytest.mark.parametrize("bad", [None, float("nan")])
def test_a_missing_label_is_named(bad):
    labels = [0.0] * 20
    labels[7] = bad
    with pytest.raises(ValueError, match="Row 7 has no label"):
        gm_matching(cloud(20, 3), 5, groups=labels)
    with pytest.raises(ValueError, match="19 labels, 20 rows"):
        gm_matching(cloud(20, 3), 5, groups=labels[1:])
