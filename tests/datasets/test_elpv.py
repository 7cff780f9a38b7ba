"""Solar cells: which images are in which part, and what is refused."""

import numpy as np
import pytest

from skad.datasets import _elpv as module
from skad.datasets import load_elpv

COUNTS = {"mono": (588, 117, 56, 313), "poly": (920, 178, 50, 402)}


@pytest.fixture
def package():
    pytest.importorskip("elpv_dataset", reason='needs pip install "skad[real]"')


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("kind", ["mono", "poly", None])
def test_parts_are_disjoint_and_complete(kind):
    data = load_elpv(kind, random_state=1)
    counts = np.sum([COUNTS[k] for k in COUNTS if kind in (k, None)], axis=0)
    parts = data.train + data.test + data.uncertain
    assert len(set(parts)) == len(parts) == counts.sum()
    assert all(path.is_file() for path in parts)
    assert len(data.train) == len(data.y_train) == 400
    assert set(data.y_train) == {1}
    assert np.sum(data.y_test == 1) == counts[0] - 400
    assert np.sum(data.y_test == -1) == counts[3]
    np.testing.assert_array_equal(data.probabilities, data.y_test == -1)
    assert sorted(set(data.uncertain_probabilities)) == [1 / 3, 2 / 3]
    assert len(data.uncertain_probabilities) == len(data.uncertain)
    kinds = {kind} if kind else set(COUNTS)
    assert set(data.kinds) == kinds
    assert data.masks is None
    assert data.category == (kind or "both")
    for label, name in zip(data.y_test, data.defect_types, strict=True):
        assert (label == 1) == (name == "good")
    assert "CC BY-NC-SA 4.0" in data.DESCR


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("least", "n_defective"), [(2 / 3, 369), (0.3, 486)])
def test_less_certain_defects_on_request(least, n_defective):
    data = load_elpv("mono", min_probability=least)
    assert np.sum(data.y_test == -1) == n_defective
    assert data.probabilities[data.y_test == -1].min() >= least - 1e-9
    assert len(data.uncertain) == 1074 - 588 - n_defective


@pytest.mark.usefixtures("package")
def test_split_is_of_the_seed():
    first, same = load_elpv("mono"), load_elpv("mono", random_state=0)
    assert first.train == same.train
    assert first.test == same.test
    assert load_elpv("mono", random_state=1).train != first.train
    generator = np.random.RandomState(0)
    assert load_elpv("mono", random_state=generator).train == first.train


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "Mono"}, "kind='Mono' is not one of 'mono', 'poly'"),
        ({"n_train": 0}, "n_train=0 must be an integer from 1 to 1508"),
        ({"kind": "mono", "n_train": 589}, "n_train=589 .* 588"),
        ({"n_train": 40.0}, "n_train=40.0 must be an integer"),
        ({"n_train": True}, "n_train=True must be an integer"),
        ({"min_probability": 0}, "min_probability=0 must be above 0"),
        ({"min_probability": 1.5}, r"min_probability=1\.5 must be .* at most 1"),
        ({"min_probability": "1"}, "min_probability='1' must be"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_elpv(**arguments)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'elpv-dataset.*pip install "skad\[real\]"'):
        load_elpv()
