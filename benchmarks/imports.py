"""What an import costs, and each step from `python` to the first label.

    python benchmarks/imports.py

`import skad` is timed beside `import sklearn.base`, each in a process of its own.

For the cold start, a model of bottles on `skad_small` is saved by `skad.save`. A fresh
process imports what is needed, loads the file and labels one photograph. The table has
the CPU time of each step, and the largest memory of the process after it, from the run
with the least CPU time. Memory depends on the build of torch: importing one for GPUs
takes more.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import cost_row, limit_threads, parser, publish, race, timing

from skad import PatchCoreDetector, PatchFeatures, make_pipeline, save
from skad.datasets import load_mvtec

MAX_SECONDS, MAX_MEGABYTES = 5, 600
STEPS = {
    "Python": "pass",
    "NumPy": "import numpy",
    "SciPy": "import scipy.special",
    "scikit-learn": "import sklearn.base",
    "torch": "import torch; torch.set_num_threads({threads})",
    "skad": "import skad; from skad import PatchCoreDetector, PatchFeatures, Pipeline",
    "skops": "import skops.io",
    "the model file": "model = skad.load({model!r})",
    "the first label": "model.predict([{image!r}])",
    "the second label": "model.predict([{image!r}])",
}
CODE = """
import json, time
steps = {steps}
for name, step in steps.items():
    exec(step)
    status = open("/proc/self/status").read()
    memory = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps([name, time.process_time(), memory]))
"""


def steps_of_one_run(model, image, threads):
    """Name of each step, CPU seconds until its end, and the largest memory by then."""
    given = {"model": str(model), "image": str(image), "threads": threads}
    steps = {name: step.format(**given) for name, step in STEPS.items()}
    command = [sys.executable, "-c", CODE.format(steps=steps)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def table(steps):
    """Rows of the steps, and of all until the first label."""
    rows, before = [], 0.0
    for name, seconds, memory in steps:
        rows.append([name, timing(seconds - before), f"{memory / 1e6:.0f} MB", ""])
        before = seconds
    name, seconds, memory = next(step for step in steps if step[0] == "the first label")
    missed = seconds > MAX_SECONDS or memory > 1e6 * MAX_MEGABYTES
    goal = f"<= {MAX_SECONDS} s, {MAX_MEGABYTES} MB" + (" (missed)" if missed else "")
    rows.append([f"all to {name}", timing(seconds), f"{memory / 1e6:.0f} MB", goal])
    return rows


def process(code):
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def cold_start(options):
    data = load_mvtec(options.data, "mvtec_bottle_256")
    train = data.train[:8] if options.small else data.train
    limit_threads(options.threads)
    detector = PatchCoreDetector(calibration="train")
    model = make_pipeline(PatchFeatures("skad_small"), detector).fit(train)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bottle.skad"
        save(model, file)
        runs = [
            steps_of_one_run(file, data.test[0], options.threads)
            for _ in range(options.rounds)
        ]
    return table(min(runs, key=lambda steps: steps[-2][1]))


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
    seconds, _ = race(racers, options.rounds * (1 if options.small else 2))
    base = seconds["import sklearn.base"]
    rows = [
        cost_row(name, seconds[name], "import sklearn.base", base, limit)
        for name, limit in (("import skad", 1.1), ("import the usual names", None))
    ]
    header = ("case", "skad", "peer", "its time", "cost", "target")
    publish(options, "imports", rows, header)
    header = ("step", "CPU", "peak memory", "goal")
    publish(options, "cold start", cold_start(options), header)


if __name__ == "__main__":
    main()
