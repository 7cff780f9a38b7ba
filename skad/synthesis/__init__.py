"""Synthetic anomalies, and augmented views of images, which hold no anomaly."""

from skad.synthesis._augmented import AugmentedViews
from skad.synthesis._cutpaste import cutpaste, cutpaste_scar
from skad.synthesis._draem import changed_texture, draem, procedural_texture
from skad.synthesis._extended import extended_anomaly, foreground_mask
from skad.synthesis._perlin import perlin_mask, perlin_noise
from skad.synthesis._smoothblend import smooth_blend
from skad.synthesis._transformer import SyntheticAnomalies
from skad.synthesis._views import strong_view, weak_view

__all__ = [
    "AugmentedViews",
    "SyntheticAnomalies",
    "changed_texture",
    "cutpaste",
    "cutpaste_scar",
    "draem",
    "extended_anomaly",
    "foreground_mask",
    "perlin_mask",
    "perlin_noise",
    "procedural_texture",
    "smooth_blend",
    "strong_view",
    "weak_view",
]
