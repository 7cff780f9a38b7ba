import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skad.neighbors import _nearest, nearest
from skad.neighbors._bounds import Bounds, _product
from skad.neighbors._nearest import _PREPARED, search


def brute(queries, bank):
    gaps = queries[:, None].astype(np.float64) - bank.astype(np.float64)
    return np.sqrt((gaps**2).sum(-1))


def test_golden(golden):
    g = golden("patchcore_score")
    distances, indices = nearest(g["query"], g["bank"])
    np.testing.assert_array_equal(indices, g["nn_index"])
    np.testing.assert_allclose(distances, g["nn_l2_f64"], rtol=1e-9)
    np.testing.assert_allclose(distances**2, g["nn_sqdist_faiss"], atol=1e-4, rtol=1e-5)
    distances, indices = nearest(g["query"], g["bank"], 3)
    np.testing.assert_array_equal(indices, g["nn3_index"])
    np.testing.assert_allclose(
        (distances**2).mean(axis=1), g["patch_score_k3_reference"], atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("shift", [0, 300])
def test_equals_brute_force_in_float64(k, shift):
    rng = np.random.default_rng(k)
    bank = (rng.normal(size=(700, 40)) + shift).astype(np.float32)
    queries = (rng.normal(size=(300, 40)) + shift).astype(np.float32)
    expected = brute(queries, bank)
    order = np.argsort(expected, axis=1, kind="stable")[:, :k]
    distances, indices = nearest(queries, bank, k)
    np.testing.assert_array_equal(indices.reshape(-1, k), order)
    np.testing.assert_allclose(
        distances.reshape(-1, k), np.take_along_axis(expected, order, 1), rtol=1e-12
    )


def test_identical_rows_are_at_exactly_zero():
    bank = (np.random.default_rng(0).random((500, 1024)) * 20).astype(np.float32)
    distances, indices = nearest(bank, bank)
    np.testing.assert_array_equal(distances, 0)
    np.testing.assert_array_equal(indices, np.arange(500))


def test_of_equal_rows_the_first():
    bank = np.zeros((6, 3), np.float32)
    distances, indices = nearest(np.ones((2, 3), np.float32), bank, 3)
    np.testing.assert_array_equal(indices, [[0, 1, 2], [0, 1, 2]])
    np.testing.assert_allclose(distances, np.sqrt(3))


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30))
def test_order_and_shape(seed, n, m):
    rng = np.random.default_rng(seed)
    queries, bank = rng.integers(0, 3, (n, 4)), rng.integers(0, 3, (m, 4))
    distances, indices = nearest(queries, bank, m)
    expected = np.sort(brute(queries, bank), axis=1)
    np.testing.assert_allclose(distances.reshape(n, m), expected, atol=1e-12)
    if m > 1:
        assert all(sorted(row) == list(range(m)) for row in indices)


def test_own_group_is_never_found():
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(90, 5)).astype(np.float32)
    groups = np.repeat([0, 1, 2], 30)
    squared, indices = search(bank, bank, 2, groups=(groups, groups))
    assert (groups[indices] != groups[:, None]).all()
    expected = brute(bank, bank)
    expected[groups[:, None] == groups] = np.inf
    np.testing.assert_allclose(np.sqrt(squared), np.sort(expected)[:, :2])
    lonely = search(bank, bank[:30], 1, groups=(groups, groups[:30]))[0]
    assert np.isinf(lonely[:30]).all()
    assert np.isfinite(lonely[30:]).all()


@pytest.mark.parametrize("k", [2, 9])
def test_hidden_rows_are_never_found_in_a_large_bank(k):
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(1500, 6)).astype(np.float32)
    queries = bank[:40] + np.float32(0.1)
    hidden = rng.random((40, 1500)) < 0.5
    hidden[:11] = True
    hidden[:10, : 2 * k] = False  # all that is left lies in few places
    hidden[10, : k - 1] = False  # too few
    expected = np.where(hidden, np.inf, brute(queries, bank))
    squared, indices = _nearest.search(queries, bank, k, hidden=hidden)
    order = np.argsort(expected, axis=1, kind="stable")[:, :k]
    enough = np.arange(40) != 10
    np.testing.assert_array_equal(indices[enough], order[enough])
    assert np.isinf(squared[10]).all()


def test_products_in_bfloat16_have_few_sizes(monkeypatch):
    """PyTorch keeps half a megabyte for each size."""
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.normal(size=(783, 9))).bfloat16()
    rows, sizes, multiply = points[:70], [], torch.matmul
    whole = points @ rows.T

    def noted(left, right, **given):
        sizes.append(len(left))
        return multiply(left, right, **given)

    monkeypatch.setattr(torch, "matmul", noted)
    assert torch.equal(_product(points, rows), whole)
    assert sizes == [512, 256, 16]  # the last ones are filled up
    assert torch.equal(_product(points[:5], rows), whole[:5])
    assert sizes[3:] == [8]


def test_blocks_do_not_change_the_answer(monkeypatch):
    rng = np.random.default_rng(0)
    queries, bank = rng.normal(size=(50, 8)), rng.normal(size=(70, 8))
    whole = nearest(queries, bank, 3)
    monkeypatch.setattr("skad.neighbors._nearest.BLOCK_ENTRIES", 140)
    monkeypatch.setattr("skad._matrices._CHUNK_ENTRIES", 64)
    parts = nearest(queries, bank, 3)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_array_equal(parts[1], whole[1])


@pytest.mark.parametrize(
    ("queries", "bank", "k", "message"),
    [
        (np.eye(3), np.eye(3), 0, "k=0 is out of range"),
        (np.eye(3), np.eye(3), 4, "between 1 and 3"),
        (np.eye(3), np.eye(3), 1.0, "k must be an integer"),
        (np.eye(3), np.eye(4), 1, "queries has 3 columns but bank has 4"),
        (np.full((2, 2), np.nan), np.eye(2), 1, "queries contains NaN"),
        (np.eye(2), np.zeros((0, 2)), 1, "minimum of 1 is required"),
    ],
)
def test_bad_arguments(queries, bank, k, message):
    with pytest.raises(ValueError, match=message):
        nearest(queries, bank, k)


def _rows(kind, rng, n, d=96, rank=12):
    """Rows of which leading directions hold nearly all, and what makes them hard."""
    mixing = np.random.default_rng(1).normal(size=(rank, d))
    rows = rng.normal(size=(n, rank)) @ mixing + 0.05 * rng.normal(size=(n, d))
    if kind == "full rank":
        rows = rng.normal(size=(n, d))
    if kind == "far from the origin":
        rows = rows + 1e4
    if kind == "tiny":
        rows = rows * 1e-18
    if kind == "huge":
        rows = rows * 1e17
    if kind == "double":
        return rows
    return rows.astype(np.float32)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("directions", [False, True])
@pytest.mark.parametrize(
    "kind",
    ["low rank", "full rank", "far from the origin", "tiny", "huge", "double"],
)
def test_exact_whatever_is_prepared(kind, directions, half, monkeypatch):
    monkeypatch.setattr(
        _nearest, "plan", lambda *_: {"half": half, "directions": directions}
    )
    rng = np.random.default_rng(0)
    bank, queries = _rows(kind, rng, 900), _rows(kind, rng, 150)
    queries[:5] = bank[100:105]
    bank[500] = bank[100]
    expected = brute(queries, bank)
    order = np.argsort(expected, axis=1, kind="stable")[:, :3]
    squared, indices = _nearest.Bank(bank).search(queries, 3)
    np.testing.assert_array_equal(indices, order)
    nearest_ones = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_allclose(np.sqrt(squared), nearest_ones, rtol=1e-12)
    assert (squared[:5, 0] == 0).all()
    # Those to rows of some parts of the bank are no smaller, and hardly larger.
    parts = [slice(0, 300), slice(301, None, 2)]
    upper = _nearest.Bank(bank).upper_bounds(queries, 3, parts)
    assert (upper >= squared).all()
    there = np.r_[0:300, 301:900:2]
    nearest_there = np.sort(expected[:, there], axis=1)[:, :3]
    assert np.median(np.sqrt(upper[5:]) / nearest_there[5:]) < 1.1


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("directions", [False, True])
def test_bounds_are_below_all_distances(directions, half):
    rng = np.random.default_rng(0)
    bank, queries = _rows("low rank", rng, 400), _rows("low rank", rng, 60)
    queries[:20] *= np.logspace(0, 30, 20, dtype=np.float32)[:, None]  # out of reach
    bounds, limits = Bounds(bank, half=half, directions=directions).of(queries)
    distances = brute(queries, bank)
    for column in range(len(bank)):
        assert (bounds[:, column] <= limits(distances[:, column])).all()
    loose = bounds <= limits(distances.min(axis=1))[:, None]
    assert loose[20:].sum() < 0.1 * loose[20:].size  # and yet they rule out most


def test_more_is_prepared_when_more_was_searched():
    rng = np.random.default_rng(0)
    bank = _nearest.Bank(_rows("low rank", rng, 3000))
    queries = _rows("low rank", rng, 400)
    first = bank.search(queries)
    plans = {str(_PREPARED[bank][1])}
    for _ in range(20):
        again = bank.search(queries)
        plans.add(str(_PREPARED[bank][1]))
    assert len(plans) > 1
    np.testing.assert_array_equal(first, again)


def test_tiny_rows_beside_equal_ones_are_told_apart():
    """None of the rows that give the scale tells that there are others."""
    rng = np.random.default_rng(0)
    bank = np.zeros((2000, 64), np.float32)
    others = np.setdiff1d(np.arange(2000), np.linspace(0, 1999, 256).astype(int))[:300]
    bank[others] = 1e-22 * rng.normal(size=(300, 64))
    queries = (1e-22 * rng.normal(size=(50, 64))).astype(np.float32)
    distances, indices = nearest(queries, bank)
    gaps = queries.astype(np.float64) - bank[indices]
    np.testing.assert_allclose(distances, np.sqrt((gaps**2).sum(axis=1)), rtol=1e-6)


def test_the_default_device_of_torch_has_no_part():
    rng = np.random.default_rng(0)
    queries, bank = (rng.normal(size=(n, 256)).astype("f4") for n in (800, 8000))
    before = nearest(queries, bank)
    with torch.device("meta"):
        after = nearest(queries, bank)
    np.testing.assert_array_equal(after, before)
