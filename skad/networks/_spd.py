"""Networks and losses of SPD (Zou et al., ECCV 2022) and of what it is added to.

SPot-the-Difference adds a loss to a self-supervised one: SimSiam (Chen and He, CVPR
2021), SimCLR (Chen et al., ICML 2020) or MoCo (He et al., CVPR 2020). Embeddings are
(n, d), one row per image.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

_KEY_MOMENTUM = 0.99  # of MoCo's key encoder
_QUEUE_ROWS = 256  # embeddings that MoCo remembers


class SPDNetworks(nn.Module):
    """The network to fine-tune, and what its loss needs beside it.

    Parameters
    ----------
    network : torch.nn.Module
        It is trained itself, not a copy.

    base : {"simsiam", "simclr", "moco", "supervised"}

    n_features : int
        Channels of the network's pooled features.

    projection_dim : int
        Dimensions of an embedding.

    n_images : int
        Images of a training step; MoCo's queue holds whole steps.
    """

    queue: torch.Tensor
    queued: torch.Tensor

    def __init__(
        self,
        network: Any,
        base: str | None,
        n_features: int,
        projection_dim: int,
        n_images: int,
    ) -> None:
        super().__init__()
        self.network = network
        if base == "supervised":
            self.classifier = nn.Linear(n_features, 2)
            return
        self.projection = _mlp(n_features, n_features, projection_dim)
        if base == "simsiam":
            self.predictor = _mlp(
                projection_dim, max(1, projection_dim // 4), projection_dim
            )
        if base == "moco":
            self.key_network = copy.deepcopy(network).requires_grad_(False)
            self.key_projection = copy.deepcopy(self.projection).requires_grad_(False)
            length = max(1, _QUEUE_ROWS // n_images) * n_images
            queue = normalize(torch.randn(length, projection_dim))
            self.register_buffer("queue", queue)
            # Which image each row of the queue is of; none at first.
            self.register_buffer("queued", torch.full((length,), -1))

    def update_keys(self) -> None:
        """Let MoCo's key encoder follow the one that is trained (its Equation 2)."""
        pairs = (
            (self.key_network, self.network),
            (self.key_projection, self.projection),
        )
        with torch.no_grad():
            for keys, queries in pairs:
                for key, query in zip(
                    keys.parameters(), queries.parameters(), strict=True
                ):
                    key.lerp_(query, 1 - _KEY_MOMENTUM)

    def enqueue(self, keys: torch.Tensor, members: Any, step: int) -> None:
        """Replace the oldest rows of MoCo's queue by keys (n, d) of images (n,)."""
        first = step * len(keys) % len(self.queue)
        self.queue[first : first + len(keys)] = normalize(keys)
        self.queued[first : first + len(keys)] = members


def _mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, n_hidden, bias=False),
        nn.BatchNorm1d(n_hidden),
        nn.ReLU(inplace=True),
        nn.Linear(n_hidden, n_out),
    )


@torch.no_grad()
def n_pooled(pooled: Callable[..., torch.Tensor], network: Any, images: Any) -> int:
    """Channels of the pooled features that ``pooled(network, images)`` gives."""
    return pooled(network, images).shape[1]


def sgd(
    module: Any, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with a momentum of 0.9 for all that is trained."""
    optimizer = torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad],
        learning_rate,
        momentum=0.9,
        weight_decay=weight_decay,
    )
    if hasattr(module, "key_network"):
        optimizer.register_step_post_hook(lambda *_: module.update_keys())
    return optimizer


class SPDLoss:
    """The loss of a training step: the base's, plus SPD's times a weight.

    Parameters
    ----------
    module : SPDNetworks

    pooled : callable
        ``pooled(network, images)`` gives pooled features (b, n_features).

    base : {"simsiam", "simclr", "moco", "supervised"}

    spd_weight, temperature : float
    """

    def __init__(
        self,
        module: Any,
        pooled: Callable[..., torch.Tensor],
        base: str | None,
        spd_weight: float,
        temperature: float,
    ) -> None:
        self.module, self.pooled, self.base = module, pooled, base
        self.spd_weight, self.temperature = spd_weight, temperature

    def __call__(self, views: Any, members: Any, step: int) -> torch.Tensor:
        """The loss for images, an ndarray (n,) of their numbers, in a step.

        `views` are (v * n, c, H, W), view by view: for "supervised" two, the weak one
        and the changed one; else five, of which the first is the image itself and the
        last two are strong ones.
        """
        n, module = len(members), self.module
        if self.base == "supervised":
            logits = module.classifier(self.pooled(module.network, views))
            changed = torch.arange(2, device=views.device).repeat_interleave(n)
            return self.spd_weight * cross_entropy(logits, changed)
        queries = views[: 4 * n] if self.base == "moco" else views
        z = module.projection(self.pooled(module.network, queries)).split(n)
        spd = self.spd_weight * spd_loss(*z[:3])
        if self.base == "simsiam":
            p = module.predictor(torch.cat(z[3:])).split(n)
            return simsiam_loss(*p, *z[3:]) + spd
        if self.base == "simclr":
            return simclr_loss(z[3], z[4], self.temperature) + spd
        return self._moco(z[3], views[4 * n :], members, step) + spd

    def _moco(
        self,
        queries: torch.Tensor,
        key_views: torch.Tensor,
        members: Any,
        step: int,
    ) -> torch.Tensor:
        module = self.module
        with torch.no_grad():
            keys = module.key_projection(self.pooled(module.key_network, key_views))
        members = torch.from_numpy(members).to(keys.device)
        same = module.queued == members[:, None]
        queue = module.queue.clone()
        loss = moco_loss(queries, keys, queue, same, self.temperature)
        module.enqueue(keys, members, step)
        return loss


def spd_per_sample(
    z: torch.Tensor, z_pos: torch.Tensor, z_neg: torch.Tensor
) -> torch.Tensor:
    """cos(z, z-) - cos(z, z+) of each row: small where a change shows."""
    return cosine_similarity(z, z_neg) - cosine_similarity(z, z_pos)


def spd_loss(z: torch.Tensor, z_pos: torch.Tensor, z_neg: torch.Tensor) -> torch.Tensor:
    """SPD's loss of embeddings of images, weakly augmented views and changed views."""
    return spd_per_sample(z, z_pos, z_neg).mean()


def simsiam_loss(
    p1: torch.Tensor, p2: torch.Tensor, z1: torch.Tensor, z2: torch.Tensor
) -> torch.Tensor:
    """Predictions from each view against the other's embedding, held fixed."""
    both = cosine_similarity(p1, z2.detach()) + cosine_similarity(p2, z1.detach())
    return -both.mean() / 2


def simclr_loss(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE of the embeddings of two views among all others of the batch."""
    z = normalize(torch.cat([z1, z2]))
    same = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarities = (z @ z.T / temperature).masked_fill(same, -torch.inf)
    return cross_entropy(
        similarities, torch.arange(len(z), device=z.device).roll(len(z1))
    )


def moco_loss(
    queries: torch.Tensor,
    keys: torch.Tensor,
    queue: torch.Tensor,
    same: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """InfoNCE of queries and keys (n, d) against a queue (m, d).

    `same`, bool (n, m), tells which rows of the queue are of the query's own image,
    which are no negatives.
    """
    queries = normalize(queries)
    positive = (queries * normalize(keys)).sum(dim=1, keepdim=True)
    negative = (queries @ queue.T).masked_fill(same, -torch.inf)
    logits = torch.cat([positive, negative], dim=1) / temperature
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return cross_entropy(logits, target)
