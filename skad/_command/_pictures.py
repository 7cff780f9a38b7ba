"""Heat maps and masks of rejected images, as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from skad._chain import Chain
from skad.images import read_image
from skad.inspection import Inspection
from skad.report import _thumbnails as thumbnails


class Pictures:
    """Writes the pictures of inspections.

    A picture has the path of its image within a folder, and the ending ".png" in
    addition: ``maps/scratch/17.jpg.png``.

    Parameters
    ----------
    out : Path
        Folder for ``maps`` and ``masks``.

    base : Path
        Folder that the images are in.

    model : estimator
        The model of the inspections.
    """

    def __init__(self, out: Path, base: Path, model: Any) -> None:
        self.maps, self.masks, self.base = out / "maps", out / "masks", base
        self.usual = float(np.median(Chain(model).final.calibration_maps_))
        for folder in (self.maps, self.masks):
            folder.mkdir(exist_ok=True)

    def update(self, one: Inspection) -> None:
        """Write both pictures of a rejected image; remove those of a normal one.

        An earlier run may have rejected it.
        """
        within = os.path.relpath(one.source, self.base)
        places = [folder / f"{within}.png" for folder in (self.maps, self.masks)]
        if one.anomaly_map is None or one.mask is None or one.pixel_threshold is None:
            for place in places:
                place.unlink(missing_ok=True)
            return
        levels, palette = thumbnails.heat_levels(
            one.anomaly_map, self.usual, one.pixel_threshold
        )
        heat = palette[levels]
        opacity = heat[..., 3:] / 255
        image = thumbnails.shown(read_image(one.source))
        covered = image * (1 - opacity) + heat[..., :3] * opacity
        pixels = np.rint(covered).astype(np.uint8), one.mask.astype(np.uint8) * 255
        for place, values in zip(places, pixels, strict=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(place)
