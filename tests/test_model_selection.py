import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV

from skad import PatchCoreDetector
from skad.model_selection import OneClassSplit

Y = np.r_[np.ones(20, int), -np.ones(7, int)]
X = np.arange(27)[:, None]


@pytest.mark.parametrize("outliers", ["all", "partition"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_train_folds_hold_good_images_only(outliers, shuffle):
    split = OneClassSplit(
        4, outliers=outliers, shuffle=shuffle, random_state=0 if shuffle else None
    )
    tested = []
    for train, test in split.split(X, Y):
        assert (Y[train] == 1).all()
        assert not set(train) & set(test)
        assert set(train) | set(test[Y[test] == 1]) == set(range(20))
        tested.append(test)
        if outliers == "all":
            assert (Y[test] == -1).sum() == 7
    good = np.concatenate([t[Y[t] == 1] for t in tested])
    assert sorted(good) == list(range(20))
    if outliers == "partition":
        bad = np.concatenate([t[Y[t] == -1] for t in tested])
        assert sorted(bad) == list(range(20, 27))
    assert split.get_n_splits(X, Y) == len(tested) == 4


@pytest.mark.parametrize("outliers", ["all", "partition"])
def test_supervised_folds_train_on_defects_that_they_do_not_test(outliers):
    tested = []
    for train, test in OneClassSplit(3, outliers=outliers, supervised=True).split(X, Y):
        assert sorted([*train, *test]) == list(range(27))
        assert set(Y[train]) == set(Y[test]) == {1, -1}
        tested.extend(test)
    assert sorted(tested) == list(range(27))
    with pytest.raises(ValueError, match="supervised=True with n_splits=8"):
        next(OneClassSplit(8, supervised=True).split(X, Y))
    with pytest.raises(ValueError, match="supervised must be True or False"):
        OneClassSplit(supervised="yes")


def test_same_seed_same_folds():
    def folds(seed):
        split = OneClassSplit(3, shuffle=True, random_state=seed)
        return [test.tolist() for _, test in split.split(X, Y)]

    assert folds(0) == folds(0) != folds(1)


@pytest.mark.parametrize(
    ("parameters", "y", "message"),
    [
        ({}, None, "y"),
        ({}, np.where(Y == 1, 0, 1), "to_outlier_labels"),
        ({"n_splits": 1}, Y, "n_splits"),
        ({"n_splits": 21}, Y, "n_splits|good"),
        ({"outliers": "none"}, Y, "outliers"),
    ],
)
def test_bad_input_is_named(parameters, y, message):
    with pytest.raises((ValueError, TypeError), match=message):
        list(OneClassSplit(**{"n_splits": 5, **parameters}).split(X, y))


def test_a_folder_is_no_sequence_of_images():
    with pytest.raises(TypeError, match=r"X is a single path, .*list_images"):
        list(OneClassSplit(5).split("parts/good", Y))


def test_in_a_search():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 4)) + 5 * (np.arange(60) >= 50)[:, None]
    y = np.where(np.arange(60) >= 50, -1, 1)
    search = GridSearchCV(
        PatchCoreDetector(contamination=0.2),
        {"n_neighbors": [1, 2]},
        scoring="roc_auc",
        cv=OneClassSplit(4),
    ).fit(features, y)
    assert search.best_score_ > 0.99
    assert len(search.best_estimator_.calibration_scores_) == 50
