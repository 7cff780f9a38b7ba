"""Results of a model for many images as one page that any browser shows."""

from skad.report._report import write_report

__all__ = ["write_report"]
