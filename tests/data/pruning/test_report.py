"""The report's numbers against brute force and simulation, and the files it writes."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from hf_ext.data.pruning import _measure, gm_matching, prune
from hf_ext.data.pruning.report import PruneReport
from hf_ext.data.vectors.rows import check_rows
from tests.data.pruning.oracle import cloud, unit
from tests.data.pruning.test_dataset import numbers, rows_with

N = 300


@pytest.fixture(scope="module")
def x():
    return cloud(N, 5)


@pytest.fixture(scope="module")
def made(x):
    return prune(rows_with(x), 60, return_report=True)


@pytest.fixture(scope="module")
def center(x):
    rows = unit(x)
    return minimize(lambda z: np.linalg.norm(rows - z, axis=1).sum(), rows.mean(0), tol=1e-12).x


def test_the_curve_is_the_distance_of_the_prefixes_means_from_the_median(x, made, center):
    picks, points = gm_matching(x, 60).indices, made[1].curve
    assert points[0]["picks"] == 1
    assert points[-1]["picks"] == 60
    for point in points:
        mean = unit(x)[picks[: point["picks"]]].mean(0)
        assert point["moment_error"] == pytest.approx(np.linalg.norm(mean - center), abs=1e-5)
    assert made[1].slope == pytest.approx(-1, abs=0.25)


def test_the_error_of_random_rows_is_what_drawing_them_gives(x, made, center):
    rng, rows = np.random.default_rng(0), unit(x)
    for point in made[1].curve[::8]:
        means = [rows[rng.permutation(N)[: point["picks"]]].mean(0) for _ in range(2000)]
        simulated = np.sqrt(np.mean([np.sum((mean - center) ** 2) for mean in means]))
        assert point["random_error"] == pytest.approx(simulated, rel=0.05)


def test_shift_outliers_and_overlap_are_those_of_the_distances(x, made, center):
    pruned, report = made
    distances = np.linalg.norm(unit(x) - center, axis=1)
    middle = np.median(distances)
    limit = middle + 3 * np.median(np.abs(distances - middle))
    (group,) = report.groups
    assert group.mean_shift == pytest.approx(np.linalg.norm(unit(x).mean(0) - center) / middle, rel=1e-3)
    assert group.outliers_before == pytest.approx((distances > limit).mean())
    assert group.outliers_after == pytest.approx((distances[numbers(pruned)] > limit).mean())
    assert report.easy_overlap == pytest.approx(np.isin(numbers(pruned), np.argsort(distances)[:60]).mean())
    assert [note.row for note in report.typical] == np.argsort(distances)[:5].tolist()
    assert [note.row for note in report.outlying] == np.argsort(-distances)[:5].tolist()
    assert report.typical[0].excerpt == f"text: 'row {report.typical[0].row}'"
    for note in report.typical + report.outlying:
        assert note.kept == (note.row in numbers(pruned))
    assert sum(report.histogram["rows"]) == N
    assert sum(report.histogram["kept"]) == 60


def test_mmd_is_that_of_all_pairs_of_different_rows(x, made):
    rows, picks = unit(x), np.array(numbers(made[0]))
    squares = cdist(rows, rows, "sqeuclidean")
    kernel = np.exp(-squares / (2 * np.median(squares[np.triu_indices(N, 1)])))
    pairs = ~np.eye(N, dtype=bool)

    def mean(left, right):
        block = np.ix_(left, right)
        return kernel[block][pairs[block]].mean()

    every = np.arange(N)
    expected = mean(every, every) + mean(picks, picks) - 2 * mean(picks, every)
    assert made[1].mmd2 == pytest.approx(expected, abs=1e-9)


def test_mmd_of_random_rows_is_around_zero_and_of_the_easy_ones_far_above():
    rows = check_rows(cloud(800, 5), "raw")
    near = np.argsort(np.linalg.norm(rows.values - rows.values.mean(0), axis=1))[:100]
    found = [_measure.mmd2(rows, near, seed) for seed in range(20)]
    assert abs(np.mean([random for _, random in found])) < 0.002
    assert min(easy for easy, _ in found) > 0.02
    assert _measure.mmd2(rows, near[:3], 0) is None


def test_under_attack_the_report_sees_the_outliers_and_the_shift_of_the_mean():
    x = cloud(N, 5)
    far = np.random.default_rng(0).permutation(N)[:60]
    x[far] = x[far] * 0.3 + np.array([30.0, -30.0, 0, 0, 0], dtype=np.float32)
    _, report = prune(rows_with(x), 60, metric="raw", trim=0.25, return_report=True)
    (group,) = report.groups
    assert group.outliers_before == pytest.approx(0.2, abs=0.05)
    assert group.outliers_after == 0
    assert group.mean_shift > 3
    assert {note.row for note in report.outlying} <= set(far.tolist())
    _, clean = prune(rows_with(cloud(N, 5)), 60, metric="raw", return_report=True)
    assert clean.groups[0].mean_shift < 0.2
    assert clean.groups[0].outliers_before < 0.06


def test_each_label_is_measured_on_its_own(x):
    dataset = rows_with(x)
    _, report = prune(dataset, 60, by="label", return_report=True)
    assert [(g.label, g.rows, g.kept) for g in report.groups] == [("cat", 128, 26), ("dog", 86, 17), ("eel", 86, 17)]
    labels = np.array(dataset["label"])
    for number, group in enumerate(report.groups):
        _, alone = prune(dataset.select(np.flatnonzero(labels == number)), group.kept, return_report=True)
        assert group.verdict == alone.groups[0].verdict
        for name in ("moment_error", "random_error", "mean_shift", "outliers_before", "outliers_after"):
            assert getattr(group, name) == pytest.approx(getattr(alone.groups[0], name), rel=1e-9), name
    assert report.curve[-1]["picks"] == 60
    assert "### Labels (`label`)" in report.to_markdown()


def test_a_target_that_cannot_be_matched_is_said(x):
    with pytest.warns(RuntimeWarning, match="Target unreachable"):
        _, report = prune(rows_with(x), 60, method="gm", center=np.full(5, 9.0), return_report=True)
    assert report.verdict == "target unreachable"
    _, official = prune(rows_with(x), 60, method="gm_official", by="label", return_report=True)
    assert official.verdict == "target unreachable for 3 of 3 labels"
    _, random = prune(rows_with(x), 60, method="random", return_report=True)
    assert random.verdict == "no target"
    assert "no target" in random.to_markdown()


def test_it_is_written_read_back_and_drawn(made, tmp_path):
    report = made[1]
    assert PruneReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    folder = report.save(tmp_path / "report")
    assert sorted(path.name for path in folder.iterdir()) == [f"pruning.{e}" for e in ("json", "md", "png", "svg")]
    assert PruneReport.load(folder) == report
    assert (folder / "pruning.png").read_bytes()[:4] == b"\x89PNG"
    markdown = (folder / "pruning.md").read_text()
    assert "| rows kept | 60 of 300 (20.0%) |" in markdown
    assert "| verdict | matched |" in markdown


def test_what_is_published_names_no_row_that_was_dropped(made):
    report = made[1]
    assert not all(note.kept for note in report.typical + report.outlying)
    public = report.without_dropped_rows()
    assert all(note.kept for note in public.typical + public.outlying)
    assert public.curve == report.curve
