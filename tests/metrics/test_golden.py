import numpy as np
import pytest

from skad.metrics import (
    image_auroc,
    image_average_precision,
    image_f1_max,
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_max,
    pixel_metrics,
    pro_score,
)


@pytest.fixture
def g(golden):
    return golden("metrics")


@pytest.fixture(params=["cont", "ties"])
def case(request, g):
    maps = g["maps" if request.param == "cont" else "maps_ties"]
    return g["masks"].astype(bool), maps, lambda name: float(g[name % request.param])


def test_pixel_metrics(case):
    masks, maps, expected = case
    assert pixel_auroc(masks, maps) == pytest.approx(
        expected("pixel_auroc_%s"), abs=1e-12
    )
    assert pixel_average_precision(masks, maps) == pytest.approx(
        expected("pixel_ap_%s"), abs=1e-12
    )
    assert pixel_f1_max(masks, maps) == pytest.approx(
        expected("pixel_f1max_%s"), abs=1e-12
    )


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_pro(case, limit):
    masks, maps, expected = case
    value = pro_score(masks, maps, max_fpr=limit)
    assert value == pytest.approx(expected(f"aupro_%s_{limit}"), abs=1e-6)
    if limit == 0.3:  # regions touch at corners: 8-connectivity joins them
        assert abs(value - expected("aupro_%s_0.3_fourconn")) > 1e-3


def test_all_in_one_pass(case):
    masks, maps, _ = case
    together = pixel_metrics(masks, maps)
    assert together["pixel_auroc"] == pixel_auroc(masks, maps)
    assert together["pixel_average_precision"] == pixel_average_precision(masks, maps)
    assert together["pixel_f1_max"] == pixel_f1_max(masks, maps)
    assert together["pro_score"] == pro_score(masks, maps)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("aupro_constant_map", lambda masks: np.zeros(masks.shape)),
        ("aupro_perfect_map", lambda masks: masks.astype(float)),
        ("aupro_inverted_map", lambda masks: 1.0 - masks),
    ],
)
def test_pro_of_extreme_maps(g, name, make):
    masks = g["masks"].astype(bool)
    assert pro_score(masks, make(masks)) == pytest.approx(float(g[name]), abs=1e-6)


def test_image_metrics(g):
    y = np.where(g["labels"] == 1, -1, 1)
    scores = -g["image_scores"]
    assert image_auroc(y, scores) == pytest.approx(float(g["image_auroc"]), abs=1e-12)
    assert image_average_precision(y, scores) == pytest.approx(
        float(g["image_ap"]), abs=1e-12
    )
    assert image_f1_max(y, scores) == pytest.approx(float(g["image_f1max"]), abs=1e-12)
