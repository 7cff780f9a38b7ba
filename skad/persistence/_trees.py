"""Trees of isolation forests, which scikit-learn follows without a look at them.

A node of a tree tells the places of its children and the feature that it compares.
scikit-learn reads there without checking, so that wrong places make it read foreign
memory or run for ever. skops therefore trusts no tree; these checks are what it misses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skad.persistence._objects import objects


def check_trees(model: Any) -> None:
    """Raise if scoring would read beyond the arrays of a tree.

    Raises
    ------
    ValueError
        If a tree is damaged, or is part of anything but an `IsolationForest`.
    """
    from sklearn.ensemble import IsolationForest
    from sklearn.tree._tree import Tree

    known = set()
    for value, place in objects(model):
        if isinstance(value, IsolationForest) and hasattr(value, "estimators_"):
            _check_forest(value, place)
            known |= {id(tree.tree_) for tree in value.estimators_}
    for value, place in objects(model):
        if isinstance(value, Tree) and id(value) not in known:
            raise ValueError(
                f"{place} is a tree, but of no IsolationForest; save other forests "
                "with joblib.dump"
            )


def _check_forest(forest: Any, place: str) -> None:
    n_features, chosen = forest.n_features_in_, forest.estimators_features_
    if len(chosen) != len(forest.estimators_):
        raise ValueError(f"{place} has {len(chosen)} choices of features")
    for i, (tree, features) in enumerate(zip(forest.estimators_, chosen, strict=True)):
        # The forest passes all features where each tree takes as many as there are.
        whole = forest._max_features == n_features
        width = n_features if whole else len(features)
        if not _is_whole(tree.tree_, width):
            raise ValueError(f"{place}.estimators_[{i}] is a damaged tree")


def _is_whole(tree: Any, n_features: int) -> bool:
    """Whether each node of a tree leads to later nodes, and to features that exist."""
    n = tree.node_count
    if not 0 < n <= tree.capacity or tree.n_features != n_features:
        return False
    left, right, feature = tree.children_left, tree.children_right, tree.feature
    inner, here = left != -1, np.arange(n)
    return bool(
        np.all(right[~inner] == -1)
        and np.all((left[inner] > here[inner]) & (left[inner] < n))
        and np.all((right[inner] > here[inner]) & (right[inner] < n))
        and np.all((feature[inner] >= 0) & (feature[inner] < n_features))
    )
