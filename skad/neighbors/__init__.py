"""Coreset selection and exact nearest-neighbour search for memory banks."""

from skad.neighbors._coreset import greedy_coreset
from skad.neighbors._nearest import nearest

__all__ = ["greedy_coreset", "nearest"]
