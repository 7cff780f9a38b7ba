"""The page of write_report: what is in the file."""

import base64
import io
import json
import re

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import FunctionTransformer

import skad
from skad.datasets import make_textures
from skad.report import write_report

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=24, n_anomalous=4, size=64, random_state=0)


@pytest.fixture(scope="module")
def model(data):
    features = skad.PatchFeatures("skad_small", image_size=64)
    return skad.make_pipeline(features, skad.PatchCoreDetector()).fit(data.train)


def parsed(path):
    """Data, pictures by position, and the text of a page."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(
        r'<script type="application/json" id="([\w-]+)">(.*?)</script>', text, re.DOTALL
    )
    found = {name: json.loads(content) for name, content in blocks}
    page = found.pop("data")
    pictures = {int(name.split("-")[1]): urls for name, urls in found.items()}
    return page, pictures, text


def size_of(url):
    """Height and width of a picture in a data URL."""
    file = base64.b64decode(url.partition(",")[2])
    return Image.open(io.BytesIO(file)).size[::-1]


def test_numbers_are_those_of_inspect(tmp_path, data, model):
    path = tmp_path / "page.html"
    write_report(
        path, model, data.test, data.y_test, data.masks, kinds=data.defect_types
    )
    page, pictures, text = parsed(path)
    found = list(skad.inspect(model, data.test))
    assert [one["score"] for one in page["images"]] == [one.score for one in found]
    assert [one["p"] for one in page["images"]] == [one.p_value for one in found]
    assert [one["truth"] for one in page["images"]] == data.y_test.tolist()
    assert [one["kind"] for one in page["images"]] == data.defect_types
    for one, record in zip(found, page["images"], strict=True):
        assert record["n_defects"] == len(one.defects)
        shown = [[d.area, *d.bbox] for d in one.defects]
        assert [defect[:5] for defect in record["defects"]] == shown
    assert page["threshold"] == model[-1].offset_
    assert page["heldOut"] == model[-1].calibration_scores_.tolist()
    assert sorted(pictures) == list(range(len(data.test)))
    assert all(("truth" in pictures[i]) == data.masks[i].any() for i in pictures)
    for words in (model[0].weights_sha256_, "bsd-3-clause", skad.__version__):
        assert words in text


def test_the_page_asks_no_network(tmp_path, data, model):
    path = tmp_path / "page.html"
    write_report(path, model, data.test[:2])
    text = path.read_text(encoding="utf-8")
    namespace = "http://www.w3.org/2000/svg"
    assert not re.findall(r"https?://", text.replace(namespace, ""))
    assert "default-src 'none'" in text


def test_names_are_no_markup(tmp_path, data, model):
    name = "</script><script>alert(1)</script>&\"'\u2028=1.png"
    path = tmp_path / "page.html"
    hostile = f"<b>{name}</b>"
    write_report(
        path,
        model,
        [name, data.test[0]],
        kinds=[hostile, "good"],
        title=hostile,
    )
    page, _, text = parsed(path)
    assert page["images"][0]["name"] == name
    assert page["images"][0]["kind"] == hostile
    assert "no such file" in page["images"][0]["error"]
    assert "<script>alert" not in text
    assert "<b>" not in text


def test_an_undecodable_name(tmp_path, data, model):
    path = tmp_path / "page.html"
    write_report(path, model, ["\udcff.png", data.test[0]])
    assert parsed(path)[0]["images"][0]["name"] == "\udcff.png"


def test_few_pictures_are_those_of_the_most_suspicious(tmp_path, data, model):
    path = tmp_path / "page.html"
    for n in (0, 3):
        write_report(path, model, [*data.test, "lost.png"], n_pictures=n)
        page, pictures, _ = parsed(path)
        scores = model.score_samples(data.test)
        assert sorted(pictures) == sorted(np.argsort(scores)[:n])
        assert len(page["images"]) == len(data.test) + 1


def test_pictures_are_bounded_whatever_the_image(tmp_path, model):
    noise = np.random.default_rng(0).integers(0, 256, (2, 700, 500, 3), dtype=np.uint8)
    path = tmp_path / "page.html"
    masks = noise[..., 0] > 127
    write_report(path, model, noise, masks=masks)
    _, pictures, _ = parsed(path)
    assert len(json.dumps(pictures)) < 25_000 * len(noise)
    for urls in pictures.values():
        height, width = size_of(urls["image"])
        assert height / width == pytest.approx(700 / 500, rel=0.02)


def test_a_defect_of_one_pixel_stays_in_the_mask(tmp_path, model):
    image = np.full((1500, 900, 3), 128, np.uint8)
    mask = np.zeros(image.shape[:2], bool)
    mask[701, 333] = True
    path = tmp_path / "page.html"
    write_report(path, model, [image], masks=[mask])
    assert "truth" in parsed(path)[1][0]
    url = parsed(path)[1][0]["truth"].partition(",")[2]
    small = np.asarray(Image.open(io.BytesIO(base64.b64decode(url))).convert("RGBA"))
    (place,) = np.argwhere(small[..., 3] > 0)
    np.testing.assert_allclose(
        (place + 0.5) / small.shape[:2], [701.5 / 1500, 333.5 / 900], atol=0.003
    )


def test_pictures_have_the_geometry_of_the_maps(tmp_path, data):
    crop = FunctionTransformer(lambda images: [image[16:, 32:] for image in images])
    features = skad.PatchFeatures("skad_small", image_size=64)
    model = skad.make_pipeline(crop, features, skad.PatchCoreDetector())
    path = tmp_path / "page.html"
    write_report(path, model.fit(data.train), data.test[:2])
    page, pictures, _ = parsed(path)
    assert page["images"][0]["size"] == [48, 32]
    assert size_of(pictures[0]["image"]) == (48, 32)


def test_patch_features_have_maps_only(tmp_path):
    X = np.random.default_rng(0).normal(size=(30, 5, 6, 8))
    detector = skad.PatchCoreDetector().fit(X[:25])
    path = tmp_path / "page.html"
    write_report(path, detector, X[25:])
    page, pictures, _ = parsed(path)
    assert page["images"][0]["size"] == [5, 6]
    assert "image" not in pictures[0]
    assert size_of(pictures[0]["heat"]) == (5, 6)


def test_a_model_without_held_out_scores_says_so(tmp_path, data, model):
    features = skad.PatchFeatures("skad_small", image_size=64)
    detector = skad.PatchCoreDetector(calibration="train")
    path = tmp_path / "page.html"
    trained = skad.make_pipeline(features, detector).fit(data.train)
    write_report(path, trained, data.test[:2])
    page, _, text = parsed(path)
    assert page["heldOut"] == []
    assert "None: the threshold rejects" in text


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"path": "folder.html"}, ValueError, "is a folder"),
        ({"path": "page.pdf"}, ValueError, r"page.pdf' must end in .html"),
        ({"path": "none/page.html"}, FileNotFoundError, "no folder"),
        ({"X": []}, ValueError, "X is empty"),
        ({"X": "a.png"}, TypeError, "X is of type str"),
        ({"X": iter([])}, TypeError, "no length"),
        ({"y": [1, -1, 1]}, ValueError, "y has 3 entries, but X has 4"),
        ({"y": [0, 1, 1, 0]}, ValueError, "to_outlier_labels"),
        ({"kinds": ["a"]}, ValueError, "kinds has 1 entries"),
        ({"masks": [None]}, ValueError, "masks has 1 entries"),
        (
            {"masks": [None, np.zeros((64, 65)), None, None]},
            ValueError,
            r"masks\[1\].*\(64, 65\)",
        ),
        ({"n_pictures": -1}, ValueError, "n_pictures=-1"),
        ({"n_pictures": 2.5}, TypeError, "n_pictures=2.5"),
        ({"model": skad.PatchCoreDetector()}, NotFittedError, "not fitted"),
    ],
)
def test_errors_leave_the_old_page(tmp_path, data, model, changed, error, message):
    (tmp_path / "folder.html").mkdir()
    arguments = {"path": "page.html", "model": model, "X": data.test[:4], **changed}
    arguments["path"] = tmp_path / arguments["path"]
    old = tmp_path / "page.html"
    old.write_text("old")
    with pytest.raises(error, match=message):
        write_report(**arguments)
    assert old.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.html", "page.html"]


def test_the_model_stays_as_it_is(tmp_path, data, model):
    before = joblib.hash(model)
    write_report(tmp_path / "page.html", model, data.test[:2])
    assert joblib.hash(model) == before


def test_the_file_has_the_rights_of_any_new_file(tmp_path, data, model):
    write_report(tmp_path / "page.html", model, data.test[:2])
    (tmp_path / "other").write_text("")
    rights = [(tmp_path / name).stat().st_mode for name in ("page.html", "other")]
    assert rights[0] == rights[1]
