"""What a file says of the model in it."""

import json
from typing import Any

from skad._chain import Chain
from skad.export._graph import reading_step
from skad.persistence._info import described


def metadata(model: Any, chain: Chain, size: tuple[int, int]) -> dict[str, str]:
    """Texts by name, for ``metadata_props`` of an ONNX file.

    Parameters
    ----------
    model : estimator
        Fitted.

    chain : Chain
        Of the model.

    size : (int, int)
        Height and width of the images that the graph takes.

    Returns
    -------
    metadata : dict
        What is no text already is JSON.
    """
    step = reading_step(chain)
    resized, crop = step._frame()
    known: dict[str, Any] = {
        **described(model),
        "size": size,
        "resize": step._resize,
        "image_size": resized,
        "crop_size": crop,
        "offset": float(chain.final.offset_),
        "pixel_threshold": float(chain.pixel_threshold(size)),
    }
    return {
        f"skad_{name}": value if isinstance(value, str) else json.dumps(value)
        for name, value in known.items()
    }
