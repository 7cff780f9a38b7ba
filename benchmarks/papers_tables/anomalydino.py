"""AnomalyDINO: few training images."""

from papers_tables._table import Row, Table, images


def _few(shots, image_auroc, **more):
    return Row(
        f"AnomalyDINO-S, {images(shots)}",
        "anomalydino-448",
        {"MVTec AD": {"image_auroc": image_auroc, **more}},
        "Damm et al., WACV 2025",
        shots,
    )


TABLES = {
    "anomalydino": Table(
        [
            _few(1, 96.5, pro=91.7),
            _few(2, 96.7),
            _few(4, 97.6),
            _few(16, 98.3),
        ]
    )
}
