"""Products of matrices between two runs of a network."""

import warnings

import numpy as np
import pytest
import torch

from skad._matrices import product
from skad.neighbors._nearest import search


def matrices(m, k, n, dtype=np.float32):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=s).astype(dtype) for s in ((m, k), (k, n)))


def shifted(matrix, n):
    """The matrix, n numbers further on in memory than it might lie."""
    room = np.empty(matrix.size + n, matrix.dtype)[n:].reshape(matrix.shape)
    room[:] = matrix
    return room


@pytest.mark.parametrize("shape", [(5, 4, 3), (1, 7, 2), (6, 3, 1), (0, 3, 2)])
def test_multiplies(shape):
    left, right = matrices(*shape, dtype=np.float64)
    np.testing.assert_allclose(product(left, right), left @ right, atol=1e-12)
    found = product(left.astype(np.float32), right)  # of two dtypes
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, left.astype(np.float32) @ right, atol=1e-12)


def test_takes_memory_that_torch_does_not():
    left, right = matrices(5, 4, 3)
    expected = product(left, right)
    left.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of memory that it must not write
        np.testing.assert_array_equal(product(left, right), expected)
        np.testing.assert_array_equal(product(left[::-1], right), expected[::-1])
        np.testing.assert_allclose(product(right.T, left.T), expected.T, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 60, 300])
def test_bits_do_not_depend_on_the_place_in_memory(n):
    left, right = matrices(196, 128, n)
    expected = product(left, right)
    for i in range(16):
        found = product(shifted(left, i), shifted(right, 5 * i % 16))
        np.testing.assert_array_equal(found, expected)


def test_the_callers_settings_of_torch_have_no_say():
    left, right = matrices(64, 64, 64)
    expected = product(left, right)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        np.testing.assert_array_equal(product(left, right), expected)


@pytest.fixture
def few_digits():
    """Torch as a program sets it that wants its own networks to be fast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("few_digits")
def test_products_keep_the_digits_of_float32():
    left, right = matrices(784, 512, 1024)
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=0)
    error = np.abs(product(left, right) - left.astype(float) @ right)
    assert (error / lengths).max() < 2**-20


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("half", [False, True])
def test_search_stays_exact(half, monkeypatch):
    monkeypatch.setattr("skad.neighbors._bounds.half_pays", lambda: half)
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(2, 3000, 96)).astype(np.float32)
    squared, indices = search(queries, bank)
    expected = ((queries[:50, None].astype(float) - bank) ** 2).sum(axis=2)
    np.testing.assert_array_equal(indices[:50, 0], expected.argmin(axis=1))
    np.testing.assert_allclose(squared[:50, 0], expected.min(axis=1))
