"""The files of `papers.py`: a CSV of all results, and the table in Markdown."""

import csv
import math

import numpy as np
from papers_tables import CATEGORIES

PERCENT = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_f1": "Image F1-max",
    "pixel_auroc": "Pixel AUROC",
    "pro": "PRO",
    "pixel_ap": "Pixel AP",
    "pixel_f1": "Pixel F1-max",
}
METRICS = PERCENT | {"fit_s": "Fit, s", "image_ms": "Image, ms"}
TIMES = {
    "latency_ms": "Call, ms",
    "worst_ms": "99 of 100 calls, ms",
    "images_per_s": "Images per s",
}
KEYS = ("row", "layout", "category", "seed", "settings")


def metrics(table):
    """Names and titles of what is measured."""
    return TIMES if table.protocol == "latency" else METRICS


def columns(table):
    return (*KEYS, "n_train", "n_test", *metrics(table))


def read(path, table):
    """Rows of the file; a last one that was cut while it was written is removed."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames and tuple(reader.fieldnames) != columns(table):
        raise SystemExit(f"{path} is another table: name a file with --output.")
    return rows


def append(path, table, row):
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns(table), lineterminator="\n")
        if not path.stat().st_size:
            writer.writeheader()
        writer.writerow(row)


def markdown(table, done, settings_of, *, small=False):
    """The table in Markdown: means over categories, deviations over seeds."""
    titles = metrics(table)
    lines = [
        f"| Method | {' | '.join(titles.values())} | Categories, seeds | Source |",
        f"|---|{'---|' * (len(titles) + 2)}",
    ]
    measured = {r["layout"] for r in done}
    for row in table.rows:
        own = [r for r in done if r["row"] == row.name]
        own = [r for r in own if r["settings"] == settings_of(row)]
        if own:
            lines.append(measured_line(row, titles, own, small))
        if own or row.preset is None:
            lines += published_lines(row, titles, measured)
    found = notes(table)
    return "\n".join([*lines, *([""] if found else []), *found]) + "\n"


def measured_line(row, titles, own, small):
    categories = {r["category"] for r in own}
    # The mean over some of the categories does not compare with that over all.
    seeds = {r["seed"] for r in own}
    groups = [[r for r in own if r["seed"] == seed] for seed in seeds]
    whole = [some for some in groups if len(some) == len(categories)]
    cells = " | ".join(spread(key, whole) for key in titles)
    source = f"{', '.join(sorted({r['layout'] for r in own}))}, skad"
    source += ", --small: no result" if small else ""
    return f"| {row.name} | {cells} | {len(categories)}, {len(whole)} | {source} |"


def published_lines(row, titles, measured):
    """What was published for the data set that was measured, or else for others."""
    for name in sorted(row.published.keys() & measured) or row.published:
        values = " | ".join(str(row.published[name].get(key, "")) for key in titles)
        n = CATEGORIES.get(name, "")
        yield f"| {row.name}, published | {values} | {n} | {name}, {row.source} |"


def notes(table):
    """What differs from the papers: in the protocol, and in the settings."""
    from skad.presets import PRESETS

    lines = [f"- {table.note}"] if table.note else []
    names = dict.fromkeys(row.preset for row in table.rows if row.preset)
    if table.protocol == "latency":
        return lines
    for text in dict.fromkeys(PRESETS[name].differs for name in names):
        alike = [f"`{name}`" for name in names if PRESETS[name].differs == text]
        lines += [f"- {', '.join(alike)}: {text}"] if text else []
    return lines


def spread(key, seeds):
    """Mean over seeds of the means over categories, and its standard deviation."""
    means = [math.fsum(float(r[key]) for r in some) / len(some) for some in seeds]
    text = show(key, float(np.mean(means)) if means else math.nan)
    if len(means) < 2 or not text:
        return text
    return f"{text} ± {show(key, float(np.std(means, ddof=1)))}"


def show(key, value):
    """Percent with one digit, times as they are."""
    if math.isnan(value):
        return ""
    return f"{100 * value:.1f}" if key in PERCENT else f"{value:.1f}"
