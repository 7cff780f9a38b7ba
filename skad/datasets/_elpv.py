"""Electroluminescence images of solar cells, from the package ``elpv-dataset``."""

from __future__ import annotations

from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.utils import Bunch, check_random_state

_CELL_TYPES = ("mono", "poly")
_DESCR = """\
Electroluminescence images of solar cells (ELPV)
------------------------------------------------
2,624 grey images of 300 x 300 pixels, each of one cell, cut from images of 44 solar
modules and freed of perspective and lens distortion. Experts rated the probability
that a cell is defective: 0, 1/3, 2/3 or 1. There are no masks, and no official split.
1,074 cells are monocrystalline (588 rated 0, 117 rated 1/3, 56 rated 2/3, 313 rated
1), 1,550 polycrystalline (920, 178, 50, 402).

Source: https://github.com/zae-bayern/elpv-dataset, on PyPI as elpv-dataset.
Licence of the images: CC BY-NC-SA 4.0, which rules out commercial use.

The authors ask to cite:

- C. Buerhop-Lutz, S. Deitsch, A. Maier, F. Gallwitz, S. Berger, B. Doll, J. Hauch,
  C. Camus and C. J. Brabec, "A Benchmark for Visual Identification of Defective Solar
  Cells in Electroluminescence Imagery", EU PVSEC 2018.
- S. Deitsch, C. Buerhop-Lutz, E. Sovetkin, A. Steland, A. Maier, F. Gallwitz and
  C. Riess, "Segmentation of photovoltaic module cells in uncalibrated
  electroluminescence images", Machine Vision and Applications 32, 2021.
- S. Deitsch, V. Christlein, S. Berger, C. Buerhop-Lutz, A. Maier, F. Gallwitz and
  C. Riess, "Automatic classification of defective photovoltaic module cells in
  electroluminescence images", Solar Energy 185, 2019.
"""


def load_elpv(
    kind: str | None = None,
    *,
    n_train: int = 400,
    min_probability: float = 1.0,
    random_state: int | RandomState | None = 0,
) -> Bunch:
    """List electroluminescence images of solar cells, with real defects.

    The images come with the package ``elpv-dataset``: ``pip install "skad[real]"``
    installs it. Their licence, CC BY-NC-SA 4.0, rules out commercial use. Each has a
    defect probability of 0, 1/3, 2/3 or 1; cells of probability 0 are normal. The
    data set has no official split, so the normal images to train on are sampled. No
    image is opened.

    Parameters
    ----------
    kind : {"mono", "poly"}, optional
        Monocrystalline cells, which look alike, or polycrystalline ones, each with
        crystals of its own. By default both.
    n_train : int, default=400
        Number of normal images to train on, sampled. The other normal ones are test
        images.
    min_probability : float, default=1.0
        Least defect probability of a defective test image. Cells between 0 and this
        are in neither part, but in `uncertain`.
    random_state : int, RandomState instance or None, default=0
        Seed of the split.

    Returns
    -------
    data : Bunch
        `train`, `test`, `uncertain` : lists of Path, each in the order of the data
        set, but for `test`, which has the normal images first;
        `y_train`, `y_test` : +1 for normal, -1 for defective images;
        `masks` : None, for there are no masks;
        `defect_types` : list aligned with `test`, "good" or "anomaly";
        `category` : `kind`, or "both";
        `probabilities`, `uncertain_probabilities` : arrays aligned with `test` and
        `uncertain`, the defect probabilities;
        `kinds` : list aligned with `test`, "mono" or "poly";
        `DESCR` : str, the source, the licence and whom to cite.

    Raises
    ------
    ImportError
        If the package ``elpv-dataset`` is not installed.
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> from skad.datasets import load_elpv
    >>> data = load_elpv("mono")  # doctest: +SKIP
    >>> len(data.train), len(data.test), len(data.uncertain)  # doctest: +SKIP
    (400, 501, 173)
    """
    if kind is not None and kind not in _CELL_TYPES:
        raise ValueError(f"kind={kind!r} is not one of 'mono', 'poly' and None.")
    if not isinstance(min_probability, Real) or not 0 < min_probability <= 1:
        raise ValueError(
            f"min_probability={min_probability!r} must be above 0 and at most 1: cells "
            "of probability 0 are the normal ones."
        )
    paths, probabilities, kinds = _table()
    chosen = np.isin(kinds, _CELL_TYPES if kind is None else [kind])
    normal = np.flatnonzero(chosen & (probabilities == 0))
    defective = chosen & (probabilities >= min_probability - 1e-9)
    uncertain = np.flatnonzero(chosen & (probabilities > 0) & ~defective)
    train = _sample(normal, n_train, random_state)
    kept = np.setdiff1d(normal, train)
    test = np.r_[kept, np.flatnonzero(defective)]
    y_test = np.where(probabilities[test] == 0, 1, -1)
    return Bunch(
        train=[paths[i] for i in train],
        test=[paths[i] for i in test],
        uncertain=[paths[i] for i in uncertain],
        y_train=np.ones(len(train), dtype=np.int64),
        y_test=y_test.astype(np.int64),
        masks=None,
        defect_types=["good" if label == 1 else "anomaly" for label in y_test],
        category=kind or "both",
        probabilities=probabilities[test],
        uncertain_probabilities=probabilities[uncertain],
        kinds=kinds[test].tolist(),
        DESCR=_DESCR,
    )


def _sample(normal: NDArray[np.int64], n: int, random_state: Any) -> NDArray[np.int64]:
    """Sample some of the normal images, in the order of the data set."""
    if not isinstance(n, Integral) or isinstance(n, bool) or not 0 < n <= len(normal):
        raise ValueError(
            f"n_train={n!r} must be an integer from 1 to {len(normal)}, the number of "
            "normal images."
        )
    rng = check_random_state(random_state)
    return np.sort(rng.choice(normal, int(n), replace=False))


def _table() -> tuple[list[Path], NDArray[np.float64], NDArray[np.str_]]:
    """Paths, defect probabilities and types of all cells, as the package has them."""
    package = find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise ImportError(
            "load_elpv needs the package elpv-dataset, which has the images: "
            'pip install "skad[real]", or pip install elpv-dataset.'
        )
    folder = Path(package.origin).parent / "data"
    lines = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if line.strip()]
    return (
        [folder / name for name, _, _ in rows],
        np.array([float(probability) for _, probability, _ in rows]),
        np.array([kind for _, _, kind in rows]),
    )
