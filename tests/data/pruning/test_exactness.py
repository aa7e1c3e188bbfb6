"""Every exact engine makes the picks of the float64 brute force, on any number of threads and any backend."""

import numpy as np
import pytest

from hf_ext.data.pruning import engines, gm_matching
from hf_ext.data.pruning.engines import cpu
from hf_ext.data.pruning.matching import match
from hf_ext.data.pruning.one_group import Aim, Settings
from hf_ext.data.vectors.rows import Selection, check_rows
from tests.data.pruning.oracle import brute_force, cloud, unit

WAYS = {
    "one thread": {"num_threads": 1},
    "two threads": {"num_threads": 2},
    "torch": {"backend": "torch", "device": "cpu"},
}
EXACT = ("int8", "f32")


def matched_from(rows, k, start, metric="raw", center="gm", **options):
    """A matching whose theta starts elsewhere: `"target"`, `"zero"` or a vector."""
    settings = Settings(show_progress=False, **options)
    return match(check_rows(rows, metric), k, {"all rows": None}, lambda _: Aim(center, start), settings, "matching")


@pytest.fixture(params=["compiled", "plain numpy"])
def loops(request, monkeypatch):
    """With numba and without it."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(cpu, "kernels", lambda: None)
        monkeypatch.setattr(engines, "kernels", lambda: None)


@pytest.fixture
def share_small_rows_too(monkeypatch):
    monkeypatch.setattr(engines, "_SHARED_NUMBERS", 1)  # small tests would never leave one thread


def planted(seed, n=500, d=9):
    """Rows with duplicates (exact ties), rows that differ in the last bit, and rows of very different lengths."""
    rows = cloud(n, d, seed)
    rows[50:90] = rows[3]
    rows[200] = rows[120]
    rows[201] = np.nextafter(rows[120], np.float32(9))
    rows[300] *= 1e4
    rows[301] *= 1e-4
    return rows


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("metric", ["unit", "raw"])
@pytest.mark.parametrize("center", ["gm", "mean"])
def test_picks_are_those_of_brute_force(engine, way, metric, center, loops, share_small_rows_too):
    rows = planted(0)
    # Exact duplicates of rows scaled to length 1 tie only if they were divided alike, so the oracle gets our rows.
    matching = matched_from(rows, 60, "target", metric, center, engine=engine, **WAYS[way])
    seen = rows.astype(np.float64) if metric == "raw" else unit(rows)
    assert matching.indices.tolist() == brute_force(seen, 60, matching.center)
    assert matching.engine == engine


@pytest.mark.parametrize("engine", EXACT)
def test_mean_as_centre_is_herding(engine):
    rows = cloud(500, 7, 3)
    herding = brute_force(unit(rows), 80, unit(rows).mean(0))
    matching = gm_matching(rows, 80, center="mean", engine=engine)
    assert matching.indices.tolist() == herding
    assert matching.method == "herding"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["grid", "heavy tails", "tiny", "one outlier", "narrow"])
def test_engines_agree_where_ties_are_many_and_scales_differ(seed, kind):
    rng = np.random.default_rng(seed)
    rows = {
        "grid": rng.integers(-2, 3, (400, 4)) + 0.0,
        "heavy tails": rng.standard_t(1, (400, 6)) * 100,
        "tiny": rng.standard_normal((400, 5)) * 1e-20,
        "one outlier": np.vstack([rng.standard_normal((399, 5)), np.full((1, 5), 1e6)]),
        "narrow": 1000 + 1e-3 * rng.standard_normal((400, 5)),
    }[kind]
    start = rng.standard_normal(rows.shape[1]) * np.abs(rows).mean()
    want = None
    for engine in EXACT:
        for options in (WAYS["one thread"], WAYS["torch"]):
            got = matched_from(rows, 60, start, engine=engine, **options)
            want = want or got.indices.tolist()
            assert got.indices.tolist() == want
    if kind == "grid":  # sums of small whole numbers and of the centre round in one order only: the oracle's is ours
        seen = rows - got.center
        assert want == brute_force(seen, 60, np.zeros(4), theta0=start)


@pytest.mark.parametrize("engine", EXACT)
def test_all_rows_can_be_picked(engine):
    assert sorted(gm_matching(cloud(60, 4, 1), 60, engine=engine).indices) == list(range(60))


@pytest.mark.parametrize("engine", EXACT)
def test_memory_mapped_rows_are_read_only_and_give_the_same_picks(engine, tmp_path):
    rows = planted(2)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert gm_matching(mapped, 50, engine=engine).indices.tolist() == gm_matching(rows, 50).indices.tolist()
    assert rows.flags.writeable


def test_int8_bounds_hold_and_rule_nearly_all_rows_out():
    rows = check_rows(planted(4, 2000, 48), "raw")
    rng = np.random.default_rng(0)
    for scale in (1e-8, 1.0, 1e5):
        target, theta = rng.standard_normal(48), rng.standard_normal(48) * scale
        own = cpu.State(Selection(rows), target, theta)
        exact = (rows.values.astype(np.longdouble) - target) @ theta.astype(np.longdouble)
        engine = cpu.Int8(own)
        assert (engine.upper() >= exact).all()
        spread = np.delete(engine.upper() - exact, 300) / np.delete(np.linalg.norm(rows.values - target, axis=1), 300)
        assert spread.max() < 0.1 * np.linalg.norm(theta)
    assert gm_matching(cloud(20_000, 64), 100, engine="int8", num_threads=1).evals_per_pick < 10


def test_codes_of_theta_never_overflow():
    pytest.importorskip("numba")
    rows = np.ones((3, 4000), np.float32) * np.array([[1], [-1], [0.5]], np.float32)
    matching = matched_from(rows, 1, np.ones(4000), center=np.zeros(4000), engine="int8")
    assert matching.indices.tolist() == [0]  # 4000 * 127 * 32767 is seven times what int32 holds


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_pool_of_all_rows_is_exact_and_a_small_one_reports_its_error(backend):
    rows = cloud(3000, 16)
    exact = gm_matching(rows, 200)
    whole = gm_matching(rows, 200, engine="pool", pool_rows=3000, backend=backend)
    assert whole.indices.tolist() == exact.indices.tolist()
    small = gm_matching(rows, 200, engine="pool", pool_picks=16, pool_rows=64, backend=backend)
    assert len(set(small.indices.tolist())) == 200
    assert small.moment_error == pytest.approx(np.linalg.norm(unit(rows)[small.indices].mean(0) - small.center))
    assert exact.moment_error < small.moment_error < 0.1


def test_small_pool_is_the_same_on_any_number_of_threads(share_small_rows_too):
    rows = cloud(3000, 16)
    one, two = (gm_matching(rows, 100, engine="pool", pool_rows=64, num_threads=threads) for threads in (1, 2))
    assert one.indices.tolist() == two.indices.tolist()


def test_auto_is_exact_whatever_the_size():
    assert engines.choose("auto", 1000, 384) == "f32"
    assert {engines.choose("auto", n, 384) for n in (10, 10**4, 10**7)} <= set(EXACT)
