"""Networks and losses of EfficientAD (Batzner et al., WACV 2024).

Patch description networks and the autoencoder are those of Tables 6 to 8 of the paper's
appendix. "tiny" is a reduced network of the same layout, for processors: it has the
grid and the receptive field of "small".
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate, mse_loss

from skad.networks._input import normalized

# Convolutions as (kernel size, channels, padding); None is an average pooling of 2.
# The number of channels of the last one, or of the last two, is that of the output.
_Layer = tuple[int, int, int] | None
_SMALL: tuple[_Layer, ...] = (
    (4, 128, 3),
    None,
    (4, 256, 3),
    None,
    (3, 256, 1),
    (4, 0, 0),
)
_MEDIUM: tuple[_Layer, ...] = (
    (4, 256, 3),
    None,
    (4, 512, 3),
    None,
    (1, 512, 0),
    (3, 512, 1),
)
_MEDIUM += ((4, 0, 0), (1, 0, 0))
_TINY: tuple[_Layer, ...] = ((4, 32, 3), None, (4, 64, 3), None, (3, 64, 1), (4, 0, 0))
PDN = {"small": _SMALL, "medium": _MEDIUM, "tiny": _TINY}
_AUTOENCODER_WIDTH = {"small": 64, "medium": 64, "tiny": 32}


def pdn(model: str, n_channels: int, *, padding: bool = False) -> nn.Sequential:
    """A patch description network: images (b, 3, H, W) to maps (b, c, h, w).

    Every output depends on 33 x 33 pixels, and one lies 4 pixels from the next.

    Parameters
    ----------
    model : {"small", "medium", "tiny"}

    n_channels : int
        Channels of the output.

    padding : bool, default=False
        With it, 256 pixels give 64 outputs; without it, the 56 that see no border.

    Returns
    -------
    network : torch.nn.Sequential
    """
    layers: list[nn.Module] = []
    n_in = 3
    plan = PDN[model]
    for i, layer in enumerate(plan):
        if layer is None:
            layers.append(nn.AvgPool2d(2, 2, padding=1 if padding else 0))
            continue
        size, width, margin = layer
        n_out = width or n_channels
        layers.append(nn.Conv2d(n_in, n_out, size, padding=margin if padding else 0))
        if i < len(plan) - 1:
            layers.append(nn.ReLU(inplace=True))
        n_in = n_out
    return nn.Sequential(*layers)


def pdn_grid(size: tuple[int, int], *, padding: bool = False) -> tuple[int, int]:
    """Height and width of the output of a `pdn` for images of a size."""
    if padding:
        height, width = (((side + 3) // 2 + 4) // 2 - 2 for side in size)
    else:
        height, width = (((side - 3) // 2 - 3) // 2 - 5 for side in size)
    return height, width


def autoencoder(
    n_channels: int, size: tuple[int, int], grid: tuple[int, int], width: int = 64
) -> nn.Sequential:
    """The autoencoder, for images of one size: its bottleneck spans all of it.

    Parameters
    ----------
    n_channels : int
        Channels of the output.

    size : (int, int)
        Height and width of the images, 256 in the paper.

    grid : (int, int)
        Height and width of the output.

    width : int, default=64
        Channels of the bottleneck and of the decoder; half as many in the first
        layers of the encoder.

    Returns
    -------
    network : torch.nn.Sequential
    """
    half = width // 2
    layers: list[nn.Module] = []
    n_in = 3
    for n_out in (half, half, width, width, width):
        layers += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU(True)]
        n_in = n_out
    # 8 x 8 in the paper: whatever is left, so that any size ends in one vector.
    layers.append(nn.Conv2d(width, width, (size[0] // 32, size[1] // 32)))
    for step in ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1)):
        target = tuple(max(1, side // step[0] - step[1]) for side in size)
        layers += [
            nn.Upsample(target, mode="bilinear"),
            nn.Conv2d(width, width, 4, padding=2),
            nn.ReLU(True),
            nn.Dropout(0.2),
        ]
    layers += [
        nn.Upsample(tuple(grid), mode="bilinear"),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(True),
        nn.Conv2d(width, n_channels, 3, padding=1),
    ]
    return nn.Sequential(*layers)


# -- training --------------------------------------------------------------------


def student_and_autoencoder(
    model: str, n_channels: int, size: tuple[int, int], *, padding: bool
) -> nn.ModuleDict:
    """The networks that EfficientAD trains, ``student`` and ``autoencoder``.

    Parameters
    ----------
    model : {"small", "medium", "tiny"}
        Of the student.

    n_channels : int
        Channels c of the teacher; the student has 2 c, of which the first half imitates
        the teacher and the second half the autoencoder.

    size : (int, int)
        Height and width of the images.

    padding : bool
        Of the student.

    Returns
    -------
    networks : torch.nn.ModuleDict
    """
    grid = pdn_grid(size, padding=padding)
    return nn.ModuleDict(
        {
            "student": pdn(model, 2 * n_channels, padding=padding),
            "autoencoder": autoencoder(
                n_channels, size, grid, _AUTOENCODER_WIDTH[model]
            ),
        }
    )


def adam(module: Any, learning_rate: float, weight_decay: float) -> torch.optim.Adam:
    """The optimizer of all networks of EfficientAD."""
    return torch.optim.Adam(
        module.parameters(), learning_rate, weight_decay=weight_decay
    )


class NormalizedTeacher:
    """A teacher whose output has mean 0 and standard deviation 1 in each channel.

    Parameters
    ----------
    network : torch.nn.Module
        From images (b, 3, H, W), normalised as for ImageNet, to maps (b, c, h, w).

    mean, std : ndarray of shape (c,), float32

    grid : (int, int)
        Height and width of the maps that are expected.

    device : torch.device
    """

    def __init__(
        self, network: Any, mean: Any, std: Any, grid: tuple[int, int], device: Any
    ) -> None:
        self.network, self.grid = network, grid
        self.mean, self.std = (
            torch.tensor(values, device=device)[:, None, None] for values in (mean, std)
        )

    def __call__(self, batch: Any) -> torch.Tensor:
        """Normalised maps (b, c, h, w), without gradients."""
        return (teacher_maps(self.network, batch, self.grid) - self.mean) / self.std


def teacher_maps(network: Any, batch: Any, grid: tuple[int, int]) -> torch.Tensor:
    """Output of a teacher, without gradients; the mode of each part stays."""
    training = [part for part in network.modules() if part.training]
    try:
        with torch.no_grad():
            found = network.eval()(batch)
    finally:
        for part in training:
            part.training = True
    if tuple(found.shape[2:]) != tuple(grid):
        raise ValueError(
            f"teacher gives maps of {tuple(found.shape[2:])}, but the student "
            f"{tuple(grid)}; its stride must be 4, and padding= must be its own."
        )
    return found


def channel_statistics(
    network: Any, batches: Any, grid: tuple[int, int], device: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of a teacher, in two passes.

    Parameters
    ----------
    network : torch.nn.Module

    batches : iterable of ndarray of shape (b, H, W, 3), float32
        In [0, 1].

    grid : (int, int)
        As of `NormalizedTeacher`.

    device : torch.device

    Returns
    -------
    mean, std : ndarray of shape (c,), float32
        The standard deviation is positive also for a channel that is constant.
    """
    found = [
        teacher_maps(network, normalized(batch, device), grid).double().cpu().numpy()
        for batch in batches
    ]
    mean = np.mean([f.mean(axis=(0, 2, 3)) for f in found], axis=0)
    squares = [np.square(f - mean[:, None, None]).mean(axis=(0, 2, 3)) for f in found]
    return mean.astype(np.float32), positive_std(np.sqrt(np.mean(squares, axis=0)))


def positive_std(std: Any) -> np.ndarray:
    """Standard deviations (c,), float32, none of which is zero."""
    return np.maximum(std, max(1e-6 * std.max(), 1e-30)).astype(np.float32)


def training_loss(
    networks: Any, teacher: Any, device: Any, sample: Any
) -> torch.Tensor:
    """Loss of a training step (Algorithm 1): student, autoencoder and penalty.

    Parameters
    ----------
    networks : torch.nn.ModuleDict
        Of `student_and_autoencoder`.

    teacher : NormalizedTeacher

    device : torch.device

    sample : tuple
        normal, augmented : ndarray of shape (b, H, W, 3), float32
            Normal images in [0, 1], and the same with other colours.
        penalty : ndarray of shape (b, H, W, 3), float32, or None
            Photographs on which the student must not follow the teacher.
        seed : int
            Of the autoencoder's dropout.

    Returns
    -------
    loss : torch.Tensor
        One number.
    """
    normal, augmented, penalty, seed = sample
    both = normalized(np.concatenate([normal, augmented]), device)
    target, augmented_target = teacher(both).chunk(2)
    images = [both]
    if penalty is not None:
        images.append(normalized(penalty, device))
    # One pass of the student for all three types of images.
    output = networks["student"](torch.cat(images))
    b, c = len(normal), output.shape[1] // 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reconstructed = networks["autoencoder"](both[b:])
    loss = (
        hard_loss(target, output[:b, :c])
        + mse_loss(augmented_target, reconstructed)
        + mse_loss(reconstructed, output[b : 2 * b, c:])
    )
    return loss if penalty is None else loss + output[2 * b :, :c].square().mean()


def hard_loss(
    target: torch.Tensor, output: torch.Tensor, share: float = 0.999
) -> torch.Tensor:
    """Mean of the largest squared differences (Equation 1): those above a quantile.

    `share` of the differences lies below the quantile and costs nothing.
    """
    differences = (target - output).square().flatten()
    n = len(differences)
    # torch.quantile sorts everything, and refuses more than 2**24 numbers.
    position = share * (n - 1)
    below = int(position)
    top = torch.topk(differences.detach(), n - below).values
    lower, upper = top[-1], top[-2] if len(top) > 1 else top[-1]
    quantile = lower + (position - below) * (upper - lower)
    return differences[differences >= quantile].mean()


@torch.inference_mode()
def raw_maps(
    teacher: Any, student: Any, autoencoder: Any, images: np.ndarray, device: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Disagreement of student and teacher, and of student and autoencoder.

    Both are ndarrays (b, h, w), float32: the mean over channels of squared differences
    (Section 3.4), for images (b, H, W, 3) in [0, 1].
    """
    found = disagreements(teacher, student, autoencoder, normalized(images, device))
    return found[0].cpu().numpy(), found[1].cpu().numpy()


def disagreements(
    teacher: Any, student: Any, autoencoder: Any, batch: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `raw_maps`, of a normalised batch (b, 3, H, W), as tensors."""
    target = teacher(batch)
    output = student(batch)
    c = target.shape[1]
    by_teacher = (target - output[:, :c]).square().mean(dim=1)
    by_autoencoder = (autoencoder(batch) - output[:, c:]).square().mean(dim=1)
    return by_teacher, by_autoencoder


# -- teachers --------------------------------------------------------------------


def distillation_loss(
    network: Any, images: np.ndarray, targets: Any, mean: Any, std: Any, device: Any
) -> torch.Tensor:
    """Mean squared difference to the features of a larger network (Algorithm 2).

    Parameters
    ----------
    network : torch.nn.Module

    images : ndarray of shape (b, H, W, 3), float32
        In [0, 1].

    targets : ndarray of shape (b, h, w, c)
        Features of the larger network.

    mean, std : torch.Tensor of shape (c,)
        Of these features.

    device : torch.device
    """
    target = torch.from_numpy(targets).to(device)
    target = ((target - mean) / std).permute(0, 3, 1, 2)
    return mse_loss(network(normalized(images, device)), target)


def resized(maps: np.ndarray, grid: Any) -> np.ndarray:
    """Maps (n, h, w, c), float32, at another size, bilinearly."""
    levels = interpolate(
        torch.from_numpy(maps).permute(0, 3, 1, 2), size=grid, mode="bilinear"
    )
    return levels.permute(0, 2, 3, 1).numpy()


def weight_shapes(model: str, n_channels: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a `pdn`, by name."""
    with torch.device("meta"):
        state = pdn(model, n_channels).state_dict()
    return {name: tuple(values.shape) for name, values in state.items()}


def read_weights(path: Any) -> dict[str, np.ndarray]:
    """Arrays by name, float32, of a .pth file."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    return {name: values.float().numpy() for name, values in state.items()}
