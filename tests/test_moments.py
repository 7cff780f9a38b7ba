import numpy as np
import pytest

from skad import _moments
from skad._moments import Moments, RunningMoments


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cuts", [[], [1], [7, 7, 40], [16, 32, 48], [50, 99]])
def test_running_moments_have_the_same_bits_however_rows_are_cut(
    cuts, dtype, monkeypatch
):
    monkeypatch.setattr(_moments, "BLOCK_ENTRIES", 16 * 3)
    rows = np.random.default_rng(0).normal(5, size=(100, 3)).astype(dtype)
    running = RunningMoments()
    assert running.total.n == 0
    for part in np.split(rows, cuts):
        running.add(part)
    total, whole = running.total, Moments().with_rows(rows)
    assert total.n == len(rows)
    np.testing.assert_array_equal(total.mean, whole.mean)
    np.testing.assert_array_equal(total.covariance, whole.covariance)
    np.testing.assert_allclose(total.covariance, np.cov(rows.T, bias=True), rtol=1e-5)
