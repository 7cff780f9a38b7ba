"""How a model sees an image: what it is resized to, and what is cut out of it."""

from __future__ import annotations

from typing import NamedTuple

# Top and bottom as fractions of the height, left and right of the width.
Window = tuple[tuple[float, float], tuple[float, float]]
WHOLE: Window = ((0.0, 1.0), (0.0, 1.0))


class Frame(NamedTuple):
    """How images are resized and cropped.

    Parameters
    ----------
    size : (int, int) or int
        Height and width that images are resized to. One number is the length that
        their short side gets; the aspect ratio stays.

    crop : (int, int) or None
        Height and width of the centre that is kept, not None where `size` is a number.
    """

    size: tuple[int, int] | int
    crop: tuple[int, int] | None

    def resized(self, raw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image of size `raw` after it was resized."""
        return short_side(raw, self.size) if isinstance(self.size, int) else self.size

    def window(self, raw: tuple[int, int] | None) -> Window:
        """The part that is kept of an image of size `raw`, None where any has it."""
        if self.crop is None:
            return WHOLE
        if raw is None:
            if isinstance(self.size, int):
                raise ValueError(
                    "with resize='short', the part that is kept depends on the shape "
                    "of the image; pass its size=(height, width)."
                )
            raw = self.size
        height, width = self.resized(raw)
        top, left = central_offset((height, width), self.crop)
        return (
            (top / height, (top + self.crop[0]) / height),
            (left / width, (left + self.crop[1]) / width),
        )


def short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(H, W) after the short side became `short`; the long side is rounded down."""
    height, width = size
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def central_offset(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    """Top left corner of a central window; half pixels go to the even side."""
    return round((size[0] - crop[0]) / 2), round((size[1] - crop[1]) / 2)
