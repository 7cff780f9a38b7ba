"""Watch the scores of a model in production."""

from skad.monitoring._drift import DriftMonitor

__all__ = ["DriftMonitor"]
