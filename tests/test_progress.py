"""Bars on the standard error stream, on request."""

import re

import numpy as np
import pytest

from skad import PaDiMDetector, PatchCoreDetector, PCANetFeatures, SubspaceDetector
from skad.metrics import pixel_metrics
from skad.neighbors import greedy_coreset

RNG = np.random.default_rng(0)
GRIDS = RNG.normal(size=(12, 4, 4, 6)).astype(np.float32)
IMAGES = RNG.random((6, 40, 40, 3)).astype(np.float32)
MASKS = [np.eye(8, dtype=bool), None, None]
MAPS = RNG.random((3, 8, 8))


@pytest.mark.parametrize(
    ("work", "bars"),
    [
        (
            lambda verbose: PatchCoreDetector(verbose=verbose).fit(GRIDS),
            ["coreset: 100%.* 19/19 ", "patches left out: 100%.* 192/192 "],
        ),
        (
            lambda verbose: PaDiMDetector(verbose=verbose).fit(GRIDS),
            ["Gaussians: 100%.* 12/12 ", "positions, images left out: 100%.* 16/16 "],
        ),
        (
            lambda verbose: SubspaceDetector(verbose=verbose).fit(GRIDS),
            ["images held out: 100%.* 12/12 "],
        ),
        (
            lambda verbose: PCANetFeatures(
                40, n_filters=(8, 12, 12), verbose=verbose
            ).fit(IMAGES),
            ["filters: 100%.* 18/18 ", "positions: 100%.* 12/12 "],
        ),
        (
            lambda verbose: greedy_coreset(GRIDS.reshape(-1, 6), 9, verbose=verbose),
            ["coreset: 100%.* 9/9 "],
        ),
        (
            lambda verbose: pixel_metrics(MASKS, MAPS, verbose=verbose),
            ["maps: 100%.* 4/4 "],
        ),
    ],
    ids=["PatchCore", "PaDiM", "k-fold", "PCANet", "coreset", "pixel metrics"],
)
@pytest.mark.filterwarnings("ignore:.*held-out images cannot certify")
def test_progress_is_shown_on_request(work, bars, capsys):
    work(False)
    assert capsys.readouterr() == ("", "")
    work(True)
    shown = capsys.readouterr()
    assert shown.out == ""
    for bar in bars:
        assert re.search(bar, shown.err)
