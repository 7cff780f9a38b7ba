"""AnomalyDINO: few training images."""

from papers_tables._table import Row, Table, images


def _few(shots, mvtec, visa=None):
    published = {"MVTec AD": mvtec} | ({"VisA": {"image_auroc": visa}} if visa else {})
    return Row(
        f"AnomalyDINO-S, {images(shots)}",
        "anomalydino-448",
        published,
        "Damm et al., WACV 2025",
        shots,
    )


TABLES = {
    "anomalydino": Table(
        [
            _few(1, {"image_auroc": 96.5, "pro": 91.7}, 85.6),
            _few(2, {"image_auroc": 96.7}, 88.3),
            _few(4, {"image_auroc": 97.6}, 91.3),
            _few(16, {"image_auroc": 98.3}),
        ]
    )
}
