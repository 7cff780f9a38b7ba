import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import settings
from sklearn.base import clone
from tqdm import tqdm

# Before matplotlib or huggingface_hub is imported, which read these only once.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"
# Before scipy is: scikit-learn skips its array API check without it.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

# The first example of a property may import torch: no deadline.
settings.register_profile("skad", deadline=None)
settings.load_profile("skad")

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def pytest_configure(config):
    """Give every one of several worker processes one thread, not all cores."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


# Files that take longest, slowest first. They start first, so that all processes end
# together; the order of the others hardly matters.
LONGEST = (
    "tests/test_real_data.py",
    "tests/test_benchmarks.py",
    "tests/test_examples.py",
    "tests/robustness/test_nndescent.py",
    "tests/parallel/test_dask.py",
    "tests/test_papers.py",
    "tests/test_benchmark_accuracy.py",
    "tests/export/test_methods.py",
    "tests/monitoring/test_drift.py",
    "tests/robustness/test_process_state.py",
    "tests/detectors/test_trained.py",
    "tests/detectors/test_efficientad.py",
    "tests/detectors/test_prn.py",
    "tests/features/test_spd.py",
    "tests/detectors/test_draem.py",
    "tests/detectors/test_cutpaste.py",
    "tests/features/test_fused.py",
    "tests/detectors/test_fusion.py",
    "tests/features/test_small.py",
    "tests/detectors/test_puad.py",
    "tests/test_common.py",
    "tests/test_pipeline.py",
    "tests/features/test_patch_features.py",
)


# Take long, and share nothing with the rest of their files.
ALONE = ("tests/test_benchmarks.py::test_runs_small[",)


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest."""

    def rank(item):
        name = item.nodeid.partition("::")[0]
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file in one process, which fits its models only once."""
    if config.getoption("dist") != "load":
        return None  # told otherwise on the command line
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            if nodeid.startswith(ALONE):
                return nodeid
            return super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail a test that is too slow for the default run, where CI sets a limit."""
    report = yield
    limit = float(os.environ.get("SKAD_LONGEST_TEST", "inf"))
    if call.duration > limit and not item.get_closest_marker("slow"):
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} took {call.duration:.0f} s ({call.when}), more than "
            f"{limit:.0f} s: make it smaller, or mark it with pytest.mark.slow."
        )
    return report


@pytest.fixture(scope="session")
def shared():
    """Folder of real images and weights beside the checkout."""
    folder = TESTS.parents[1] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder shared/ beside the checkout")
    return folder


@pytest.fixture(scope="session")
def golden():
    """Loader of the reference arrays ``tests/data/NAME.npz``, as a dict."""

    def load(name):
        with np.load(TESTS / "data" / f"{name}.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    return load


@pytest.fixture
def one_torch_thread():
    """Keep torch on one thread: many tiny calls lose time to synchronisation."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def with_noise():
    """Copies of images, uint8 (n, h, w, 3), whose middle is noise, and the masks.

    What any detector that has learned at all finds, whatever its seed: defects that
    resemble the material take longer training than a fast test has.
    """

    def make(images):
        n, height, width, _ = images.shape
        rows = slice(5 * height // 16, 11 * height // 16)
        columns = slice(5 * width // 16, 11 * width // 16)
        noisy, masks = images.copy(), np.zeros((n, height, width), bool)
        part = noisy[:, rows, columns]
        part[:] = np.random.default_rng(0).integers(0, 256, part.shape)
        masks[:, rows, columns] = True
        return noisy, masks

    return make


@pytest.fixture(scope="session")
def few_photographs(shared, tmp_path_factory):
    """Data folder with a few photographs of each set, laid out as the whole."""
    few = tmp_path_factory.mktemp("data")
    counts = {
        "mvtec_bottle_256/train/*": 30,
        "mvtec_bottle_256/test/*": 6,
        "magnetic_tile/train/*": 40,
        "magnetic_tile/test/*": 4,
        "natural": 60,
    }
    for pattern, n in counts.items():
        for folder in (shared / "data").glob(pattern):
            files = sorted(folder.iterdir())
            for i in np.linspace(0, len(files) - 1, n).astype(int):
                _copy(files[i], shared / "data", few)
                mask = folder.parents[1] / "ground_truth" / folder.name
                for file in mask.glob(f"{files[i].stem}[._]*"):
                    _copy(file, shared / "data", few)
    return few


def _copy(file, source, target):
    """Copy a file to the same place below another folder."""
    copied = target / file.relative_to(source)
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copied)


RUN = """
import os, sys
os.environ["PYTHONPATH"] = files["root"]
output = os.open(files["output"], os.O_WRONLY)
os.dup2(output, 1)
os.dup2(output, 2)
if "script" in files:
    import runpy
    sys.path.insert(0, os.path.dirname(files["script"]))
    sys.argv[0] = files["script"]
    runpy.run_path(files["script"], run_name="__main__")
else:
    exec(files["code"], {"__name__": "__main__"})
"""


@pytest.fixture(scope="session")
def new_process(tmp_path_factory):
    """Run a script, or code, in a process of its own, and return what it printed.

    Such a process is forked from one that has imported the libraries, but not skad, so
    that it starts within a second. Nothing of the process of the tests is in it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["matplotlib.pyplot", "scipy.stats", "sklearn.model_selection", "timm", "torch"]
    )
    output = tmp_path_factory.mktemp("process") / "output"

    def run(*arguments, code=None, script=None, folder=None, dies_by=0, timeout=600):
        output.write_text("")
        files = {"output": output, "root": ROOT, "code": code, "script": script}
        files = {name: str(value) for name, value in files.items() if value is not None}
        process = context.Process(target=exec, args=(RUN, {"files": files}))
        with pytest.MonkeyPatch.context() as patch:  # the process takes these over
            patch.setattr(sys, "argv", ["-c", *map(str, arguments)])
            patch.syspath_prepend(ROOT)
            if folder is not None:
                patch.chdir(folder)
            process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
        printed = output.read_text()
        assert process.exitcode == -dies_by, printed
        return printed

    return run


FIT_AND_DIE = """
import os, signal, sys
import joblib
import torch
import skad.networks._training
torch.set_num_threads(1)
skad.networks._training.CHECKPOINT_SECONDS = 0.0
save = skad.networks._training._save
def deadly(checkpoint, parts, losses):
    save(checkpoint, parts, losses)
    if len(losses) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
skad.networks._training._save = deadly
estimator, arguments = joblib.load(sys.argv[1])
estimator.fit(*arguments)
"""


@pytest.fixture
def assert_survives_a_kill(tmp_path, one_torch_thread, new_process):
    """Kill a process in the middle of a fit; the next fit ends as an unbroken one."""

    def check(estimator, *arguments, after):
        folder, task = tmp_path / "checkpoints", tmp_path / "task.joblib"
        whole = clone(estimator).fit(*arguments)
        resumed = clone(estimator).set_params(checkpoint_dir=folder)
        joblib.dump((resumed, arguments), task)
        new_process(task, after, code=FIT_AND_DIE, dies_by=signal.SIGKILL)
        assert len(list(folder.iterdir())) == 1
        resumed.fit(*arguments)
        assert list(folder.iterdir()) == []  # it was found, and then removed
        assert resumed.loss_curve_ == whole.loss_curve_
        assert resumed.state_.keys() == whole.state_.keys()
        for name, values in whole.state_.items():
            np.testing.assert_array_equal(resumed.state_[name], values)

    return check


@pytest.fixture
def interrupt_training(monkeypatch):
    """Let Ctrl-C be pressed during training, once a number of steps is done.

    A real signal would be lost where the process was started with it ignored.
    """
    from skad.networks import _training

    def interrupt(after):
        class Bar(tqdm):
            def update(self, n=1):
                self.n += n  # which a bar that shows nothing does not do
                if self.n == after:
                    raise KeyboardInterrupt

        def progress(total, label, verbose, done, unit):
            return Bar(total=total, initial=done, disable=True)

        monkeypatch.setattr(_training, "progress", progress)

    return interrupt


@pytest.fixture
def numpy_state_untouched():
    """Fail if the test moves NumPy's global random state."""
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
