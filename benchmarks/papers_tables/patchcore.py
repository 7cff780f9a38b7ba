"""PatchCore: its main table, the size of the coreset, and few training images."""

from papers_tables._table import Row, Table, images

ROTH = "Roth et al., CVPR 2022"
MAIN = {
    25: {"image_auroc": 99.1, "pixel_auroc": 98.1, "pro": 93.4},
    10: {"image_auroc": 99.0, "pixel_auroc": 98.1, "pro": 93.5},
    1: {"image_auroc": 99.0, "pixel_auroc": 98.0, "pro": 93.1},
}
RATIOS = (100, 50, 25, 10, 5, 1, 0.1)  # percent
FEW = {1: 84.1, 2: None, 5: 91.0, 10: None, 16: 95.5, 20: None, 50: 97.7}


def _coreset(percent):
    published = {"MVTec AD": MAIN[percent]} if percent in MAIN else {}
    return Row(
        f"PatchCore, {percent:g} %",
        "patchcore-10",
        published,
        ROTH,
        parameters={"coreset_ratio": percent / 100},
    )


def _few(shots, image_auroc):
    published = {"MVTec AD": {"image_auroc": image_auroc}} if image_auroc else {}
    return Row(
        f"PatchCore, 25 %, {images(shots)}", "patchcore-25", published, ROTH, shots
    )


TABLES = {
    "patchcore": Table(
        [
            Row(f"PatchCore, {k} %", f"patchcore-{k}", {"MVTec AD": published}, ROTH)
            for k, published in MAIN.items()
        ]
    ),
    "patchcore-coreset": Table(
        [_coreset(percent) for percent in RATIOS],
        "Of other ratios than 25, 10 and 1 % no published numbers were at hand.",
    ),
    "patchcore-fewshot": Table(
        [_few(shots, value) for shots, value in FEW.items()],
        "Which images are learned from depends on the seed.",
    ),
}
