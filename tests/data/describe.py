"""Write README.md of this folder: where each file comes from, and what it holds.

    python tests/data/describe.py

The words are below; names, shapes and checksums are read from the files. A test fails
when the page and the files disagree.
"""

import hashlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
HEAD = """\
# Reference values

skad's methods are compared with the code that their authors or others published. These
files hold small random inputs and what that code returned for them, so that the tests
need neither the code nor a network: no image of a data set and no pretrained weight is
among them. `tests/conftest.py` loads them (fixture `golden`).

This page is written by `tests/data/describe.py`.

## How they were made

Inputs come from `numpy.random.RandomState`, whose stream NumPy keeps for ever. For each
file, a script ran the published code on them, computed the same in float64 by formulas
of its own, and compared the two. The scripts are not here, since they import the
published code, some of which states no licence. To make a file anew, or one for a new
method: take the code at the commit below, pass it the arrays of the file that are named
as inputs, and save what it returns under the names of the other arrays with
`numpy.savez_compressed`.

Made with numpy 2.4.6, scipy 1.17.1, torch 2.15 (CPU), torchvision 0.29.2, scikit-learn
1.9.1, faiss 1.15.1, Pillow 13 and OpenCV 5.0.

## Conventions

- Names that end in `_reference` come from published code; `_f64` are formulas in
  float64; `_paper` follows the paper where the published code does not.
- Arrays are NCHW, and row-major: patch (i, j) of a grid of width w is row i * w + j.
  `*_stride4` is every fourth pixel of a map.
- Images of uint8 are RGB, (H, W, 3). The mean of ImageNet is (0.485, 0.456, 0.406), its
  standard deviation (0.229, 0.224, 0.225).
- Bilinear means half-pixel centres and no antialiasing, but for the fusion of PRN,
  which has `align_corners=True`. Smoothing is `scipy.ndimage.gaussian_filter` with
  sigma 4.
- Weights that are not stored are seeded: with `r = RandomState(seed +
  i).standard_normal(shape)` for the i-th of a module's `named_parameters()`, tensors of
  more than one axis are `r * gain / sqrt(prod(shape[1:]))`, others `0.1 * r`, as
  float32. Where a file says so, 1 is added to the weights of normalizations.

## Files
"""
PATCHCORE = "`amazon-science/patchcore-inspection`, fcaa92f"
FILES = {
    "efficientad_loss": """
        EfficientAD: the terms of the loss for given outputs of the networks. Code:
        `nelson1425/EfficientAd`, fcab514.""",
    "efficientad_pdn": """
        EfficientAD: outputs of both patch description networks on one image of 64 x 64
        pixels, with and without padding. Weights are seeded, gain 1.6, seeds 610
        (small) and 620 (medium). Code: `nelson1425/EfficientAd`, fcab514.""",
    "efficientad_pipeline": """
        EfficientAD: all steps at 256 x 256 pixels with narrow outputs: teacher of 8
        channels, student of 16, autoencoder of 8, seeded with gain 1.6, without
        padding; 3 training images, 2 for validation, 1 to test. Maps in three orders of
        resizing, padding and normalization: of the code, of the paper (which skad
        follows), of anomalib. Code: `nelson1425/EfficientAd`, fcab514.""",
    "metrics": """
        Image and pixel metrics of six maps of 48 x 40 pixels: the first two normal; in
        the fourth, two regions touch at a corner; in the fifth, one has a single pixel.
        `_ties` is rounded to sixths. PRO by MVTec's evaluation code (commit 60e9594 of
        a copy of it), the rest by scikit-learn.""",
    "padim_main": """
        PaDiM end to end, on given maps of three layers: 20 training images, fewer than
        the 100 channels, and 3 to test. Code: `xiahaifeng1995/PaDiM-Anomaly-Detection-
        Localization-master`, 616004b.""",
    "padim_small": """
        PaDiM where covariances are well conditioned: 40 images, 12 channels, in
        float64.""",
    "patchcore_coreset": f"""
        PatchCore: indices that greedy selection takes, in order. No two candidates are
        closer than 5e-5 of their distance, so float32 must give the same order. Code:
        {PATCHCORE}.""",
    "patchcore_embed": f"""
        PatchCore: from maps of two layers to patch features. Code: {PATCHCORE}.""",
    "patchcore_map": f"""
        PatchCore: from patch scores to smoothed maps. Code: {PATCHCORE}.""",
    "patchcore_score": f"""
        PatchCore: nearest neighbours, and the weighted score of an image as the paper
        defines it, with distances that are not squared. Code: {PATCHCORE}, and anomalib
        b7233686.""",
    "preprocess": """
        Resizing, cropping and normalizing of an image and a mask, as torchvision,
        Pillow and OpenCV do it.""",
    "prn_attention": """
        PRN: one layer of attention over patches of four sizes. Weights are stored.
        Code: `xcyao00/PRNet`, 2cbf856.""",
    "prn_loss": """
        PRN: losses, image scores and k-means. Code: `xcyao00/PRNet`, 2cbf856.""",
    "prn_prototypes": """
        PRN: prototypes, residuals and fusion on three scales. Weights are stored. Code:
        `xcyao00/PRNet`, 2cbf856.""",
    "simplenet": """
        SimpleNet: loss, gradients and one step of both optimizers, then scores. Weights
        before and after are stored. Code: `DonaldRR/SimpleNet`, 351a2b8.""",
    "spade": """
        SPADE end to end, on given maps of three layers and pooled vectors: 12 training
        images, 3 to test. `_full` compares with every patch, where the code drops the
        last of them. Code: `byungjae89/SPADE-pytorch`, 077c67b, with
        `pairwise_distance` as torch 1.5 had it.""",
    "spd": """
        SPot-the-Difference: loss and SmoothBlend. There is no published code for
        training, so these are formulas of the paper, in float64.""",
    "synth": """
        Perlin noise, DRAEM's blend, losses and score, CutPaste's box and scar. Boxes
        are (x0, y0, x1, y1). Code: `VitjanZ/DRAEM`, 2dbf673;
        `Runinho/pytorch-cutpaste`, 10d8bf7.""",
}


def page():
    """The text of README.md."""
    parts = [HEAD]
    for path in sorted(HERE.glob("*.npz")):
        words = " ".join(FILES[path.stem].split())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        with np.load(path, allow_pickle=False) as arrays:
            lines = [
                f"| `{name}` | {' x '.join(map(str, array.shape)) or 'scalar'} "
                f"| {array.dtype} |"
                for name, array in arrays.items()
            ]
        parts.append(
            f"### {path.name}\n\n{words}\n\nsha256 begins with `{digest}`.\n\n"
            "<details><summary>Arrays</summary>\n\n| array | shape | dtype |\n"
            "|---|---|---|\n" + "\n".join(lines) + "\n\n</details>\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
