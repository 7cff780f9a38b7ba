"""A picture of what a detector sees: image, heat map, and ground truth."""

import numpy as np

from skad.images import check_images, read_image, read_mask, to_float


class AnomalyMapDisplay:
    """Images beside their anomaly maps and ground-truth masks.

    One row per image. The colour of the map is its distance to the threshold,
    so that the zero of the colour bar is where pixels start to count as
    defective; the contour follows it. Create it with `from_estimator` or
    `from_predictions`.

    Parameters
    ----------
    images : list of ndarray of shape (H, W, 3)
        Images, float in [0, 1].

    maps : list of ndarray of shape (H, W)
        Anomaly maps of the same sizes, larger is more anomalous.

    masks : list of ndarray of shape (H, W), optional
        True is defective.

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

    def __init__(self, images, maps, *, masks=None, thresholds=None, titles=None):
        self.images = images
        self.maps = maps
        self.masks = masks
        self.thresholds = thresholds
        self.titles = titles

    @classmethod
    def from_estimator(
        cls, estimator, X, *, masks=None, titles=None, figure=None, cmap="RdBu_r"
    ):
        """Plot what a fitted estimator sees in images.

        Parameters
        ----------
        estimator : object
            A fitted pipeline or detector on images, or a search around one.

        X : sequence of images
            As the estimator takes them.

        masks : list of array, path or None, optional
            Ground truth at the size of each image; None for a good image.

        titles : list of str, optional
            One per image. Without it, the decision about each image.

        figure : matplotlib.figure.Figure, optional
            Where to draw; a new figure by default.

        cmap : str, default="RdBu_r"
            Diverging colour map.

        Returns
        -------
        display : AnomalyMapDisplay
        """
        from skad.pipeline import anomaly_map

        maps = list(anomaly_map(estimator, X))
        inner = getattr(estimator, "best_estimator_", estimator)
        thresholds = None
        if hasattr(inner, "pixel_threshold"):
            thresholds = [inner.pixel_threshold(m.shape) for m in maps]
        if titles is None:
            words = {1: "good", -1: "defective", 0: "not scored"}
            titles = [words[int(label)] for label in estimator.predict(X)]
        return cls.from_predictions(
            X,
            maps,
            masks=masks,
            thresholds=thresholds,
            titles=titles,
            figure=figure,
            cmap=cmap,
        )

    @classmethod
    def from_predictions(
        cls,
        images,
        maps,
        *,
        masks=None,
        thresholds=None,
        titles=None,
        figure=None,
        cmap="RdBu_r",
    ):
        """Plot images with maps that are at hand.

        Parameters
        ----------
        images : sequence of images
            Paths, PIL images, arrays or tensors.

        maps : sequence of array of shape (H, W)
            Anomaly maps at the size of each image.

        masks : sequence of array, path or None, optional
            Ground truth at the size of each image; None for a good image.

        thresholds : float or sequence of float, optional
            Pixel threshold of all maps, or of each.

        titles : sequence of str, optional
            One per image.

        figure : matplotlib.figure.Figure, optional
            Where to draw; a new figure by default.

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
        n = len(images)
        if thresholds is not None and np.ndim(thresholds) == 0:
            thresholds = [float(thresholds)] * n
        for name, values in (
            ("maps", maps),
            ("masks", masks),
            ("thresholds", thresholds),
            ("titles", titles),
        ):
            if values is not None and len(values) != n:
                raise ValueError(
                    f"{name} has {len(values)} entries but there are {n} images."
                )
        pictures = [
            to_float(read_image(images[i], where=f"images[{i}]")) for i in range(n)
        ]
        maps = [np.asarray(m) for m in maps]
        for i, (picture, heat) in enumerate(zip(pictures, maps, strict=True)):
            if heat.shape != picture.shape[:2]:
                raise ValueError(
                    f"maps[{i}] has shape {heat.shape} but images[{i}] is "
                    f"{picture.shape[:2]}; draw maps at the size of their image."
                )
        if masks is not None:
            masks = [
                np.zeros(heat.shape, bool)
                if mask is None
                else read_mask(mask, where=f"masks[{i}]", size=heat.shape)
                for i, (mask, heat) in enumerate(zip(masks, maps, strict=True))
            ]
        display = cls(pictures, maps, masks=masks, thresholds=thresholds, titles=titles)
        return display.plot(figure=figure, cmap=cmap)

    def plot(self, *, figure=None, cmap="RdBu_r"):
        """Draw the figure.

        Parameters
        ----------
        figure : matplotlib.figure.Figure, optional
            Where to draw; a new figure by default.

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
        if figure is None:
            figure = plt.figure(
                figsize=(2.3 * n_columns + 0.9, 2.3 * n_rows + 0.4),
                layout="constrained",
            )
        axes = figure.subplots(n_rows, n_columns, squeeze=False)
        above = self._above()
        norm, drawn = self._norm(above), None
        for row, heat in enumerate(above):
            left, middle = axes[row, 0], axes[row, 1]
            left.imshow(self.images[row])
            middle.imshow(self.images[row].mean(axis=2), cmap="gray", vmin=0, vmax=1)
            drawn = middle.imshow(heat, cmap=cmap, norm=norm, alpha=0.7)
            if self.thresholds is not None and (heat > 0).any() and (heat < 0).any():
                middle.contour(heat, levels=[0], colors="black", linewidths=1)
            if self.masks is not None:
                axes[row, 2].imshow(self.masks[row], cmap="gray", vmin=0, vmax=1)
            if self.titles is not None:
                left.set_ylabel(self.titles[row])
        for column, name in enumerate(("image", "anomaly map", "ground truth")):
            if column < n_columns:
                axes[0, column].set_title(name)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
        label = "anomaly score"
        if self.thresholds is not None:
            label += ", zero is the threshold"
        self.colorbar_ = figure.colorbar(drawn, ax=axes, shrink=0.8, label=label)
        self.figure_, self.axes_ = figure, axes
        return self

    def _above(self):
        """Maps as distances above their threshold."""
        if self.thresholds is None:
            return self.maps
        return [m - t for m, t in zip(self.maps, self.thresholds, strict=True)]

    def _norm(self, above):
        from matplotlib.colors import Normalize

        known = [heat for heat in above if np.isfinite(heat).any()]
        low = min((np.nanmin(heat) for heat in known), default=0.0)
        high = max((np.nanmax(heat) for heat in known), default=1.0)
        if self.thresholds is not None:
            high = max(abs(low), abs(high)) or 1.0
            low = -high
        return Normalize(low, high)


def _pyplot():
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'AnomalyMapDisplay needs matplotlib: pip install "skad[plot]".'
        ) from error
    return plt
