"""SimpleNet: its main table, and one class of CIFAR-10 against the others."""

from papers_tables._table import Row, Table

TABLES = {
    "simplenet": Table(
        [
            Row(
                "SimpleNet",
                "simplenet",
                {"MVTec AD": {"image_auroc": 99.6, "pixel_auroc": 98.1}},
                "Liu et al., CVPR 2023, at the epoch that is best on the test set; "
                "without that choice image AUROC 98.2 (Batzner et al., WACV 2024)",
            )
        ]
    ),
    "simplenet-cifar10": Table(
        [Row("SimpleNet", "simplenet")],
        "Each class in turn is normal, and the nine others are anomalous. Images of "
        "32 px are enlarged to the size of the preset. The paper does not say which "
        "settings it takes for these images.",
        layout="CIFAR-10",
    ),
}
