"""Watch a model in production: do the images still come from the same line?"""

from skad.monitoring._drift import DriftMonitor

__all__ = ["DriftMonitor"]
