import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import settings
from sklearn.base import clone

# Before matplotlib or huggingface_hub is imported, which read these only once.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"
# Before scipy is: scikit-learn skips its array API check without it.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

# The first example of a property may import torch: no deadline.
settings.register_profile("skad", deadline=None)
settings.load_profile("skad")

TESTS = Path(__file__).resolve().parent


def pytest_configure(config):
    """Give every one of several worker processes one thread, not all cores."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Run the slow tests last, so that a failure shows early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


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


FIT_AND_DIE = """
import os, signal, sys
import joblib
import torch
import skad._training
torch.set_num_threads(1)
skad._training._EVERY = 0.0
save = skad._training._save
def deadly(checkpoint, parts, losses):
    save(checkpoint, parts, losses)
    if len(losses) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
skad._training._save = deadly
estimator, arguments = joblib.load(sys.argv[1])
estimator.fit(*arguments)
"""


@pytest.fixture
def assert_survives_a_kill(tmp_path, one_torch_thread):
    """Kill a process in the middle of a fit; the next fit ends as an unbroken one."""

    def check(estimator, *arguments, after):
        folder, task = tmp_path / "checkpoints", tmp_path / "task.joblib"
        whole = clone(estimator).fit(*arguments)
        resumed = clone(estimator).set_params(checkpoint_dir=folder)
        joblib.dump((resumed, arguments), task)
        command = [sys.executable, "-c", FIT_AND_DIE, task, str(after)]
        killed = subprocess.run(command, check=False)
        assert killed.returncode == -signal.SIGKILL
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
    from skad import _training

    def interrupt(after):
        class Bar:
            def reach(self, done, note=""):
                if done == after:
                    raise KeyboardInterrupt

        @contextmanager
        def progress(total, label, verbose):
            yield Bar()

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
