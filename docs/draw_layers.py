"""Draw the layers that import-linter checks: docs/_static/layers.svg.

    python docs/draw_layers.py

Run it after a change of the layers in pyproject.toml; a test says when.
"""

import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/_static/layers.svg"
WORDS = {
    "base": "scores, thresholds, p-values, masks",
    "calibration": "a threshold per product",
    "datasets": "folders, textures",
    "detectors": "one method, one file",
    "export": "a model as an ONNX graph",
    "features": "images to patches",
    "images": "files, arrays and masks to pixels",
    "inspection": "label, p-value, map and defects of an image in one pass",
    "metrics": "AUROC, PRO, scorers",
    "model_selection": "folds",
    "monitoring": "changes of scores over time",
    "neighbors": "coreset, exact search",
    "networks": "PyTorch: the builder of networks, their input, training, weights",
    "parallel": "many processes, machines",
    "persistence": "models in files without pickle",
    "pipeline": "scikit-learn's pipeline with maps, regions and updates",
    "presets": "settings of the papers",
    "report": "a page for a browser",
    "synthesis": "anomalies, augmented views",
}
HELPERS = ("small helpers", "checks, maps, patches, progress")
COLORS = ("#fdf0e3 #dd8452", "#eef3fb #4c72b0", "#eaf5ec #55a868", "#f1eef7 #8172b3")
COLORS += ("#fbeaea #c44e52", "#f2f2f2 #777777")
WIDTH, HEIGHT, GAP, EDGE, MOST = 680, 48, 8, 20, 4  # pixels; boxes in a row


def layers():
    """Public subpackages of each layer, the highest first, without `skad.`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = settings["tool"]["importlinter"]["contracts"][0]
    found = (
        [name.strip().removeprefix("skad.") for name in layer.split("|")]
        for layer in contract["layers"]
    )
    public = ([name for name in names if name[0] != "_"] for names in found)
    return [names for names in public if names]


def picture():
    """The picture as SVG."""
    rows, y = [], EDGE
    for i, names in enumerate(layers()):
        boxes = [(name, WORDS[name], "monospace") for name in names]
        if names[0] == "images":
            boxes.append((*HELPERS, "sans-serif"))
        colors = COLORS[min(i, len(COLORS) - 1)].split()
        n_rows = -(-len(boxes) // MOST)
        columns = -(-len(boxes) // n_rows)
        for start in range(0, len(boxes), columns):
            rows += _row(boxes[start : start + columns], y, colors)
            y += HEIGHT + GAP
        y += GAP
    y += EDGE - 2 * GAP
    return "\n".join([*_head(y), *rows, "</svg>", ""])


def _row(boxes, y, colors):
    width = (WIDTH - GAP * (len(boxes) - 1)) / len(boxes)
    for i, (name, words, family) in enumerate(boxes):
        x = EDGE + i * (width + GAP)
        middle = f'x="{x + width / 2:g}" text-anchor="middle"'
        fill, stroke = colors
        yield (
            f'  <rect x="{x:g}" y="{y}" width="{width:g}" height="{HEIGHT}" rx="6" '
            f'fill="{fill}" stroke="{stroke}"/>'
        )
        yield (
            f'  <text {middle} y="{y + 21}" font-family="{family}" font-size="13" '
            f'font-weight="bold">{name}</text>'
        )
        yield f'  <text {middle} y="{y + 37}" font-size="11">{escape(words)}</text>'


def _head(height):
    x = EDGE + WIDTH + 26
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" '
        'font-family="sans-serif" fill="#222">',
        "  <title>Subpackages of skad; each imports only from those below</title>",
        f'  <rect width="760" height="{height}" rx="8" fill="#fff"/>',
        f'  <path d="M {x} {EDGE} V {height - EDGE} m -5 -10 l 5 10 l 5 -10" '
        'fill="none" stroke="#444" stroke-width="1.3"/>',
        f'  <text transform="translate({x + 12} {height / 2:g}) rotate(90)" '
        'text-anchor="middle" font-size="12">may import</text>',
    ]


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
