"""DRAEM: its main table."""

from papers_tables._table import Row, Table

TABLES = {
    "draem": Table(
        [
            Row(
                "DRAEM",
                "draem",
                {
                    "MVTec AD": {
                        "image_auroc": 98.0,
                        "pixel_auroc": 97.3,
                        "pixel_ap": 68.4,
                    }
                },
                "Zavrtanik et al., ICCV 2021",
            )
        ]
    )
}
