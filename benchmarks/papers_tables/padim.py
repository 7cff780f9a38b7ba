"""PaDiM: its main table, and images that are not aligned."""

from papers_tables._table import Row, Table

DEFARD = "Defard et al., ICPR 2021 workshops"

TABLES = {
    "padim": Table(
        [
            Row(
                "PaDiM, WRN50, d = 550",
                "padim-wrn50",
                {"MVTec AD": {"image_auroc": 95.3, "pixel_auroc": 97.5, "pro": 92.1}},
                DEFARD,
            ),
            Row(
                "PaDiM, R18, d = 100",
                "padim-r18",
                {"MVTec AD": {"pixel_auroc": 96.7, "pro": 90.1}},
                DEFARD,
            ),
            Row("PaDiM, R18, PCA to d = 100", "padim-r18-pca"),
        ]
    ),
    "padim-nonaligned": Table(
        [
            Row(
                "PaDiM, WRN50, d = 550",
                "padim-wrn50",
                {"MVTec AD": {"pixel_auroc": 92.2, "pro": 73.1}},
                DEFARD,
            ),
            Row("SPADE", "spade", {"MVTec AD": {"pixel_auroc": 87.2}}, DEFARD),
        ],
        "Each training and test image is resized to a short side of 256 px, rotated by "
        "up to 10 degrees and cropped to 224 px anywhere, at random by the seed; its "
        "mask moves along. Corners that a rotation uncovers are black: the paper does "
        "not say what they are. It reports the mean over five such data sets.",
        seeds=5,
        protocol="misaligned",
    ),
}
