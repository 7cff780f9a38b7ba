"""Products of matrices in the threads that run the networks.

After a product, the threads of NumPy's BLAS wait for the next one by spinning, for some
20 ms, and take the cores from the network, which has threads of its own: scored one by
one, images took up to twice as long. So what is multiplied between two runs of a
network is multiplied by PyTorch, whose threads those are.
"""

from typing import Any

import numpy as np


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiply two matrices as ``left @ right`` does.

    Parameters
    ----------
    left : ndarray of shape (m, k), float32 or float64
    right : ndarray of shape (k, n), float32 or float64

    Returns
    -------
    result : ndarray of shape (m, n)
    """
    import torch

    result = np.empty((len(left), right.shape[1]), np.result_type(left, right))
    both = (_shared(torch, matrix, result.dtype) for matrix in (left, right))
    # With `out`, the caller's autocast has no say.
    torch.mm(*both, out=torch.from_numpy(result))
    return result


def _shared(torch: Any, matrix: np.ndarray, dtype: Any) -> Any:
    """A tensor of the memory of a matrix, or of a copy where torch cannot share it."""
    matrix = matrix.astype(dtype, copy=False)
    if not matrix.flags.writeable or min(matrix.strides) < 0:
        matrix = matrix.copy()
    return torch.from_numpy(np.asarray(matrix))
