"""What memory banks share: coreset selection and nearest-neighbour search."""

from skad.neighbors._coreset import greedy_coreset
from skad.neighbors._nearest import nearest

__all__ = ["greedy_coreset", "nearest"]
