"""Plots of images, their anomaly maps, and ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from skad._optional import optional
from skad.images import check_images, image_size, read_image, read_mask, to_float

_AXES_INCHES = 2.3  # side of a picture in a new figure
_SCREEN_PIXEL_PIXELS = 2  # pixels of a picture per pixel of the screen, for print
_PIXELS_AT_ONCE = 2**26  # pixels of maps that are made together


class AnomalyMapDisplay:
    """Images beside their anomaly maps and ground-truth masks.

    One row per image. The colour of the map is its distance to the threshold,
    so that the zero of the colour bar is where pixels start to count as
    defective; the contour follows it. Create it with `from_estimator` or
    `from_predictions`.

    Images that are larger than their place in the figure are rendered at twice the
    pixels of that place: a pixel of it shows the mean of the image, the largest value
    of the map and any defect of the mask below it. Axes count the pixels of the image.

    Parameters
    ----------
    images : sequence of images
        Paths, PIL images, arrays or tensors.

    maps : sequence of ndarray of shape (H, W)
        Anomaly maps at the size of each image, larger is more anomalous.

    masks : sequence of array, path or None, optional
        Ground truth at the size of each image, True is defective; None for an image
        without defects.

    regions : sequence of array, path or None, optional
        What was looked at in each image; None is all of it. The rest is shaded.

    thresholds : list of float, optional
        Pixel threshold of each map. Without it, colours show the maps as they
        are, and there is no contour.

    titles : list of str, optional
        One per image.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
        The figure, after `plot`.

    axes_ : ndarray of shape (n_images, n_columns) of matplotlib.axes.Axes
        Image, map, and mask where there are masks.

    colorbar_ : matplotlib.colorbar.Colorbar
        The colour bar that all maps share.

    Notes
    -----
    As the displays of scikit-learn do, this one leaves its figure to pyplot, which
    keeps it open until it is closed. In a loop, close it
    (``matplotlib.pyplot.close(display.figure_)``), or pass one figure as `figure`
    again and again.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.metrics import AnomalyMapDisplay
    >>> image, heat = np.zeros((8, 8, 3)), np.eye(8)
    >>> display = AnomalyMapDisplay.from_predictions(
    ...     [image], [heat], thresholds=[0.5]
    ... )
    >>> display.axes_.shape
    (1, 2)
    """

    def __init__(
        self,
        images: Any,
        maps: Any,
        *,
        masks: Sequence[Any] | None = None,
        regions: Sequence[Any] | None = None,
        thresholds: Any = None,
        titles: Sequence[str] | None = None,
    ) -> None:
        self.images = images
        self.maps = maps
        self.masks = masks
        self.regions = regions
        self.thresholds = thresholds
        self.titles = titles

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        masks: Sequence[Any] | None = None,
        regions: Sequence[Any] | None = None,
        titles: Sequence[str] | None = None,
        figure: Any = None,
        cmap: str = "RdBu_r",
    ) -> Self:
        """Plot images and the anomaly maps of a fitted estimator.

        Parameters
        ----------
        estimator : object
            A fitted pipeline or detector on images, or a search around one.

        X : sequence of images
            As the estimator takes them.

        masks : list of array, path or None, optional
            Ground truth at the size of each image; None for a normal image.

        regions : sequence of n masks, optional
            For pipelines: what to look at in each image, as in
            `PatchFeatures.transform`.

        titles : list of str, optional
            One per image. Without it, the decision about each image.

        figure : matplotlib.figure.Figure, optional
            Where to render, in place of what is there; a new figure by default.

        cmap : str, default="RdBu_r"
            Diverging colour map.

        Returns
        -------
        display : AnomalyMapDisplay
        """
        images = check_images(X)
        inner = getattr(estimator, "best_estimator_", estimator)
        maps, thresholds, limits = [], [], {}
        most = _largest_side(len(images), 2 if masks is None else 3, figure)
        for part, own in _parts(images, regions):
            for full in _maps(estimator, part, own):
                if hasattr(inner, "pixel_threshold"):
                    if full.shape not in limits:
                        limits[full.shape] = inner.pixel_threshold(full.shape)
                    thresholds.append(limits[full.shape])
                maps.append(_Shrunk(full, most, np.fmax))
        if titles is None:
            given = {} if regions is None else {"regions": regions}
            words = {1: "good", -1: "defective", 0: "not scored"}
            titles = [words[int(label)] for label in estimator.predict(X, **given)]
        return cls.from_predictions(
            images,
            maps,
            masks=masks,
            regions=regions,
            thresholds=thresholds or None,
            titles=titles,
            figure=figure,
            cmap=cmap,
        )

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        maps: Any,
        *,
        masks: Sequence[Any] | None = None,
        regions: Sequence[Any] | None = None,
        thresholds: Any = None,
        titles: Sequence[str] | None = None,
        figure: Any = None,
        cmap: str = "RdBu_r",
    ) -> Self:
        """Plot images with given anomaly maps.

        Parameters
        ----------
        images : sequence of images
            Paths, PIL images, arrays or tensors.

        maps : sequence of array of shape (H, W)
            Anomaly maps at the size of each image.

        masks : sequence of array, path or None, optional
            Ground truth at the size of each image; None for a normal image.

        regions : sequence of array, path or None, optional
            What was looked at in each image; None is all of it. The rest is shaded.

        thresholds : float or sequence of float, optional
            Pixel threshold of all maps, or of each.

        titles : sequence of str, optional
            One per image.

        figure : matplotlib.figure.Figure, optional
            Where to render, in place of what is there; a new figure by default.

        cmap : str, default="RdBu_r"
            Diverging colour map.

        Returns
        -------
        display : AnomalyMapDisplay

        Raises
        ------
        ValueError
            If numbers or sizes of images, maps and masks disagree.
        """
        images = check_images(images, "images")
        limits: Any = thresholds
        if thresholds is not None and np.ndim(thresholds) == 0:
            limits = [float(limits)] * len(images)
        _check_lengths(
            len(images),
            maps=maps,
            masks=masks,
            regions=regions,
            thresholds=limits,
            titles=titles,
        )
        maps = [m if isinstance(m, _Shrunk) else np.asarray(m) for m in maps]
        for i, heat in enumerate(maps):
            size = image_size(images[i], where=f"images[{i}]")
            if heat.shape != size:
                raise ValueError(
                    f"maps[{i}] has shape {heat.shape} but images[{i}] is {size}; "
                    "render maps at the size of their image."
                )
        display = cls(
            images,
            maps,
            masks=masks,
            regions=regions,
            thresholds=limits,
            titles=titles,
        )
        return display.plot(figure=figure, cmap=cmap)

    def plot(self, *, figure: Any = None, cmap: str = "RdBu_r") -> Self:
        """Draw the figure.

        Parameters
        ----------
        figure : matplotlib.figure.Figure, optional
            Where to render, in place of what is there; a new figure by default.

        cmap : str, default="RdBu_r"
            Diverging colour map.

        Returns
        -------
        display : AnomalyMapDisplay
            This object.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        plt = _pyplot()
        n_rows, n_columns = len(self.images), 2 if self.masks is None else 3
        most = _largest_side(n_rows, n_columns, figure)
        # Whatever is wrong with an image shows before there is a figure.
        rows = [self._row(i, most) for i in range(n_rows)]
        norm, heat_image = self._norm([row["heat"].values for row in rows]), None
        figure, axes = _figure_and_axes(plt, figure, n_rows, n_columns)
        for i, row in enumerate(rows):
            left, middle = axes[i, 0], axes[i, 1]
            extent = row["heat"].extent
            left.imshow(row["picture"], extent=extent)
            grey = row["picture"].mean(axis=2)
            middle.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent)
            heat = row["heat"].values
            heat_image = middle.imshow(
                heat, cmap=cmap, norm=norm, alpha=0.7, extent=extent
            )
            if self.thresholds is not None and (heat > 0).any() and (heat < 0).any():
                at = row["heat"].centres
                middle.contour(*at, heat, levels=[0], colors="black", linewidths=1)
            if self.masks is not None:
                mask = row["mask"]
                axes[i, 2].imshow(mask, cmap="gray", vmin=0, vmax=1, extent=extent)
            if row["outside"] is not None:
                for ax in axes[i]:
                    ax.imshow(row["outside"], extent=extent)
            if self.titles is not None:
                left.set_ylabel(self.titles[i])
        for column, name in enumerate(("image", "anomaly map", "ground truth")):
            if column < n_columns:
                axes[0, column].set_title(name)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
        label = "anomaly score"
        if self.thresholds is not None:
            label += ", zero is the threshold"
        self.colorbar_ = figure.colorbar(heat_image, label=label, **_bar(figure, axes))
        self.figure_, self.axes_ = figure, axes
        return self

    def _row(self, i: int, most: int) -> dict[str, Any]:
        """Shrink an image, its map and masks to what the figure can show."""
        image = read_image(self.images[i], where=f"images[{i}]")
        size = image.shape[:2]
        heat = self.maps[i]
        if not isinstance(heat, _Shrunk):
            heat = _Shrunk(np.asarray(heat), most, np.fmax)
        if self.thresholds is not None:
            heat = heat.above(self.thresholds[i])
        row: dict[str, Any] = {"heat": heat, "mask": None, "outside": None}
        row["picture"] = to_float(_mean_shrunk(image, most))
        if self.masks is not None:
            row["mask"] = np.zeros(heat.values.shape, bool)
            if self.masks[i] is not None:
                mask = read_mask(self.masks[i], where=f"masks[{i}]", size=size)
                row["mask"] = _Shrunk(mask, most, np.logical_or).values
        if self.regions is not None and self.regions[i] is not None:
            inside = read_mask(self.regions[i], where=f"regions[{i}]", size=size)
            inside = _Shrunk(inside, most, np.logical_or).values
            row["outside"] = np.zeros((*inside.shape, 4), np.float32)
            row["outside"][~inside] = 0.5, 0.5, 0.5, 0.7
        return row

    def _norm(self, heats: list[np.ndarray]) -> Any:
        from matplotlib.colors import Normalize

        known = [heat for heat in heats if np.isfinite(heat).any()]
        low = min((np.nanmin(heat) for heat in known), default=0.0)
        high = max((np.nanmax(heat) for heat in known), default=1.0)
        if self.thresholds is not None:
            high = max(abs(low), abs(high)) or 1.0
            low = -high
        return Normalize(low, high)


def _check_lengths(n_images: int, **each: Any) -> None:
    """Refuse arguments, by their names, that have not one entry per image."""
    for name, values in each.items():
        if values is not None and len(values) != n_images:
            raise ValueError(
                f"{name} has {len(values)} entries but there are {n_images} images."
            )


class _Shrunk:
    """An array (H, W) with at most so many pixels along its longer side.

    Each takes what `combine` makes of those below it.
    """

    def __init__(self, array: np.ndarray, most: int, combine: np.ufunc) -> None:
        self.shape = array.shape
        self.values = array
        for axis, starts in enumerate(_starts(array.shape, most)):
            if len(starts) < array.shape[axis]:
                self.values = combine.reduceat(self.values, starts, axis=axis)

    def above(self, threshold: float) -> _Shrunk:
        """The distances above a threshold."""
        other = object.__new__(_Shrunk)
        other.shape, other.values = self.shape, self.values - threshold
        return other

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Borders in pixels of the whole array, as for ``imshow``."""
        height, width = self.shape
        return -0.5, width - 0.5, height - 0.5, -0.5

    @property
    def centres(self) -> Any:
        """Column and row of the centre of each pixel, in those of the whole array."""
        (height, width), (n, m) = self.shape, self.values.shape
        return (
            (np.arange(m) + 0.5) * width / m - 0.5,
            (np.arange(n) + 0.5) * height / n - 0.5,
        )


def _starts(size: Sequence[int], most: int) -> list[np.ndarray]:
    """Where the pixels of a smaller array begin, along both axes."""
    factor = max(1.0, max(size) / most)
    counts = [max(1, round(side / factor)) for side in size]
    return [
        np.arange(count) * side // count
        for side, count in zip(size, counts, strict=True)
    ]


def _mean_shrunk(image: np.ndarray, most: int) -> np.ndarray:
    """Means over the pixels (H, W, C) below each of a smaller image, in its dtype."""
    dtype = image.dtype
    for axis, starts in enumerate(_starts(image.shape[:2], most)):
        n = image.shape[axis]
        if len(starts) < n:
            image = np.add.reduceat(image, starts, axis=axis, dtype=np.float32)
            counts = np.diff(starts, append=n).astype(np.float32)
            image /= np.expand_dims(counts, [k for k in range(3) if k != axis])
    if image.dtype != dtype and dtype.kind != "f":
        image = np.rint(image)
    return image.astype(dtype, copy=False)


def _largest_side(n_rows: int, n_columns: int, figure: Any) -> int:
    """Pixels along the longer side of a picture that a figure can show."""
    plt = _pyplot()
    inches, dpi = (_AXES_INCHES, _AXES_INCHES), plt.rcParams["figure.dpi"]
    if figure is not None:
        width, height = figure.bbox.width, figure.bbox.height
        dpi = figure.dpi
        inches = width / dpi / n_columns, height / dpi / n_rows
    return max(32, round(_SCREEN_PIXEL_PIXELS * max(inches) * dpi))


def _figure_and_axes(
    plt: Any, figure: Any, n_rows: int, n_columns: int
) -> tuple[Any, Any]:
    """A grid of axes, in a figure of fitting size or in the given one."""
    if figure is not None:
        figure.clear()
        return figure, figure.subplots(n_rows, n_columns, squeeze=False)
    left, right, bottom, top = 0.3, 1.2, 0.1, 0.35  # margins in inches
    width, height = (
        _AXES_INCHES * n_columns + left + right,
        _AXES_INCHES * n_rows + bottom + top,
    )
    figure = plt.figure(figsize=(width, height))
    # Laid out by hand: a solver takes seconds for a hundred axes.
    place = {
        "left": left / width,
        "right": 1 - right / width,
        "bottom": bottom / height,
        "top": 1 - top / height,
        "wspace": 0.04,
        "hspace": 0.04,
    }
    return figure, figure.subplots(n_rows, n_columns, squeeze=False, gridspec_kw=place)


def _bar(figure: Any, axes: Any) -> dict[str, Any]:
    """Where the colour bar goes: beside the first rows, however many there are."""
    if figure.get_layout_engine() is not None or axes[0, 0].get_gridspec().left is None:
        return {"ax": axes, "shrink": 0.8}
    top = axes[0, -1].get_position()
    bottom = axes[min(2, len(axes) - 1), -1].get_position()
    width = 0.15 / figure.get_figwidth()
    place = (top.x1 + width, bottom.y0, width, top.y1 - bottom.y0)
    return {"cax": figure.add_axes(place)}


def _parts(images: Any, regions: Any) -> Iterator[tuple[Any, Any]]:
    """The images, and their regions, some at a time: few where they are large."""
    first, n_pixels = 0, 0
    for i in range(len(images)):
        height, width = image_size(images[i], where=f"X[{i}]")
        if i > first and n_pixels + height * width > _PIXELS_AT_ONCE:
            yield _part(images, regions, first, i)
            first, n_pixels = i, 0
        n_pixels += height * width
    yield _part(images, regions, first, len(images))


def _part(images: Any, regions: Any, first: int, last: int) -> tuple[Any, Any]:
    own = None if regions is None else regions[first:last]
    return images[first:last], own


def _maps(estimator: Any, images: Any, regions: Any) -> Any:
    from skad.pipeline import anomaly_map

    return anomaly_map(estimator, images, regions=regions)


def _pyplot() -> Any:
    return optional("matplotlib.pyplot", "AnomalyMapDisplay", "plot")
