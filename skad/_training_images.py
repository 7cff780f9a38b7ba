"""Parameters that hold images which only training needs.

Neither the pickle of a fitted model nor the clones of any model hold copies of them:
a hundred photographs would make a pickle of one megabyte one of twenty.
"""

import copy
import os
from typing import Any, Self


class LeftBehind:
    """Placeholder, in a pickled model, for the images that it was trained with.

    Parameters
    ----------
    n_images : int
        How many there were.
    """

    def __init__(self, n_images: int) -> None:
        self.n_images = n_images

    def __repr__(self) -> str:
        return f"<{self.n_images} images that were not pickled>"


class TrainingImages:
    """Mixin of estimators some parameters of which hold images for training only.

    In the pickle of a fitted estimator, paths stay, as text, and a `LeftBehind` takes
    the place of images in memory. Clones and copies share them.
    """

    # Names of these parameters, or of detectors that have some.
    _training_images: tuple[str, ...] = ()

    def _check_training_images(self) -> None:
        """Refuse to train where a pickle left the training images out; for `fit`."""
        for name in self._training_images:
            value = getattr(self, name)
            if isinstance(value, LeftBehind):
                raise ValueError(
                    f"{name} is {value!r}: this model was pickled after it had been "
                    f"fitted. Call set_params({name}=...) with the images, or with "
                    "None to go without, before you fit again."
                )

    def _without_images(self) -> Self:
        """Copy the estimator without training images, for a pickle."""
        twin = copy.copy(self)
        for name in self._training_images:
            setattr(twin, name, _portable(getattr(self, name)))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        inherited: Any = super().__getstate__()
        state = dict(inherited)
        if "offset_" in state:
            for name in self._training_images:
                state[name] = _portable(state[name])
        return state

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for value in self._shared().values():
            memo[id(value)] = value
        for name, value in self.__dict__.items():
            twin.__dict__[name] = copy.deepcopy(value, memo)
        return twin

    def __sklearn_clone__(self) -> Self:
        shared = self._shared()
        blank = copy.copy(self)
        for name in shared:
            setattr(blank, name, None)
        beyond: Any = super(TrainingImages, blank)
        twin = beyond.__sklearn_clone__()
        for name, value in shared.items():
            setattr(twin, name, value)
        return twin

    def _shared(self) -> dict[str, Any]:
        """Parameters that copies share, by name."""
        known = {name: getattr(self, name) for name in self._training_images}
        return {k: v for k, v in known.items() if not isinstance(v, TrainingImages)}


def _portable(value: Any) -> Any:
    """Replace training images by what a pickle holds in their place."""
    if value is None or isinstance(value, LeftBehind):
        return value
    if isinstance(value, TrainingImages):
        return value._without_images()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(
        isinstance(item, (str, os.PathLike)) for item in value
    ):
        return [os.fspath(item) for item in value]
    return LeftBehind(len(value)) if hasattr(value, "__len__") else value
