"""SPADE: its main table, the levels of the pyramid, and the number of neighbours."""

from papers_tables._table import Row, Table

SOURCE = "Roth et al., CVPR 2022, of Cohen and Hoshen, arXiv:2005.02357"
MAIN = {"MVTec AD": {"image_auroc": 85.5, "pixel_auroc": 96.0, "pro": 91.7}}
GRIDS = {"layer1": 56, "layer2": 28, "layer3": 14}  # positions along a side
LEVELS = (
    ("layer3",),
    ("layer2",),
    ("layer1",),
    ("layer2", "layer3"),
    ("layer1", "layer2"),
    ("layer1", "layer2", "layer3"),
)
NEIGHBORS = (1, 5, 10, 20, 50)


def _levels(layers):
    grids = ", ".join(f"{GRIDS[layer]} x {GRIDS[layer]}" for layer in layers)
    published = MAIN if len(layers) == 3 else {}
    features = {"layers": layers}
    return Row(f"SPADE, {grids}", "spade", published, SOURCE, features=features)


def _neighbors(k):
    return Row(
        f"SPADE, K = {k}",
        "spade",
        MAIN if k == 50 else {},
        SOURCE,
        parameters={"n_neighbors_image": k},
    )


TABLES = {
    "spade": Table([Row("SPADE", "spade", MAIN, SOURCE)]),
    "spade-levels": Table(
        [_levels(layers) for layers in LEVELS],
        "Scores of images come from the network's last features, whatever the levels.",
    ),
    "spade-neighbors": Table([_neighbors(k) for k in NEIGHBORS]),
}
