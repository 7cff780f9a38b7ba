"""Networks and loss of SimpleNet (Liu et al., CVPR 2023), and their use for scoring.

Sections and equations are those of the paper. The second head is that of SuperSimpleNet
(Rolih et al., ICPR 2024).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from skad._matrices import product
from skad.networks._modules import generator, rebuilt

_LEAKY_SLOPE = 0.2  # of the discriminator's leaky ReLU below zero
_SCORING_ENTRIES = 2**22  # numbers of the first hidden layer that are held at once


class SimpleNet(nn.Module):
    """Feature adaptor, discriminator, and perhaps a head for whole images.

    The adaptor (Section 3.2) is one linear layer, unless told otherwise; without
    whitening it has no bias, which the batch normalization after it would cancel. The
    discriminator (Section 3.4)
    gives a patch a large output if it is normal. Weights of the layers are Xavier's.

    Parameters
    ----------
    n_channels : int
        Channels of a patch.

    hidden_widths : sequence of int
        Widths of the hidden layers of the discriminator.

    classification_head : bool, default=False

    whiten : bool, default=False
        Whether a linear adaptor has a bias and is not trained.

    adaptor : {"linear", "mlp", None}, default="linear"
        A linear layer; a perceptron of two with a leaky ReLU between them; or none.
    """

    def __init__(
        self,
        n_channels: int,
        hidden_widths: Sequence[int],
        *,
        classification_head: bool = False,
        whiten: bool = False,
        adaptor: str | None = "linear",
    ) -> None:
        super().__init__()
        # The order in which layers are made determines their random biases.
        hidden: list[nn.Module] = []
        for before, width in pairwise((n_channels, *hidden_widths)):
            hidden += [
                nn.Linear(before, width),
                nn.BatchNorm1d(width),
                nn.LeakyReLU(_LEAKY_SLOPE),
            ]
        self.adaptor = _adaptor(adaptor, n_channels, bias=whiten)
        output = nn.Linear(hidden_widths[-1], 1, bias=False)
        self.discriminator = nn.Sequential(*hidden, output)
        self.head = ClassificationHead(n_channels) if classification_head else None
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_normal_(part.weight)
        self.adaptor.requires_grad_(not whiten)


def _adaptor(kind: str | None, n_channels: int, *, bias: bool) -> nn.Module:
    """Layers from features to adapted features, of as many channels."""
    if kind is None:
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(n_channels, n_channels, bias=bias)
    return nn.Sequential(
        nn.Linear(n_channels, n_channels),
        nn.LeakyReLU(_LEAKY_SLOPE),
        nn.Linear(n_channels, n_channels, bias=False),
    )


class ClassificationHead(nn.Module):
    """SuperSimpleNet's head: one logit for all patches of an image together.

    Parameters
    ----------
    n_channels : int
        Channels of an adapted patch.

    width : int, default=128
        Channels of its convolution.
    """

    def __init__(self, n_channels: int, width: int = 128) -> None:
        super().__init__()
        self.join = nn.Sequential(
            nn.Conv2d(n_channels + 1, width, 5, padding="same", bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.out = nn.Linear(2 * width + 2, 1)

    def forward(self, features: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """Adapted patches (b, h, w, c) and anomaly maps (b, h, w) to logits (b,)."""
        maps = maps[..., None]
        joined = self.join(torch.cat([features, maps], -1).permute(0, 3, 1, 2))
        joined = torch.cat([joined, maps.permute(0, 3, 1, 2)], 1)
        pooled = torch.cat([joined.mean((2, 3)), joined.amax((2, 3))], 1)
        return self.out(pooled)[:, 0]


def optimizer(
    module: Any, adaptor_learning_rate: float, learning_rate: float, weight_decay: float
) -> torch.optim.Adam:
    """Adam, with a learning rate of its own for the adaptor."""
    rest = [p for n, p in module.named_parameters() if not n.startswith("adaptor.")]
    return torch.optim.Adam(
        [
            {"params": list(module.adaptor.parameters()), "lr": adaptor_learning_rate},
            {"params": rest, "lr": learning_rate},
        ],
        weight_decay=weight_decay,
    )


# -- training --------------------------------------------------------------------


def gaussian_noise(
    shape: Sequence[Any], seeds: Sequence[Any], std: float
) -> torch.Tensor:
    """Noise of Section 3.3, float32, that integers seed."""
    return torch.randn(shape, generator=generator(*seeds)) * std


def training_loss(
    module: Any, output_loss: Callable[..., torch.Tensor], batch: Any
) -> torch.Tensor:
    """Loss of a training step: normal patches, and the same with noise, in one batch.

    Parameters
    ----------
    module : SimpleNet

    output_loss : callable
        ``output_loss(outputs, normal)``: `truncated_l1` or `cross_entropy`.

    batch : tuple
        grids : ndarray of shape (b, h, w, c), float32
            Patches of normal images.
        inside : ndarray of shape (b, h, w), bool
            Which of these to look at; there are m.
        noise : torch.Tensor of shape (m, c)
            Added to adapted patches (Equation 6).
        noisy : ndarray of shape (b, h, w), bool
            Which of the patches inside get noise in the copies.

    Returns
    -------
    loss : torch.Tensor
        One number.
    """
    device = next(module.parameters()).device
    grids, inside, noise, noisy = (torch.as_tensor(part).to(device) for part in batch)
    adapted = module.adaptor(grids[inside])
    rows = noisy[inside]
    fake = adapted + noise if rows.all() else adapted + noise * rows[:, None]
    both = torch.cat([adapted, fake])
    outputs = module.discriminator(both)[:, 0]
    normal = torch.cat([torch.ones_like(rows), ~rows])
    loss = output_loss(outputs, normal)
    if module.head is None:
        return loss
    # The second head learns from the outputs of the first, not the other way round.
    twice = torch.cat([inside, inside])
    features, maps = _placed(both.detach(), -outputs.detach(), twice)
    anomalous = noisy.any(dim=2).any(dim=1).float()
    anomalous = torch.cat([torch.zeros_like(anomalous), anomalous])
    logits = module.head(features, maps)
    return loss + functional.binary_cross_entropy_with_logits(logits, anomalous)


def truncated_l1(
    outputs: torch.Tensor, normal: torch.Tensor, margins: tuple[float, float]
) -> torch.Tensor:
    """Equation 8: max(0, th+ - output) of normal patches, max(0, output - th-) else.

    Parameters
    ----------
    outputs : torch.Tensor of shape (m,)
        Of the discriminator, large for normal patches.

    normal : torch.Tensor of shape (m,), bool

    margins : (float, float)
        th+ and th-: outputs from which on, and down to which, a normal and a noisy
        patch cost nothing.
    """
    high, low = (outputs.new_tensor(margin) for margin in margins)
    missing = torch.where(normal, high, -low) - _signed(outputs, normal)
    return _mean_of_both(torch.relu(missing), normal)


def cross_entropy(outputs: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    """The binary cross-entropy of outputs (m,) as logits of "normal", bool (m,)."""
    return _mean_of_both(functional.softplus(-_signed(outputs, normal)), normal)


def _signed(outputs: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    """Negate the outputs of noisy patches, so that large ones are right."""
    return torch.where(normal, outputs, -outputs)


def _mean_of_both(losses: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    """The mean over normal patches plus that over noisy ones, however many."""
    total = losses[normal].mean()
    return total if normal.all() else total + losses[~normal].mean()


def _placed(
    rows: torch.Tensor, heat: torch.Tensor, inside: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (m, c) and numbers (m,) at their places in grids, with zeros elsewhere."""
    features = torch.zeros((*inside.shape, rows.shape[1]), device=rows.device)
    maps = torch.zeros(inside.shape, device=rows.device)
    features[inside], maps[inside] = rows, heat
    return features, maps


# -- patches ---------------------------------------------------------------------


def upscaled(grids: np.ndarray, factor: int) -> np.ndarray:
    """Grids (b, h, w, c) of patches, float32, enlarged bilinearly."""
    enlarged = functional.interpolate(
        torch.from_numpy(grids).permute(0, 3, 1, 2),
        scale_factor=factor,
        mode="bilinear",
        align_corners=False,
    )
    return np.ascontiguousarray(enlarged.permute(0, 2, 3, 1).numpy())


# -- scoring ---------------------------------------------------------------------


def folded_layers(state: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """The network as hidden layers ``leaky_relu(W x + b)`` and an output ``v . x``.

    Parameters
    ----------
    state : dict of ndarray
        Weights of a `SimpleNet`, of one dtype.

    Returns
    -------
    layers : list of (ndarray of shape (k, d), ndarray of shape (k,))
        Weight W and offset b of each hidden layer, for raw patches.

    output : ndarray of shape (k,)

    Notes
    -----
    At inference, batch normalization with mean m, variance s, weight g and bias e is
    an affine map, so a hidden layer y = W x + b followed by it is one affine map, too::

        g (W x + b - m) / sqrt(s + eps) + e = (f W) x + (e + f (b - m)),
        f = g / sqrt(s + eps)

    Nothing nonlinear lies between the adaptor z = A x + a and the first hidden layer
    W z + b, which together are (W A) x + (b + W a). Training adds noise in between;
    scoring does not. An adaptor of two layers makes one hidden layer more, and its
    second one is that A.
    """
    layers, i = [], 0
    while f"discriminator.{i + 1}.running_var" in state:
        layer, norm = f"discriminator.{i}", f"discriminator.{i + 1}"
        variance = state[f"{norm}.running_var"]
        factor = state[f"{norm}.weight"] / np.sqrt(variance + variance.dtype.type(1e-5))
        offset = state[f"{layer}.bias"] - state[f"{norm}.running_mean"]
        weight = factor[:, None] * state[f"{layer}.weight"]
        layers.append((weight, state[f"{norm}.bias"] + factor * offset))
        i += 3
    weight, offset = layers[0]
    if "adaptor.bias" in state:
        offset = offset + weight @ state["adaptor.bias"]
    if "adaptor.weight" in state:
        layers[0] = weight @ state["adaptor.weight"], offset
    if "adaptor.2.weight" in state:
        layers[0] = weight @ state["adaptor.2.weight"], offset
        layers.insert(0, (state["adaptor.0.weight"], state["adaptor.0.bias"]))
    return layers, state[f"discriminator.{i}.weight"][0]


def outputs_of(rows: Any, layers: Any, output: Any) -> Any:
    """Outputs (m,) of the discriminator for raw patches (m, d), large for normal.

    `layers` and `output` are those of `folded_layers`.
    """
    slope = rows.dtype.type(_LEAKY_SLOPE)
    outputs = np.empty(len(rows), rows.dtype)
    n_at_once = max(1, _SCORING_ENTRIES // len(layers[0][0]))
    for first in range(0, len(rows), n_at_once):
        hidden = rows[first : first + n_at_once]
        for weight, offset in layers:
            hidden = product(hidden, weight.T)
            hidden += offset
            np.maximum(hidden, hidden * slope, out=hidden)
        outputs[first : first + n_at_once] = product(hidden, output[:, None])[:, 0]
    return outputs


def scoring_module(
    build: Callable[[], Any], state: dict[str, np.ndarray], dtype: Any
) -> Any:
    """The network that `build` makes, with weights, in evaluation mode."""
    return rebuilt(build, state).to(getattr(torch, str(dtype)))


@torch.inference_mode()
def head_scores(module: Any, grids: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Logits of the second head, float64 (n,), image by image.

    Parameters
    ----------
    module : SimpleNet
        In evaluation mode.

    grids : ndarray of shape (n, h, w, d)
        Raw patches.

    maps : ndarray of shape (n, h, w)
        Anomaly maps; NaN where a patch is not looked at.
    """
    scores, dtype = np.empty(len(grids)), next(module.parameters()).dtype
    for i in range(len(grids)):
        inside = ~np.isnan(maps[i])
        features = torch.zeros(grids[i].shape, dtype=dtype)
        features[inside] = module.adaptor(torch.from_numpy(grids[i][inside]))
        heat = torch.from_numpy(np.where(inside, maps[i], 0))
        scores[i] = float(module.head(features[None], heat[None]))
    return scores
