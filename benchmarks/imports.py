"""What an import costs: `import skad` beside `import sklearn.base`.

    python benchmarks/imports.py

Every import is timed in a process of its own.
"""

import subprocess
import sys

from harness import cost_row, parser, publish, race


def process(code):
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def main():
    options = parser(__doc__).parse_args()
    racers = {
        "import skad": process("import skad"),
        "import the usual names": process(
            "from skad import Pipeline, PatchFeatures, PatchCoreDetector"
        ),
        "import sklearn.base": process("import sklearn.base"),
        "nothing": process("pass"),
    }
    seconds, _ = race(racers, 2 * options.rounds)
    base = seconds["import sklearn.base"]
    rows = [
        cost_row(name, seconds[name], "import sklearn.base", base, limit)
        for name, limit in (("import skad", 1.1), ("import the usual names", None))
    ]
    header = ("case", "skad", "peer", "its time", "cost", "target")
    publish(options, "imports", rows, header)


if __name__ == "__main__":
    main()
