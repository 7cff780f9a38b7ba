"""Image and pixel metrics, scorers for model selection, and a display."""

from skad.metrics._display import AnomalyMapDisplay
from skad.metrics._image import image_auroc, image_average_precision, image_f1_max
from skad.metrics._overlap import aupimo_score, pro_score, spro_score
from skad.metrics._pixel import (
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_max,
    pixel_metrics,
)
from skad.metrics._scorers import (
    PixelScorer,
    aupimo_scorer,
    image_auroc_scorer,
    image_average_precision_scorer,
    image_f1_max_scorer,
    pixel_auroc_scorer,
    pixel_average_precision_scorer,
    pixel_f1_max_scorer,
    pro_scorer,
    spro_scorer,
)

__all__ = [
    "AnomalyMapDisplay",
    "PixelScorer",
    "aupimo_score",
    "aupimo_scorer",
    "image_auroc",
    "image_auroc_scorer",
    "image_average_precision",
    "image_average_precision_scorer",
    "image_f1_max",
    "image_f1_max_scorer",
    "pixel_auroc",
    "pixel_auroc_scorer",
    "pixel_average_precision",
    "pixel_average_precision_scorer",
    "pixel_f1_max",
    "pixel_f1_max_scorer",
    "pixel_metrics",
    "pro_score",
    "pro_scorer",
    "spro_score",
    "spro_scorer",
]
