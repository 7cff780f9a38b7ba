"""Teachers for EfficientAD: patch description networks that imitate larger ones.

Algorithm 2 of the paper's appendix: a small network learns to give, for an image, the
features that a large pretrained network gives, so that these cost a millisecond.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from skad import networks
from skad._checks import check_size
from skad._frame import Frame
from skad._progress import progress
from skad.images import check_images
from skad.images._batches import ImageReader, n_threads, remembered
from skad.networks._sampling import combined_seed, fit_seed, sample_at
from skad.networks._torch_state import in_own_torch_state, torch_device
from skad.synthesis._image import grey

_KEPT_FEATURE_BYTES = 2**31  # of features that are kept in memory
_GREY_SHARE = 0.1  # of the images, which are learned from without their colours
_FORMAT = "skad teacher 1"


class Teacher:
    """A patch description network with weights, and where these come from.

    Parameters
    ----------
    model : {"small", "medium", "tiny"}
        Its layout.

    state : dict of ndarray
        Its weights by name, as of ``torch.nn.Sequential.state_dict``.

    provenance : dict, optional
        What is known of their origin.

    feature_mean, feature_std : ndarray of shape (c,), optional
        Channel statistics of the features that it imitates: its output is these
        features less the mean, over their standard deviation.

    loss_curve : list of float, optional
        Loss of each step of its training.

    See Also
    --------
    distill_teacher : Make one.
    """

    def __init__(
        self,
        model: str,
        state: dict[str, np.ndarray],
        provenance: dict[str, Any] | None = None,
        *,
        feature_mean: np.ndarray | None = None,
        feature_std: np.ndarray | None = None,
        loss_curve: Sequence[float] = (),
    ) -> None:
        self.model = model
        self.state = state
        self.provenance = dict(provenance or {})
        self.feature_mean = feature_mean
        self.feature_std = feature_std
        self.loss_curve = list(loss_curve)

    def __repr__(self) -> str:
        return f"Teacher({self.model!r}, {self.n_channels} channels)"

    @property
    def n_channels(self) -> int:
        """Number of channels of its output."""
        return len(self.state[list(self.state)[-1]])

    @in_own_torch_state
    def network(self, *, padding: bool = False) -> Any:
        """Build the network in torch, in evaluation mode.

        Parameters
        ----------
        padding : bool, default=False
            Whether convolutions pad their input.

        Returns
        -------
        network : torch.nn.Sequential
            From images (b, 3, H, W), normalised as for ImageNet.
        """
        return networks.modules.rebuilt(
            lambda: networks.pdn.pdn(self.model, self.n_channels, padding=padding),
            self.state,
        )

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file with weights, statistics and provenance.

        Parameters
        ----------
        path : path
            File to write.
        """
        tensors = {k: np.ascontiguousarray(v) for k, v in self.state.items()}
        for name in ("feature_mean", "feature_std"):
            if getattr(self, name) is not None:
                tensors[name] = np.ascontiguousarray(getattr(self, name))
        metadata = {
            "format": _FORMAT,
            "model": self.model,
            "provenance": json.dumps(self.provenance),
        }
        save_file(tensors, str(path), metadata)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a teacher from a file.

        Parameters
        ----------
        path : path
            A file that `save` wrote, or the weights (.pth or .safetensors) of a
            network small or medium as others have published them: with the names of
            a ``Sequential``, or ``conv1`` to ``conv6``.

        Returns
        -------
        teacher : Teacher

        Raises
        ------
        FileNotFoundError
            If there is no such file.

        ValueError
            If it holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"teacher={str(path)!r} does not exist; pass a file of weights, or "
                "make a teacher with skad.detectors.distill_teacher."
            )
        state, metadata = _read(path)
        known: dict[str, Any] = {
            n: state.pop(n, None) for n in ("feature_mean", "feature_std")
        }
        state = _as_sequential(state)
        model = _layout(state)
        if model is None:
            raise ValueError(
                f"teacher={str(path)!r} holds no patch description network: its "
                f"layers are {[(k, v.shape) for k, v in list(state.items())[:4]]}..."
            )
        provenance = json.loads(metadata.get("provenance", "{}")) or {
            "file": path.name,
            "origin": "unknown",
        }
        return cls(model, state, provenance, **known)


def _read(path: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name, and metadata, of a .safetensors or .pth file."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), "np") as file:
                return {k: file.get_tensor(k) for k in file.keys()}, (  # noqa: SIM118
                    file.metadata() or {}
                )
        return networks.pdn.read_weights(path), {}
    except Exception as error:  # whatever torch, pickle and safetensors raise here
        raise ValueError(
            f"teacher={str(path)!r} is not a file of weights that can be read: {error}"
        ) from error


def _as_sequential(state: Any) -> Any:
    """Rename weights as in `pdn`, by the order of the numbers in their names."""
    names = sorted({k.rsplit(".", 1)[0] for k in state}, key=_number)
    positions = [0, 3, 6, 8, 10, 12]
    if any(f"{n}.weight" not in state for n in names) or len(names) > len(positions):
        return state
    return {
        f"{position}.{part}": state[f"{name}.{part}"]
        for name, position in zip(names, positions, strict=False)
        for part in ("weight", "bias")
        if f"{name}.{part}" in state
    }


def _number(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name if c.isdigit())
    return int(digits or 0), name


@in_own_torch_state
def _layout(state: Any) -> str | None:
    """Name of the network, "small", "medium" or "tiny", that has these shapes."""
    shapes = {k: v.shape for k, v in state.items()}
    if not shapes or len(shapes[list(shapes)[-1]]) != 1:
        return None
    n_channels = shapes[list(shapes)[-1]][0]
    for model in networks.pdn.PDN:
        if shapes == networks.pdn.weight_shapes(model, n_channels):
            return model
    return None


@in_own_torch_state
def distill_teacher(
    features: Any,
    X: Any,
    *,
    model: str = "small",
    max_steps: int = 60_000,
    image_size: int | tuple[int, int] = 256,
    learning_rate: float = 1e-4,
    weight_decay: float = 1e-5,
    train_batch_size: int = 16,
    path: str | Path | None = None,
    checkpoint_dir: str | Path | None = None,
    device: str = "auto",
    random_state: int | np.random.RandomState | None = 0,
    verbose: bool = False,
) -> Teacher:
    """Teach a patch description network to give the features of a larger one.

    The features of every image are extracted once; a tenth of the images loses its
    colours first.

    Parameters
    ----------
    features : PatchFeatures or other patch-feature transformer
        Fitted, or it is fitted on X. The paper takes `image_size` 512, twice that of
        the teacher, and `target_dim` 384, which becomes the number of channels.

    X : sequence of images
        Of anything: thousands of photographs of many things make a teacher for all
        purposes.

    model : {"small", "medium", "tiny"}, default="small"
        Layout of the network. "tiny" is for processors.

    max_steps : int, default=60000
        Steps of training.

    image_size : int or (int, int), default=256
        Images are resized to this for the teacher.

    learning_rate, weight_decay : float, default=1e-4, 1e-5
        Of Adam.

    train_batch_size : int, default=16
        Images of a step.

    path : path, default=None
        File (.safetensors) to save the teacher to.

    checkpoint_dir : path, default=None
        Folder for a checkpoint every half a minute, from which a process that was
        killed goes on.

    device : str, default="auto"
        "auto" is a CUDA device where there is one, else the CPU.

    random_state : int, RandomState instance or None, default=0
        Determines weights and the order of images.

    verbose : bool, default=False
        Report progress, loss and speed on the standard error stream.

    Returns
    -------
    teacher : Teacher
        For `EfficientADDetector`.

    Raises
    ------
    ValueError
        If a parameter is out of range, or X is empty.

    References
    ----------
    .. [1] K. Batzner, L. Heckler, R. Koenig, "EfficientAD: Accurate Visual Anomaly
       Detection at Millisecond-Level Latencies", WACV 2024. Section 3.1 and
       Algorithm 2.

    Examples
    --------
    >>> from skad import PCANetFeatures
    >>> from skad.datasets import make_textures
    >>> from skad.detectors import distill_teacher
    >>> images = make_textures(n_normal=8, n_anomalous=1, size=64, random_state=0).train
    >>> teacher = distill_teacher(
    ...     PCANetFeatures(image_size=64), images, model="tiny", max_steps=20,
    ...     image_size=64, learning_rate=1e-3,
    ... )
    >>> teacher.loss_curve[-1] < teacher.loss_curve[0]
    True
    """
    size = _checked_size(model, max_steps, train_batch_size, image_size)
    seed, place = fit_seed(random_state), torch_device(device)
    X = check_images(X)
    features = _fitted(features, X)
    grid = networks.pdn.pdn_grid(size, padding=True)
    targets = _Targets(features, X, grid, seed, verbose)
    module = _untrained(model, targets.n_channels, seed, place)
    provenance = _provenance(features) | {
        "n_images": len(X),
        "image_size": list(size),
        "max_steps": int(max_steps),
        "batch_size": int(train_batch_size),
        "learning_rate": float(learning_rate),
        "weight_decay": float(weight_decay),
        "seed": seed,
    }
    checkpoint = networks.training.checkpoint_file(
        checkpoint_dir,
        "teacher",
        *(model, sorted(provenance.items()), targets.mean, targets.std),
    )
    losses = networks.training.train(
        _distillation_loss(module, X, size, targets, train_batch_size, seed, place),
        module,
        networks.pdn.adam(module, learning_rate, weight_decay),
        max_steps,
        label="distillation",
        verbose=verbose,
        checkpoint=checkpoint,
    )
    teacher = _trained_teacher(model, module, targets, provenance, losses)
    if path is not None:
        teacher.save(path)
    return teacher


def _untrained(model: str, n_channels: int, seed: int, device: Any) -> Any:
    """A network with random weights on a device, ready to be trained."""
    module = networks.modules.seeded(
        lambda: networks.pdn.pdn(model, n_channels, padding=True), seed
    )
    return networks.modules.placed(module, device).train()


def _trained_teacher(
    model: str,
    module: Any,
    targets: Any,
    provenance: dict[str, Any],
    losses: list[float],
) -> Teacher:
    """The teacher with the weights of a module, and how it was trained."""
    trained = {"n_steps": len(losses), "final_loss": float(np.mean(losses[-100:]))}
    return Teacher(
        model,
        networks.modules.arrays(module),
        {**provenance, **trained},
        feature_mean=targets.mean,
        feature_std=targets.std,
        loss_curve=losses,
    )


def _checked_size(
    model: str, max_steps: int, train_batch_size: int, image_size: Any
) -> tuple[int, int]:
    """Height and width of the images; ValueError for a parameter out of range."""
    size = check_size(image_size, "image_size", allow_int=True)
    known = networks.pdn.PDN
    if model not in known:
        raise ValueError(f"model={model!r} is unknown; choose from {', '.join(known)}.")
    counts = {"max_steps": max_steps, "train_batch_size": train_batch_size}
    for name, value in counts.items():
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive integer.")
    if min(size) < 32:
        raise ValueError(f"image_size={image_size!r} is below 32 pixels.")
    return size


def _distillation_loss(
    module: Any,
    X: Any,
    size: tuple[int, int],
    targets: Any,
    n_images: int,
    seed: int,
    device: Any,
) -> Callable[[int], Any]:
    """Return the function from the number of a step to its loss."""
    # Images are read twice: at the size of the teacher, and at that of the features.
    read = remembered(ImageReader(X, Frame(size, None), "raise", n_threads(None)))
    mean, std = networks.modules.tensors([targets.mean, targets.std], device)

    def loss(step: int) -> Any:
        positions = range(step * n_images, (step + 1) * n_images)
        members = [sample_at(seed, position, len(X)) for position in positions]
        images = [_perhaps_grey(read(member), seed, member) for member in members]
        return networks.pdn.distillation_loss(
            module, np.stack(images), targets.of(members), mean, std, device
        )

    return loss


def _fitted(features: Any, X: Any) -> Any:
    if not hasattr(features, "transform"):
        raise ValueError(
            f"features={features!r} must be a patch-feature transformer, such as "
            "skad.PatchFeatures."
        )
    if getattr(features, "resize", "exact") != "exact":
        raise ValueError(
            f"features has resize={features.resize!r}, which cuts off what is beyond a "
            "square, but a teacher sees the whole image; set it to 'exact'."
        )
    if getattr(features, "crop_size", None) is not None:
        raise ValueError(
            f"features has crop_size={features.crop_size!r}, but a teacher sees the "
            "whole image; set it to None."
        )
    try:
        check_is_fitted(features)
    except NotFittedError:
        return clone(features).fit(X)
    return features


def _provenance(features: Any) -> dict[str, Any]:
    from skad import __version__

    known = {"skad": __version__, "features": repr(features)}
    if hasattr(features, "weights_sha256_"):
        known["weights_sha256"] = features.weights_sha256_
    return known


class _Targets:
    """Features of images on a teacher's grid, kept where they fit into memory."""

    def __init__(
        self,
        features: Any,
        X: Any,
        grid: tuple[int, int] | None,
        seed: int,
        verbose: bool,
    ) -> None:
        self._features, self._grid, self._seed = features, grid, seed
        self._reader = ImageReader(X, features._frame(), "raise", 1)
        first = self._extract([0])
        self.n_channels = first.shape[3]
        self._kept = None
        n_sample = min(len(X), max(1, _KEPT_FEATURE_BYTES // (2 * first.size)))
        sample = np.linspace(0, len(X) - 1, n_sample).astype(np.intp)
        found = np.empty((n_sample, *first.shape[1:]), np.float16)
        with progress(n_sample, "targets", verbose) as bar:
            for lo in range(0, n_sample, 8):
                found[lo : lo + 8] = self._extract(sample[lo : lo + 8])
                bar.update(min(8, n_sample - lo))
        if n_sample == len(X):
            self._kept = found
        mean = np.mean([f.mean(axis=(0, 1), dtype=np.float64) for f in found], axis=0)
        squares = [np.square(f - mean).mean(axis=(0, 1)) for f in found]
        std = np.sqrt(np.mean(squares, axis=0))
        self.mean = mean.astype(np.float32)
        self.std = networks.pdn.positive_std(std)

    def of(self, members: Any) -> np.ndarray:
        """Features of some images, (n, h, w, c), float16 where they were kept."""
        if self._kept is None:
            return self._extract(members)
        return self._kept[members]

    def _extract(self, members: Any) -> np.ndarray:
        seed = self._seed
        batch = [_perhaps_grey(self._reader.read(i), seed, i) for i in members]
        found = np.asarray(self._features.transform(np.stack(batch)), np.float32)
        if found.shape[1:3] != self._grid:
            found = networks.pdn.resized(found, self._grid)
        return found


def _perhaps_grey(image: np.ndarray, seed: int, index: int) -> np.ndarray:
    """Take the colours from a tenth of the images, which the seed chooses."""
    if np.random.default_rng(combined_seed(seed, 1, int(index))).random() < _GREY_SHARE:
        return colourless(image)
    return image


def colourless(image: np.ndarray) -> np.ndarray:
    """Convert an image (H, W, 3) to grey, in three equal channels."""
    return np.repeat(grey(image)[..., None], 3, axis=-1)
