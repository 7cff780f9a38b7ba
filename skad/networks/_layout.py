"""Measure where in an image each output of a network belongs.

A network may put out maps with their channels first or last, or sequences of tokens,
with or without tokens of classes before them. A band of a probe image is changed; a
layout is right if the positions that lie there change most.
"""

import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from skad.networks._frozen import Layout, as_map
from skad.networks._torch_state import running

_known: "WeakKeyDictionary[Any, dict[tuple, tuple]]" = WeakKeyDictionary()
_lock = threading.Lock()
_N_BANDS = 3  # of rows and of columns that are changed
# Correlation of positions with the bands that they react to. Networks with their
# positions in order have 0.89 or more, also on grids of 4 x 4; others 0.4 or less.
_SMALLEST_CORRELATION = 0.6
_CERTAIN_CORRELATION = 0.95  # there is no need to try other layouts
_MAX_PREFIX_TOKENS = 16  # tokens before or after those of the image


def probes(size, n_channels):
    """An image of noise, and the same with other bands: (1 + 6, H, W, c), float32."""
    height, width = size
    plain, noise = np.random.default_rng(0).random((2, *size, n_channels), np.float32)
    images = np.repeat(plain[None], 1 + 2 * _N_BANDS, axis=0)
    for k in range(_N_BANDS):
        rows = slice(k * height // _N_BANDS, (k + 1) * height // _N_BANDS)
        columns = slice(k * width // _N_BANDS, (k + 1) * width // _N_BANDS)
        images[1 + k, rows] = noise[rows]
        images[1 + _N_BANDS + k, :, columns] = noise[:, columns]
    return images


def measured(outputs, name, module, image_size):
    """The layout of a module's outputs for `probes`.

    Parameters
    ----------
    outputs : tensor (7, ...)

    name : str
        Of the module, for errors.

    module : torch.nn.Module
        The network. What it says of itself is tried first.

    image_size : (int, int)

    Returns
    -------
    layout : Layout

    Raises
    ------
    ValueError
        If no layout puts the changes where they were made.
    """
    best, highest = None, -1.0
    for layout in _candidates(tuple(outputs.shape), module, image_size):
        agreement = _agreement(as_map(outputs, layout).cpu().numpy())
        if best is None or agreement > highest + 0.01:
            best, highest = layout, agreement
        if highest >= _CERTAIN_CORRELATION:
            break
    if best is not None and highest >= _SMALLEST_CORRELATION:
        return best
    shape = tuple(outputs.shape[1:])
    if best is None:
        raise ValueError(
            f"layers: the output of {name!r} has shape (b, {', '.join(map(str, shape))}"
            f"), which is neither maps nor tokens on a grid for images of "
            f"{image_size[0]} x {image_size[1]} pixels; choose another module, or an "
            "image_size that is a multiple of the patch size."
        )
    raise ValueError(
        f"layers: what {name!r} puts out, (b, {', '.join(map(str, shape))}), is not in "
        "the order of the image: a change of one part of the image changes other "
        f"positions as much as its own (correlation {highest:.2f}). Maps of anomalies "
        "would be wrong; choose another module or network."
    )


def _candidates(shape, module, image_size):
    """Layouts that the shape allows, the likeliest first."""
    if len(shape) == 4:
        orders = ["NCHW", "NHWC"]
        if getattr(module, "output_fmt", "NCHW") == "NHWC":
            orders.reverse()
        return [Layout(order) for order in orders]
    own = getattr(module, "num_prefix_tokens", 0)
    own = own if isinstance(own, int) else 0
    certain: list[Layout] = []
    possible: list[Layout] = []
    for order, n in (("NLC", shape[1]), ("NCL", shape[2])):
        others = (k for k in range(_MAX_PREFIX_TOKENS + 1) if k != own)
        for extra in (own, *others):
            for grid in _grids(n - extra, image_size):
                # What is too small to be measured must be as the network says.
                if min(grid) < _N_BANDS and (extra != own or order == "NCL"):
                    continue
                found = certain if _has_one_stride(grid, image_size) else possible
                found.append(Layout(order, extra, grid))
                if extra:  # such tokens may come last as well
                    found.append(Layout(order, 0, grid))
    return certain + possible


def _grids(n, image_size):
    """Grids of n tokens whose proportions are about those of the image."""
    if n < 1:
        return []
    height, width = image_size
    expected = (n * height / width) ** 0.5
    fitting = [
        rows
        for rows in range(1, n + 1)
        if n % rows == 0 and abs(rows - expected) < max(1.0, 0.2 * expected)
    ]
    return [
        (rows, n // rows) for rows in sorted(fitting, key=lambda r: abs(r - expected))
    ]


def _has_one_stride(grid, image_size):
    """Whether patches of one size, the last of them perhaps cut, make the grid."""
    return any(
        all(
            n in (side // stride, -(-side // stride))
            for n, side in zip(grid, image_size, strict=True)
        )
        for stride in range(1, max(image_size) + 1)
    )


def _agreement(maps):
    """Correlation of where positions lie with the bands that they react to.

    The smaller one of rows and columns. A network may look further to one side, which
    correlation does not mind. An axis of less than three positions tells nothing.
    """
    changes = np.abs(maps[1:] - maps[:1]).mean(axis=1, dtype=np.float64)
    totals = changes.sum(axis=(1, 2), keepdims=True)
    if not totals.all():  # the network does not react to the image at all
        return 1.0
    changes /= totals
    found = []
    for axis, part in enumerate(np.split(changes, 2)):
        n = part.shape[1 + axis]
        if n < _N_BANDS:
            continue
        reacted = np.maximum(part.sum(axis=0), 1e-30)
        centre = np.tensordot(np.arange(_N_BANDS), part, axes=1) / reacted
        position = np.arange(n)[:, None] if axis == 0 else np.arange(n)[None]
        position = np.broadcast_to(position, centre.shape)
        if np.ptp(centre) == 0:
            return 0.0
        found.append(float(np.corrcoef(centre.ravel(), position.ravel())[0, 1]))
    return min(found, default=1.0)


def check_output(output, name):
    """Refuse what no layout can be found for."""
    if not hasattr(output, "ndim"):
        raise ValueError(
            f"layers: the output of {name!r} is a {type(output).__name__}, not a "
            "tensor; choose a module inside or after it."
        )
    if output.ndim not in (3, 4):
        raise ValueError(
            f"layers: the output of {name!r} has shape {tuple(output.shape)}; expected "
            "maps (b, c, h, w) or tokens (b, n, c)."
        )


def measured_layouts(backbone, run, names, pooled, image_size, n_channels):
    """Layouts of the named modules, measured once for each network and size.

    Parameters
    ----------
    backbone : Backbone

    run : callable
        From images (b, H, W, c) to outputs by name, as of ``Backbone.outputs``.

    names : list of str

    pooled : bool or str
        A module of this name may put out one vector for each image, which has no
        layout.

    image_size : (int, int)

    n_channels : int

    Returns
    -------
    layouts : dict of Layout or None

    last : str
        The module that finished last.
    """
    # The weights of one's own network may have changed since.
    key = (backbone.sha256, *names, pooled, image_size)
    with _lock:
        known = _known.setdefault(backbone.module, {})
    if key in known:
        return known[key]
    outputs: dict[str, list] = {name: [] for name in names}
    with running, _without_hooks(backbone.module):
        for image in probes(image_size, n_channels):
            taken, _ = run(image[None])
            for name in names:
                output = taken[name]
                if name != pooled or getattr(output, "ndim", 0) != 2:
                    check_output(output, name)
                    outputs[name].append(output)
    layouts = {
        name: measured(torch.cat(found), name, backbone.module, image_size)
        if found
        else None
        for name, found in outputs.items()
    }
    known[key] = layouts, list(taken)[-1]
    return known[key]


@contextmanager
def _without_hooks(module):
    """Keep a network's own hooks from seeing the probes: they may count images."""
    parts = list(module.modules())
    hooks = [part._forward_hooks for part in parts]
    for part in parts:
        part._forward_hooks = OrderedDict()
    try:
        yield
    finally:
        for part, own in zip(parts, hooks, strict=True):
            part._forward_hooks = own
