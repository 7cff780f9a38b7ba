"""Repeat the tables of the papers: all categories of a data set, several seeds.

    python benchmarks/papers.py --data /data/mvtec_ad --table patchcore

The data set is one that `skad.datasets.load` recognises, the settings are those of
`skad.presets`; the tables are in `papers_tables`. Each category and seed is a row of
``papers-TABLE.csv``, written as soon as it is measured: a run that was cut goes on
where it was. At the end, and after each row, ``papers-TABLE.md`` has the mean over the
categories, with the standard deviation over the seeds, and beside it what was
published, with its source.

Nothing is chosen on the test set: what trains is taken as it is after its last step.
Images are resized and cropped as in the paper, and metrics are computed on what is
left, with masks resized to nearest neighbours.

"efficientad" needs ``--teacher``, a file in whose name ``{model}`` stands for small or
medium, and ``--penalty-images``; "draem", "prn", "spd-highshot" and "spd-lowshot" need
``--textures``; "efficientad-latency" needs no data. Anomalous test images that "prn"
learns from are left out of the test. ``--small`` shows in a minute that a table comes
out: with untrained networks, small images and few steps. Its numbers mean nothing.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from zlib import crc32

from harness import conditions
from papers_latency import latency, machine
from papers_models import accuracy, given
from papers_report import append, markdown, metrics, read, show
from papers_tables import TABLES


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of a data set")
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--categories", nargs="+", help="default: all")
    parser.add_argument(
        "--seeds", type=int, help="how many, from 0 on; default: as in the paper, or 3"
    )
    parser.add_argument("--shots", type=int, help="learn from so many images, sampled")
    parser.add_argument(
        "--teacher", type=Path, help="file, for EfficientAD: t_{model}.pth"
    )
    parser.add_argument("--penalty-images", type=Path, help="folder, for EfficientAD")
    parser.add_argument("--textures", type=Path, help="folder, for DRAEM and PRN")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="the CSV file")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    return parser


def main():
    options = arguments().parse_args()
    table = chosen(options)
    options.output = options.output or Path(f"papers-{options.table}.csv")
    done = read(options.output, table)
    import timm  # noqa: F401 - so that no time of a fit has the seconds of this import

    for seed in range(table.seeds if options.seeds is None else options.seeds):
        for category in categories(options, table):
            data = subject(options, table, category)
            for row in table.rows:
                if row.preset is not None:
                    measure_new(options, table, row, data, seed, done)
                    report(options, table, done)
    print(report(options, table, done))


def report(options, table, done):
    """Write the table in Markdown, and return it."""
    ours = functools.partial(settings, options)
    text = markdown(table, done, ours, small=options.small)
    text += f"\n({conditions()}.)\n"
    options.output.with_suffix(".md").write_text(text)
    return text


def chosen(options):
    """The table; say what is missing for it."""
    from skad.presets import PRESETS

    if (options.seeds is not None and options.seeds < 1) or (options.shots or 1) < 1:
        raise SystemExit("--seeds and --shots must be at least 1.")
    table = TABLES[options.table]
    if table.protocol == "latency":
        return table
    if options.data is None:
        raise SystemExit(f"--table {options.table} needs --data.")
    presets = [PRESETS[row.preset] for row in table.rows if row.preset]
    lacking = {name for preset in presets for name in preset.needs} - set(
        given(options)
    )
    if lacking and not options.small:
        flags = {"texture_images": "--textures"}
        names = (flags.get(n, "--" + n.replace("_", "-")) for n in sorted(lacking))
        raise SystemExit(f"--table {options.table} needs {' and '.join(names)}.")
    return table if options.shots is None else few(table, options.shots)


def few(table, shots):
    """The table with so many training images in each row, and nothing published."""
    from papers_tables import images

    rows = [
        row._replace(name=f"{row.name}: {images(shots)}", shots=shots, published={})
        for row in table.rows
        if row.preset is not None
    ]
    return table._replace(rows=rows)


def categories(options, table):
    if table.protocol == "latency":
        return [None]
    from skad.datasets import list_categories

    names = list_categories(options.data)
    if unknown := set(options.categories or ()) - set(names):
        raise SystemExit(
            f"--categories {', '.join(sorted(unknown))}: {options.data} has "
            f"{', '.join(names) or 'none'}."
        )
    return options.categories or names or [None]


def subject(options, table, category):
    """The data set of a category, where the table is for it."""
    if table.protocol == "latency":
        return None
    from skad.datasets import load

    try:
        found = load(options.data, category, **table.load)
    except TypeError:  # a layout without these options
        found = None
    if found is None or table.layout not in (None, found.layout):
        raise SystemExit(
            f"--table {options.table} is for {table.layout}, and {options.data} is "
            "another data set."
        )
    return found


def measure_new(options, table, row, data, seed, done):
    """Measure a row that the file does not have yet, and write it."""
    measure = latency if table.protocol == "latency" else accuracy
    data = machine(options, row) if data is None else data
    key = {
        "row": row.name,
        "layout": data.layout,
        "category": data.category,
        "seed": str(seed),
        "settings": settings(options, row),
    }
    if any(key.items() <= old.items() for old in done):
        return
    found = measure(options, table, row, data, seed)
    new = key | {name: str(value) for name, value in found.items()}
    append(options.output, table, new)
    done.append(new)
    text = " | ".join(
        f"{t} {show(k, float(new[k]))}" for k, t in metrics(table).items()
    )
    print(
        f"{row.name}, {data.category}, seed {seed}: {text}", file=sys.stderr, flush=True
    )


def settings(options, row):
    """What a result depends on beside the data and the seed, as text."""
    paths = {name: str(path) for name, path in given(options).items()}
    more = {"shots": row.shots, "small": options.small, **paths}
    return json.dumps({"table": options.table, "model": digest(row), **more})


def digest(row):
    """Changes with each setting of a model, so that no older result is taken for it."""
    from skad.presets import PRESETS

    if row.preset is None:
        return None
    preset = PRESETS[row.preset]
    found = [preset.parameters, preset.features or {}, row.parameters, row.features]
    text = json.dumps([row.anomalies, *map(dict, found)], sort_keys=True)
    return f"{crc32(text.encode()):08x}"


if __name__ == "__main__":
    main()
