import copy
import os
import pickle
import signal
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn.pipeline
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

import skad
from skad import (
    FusedFeatures,
    FusionDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    SPADEDetector,
    SubspaceDetector,
    make_pipeline,
)
from skad.datasets import make_textures
from skad.features import SkippedImageWarning
from skad.images import ImageError
from skad.parallel import _fit_parts, fit_parts
from skad.parallel._merge_tree import MergeTree
from skad.parallel._parts import Parts
from skad.parallel._worker import fit_part, hold_out_part

IMAGES = 32


def pieces(n, seed=0):
    """Features of n pieces, each with a look of its own."""
    rng = np.random.default_rng(seed)
    look = rng.normal(size=(n, 1, 1, 8))
    return (look + 0.5 * rng.normal(size=(n, 4, 4, 8))).astype(np.float32)


@pytest.fixture(scope="module")
def images():
    data = make_textures(n_normal=48, n_anomalous=6, size=IMAGES, random_state=0)
    return data.train, data.test


@pytest.fixture
def files(images, tmp_path):
    """Files of the training images."""
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{i:03d}.png" for i in range(len(images[0]))]
    for path, image in zip(paths, images[0], strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture
def n_fitted(monkeypatch):
    """Counts the parts that are fitted."""
    numbers = []

    def counted(model, X, number, version):
        numbers.append(number)
        return fit_part(model, X, number, version)

    monkeypatch.setattr(_fit_parts, "fit_part", counted)
    return numbers


def on_images(detector, **settings):
    features = PatchFeatures("skad_small", image_size=IMAGES, **settings)
    return make_pipeline(features, detector)


# -- what is fitted ------------------------------------------------------------


@pytest.mark.parametrize("part_size", [7, 32, 100])
@pytest.mark.parametrize("detector", [PaDiMDetector(), SubspaceDetector()])
def test_gaussians_and_subspace_are_those_of_one_fit(detector, part_size):
    X, new = pieces(150), pieces(40, seed=1)
    whole = clone(detector).fit(X)
    parts = fit_parts(detector, X, part_size=part_size)
    assert parts.n_samples_seen_ == 150
    assert_allclose(parts.score_samples(new), whole.score_samples(new), rtol=1e-6)
    if isinstance(detector, PaDiMDetector):
        assert_allclose(parts.offset_, whole.offset_, rtol=1e-6)


@pytest.mark.parametrize(
    "detector", [PaDiMDetector(), SubspaceDetector(), PatchCoreDetector()]
)
def test_one_part_is_one_fit(detector):
    X, new = pieces(60), pieces(10, seed=1)
    whole = clone(detector).fit(X)
    part = fit_parts(detector, X, part_size=60)
    assert_array_equal(part.score_samples(new), whole.score_samples(new))
    assert part.offset_ == whole.offset_


def test_bank_covers_the_images_as_closely_as_its_parts_did():
    X = pieces(200)
    whole = PatchCoreDetector().fit(X)
    parts = fit_parts(PatchCoreDetector(), X, part_size=50)
    rows = X.reshape(-1, 8)
    radius = [_radius(rows, model.bank_) for model in (whole, parts)]
    assert len(parts.bank_) == len(whole.bank_)
    assert radius[1] <= 1.3 * radius[0]


def _radius(rows, bank):
    distances = np.linalg.norm(rows[:, None] - bank[None], axis=2)
    return distances.min(axis=1).max()


def test_fusion_is_fitted_in_parts(images):
    train, test = images
    features = FusedFeatures(
        PatchFeatures("skad_small", image_size=IMAGES),
        PatchFeatures("skad_small", embedding="concat", image_size=IMAGES),
    )
    detector = FusionDetector(PatchCoreDetector())
    model = fit_parts(make_pipeline(features, detector), train, part_size=20)
    assert model[-1].n_samples_seen_ == 48
    assert np.isfinite(model.score_samples(test)).all()


def test_threshold_of_parts_rejects_no_more_normal_images_than_promised():
    X, new = pieces(400), pieces(2000, seed=1)
    rates = {}
    for detector in (SubspaceDetector(n_components=3), PatchCoreDetector()):
        model = fit_parts(detector, X, part_size=50)
        assert len(model.calibration_scores_) == 400
        rates[type(detector).__name__] = np.mean(model.predict(new) == -1)
    assert rates["PatchCoreDetector"] <= 0.05
    assert rates["SubspaceDetector"] <= 0.08


def in_order_of_parts(X, part_size):
    return X[np.concatenate(Parts(X, None, part_size).positions)]


@pytest.mark.parametrize(
    ("given", "tolerance"),
    [
        ({}, 0.03),
        ({"bank_size": 100}, 0.05),  # whose rows cover less evenly after a reduction
        ({"top_ratio": 0.1}, 0.03),
        ({"n_neighbors": 3}, 0.03),
    ],
)
def test_images_are_held_out_from_the_bank_of_all_parts(given, tolerance):
    X = pieces(150)
    model = fit_parts(PatchCoreDetector(**given), X, part_size=30)
    exact = copy.deepcopy(model)
    scores, maps = exact._score_left_out(in_order_of_parts(X, 30))
    exact._replace_held_out(scores, maps)
    assert model.offset_ == pytest.approx(exact.offset_, rel=tolerance)
    assert_allclose(model.calibration_scores_, exact.calibration_scores_, rtol=0.5)
    untouched = np.isclose(model.calibration_scores_, exact.calibration_scores_)
    assert untouched.mean() > 0.5
    assert model.pixel_threshold() == pytest.approx(exact.pixel_threshold(), rel=0.05)


@pytest.mark.parametrize("part_size", [50, 200])
def test_parts_reject_as_many_normal_images_as_one_fit(part_size):
    X, new = pieces(400), pieces(2000, seed=1)
    whole = PatchCoreDetector().fit(X)
    parts = fit_parts(PatchCoreDetector(), X, part_size=part_size)
    rates = [np.mean(model.predict(new) == -1) for model in (whole, parts)]
    assert abs(rates[0] - rates[1]) <= 0.025
    assert abs(rates[1] - 0.05) <= 0.025


def test_other_calibrations_join_the_scores_of_the_parts():
    X = pieces(80)
    for way, n in (("kfold", 80), ("split", 16), ("train", 80)):
        model = fit_parts(PatchCoreDetector(calibration=way), X, part_size=20)
        assert len(model.calibration_scores_) == n


def test_files_pass_twice_where_the_bank_is_bounded(files):
    model = on_images(PatchCoreDetector(bank_size=40), batch_size=4)
    from_files = fit_parts(model, files, part_size=16)
    features = from_files[0].transform(files)
    from_features = fit_parts(PatchCoreDetector(bank_size=40), features, part_size=16)
    assert len(from_files[-1].bank_) == 40
    assert len(from_files[-1].calibration_scores_) == 48
    assert from_files[-1].offset_ == pytest.approx(from_features.offset_, rel=0.05)


def test_calibrate_gives_the_promise_back():
    model = fit_parts(PatchCoreDetector(), pieces(300), part_size=50)
    assert abs(np.mean(model.predict(pieces(2000, seed=1)) == -1) - 0.05) <= 0.03
    model = model.calibrate(pieces(400, seed=2))
    calibrated = np.mean(model.predict(pieces(2000, seed=1)) == -1)
    assert calibrated <= 0.08


def test_pipeline_has_the_transformers_of_its_first_part(images):
    train, test = images[0][:10], images[1][:2]
    features = PCANetFeatures(image_size=40, n_filters=(8, 12, 12))
    model = make_pipeline(features, SubspaceDetector())
    parts = fit_parts(model, train, part_size=5)
    filters = clone(features).fit(Parts(train, None, 5)[0]).filters_
    for own, expected in zip(parts[0].filters_, filters, strict=True):
        assert_array_equal(own, expected)
    assert parts.predict(test).shape == (len(test),)
    with pytest.raises(NotFittedError):
        check_is_fitted(model[0])


def test_frozen_transformers_stay(images):
    train, _ = images
    features = PatchFeatures("skad_small", image_size=IMAGES).fit(train[:10])
    model = make_pipeline(FrozenEstimator(features), SubspaceDetector())
    parts = fit_parts(model, train, part_size=20)
    assert parts[0].estimator is features


def test_pipeline_of_sklearn_and_steps_around_the_features(images):
    train, test = images
    model = sklearn.pipeline.make_pipeline(
        "passthrough",
        PatchFeatures("skad_small", image_size=IMAGES),
        FunctionTransformer(np.abs),
        SubspaceDetector(),
    )
    parts = fit_parts(model, train, part_size=20)
    assert type(parts) is sklearn.pipeline.Pipeline
    assert parts.predict(test).shape == (len(test),)


def test_anomalous_images_belong_to_no_part():
    X, y = pieces(100), np.ones(100, int)
    y[20:40] = -1  # with parts of neighbours, one would be empty
    X[20:40] = 1000
    parts = fit_parts(SubspaceDetector(), X, y, part_size=20)
    assert parts.n_samples_seen_ == 80
    whole = SubspaceDetector().fit(X[y == 1])
    new = pieces(10, seed=1)
    assert_allclose(parts.score_samples(new), whole.score_samples(new), rtol=1e-6)


@pytest.mark.parametrize("container", [list, tuple, np.array, "series"])
def test_containers_of_paths(files, container):
    names = list(map(str, files))
    if container == "series":
        names = pytest.importorskip("pandas").Series(names, index=range(5, 53))
        container = lambda names: names  # noqa: E731
    model = fit_parts(on_images(SubspaceDetector()), container(names), part_size=20)
    assert model[-1].n_samples_seen_ == 48


def test_relative_paths_are_sent_as_absolute_ones(files, monkeypatch):
    monkeypatch.chdir(files[0].parent)
    parts = Parts([Path("000.png"), "001.png"], None, 10)
    assert parts[0] == [str(files[0]), str(files[1])]


def test_parameters_and_model_stay_as_they_are():
    detector = PatchCoreDetector(verbose=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = fit_parts(detector, pieces(40), part_size=10)
    assert not hasattr(detector, "bank_")
    assert fitted.get_params() == detector.get_params()


def test_progress_shows_the_parts(capsys):
    fit_parts(SubspaceDetector(verbose=True), pieces(40), part_size=10)
    assert "4/4" in capsys.readouterr().err
    fit_parts(SubspaceDetector(), pieces(40), part_size=10)
    assert capsys.readouterr().err == ""


# -- order ---------------------------------------------------------------------


@pytest.mark.parametrize("n_parts", [1, 2, 5, 8, 11])
def test_merges_do_not_depend_on_the_order_of_arrival(n_parts):
    class Merged(list):
        def merge(self, other):
            return Merged([self, other])

    roots = set()
    for seed in range(10):
        tree = MergeTree(n_parts)
        for number in np.random.default_rng(seed).permutation(n_parts):
            tree.add(int(number), Merged([int(number)]))
        roots.add(repr(tree.root))
    (root,) = roots
    places = [root.index(f"[{number}]") for number in range(n_parts)]
    assert places == sorted(places)


def test_few_detectors_wait_where_parts_arrive_in_order():
    class Sum(int):
        def merge(self, other):
            return Sum(self + other)

    tree = MergeTree(1000)
    for number in range(1000):
        tree.add(number, Sum(1))
        assert tree.n_waiting <= 10
    assert tree.root == 1000


@pytest.mark.parametrize("backend", ["threading", "sequential"])
def test_backends_of_joblib_give_the_same_bits(backend):
    X = pieces(90)
    alone = fit_parts(PatchCoreDetector(), X, part_size=20)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        together = fit_parts(PatchCoreDetector(), X, part_size=20)
    assert_array_equal(together.bank_, alone.bank_)
    assert together.offset_ == alone.offset_


def test_backend_that_gives_results_all_together(monkeypatch):
    """As ray's and Spark's: some parts at a time, so that few are in memory."""

    class Listing(joblib.Parallel):
        n_calls = 0

        def __init__(self, n_jobs, **arguments):
            if "return_as" in arguments:
                raise ValueError("does not support return_as")
            super().__init__(n_jobs, **arguments)

        def __call__(self, tasks):
            Listing.n_calls += 1
            return super().__call__(tasks)

    X = pieces(90)
    alone = fit_parts(PatchCoreDetector(), X, part_size=20)
    monkeypatch.setattr(_fit_parts, "Parallel", Listing)
    monkeypatch.setattr(_fit_parts, "_PARTS_PER_WORKER", 2)
    listed = fit_parts(PatchCoreDetector(), X, part_size=20)
    assert Listing.n_calls == 6  # rounds of 2, 2 and 1 parts, in two passes
    assert_array_equal(listed.bank_, alone.bank_)


# -- checkpoints ---------------------------------------------------------------

FIT_AND_DIE = """
import os, signal, sys
import joblib
from skad.parallel import fit_parts
from skad.parallel._checkpoint import Checkpoint
save, saved = Checkpoint.save, []
def deadly(self, key, value):
    save(self, key, value)
    saved.append(key)
    if len(saved) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoint.save = deadly
model, X, folder = joblib.load(sys.argv[1])
fit_parts(model, X, part_size=10, checkpoint_dir=folder)
"""


def test_killed_job_goes_on(files, tmp_path, new_process, n_fitted, one_torch_thread):
    model, folder = on_images(PatchCoreDetector()), tmp_path / "done"
    whole = fit_parts(model, files, part_size=10)
    n_fitted.clear()
    joblib.dump((model, files, folder), tmp_path / "task.joblib")
    new_process(tmp_path / "task.joblib", code=FIT_AND_DIE, dies_by=signal.SIGKILL)
    assert len(list(folder.iterdir())) == 4  # the transformers and three parts
    resumed = fit_parts(model, files, part_size=10, checkpoint_dir=folder)
    assert len(n_fitted) == 2
    assert list(folder.iterdir()) == []
    assert_array_equal(resumed[-1].bank_, whole[-1].bank_)
    assert resumed[-1].offset_ == whole[-1].offset_


def test_job_that_stops_in_the_second_pass_goes_on(
    files, tmp_path, n_fitted, monkeypatch, one_torch_thread
):
    model, folder = on_images(PatchCoreDetector()), tmp_path / "done"
    whole = fit_parts(model, files, part_size=10)
    save, held_out = _fit_parts.Checkpoint.save, []

    def stopping(self, key, value):
        save(self, key, value)
        if len(list(folder.iterdir())) == 8:  # transformers, five parts, two passes
            raise KeyboardInterrupt

    def counted(*arguments):
        held_out.append(arguments[2])
        return hold_out_part(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_fit_parts.Checkpoint, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit_parts(model, files, part_size=10, checkpoint_dir=folder)
    n_fitted.clear()
    monkeypatch.setattr(_fit_parts, "hold_out_part", counted)
    resumed = fit_parts(model, files, part_size=10, checkpoint_dir=folder)
    assert n_fitted == []
    assert held_out == [2, 3, 4]
    assert list(folder.iterdir()) == []
    assert resumed[-1].offset_ == whole[-1].offset_
    assert_array_equal(resumed[-1].calibration_maps_, whole[-1].calibration_maps_)


@pytest.fixture
def stopped_job(files, tmp_path, monkeypatch):
    """A folder with all parts of a job, which a file of its own shares."""
    folder = tmp_path / "done"
    with monkeypatch.context() as patch:
        patch.setattr(_fit_parts.Checkpoint, "remove_used", lambda self: None)
        fit_parts(
            on_images(SubspaceDetector()), files, part_size=10, checkpoint_dir=folder
        )
    (folder / "notes.txt").write_text("mine")
    return folder


def again(files, folder, n_fitted, model=None, part_size=10):
    """How many parts another call fits."""
    n_fitted.clear()
    model = on_images(SubspaceDetector()) if model is None else model
    fit_parts(model, files, part_size=part_size, checkpoint_dir=folder)
    return len(n_fitted)


def test_parts_of_the_same_job_are_taken(files, stopped_job, n_fitted):
    assert again(files, stopped_job, n_fitted) == 0
    assert [path.name for path in stopped_job.iterdir()] == ["notes.txt"]


def test_another_job_takes_nothing_and_removes_nothing(files, stopped_job, n_fitted):
    n_files = len(list(stopped_job.iterdir()))
    other = on_images(SubspaceDetector(n_components=3))
    assert again(files, stopped_job, n_fitted, other) == 5
    assert again(files, stopped_job, n_fitted, part_size=12) == 4
    assert len(list(stopped_job.iterdir())) == n_files


def test_parameters_without_effect_do_not_matter(files, stopped_job, n_fitted):
    model = on_images(SubspaceDetector(verbose=True), n_jobs=2)
    assert again(files, stopped_job, n_fitted, model) == 0


def test_changed_file_is_read_again(files, stopped_job, n_fitted):
    first = Parts(files, None, 10).positions[0]
    other = next(i for i in range(48) if i not in first)
    Image.new("RGB", (IMAGES, IMAGES), "red").save(files[other])
    assert again(files, stopped_job, n_fitted) == 1


def test_another_version_of_skad_starts_anew(files, stopped_job, n_fitted, monkeypatch):
    monkeypatch.setattr(skad, "__version__", "99")
    assert again(files, stopped_job, n_fitted) == 5


def test_damaged_checkpoint_is_made_again(files, stopped_job, n_fitted):
    saved = sorted(stopped_job.glob("part-*"), key=lambda path: path.stat().st_size)
    saved[0].write_bytes(saved[0].read_bytes()[:100])
    saved[1].write_bytes(saved[2].read_bytes())
    with pytest.warns(UserWarning, match=r"checkpoint .* cannot be used"):
        again(files, stopped_job, n_fitted)
    assert len(n_fitted) in (2, 5)  # 5, if one of them holds the transformers


def test_parts_that_can_be_fitted_are_saved_before_the_error(files, tmp_path, n_fitted):
    bad = files[17]
    content = bad.read_bytes()
    bad.write_bytes(b"no image")
    folder = tmp_path / "done"
    model = on_images(SubspaceDetector())
    with pytest.raises(ImageError, match=r"(?s)X\[17\].*other parts are in"):
        fit_parts(model, files, part_size=10, checkpoint_dir=folder)
    bad.write_bytes(content)
    assert again(files, folder, n_fitted, model) == 1


def test_checkpoint_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"checkpoint_dir=.*not a folder"):
        fit_parts(SubspaceDetector(), pieces(9), checkpoint_dir=tmp_path / "file")


# -- errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (SPADEDetector(), "SPADEDetector: it has no merge"),
        (make_pipeline(PCANetFeatures(), SPADEDetector()), "it has no merge"),
        (skad.EfficientADDetector(), "it has no merge"),
        (FrozenEstimator(SubspaceDetector()), "learns nothing"),
        (
            GridSearchCV(SubspaceDetector(), {"n_components": [2, 3]}),
            "search for parameters first",
        ),
        (
            make_pipeline(make_pipeline(PCANetFeatures(), SubspaceDetector())),
            "outer pipeline",
        ),
    ],
)
def test_models_that_do_not_merge(model, reason):
    with pytest.raises(TypeError, match=reason):
        fit_parts(model, pieces(9))


@pytest.mark.parametrize("part_size", [0, 1, 2.5, "all"])
def test_part_size_out_of_range(part_size):
    with pytest.raises(ValueError, match="part_size"):
        fit_parts(SubspaceDetector(), pieces(9), part_size=part_size)


def test_part_of_one_image():
    with pytest.raises(ValueError, match="one of them has a single image"):
        fit_parts(SubspaceDetector(), pieces(9), part_size=2)


@pytest.mark.parametrize(
    ("X", "error", "reason"),
    [
        ([], ValueError, "X is empty"),
        (np.empty((0, 4, 4, 6)), ValueError, "X is empty"),
        ("a.png", TypeError, "a single path"),
        ((x for x in "ab"), TypeError, "generator"),
    ],
)
def test_X_that_cannot_be_split(X, error, reason):
    with pytest.raises(error, match=reason):
        fit_parts(SubspaceDetector(), X)


def test_labels_that_leave_nothing():
    with pytest.raises(ValueError, match=r"every label is -1"):
        fit_parts(SubspaceDetector(), pieces(9), np.full(9, -1))
    with pytest.raises(ValueError, match="inconsistent"):
        fit_parts(SubspaceDetector(), pieces(9), np.ones(8))


def test_bad_parameter_is_named():
    with pytest.raises(ValueError, match="n_components"):
        fit_parts(SubspaceDetector(n_components=-1), pieces(40), part_size=10)


def test_bad_file_is_named_by_its_place(files):
    files[29].write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"X\[29\] .*029\.png") as caught:
        fit_parts(on_images(SubspaceDetector()), files, part_size=10)
    assert caught.value.where == "X[29]"
    assert caught.value.path == str(files[29])


def test_skipped_files_are_named_by_their_places(files):
    for i in (7, 29):
        files[i].write_bytes(b"no image")
    model = on_images(SubspaceDetector(), on_error="skip")
    with pytest.warns(SkippedImageWarning) as caught:
        model = fit_parts(model, files, part_size=10)
    text = " ".join(str(one.message) for one in caught)
    assert "X[7]" in text
    assert "X[29]" in text
    assert model[-1].n_samples_seen_ == 46


def test_part_without_readable_image(files):
    for i in Parts(files, None, 10).positions[2]:
        files[i].write_bytes(b"no image")
    model = on_images(SubspaceDetector(), on_error="skip")
    bad = Parts(files, None, 10).positions[2][0]
    reason = rf"(?s)no normal image is left.* X\[{bad}\] .*{files[bad].name}.*part_size"
    with pytest.raises(ValueError, match=reason):
        fit_parts(model, files, part_size=10)


def test_part_with_one_readable_image(files):
    for i in Parts(files, None, 10).positions[2][1:]:
        files[i].write_bytes(b"no image")
    model = on_images(SubspaceDetector(), on_error="skip")
    with pytest.raises(
        ValueError, match=r"(?s)only one of the .*X\[.*\.png.*part_size"
    ):
        fit_parts(model, files, part_size=10)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_worker_without_the_files(files, on_error, monkeypatch, tmp_path):
    folder = files[0].parent

    def elsewhere(model, X, number, version):
        hidden = folder.rename(tmp_path / "hidden")
        outcome = fit_part(model, X, number, version)
        hidden.rename(folder)
        return outcome

    monkeypatch.setattr(_fit_parts, "fit_part", elsewhere)
    model = on_images(SubspaceDetector(), on_error=on_error)
    with pytest.raises(ImageError, match="give all machines the same files") as caught:
        fit_parts(model, files, part_size=30)
    assert caught.value.path in map(str, files)


def test_worker_without_some_of_the_files(files, monkeypatch, tmp_path):
    """With on_error="skip" these would be missing without a word."""
    lost = files[29]

    def elsewhere(model, X, number, version):
        hidden = lost.rename(tmp_path / "hidden")
        outcome = fit_part(model, X, number, version)
        hidden.rename(lost)
        return outcome

    monkeypatch.setattr(_fit_parts, "fit_part", elsewhere)
    model = on_images(SubspaceDetector(), on_error="skip")
    with pytest.raises(ImageError, match=r"cannot read 1 of the .*029\.png"):
        fit_parts(model, files, part_size=30)


def test_file_that_is_nowhere(files):
    files[29].unlink()
    with pytest.raises(ImageError, match=r"X\[29\] .*there is no such file"):
        fit_parts(on_images(SubspaceDetector()), files, part_size=30)


@pytest.mark.parametrize(
    ("on_error", "error", "reason"),
    [
        ("raise", ImageError, r"X\[29\] .*there is no such file"),
        ("skip", ValueError, "10 images .* the first time, and 9 the second time"),
    ],
)
def test_file_that_is_gone_at_the_second_time(
    files, on_error, error, reason, monkeypatch, tmp_path
):
    def losing(*arguments):
        files[29].unlink(missing_ok=True)
        return hold_out_part(*arguments)

    model = on_images(PatchCoreDetector(), on_error=on_error)
    folder = tmp_path / "done"
    content = files[29].read_bytes(), files[29].stat().st_mtime_ns
    monkeypatch.setattr(_fit_parts, "hold_out_part", losing)
    with pytest.raises(error, match=reason):
        fit_parts(model, files[:40], part_size=10, checkpoint_dir=folder)
    files[29].write_bytes(content[0])
    os.utime(files[29], ns=(content[1], content[1]))
    monkeypatch.setattr(_fit_parts, "hold_out_part", hold_out_part)
    fit_parts(model, files[:40], part_size=10, checkpoint_dir=folder)
    assert list(folder.iterdir()) == []  # all of it was of use


@pytest.mark.parametrize("model", [PatchCoreDetector(bank_size=3, n_neighbors=3)])
def test_bank_that_is_smaller_than_the_neighbours(model):
    with pytest.raises(ValueError, match=r"bank_size=3 is too small for n_neighbors=3"):
        fit_parts(model, pieces(40), part_size=10)


def test_worker_with_another_version():
    for outcome in (
        fit_part(SubspaceDetector(), pieces(9), 0, "0.0.1"),
        hold_out_part(PatchCoreDetector(), pieces(9), 0, "0.0.1", 0, 9, 9),
    ):
        assert "has skad" in str(outcome.error)
    assert "0.0.1" in str(outcome.error)
    assert pickle.loads(pickle.dumps(outcome)).fitted is None


def test_worker_with_other_weights(images):
    features = PatchFeatures("skad_small", image_size=IMAGES).fit(images[0])
    features.weights_sha256_ = 64 * "0"
    model = make_pipeline(FrozenEstimator(features), SubspaceDetector())
    with pytest.raises(ValueError, match="has other weights"):
        fit_parts(model, images[0], part_size=20)


def test_error_that_does_not_pickle(images):
    class Odd(Exception):
        def __reduce__(self):
            raise TypeError

    class Failing(TransformerMixin, BaseEstimator):
        def fit(self, X, y=None):
            return self

        def transform(self, X):
            raise Odd("at part")

        def __sklearn_is_fitted__(self):
            return True

    model = make_pipeline(FrozenEstimator(Failing()), SubspaceDetector())
    with pytest.raises(RuntimeError, match="Odd: at part") as caught:
        fit_parts(model, images[0], part_size=20)
    assert "in transform" in str(caught.value.__cause__)


def test_dead_workers_are_replaced(monkeypatch):
    """As loky reports a worker that was killed; dask starts its tasks elsewhere."""
    from concurrent.futures.process import BrokenProcessPool

    run, deaths = _fit_parts._Job._run, []

    def dying(self, template, numbers):
        for outcome in run(self, template, numbers):
            yield outcome
            if len(deaths) < 2:
                deaths.append(outcome.number)
                raise BrokenProcessPool("killed")

    X = pieces(60)
    whole = fit_parts(PatchCoreDetector(), X, part_size=10)
    monkeypatch.setattr(_fit_parts._Job, "_run", dying)
    with pytest.warns(UserWarning, match="a worker died; the 5 parts"):
        again = fit_parts(PatchCoreDetector(), X, part_size=10)
    assert_array_equal(again.bank_, whole.bank_)

    def dead(self, template, numbers):
        raise BrokenProcessPool("killed")
        yield

    monkeypatch.setattr(_fit_parts._Job, "_run", dead)
    with (
        pytest.warns(UserWarning, match="a worker died"),
        pytest.raises(RuntimeError, match="died 3 times in a row"),
    ):
        fit_parts(PatchCoreDetector(), X, part_size=10)


# -- warnings ------------------------------------------------------------------


def test_warnings_about_a_part_only_are_not_repeated():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # 15 images cannot certify a rate of 5 %, 60 images can.
        fit_parts(SubspaceDetector(), pieces(60), part_size=15)


def test_warning_about_an_image_names_its_place():
    X = pieces(100)
    X[43] += 50
    with pytest.warns(UserWarning, match=r"X\[43\] scores far"):
        fit_parts(PatchCoreDetector(), X, part_size=50)


def test_warning_about_the_whole_is_given():
    with pytest.warns(UserWarning, match="20 held-out images cannot certify"):
        fit_parts(SubspaceDetector(contamination=0.01), pieces(20), part_size=10)
