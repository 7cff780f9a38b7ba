"""CutPaste: the three-way classifier."""

from papers_tables._table import Row, Table

TABLES = {
    "cutpaste": Table(
        [
            Row(
                "CutPaste, 3-way",
                "cutpaste",
                {"MVTec AD": {"image_auroc": 95.2}},
                "Li et al., CVPR 2021",
            )
        ]
    )
}
