"""Anomalies made from good images."""

from skad.synthesis._perlin import perlin_mask, perlin_noise

__all__ = ["perlin_mask", "perlin_noise"]
