"""What all detectors that train promise: seeds, warm starts, checkpoints, pickles."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone

from skad import (
    CutPasteDetector,
    DRAEMDetector,
    EfficientADDetector,
    PRNDetector,
    SimpleNetDetector,
)
from skad.base import TrainedDetector
from skad.datasets import make_textures
from skad.detectors import Teacher
from skad.networks._modules import arrays, seeded
from skad.networks._pdn import pdn
from skad.networks._training import _resumed, _save, run_steps

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings(
        "ignore:.*cannot certify",
        "ignore:the discriminator does not tell",
        "ignore:penalty_images=None",
    ),
]

DATA = make_textures(n_normal=10, n_anomalous=4, size=64, random_state=0)
IMAGES = {"image_size": 64, "train_batch_size": 4}
PATCHES = np.random.default_rng(0).normal(size=(12, 12, 12, 8)).astype(np.float32)
PATCHES[..., 4:] *= 0.1


TEACHER = Teacher("tiny", arrays(seeded(lambda: pdn("tiny", 8, padding=True), 0)))
IMAGES_AND_MASKS = (
    [*DATA.train, *DATA.test[-2:]],
    np.repeat([1, -1], [10, 2]),
    [None] * 10 + list(DATA.masks[-2:]),
)
PATCHWISE = {"max_epochs": 2, "hidden_dim": 16, "train_batch_size": 3}
WHITENED = {"whiten": True, "n_hidden_layers": 2, "schedule": "cosine"}
# A class, its parameters, and what its fit takes.
CASES = {
    "SimpleNet": (SimpleNetDetector, PATCHWISE, (PATCHES,)),
    "whitened SimpleNet": (SimpleNetDetector, PATCHWISE | WHITENED, (PATCHES,)),
    "EfficientAD": (
        EfficientADDetector,
        {"model": "tiny", "teacher": TEACHER, "image_size": 64, "max_steps": 6},
        (DATA.train,),
    ),
    "DRAEM": (
        DRAEMDetector,
        {"model": "tiny", "max_epochs": 3, **IMAGES},
        (DATA.train,),
    ),
    "CutPaste": (
        CutPasteDetector,
        {"backbone": "resnet10t", "max_steps": 6, **IMAGES},
        (DATA.train,),
    ),
    "PRN": (
        PRNDetector,
        {"backbone": "resnet10t", "weights": False, "model": "tiny"}
        | {"max_steps": 6, **IMAGES},
        IMAGES_AND_MASKS,
    ),
}


class Case:
    """A detector by name, what it learns from, and a model to look at."""

    def __init__(self, name):
        self.name = name
        self.detector, self.parameters, self.arguments = CASES[name]
        self.new = PATCHES[:3] if "SimpleNet" in name else DATA.test[:3]
        self.fitted = self.make(random_state=3).fit(*self.arguments)
        self.length = next(n for n in ("max_epochs", "max_steps") if self.has(n))

    def make(self, **options):
        return self.detector(**self.parameters | options)

    def has(self, parameter):
        return parameter in self.make().get_params()


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


def assert_same(first, second):
    assert first.loss_curve_ == second.loss_curve_
    assert first.state_.keys() == second.state_.keys()
    for name, values in first.state_.items():
        np.testing.assert_array_equal(second.state_[name], values)
    assert first.offset_ == second.offset_


def test_the_same_seed_gives_the_same_bits(case):
    """Whatever the number of threads that make the samples."""
    again = case.make(random_state=3)
    if case.has("n_jobs"):
        again.set_params(n_jobs=3)
    assert_same(again.fit(*case.arguments), case.fitted)
    other = case.make(random_state=4).fit(*case.arguments)
    assert other.loss_curve_ != case.fitted.loss_curve_
    # A second fit does not continue the first.
    assert_same(other.set_params(random_state=3).fit(*case.arguments), case.fitted)


@pytest.mark.usefixtures("numpy_state_untouched")
def test_global_generators_are_left_alone(case):
    before = torch.random.get_rng_state()
    case.make().fit(*case.arguments).score_samples(case.new)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pickles_hold_numpy_only(case, tmp_path):
    expected = case.fitted.score_samples(case.new)
    joblib.dump(case.fitted, tmp_path / "model.joblib")
    for mode in (None, "r"):
        loaded = joblib.load(tmp_path / "model.joblib", mmap_mode=mode)
        np.testing.assert_array_equal(loaded.score_samples(case.new), expected)
    assert b"torch" not in pickle.dumps(case.fitted)
    assert clone(case.fitted).get_params().keys() == case.fitted.get_params().keys()


def test_a_second_call_builds_no_network(case, monkeypatch):
    """Networks stay from one call of scoring to the next."""
    expected = case.fitted.score_samples(case.new)

    def refuse(*_, **__):
        raise AssertionError("a network was built")

    twin = pickle.loads(pickle.dumps(case.fitted))
    monkeypatch.setattr(torch.nn.Module, "__init__", refuse)
    np.testing.assert_array_equal(case.fitted.score_samples(case.new), expected)
    assert len(case.fitted.anomaly_map(case.new)) == len(case.new)
    if "SimpleNet" not in case.name:  # whose scores take products of arrays alone
        with pytest.raises((AssertionError, ValueError), match="a network was built"):
            twin.score_samples(case.new)  # it has its own


def test_a_warm_start_continues(case):
    parts = case.make(random_state=3, warm_start=True).fit(*case.arguments)
    assert_same(parts, case.fitted)
    parts.fit(*case.arguments)
    n = len(case.fitted.loss_curve_)
    assert parts.loss_curve_[:n] == case.fitted.loss_curve_
    assert len(parts.loss_curve_) == 2 * n
    with pytest.raises(ValueError, match=r"calibration='kfold' with warm_start=True"):
        parts.set_params(calibration="kfold").fit(*case.arguments)


def test_interrupted_training_keeps_a_model(case, interrupt_training):
    detector = case.make(**{case.length: 100_000})
    interrupt_training(after=3)
    with pytest.warns(UserWarning, match="interrupted after 3 of .* steps"):
        detector.fit(*case.arguments)
    assert 0 < len(detector.loss_curve_) <= 3
    assert np.isfinite(detector.score_samples(case.new)).all()


def test_killed_training_resumes_to_the_same_bits(case, assert_survives_a_kill):
    rate = np.float64(1e-3)  # a search may pass numbers of NumPy
    assert_survives_a_kill(case.make(learning_rate=rate), *case.arguments, after=3)


def test_one_image(case):
    with pytest.warns(UserWarning, match="one training image"):
        detector = case.make(**{case.length: 2}).fit(case.arguments[0][:1])
    assert np.isfinite(detector.score_samples(case.new)).all()


def test_progress_tells_the_loss(case, capsys):
    case.make(verbose=True, **{case.length: 1}).fit(*case.arguments)
    printed = capsys.readouterr().err
    assert case.fitted._label in printed
    assert "loss=" in printed or "loss " in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nonsense"}, "device='nonsense' cannot be used"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"train_batch_size": 0}, "train_batch_size"),
        ({"warm_start": "no"}, "warm_start"),
        ({"calibration": "loo"}, "loo"),
    ],
)
def test_parameters_that_are_refused(case, options, message):
    with pytest.raises(ValueError, match=message):
        case.make().set_params(**options).fit(*case.arguments)
    with pytest.raises(ValueError, match=case.length):
        case.make().set_params(**{case.length: 0}).fit(*case.arguments)


def test_the_suite_knows_every_detector_that_trains():
    import skad.detectors

    classes = [getattr(skad.detectors, name) for name in skad.detectors.__all__]
    trained = {
        c.__name__
        for c in classes
        if isinstance(c, type) and issubclass(c, TrainedDetector)
    }
    assert trained == {detector.__name__ for detector, _, _ in CASES.values()}


# -- the loop of steps -----------------------------------------------------------------


def test_a_broken_checkpoint_is_an_error(tmp_path):
    (tmp_path / "run.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"run\.pt cannot be read; delete it"):
        run_steps(lambda n: 1.0, {}, 3, label="x", checkpoint=tmp_path / "run.pt")


def test_a_loss_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="diverged: the loss at step 0 is nan"):
        run_steps(lambda n: float("nan"), {}, 3, label="x")


def test_checkpoints_take_numbers_of_numpy(tmp_path):
    """A search passes them, and torch refuses to read them back."""
    optimizer = torch.optim.Adam(torch.nn.Linear(2, 2).parameters(), np.float64(1e-3))
    _save(tmp_path / "run.pt", {"optimizer": optimizer}, [0.5])
    assert _resumed(tmp_path / "run.pt", {"optimizer": optimizer}) == [0.5]
    assert optimizer.param_groups[0]["lr"] == 1e-3
