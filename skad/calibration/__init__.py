"""Thresholds beyond those that detectors set by themselves."""

from skad.calibration._per_group import ThresholdPerGroup

__all__ = ["ThresholdPerGroup"]
