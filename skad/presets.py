"""Settings of the papers, by name, so that their experiments can be repeated.

    model = PRESETS["patchcore-10"].make(random_state=0)

Networks have the weights of the papers, by their tag in timm: those of torchvision,
``tv_in1k``, or of Meta, ``lvd142m``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from skad.detectors import (
    CutPasteDetector,
    DRAEMDetector,
    EfficientADDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PRNDetector,
    SimpleNetDetector,
    SPADEDetector,
    SubspaceDetector,
)
from skad.features import PatchFeatures, SPDPatchFeatures
from skad.pipeline import Pipeline

__all__ = ["PRESETS", "Preset"]

_WIDE = "wide_resnet50_2.tv_in1k"
_CROPPED = {"image_size": 256, "crop_size": 224, "resize": "short"}
_PYRAMID = ("layer1", "layer2", "layer3")
_MEAN1D = {
    "backbone": _WIDE,
    "layers": ("layer2", "layer3"),
    "patch_size": 3,
    "patch_stride": 1,
    "embedding": "mean1d",
    **_CROPPED,
}


@dataclass(frozen=True)
class Preset:
    """Settings of a paper: of the features, and of the detector.

    Parameters
    ----------
    detector : type
        Class of the detector.
    parameters : mapping
        What it takes: ``preset.detector(**preset.parameters)``.
    source : str
        The paper.
    features : mapping, optional
        What `transformer` takes: ``PatchFeatures(**preset.features)``. None for a
        detector that takes images.
    differs : str, default=""
        Where these settings are not the paper's, or the paper does not state them.
    needs : tuple of str, default=()
        Parameters of the detector that the paper's results need, and that are images
        or weights which skad does not have.
    transformer : type, default=PatchFeatures
        Class of the features.

    Examples
    --------
    >>> from skad.presets import PRESETS
    >>> PRESETS["padim-r18"].features["n_components"]
    100
    >>> PRESETS["simplenet"].features["target_dim"]
    1536
    >>> PRESETS["patchcore-10"].make()[-1]
    PatchCoreDetector(projection_dim=128)
    """

    detector: Any
    parameters: Mapping[str, Any]
    source: str
    features: Mapping[str, Any] | None = None
    differs: str = ""
    needs: tuple[str, ...] = field(default=())
    transformer: Any = PatchFeatures

    def make(
        self,
        *,
        patch_features: Mapping[str, Any] | None = None,
        random_state: Any = 0,
        **parameters: Any,
    ) -> Any:
        """Build the model, unfitted.

        Parameters
        ----------
        patch_features : mapping, optional
            Settings of the features that take the place of the preset's.
        random_state : int, RandomState instance or None, default=0
            Seed of the features and of the detector.
        **parameters : dict
            Settings of the detector that take the place of the preset's.

        Returns
        -------
        model : Pipeline or detector
            A pipeline of the features and the detector, or the detector alone where
            it takes images.

        Raises
        ------
        ValueError
            If `patch_features` is given to a preset without features.
        """
        settings = {**self.parameters, "random_state": random_state, **parameters}
        detector = self.detector(**settings)
        if self.features is None:
            if patch_features:
                raise ValueError(
                    f"patch_features={dict(patch_features)!r}: this preset has none, "
                    f"{self.detector.__name__} takes images. Pass its own parameters."
                )
            return detector
        merged = {
            **self.features,
            "random_state": random_state,
            **(patch_features or {}),
        }
        return Pipeline([self.transformer(**merged), detector])


def _patchcore(ratio: float) -> Preset:
    return Preset(
        PatchCoreDetector,
        {
            "coreset_ratio": ratio,
            "projection_dim": 128,
            "n_neighbors": 1,
            "reweight": 9,
            "sigma": 4.0,
        },
        "Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022",
        {**_MEAN1D, "pretrain_dim": 1024, "target_dim": 1024},
        "The dimensions 1024 and 128 are those of the published code, and b = 9 is not "
        "stated. The coreset starts from one patch; that of the published code, from "
        "mean distances to ten.",
    )


def _padim(backbone: str, n_components: int, reduction: str = "random") -> Preset:
    return Preset(
        PaDiMDetector,
        {"eps": 0.01, "interpolation": "bicubic", "sigma": 4.0},
        "Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly "
        "Detection and Localization, ICPR 2021 workshops",
        {
            "backbone": backbone,
            "layers": _PYRAMID,
            "embedding": "replicate",
            "n_components": n_components,
            "reduction": reduction,
            **_CROPPED,
        },
    )


def _spd(parameters: Mapping[str, Any], features: Mapping[str, Any]) -> Preset:
    """Features of SPD, scored by PaDiM or PatchCore."""
    detector = PatchCoreDetector if "coreset_ratio" in parameters else PaDiMDetector
    return Preset(
        detector,
        parameters,
        "Zou et al., SPot-the-Difference Self-Supervised Pre-training for Anomaly "
        "Detection and Segmentation, ECCV 2022",
        {**features, "spd_weight": 0.1},
        "The paper pre-trains on ImageNet; here, a network that is pretrained already "
        "is fine-tuned on the normal images, for 200 steps. The strength of the views "
        "and what PaDiM and PatchCore are set to are not known to be the paper's.",
        transformer=SPDPatchFeatures,
    )


def _efficientad(model: str) -> Preset:
    return Preset(
        EfficientADDetector,
        {
            "model": model,
            "max_steps": 70_000,
            "learning_rate": 1e-4,
            "weight_decay": 1e-5,
            "train_batch_size": 1,
            "image_size": 256,
        },
        "Batzner et al., EfficientAD, WACV 2024",
        differs="Networks without padding, as in the published measurements of time.",
        needs=("teacher", "penalty_images"),
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "patchcore-25": _patchcore(0.25),
        "patchcore-10": _patchcore(0.1),
        "patchcore-1": _patchcore(0.01),
        "padim-wrn50": _padim(_WIDE, 550),
        "padim-r18": _padim("resnet18.tv_in1k", 100),
        "padim-r18-pca": _padim("resnet18.tv_in1k", 100, "pca"),
        "spade": Preset(
            SPADEDetector,
            {"n_neighbors_image": 50, "n_neighbors": 1, "squared": True, "sigma": 4.0},
            "Cohen and Hoshen, Sub-Image Anomaly Detection with Deep Pyramid "
            "Correspondences, arXiv:2005.02357",
            {
                "backbone": _WIDE,
                "layers": _PYRAMID,
                "embedding": "replicate",
                "pooled": True,
                **_CROPPED,
            },
            "Levels are searched apart, as in the published code of others: the paper "
            "does not say how grids of different sizes meet.",
        ),
        "simplenet": Preset(
            SimpleNetDetector,
            {
                "max_epochs": 160,
                "adaptor": "linear",
                "hidden_dim": 1024,
                "noise_std": 0.015,
                "relative_noise": False,
                "margin": (0.5, -0.5),
                "learning_rate": 2e-4,
                "adaptor_learning_rate": 1e-4,
                "weight_decay": 1e-5,
                "train_batch_size": 4,
                "sigma": 4.0,
            },
            "Liu et al., SimpleNet: A Simple Network for Image Anomaly Detection and "
            "Localization, CVPR 2023",
            {**_MEAN1D, "pretrain_dim": 1536, "target_dim": 1536},
            "The published code reports the epoch that is best on the test set; here "
            "the last one counts.",
        ),
        "efficientad-s": _efficientad("small"),
        "efficientad-m": _efficientad("medium"),
        "draem": Preset(
            DRAEMDetector,
            {
                "model": "full",
                "max_epochs": 700,
                "rotation": 45.0,
                "learning_rate": 1e-4,
                "train_batch_size": 8,
                "image_size": 256,
            },
            "Zavrtanik et al., DRAEM, ICCV 2021",
            differs="The learning rate falls as in the published code.",
            needs=("texture_images",),
        ),
        "cutpaste": Preset(
            CutPasteDetector,
            {
                "variant": "3way",
                "backbone": "resnet18",
                "weights": False,
                "max_steps": 65_536,
                "learning_rate": 0.03,
                "weight_decay": 3e-5,
                "train_batch_size": 32,
                "image_size": 256,
            },
            "Li et al., CutPaste: Self-Supervised Learning for Anomaly Detection and "
            "Localization, CVPR 2021",
            differs="One model, not the mean over five.",
        ),
        "prn": Preset(
            PRNDetector,
            {
                "backbone": "resnet18.tv_in1k",
                "model": "full",
                "prototype_ratio": 0.1,
                "max_steps": 5000,
                "extended_ratio": 1.0,
                "optimizer": "adam",
                "learning_rate": 1e-4,
                "weight_decay": 1e-2,
                "focal_weight": 5.0,
                "train_batch_size": 64,
                "image_size": 256,
            },
            "Zhang et al., Prototypical Residual Networks for Anomaly Detection and "
            "Localization, CVPR 2023",
            differs="5,000 steps stand for 700 epochs.",
            needs=("texture_images",),
        ),
        "anomalydino-448": Preset(
            PatchCoreDetector,
            {
                "coreset_ratio": 1.0,
                "reweight": None,
                "metric": "cosine",
                "top_ratio": 0.01,
                "sigma": 4.0,
            },
            "Damm et al., AnomalyDINO, WACV 2025",
            {
                "backbone": "vit_small_patch14_dinov2.lvd142m",
                "layers": ("norm",),
                "patch_size": 1,
                "embedding": "concat",
                "image_size": 448,
            },
            "Images are not rotated, and the background is not masked.",
        ),
        "subspacead": Preset(
            SubspaceDetector,
            {"n_components": 0.99, "top_ratio": 0.01, "sigma": 4.0},
            "Lendering et al., SubspaceAD: Training-Free Few-Shot Anomaly Detection "
            "via Subspace Modeling, arXiv:2602.23013",
            {
                "backbone": "vit_giant_patch14_reg4_dinov2.lvd142m",
                "layers": tuple(f"blocks.{k}" for k in range(22, 29)),
                "patch_size": 1,
                "embedding": "mean",
                "image_size": 672,
            },
            "With few images, the published code adds 30 rotated copies of each. "
            "Images are scored by their patches, not by the smoothed map.",
        ),
        "spd-padim": _spd(
            {"eps": 0.01, "sigma": 4.0},
            {
                "backbone": "resnet50.tv_in1k",
                "layers": _PYRAMID,
                "base": "simsiam",
                "embedding": "replicate",
                "n_components": 550,
                **_CROPPED,
            },
        ),
        "spd-patchcore": _spd(
            {"coreset_ratio": 0.1, "projection_dim": 128, "sigma": 4.0},
            {
                **_MEAN1D,
                "base": "supervised",
                "pretrain_dim": 1024,
                "target_dim": 1024,
            },
        ),
    }
)
"""Preset of each paper by name, read only."""
