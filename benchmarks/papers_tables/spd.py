"""SPD on VisA: one class, and two classes with many or few anomalous images."""

from papers_tables._table import Row, Table, images

ZOU = "Zou et al., ECCV 2022"
PRECISION = (
    "The paper's area under the curve of precision and recall is by trapezoids, here "
    "it is the average precision."
)
TWO_CLASSES = (
    "The paper trains a ResNet-50 to tell images apart and a U-Net to mark defects, "
    "which skad has not. PRN learns from the same anomalous images, PatchCore from the "
    f"normal ones only. {PRECISION}"
)


def _published(name, **values):
    return Row(name, None, {"VisA": values}, ZOU)


def _measured(shots=None, anomalies=None):
    """PatchCore without and with SPD, and PRN with anomalous images."""
    few = "" if shots is None else f", {images(shots)}"
    both = "" if shots is None else f", {shots} + {images(anomalies)}"
    return [
        Row(f"PatchCore, WRN50{few}", "patchcore-10", shots=shots),
        Row(f"PatchCore, WRN50, SPD{few}", "spd-patchcore", shots=shots),
        Row(f"PRN{both}", "prn", shots=shots, anomalies=anomalies),
    ]


TABLES = {
    "spd": Table(
        [
            Row(
                "PatchCore, WRN50",
                "patchcore-10",
                {"VisA": {"pixel_ap": 38.4}},
                f"{ZOU}, network as supervised on ImageNet",
            ),
            Row(
                "PatchCore, WRN50, SPD",
                "spd-patchcore",
                {"VisA": {"pixel_ap": 39.3}},
                f"{ZOU}, supervised on ImageNet with SPD",
            ),
            _published("PaDiM, R50, supervised", pixel_ap=11.4),
            _published("PaDiM, R50, supervised with SPD", pixel_ap=12.0),
            _published("PaDiM, R50, SimSiam", image_ap=80.2),
            Row(
                "PaDiM, R50, SPD",
                "spd-padim",
                {"VisA": {"image_ap": 82.8}},
                f"{ZOU}, SimSiam with SPD",
            ),
        ],
        PRECISION,
        layout="VisA",
        load={"split": "1cls"},
    ),
    "spd-highshot": Table(
        [
            *_measured(),
            _published(
                "R50 and U-Net, supervised",
                image_auroc=99.5,
                image_ap=97.5,
                pixel_ap=65.1,
            ),
            _published(
                "R50 and U-Net, supervised with SPD",
                image_auroc=99.7,
                image_ap=98.3,
                pixel_ap=71.9,
            ),
            _published("U-Net, SimSiam", pixel_ap=53.8),
            _published("U-Net, SimSiam with SPD", pixel_ap=59.7),
        ],
        TWO_CLASSES,
        layout="VisA",
        load={"split": "2cls_highshot"},
    ),
    "spd-lowshot": Table(
        [
            *(row for n in (5, 10) for row in _measured(n, n)),
            _published("R50, SimSiam, 5 + 5 images", image_ap=51.9),
            _published("R50, SimSiam with SPD, 5 + 5 images", image_ap=56.1),
            _published("U-Net, MoCo, 10 + 10 images", pixel_ap=32.3),
            _published("U-Net, MoCo with SPD, 10 + 10 images", pixel_ap=32.8),
        ],
        f"Images to learn from are sampled by the seed, five times. {TWO_CLASSES}",
        layout="VisA",
        load={"split": "2cls_fewshot"},
        seeds=5,
    ),
}
