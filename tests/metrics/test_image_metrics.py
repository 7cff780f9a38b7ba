import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, roc_auc_score

from skad.metrics import image_auroc, image_average_precision, image_f1_max


@given(st.integers(0, 10**6), st.integers(2, 60), st.sampled_from([3, 1000]))
def test_equal_to_scikit_learn(seed, n, levels):
    rng = np.random.default_rng(seed)
    y = np.r_[1, -1, rng.choice([1, -1], n)]
    scores = rng.integers(0, levels, n + 2) / levels
    assert image_auroc(y, scores) == pytest.approx(roc_auc_score(y, scores), abs=1e-12)
    assert image_average_precision(y, scores) == pytest.approx(
        average_precision_score(y == -1, -scores), abs=1e-12
    )
    f1 = {
        t: 2
        * np.sum((scores <= t) & (y == -1))
        / (np.sum(scores <= t) + np.sum(y == -1))
        for t in sorted(scores)
    }
    best, threshold = image_f1_max(y, scores, return_threshold=True)
    assert best == pytest.approx(max(f1.values()), abs=1e-12)
    assert threshold == max(t for t in f1 if f1[t] == max(f1.values()))


@pytest.mark.parametrize("metric", [image_auroc, image_average_precision, image_f1_max])
def test_bad_labels_are_explained(metric):
    with pytest.raises(ValueError, match="to_outlier_labels"):
        metric([0, 1, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"scores|inconsistent"):
        metric([1, -1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"NaN|finite"):
        metric([1, -1], [0.1, np.nan])


def test_one_class_is_undefined():
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(image_auroc([1, 1], [0.1, 0.2]))
