"""The page of write_report in a browser: slider, keys, filters, downloads."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

import skad
from skad.datasets import make_textures
from skad.report import write_report

pytest.importorskip("jinja2")

# File names that are markup, a formula, and the end of a script.
HOSTILE = ("<img src=x onerror=alert(1)>.png", "=1+1.png", "</script><b>.png")

LAYERS = {"i": "image", "h": "heat", "m": "mask", "b": "boxes", "t": "truth"}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A page of 150 images, one of which is no image, and what inspect says of them."""
    data = make_textures(40, 15, n_test_normal=57, size=64, random_state=1)
    features = skad.PatchFeatures("skad_small", image_size=64)
    model = skad.make_pipeline(features, skad.PatchCoreDetector(coreset_ratio=0.05))
    model.fit(data.train)
    folder = tmp_path_factory.mktemp("images")
    order = np.random.default_rng(0).permutation(len(data.test))
    paths = []
    for i in order:
        name = HOSTILE[len(paths)] if len(paths) < len(HOSTILE) else f"{i}.png"
        name = name.replace("/", "_")
        Image.fromarray(data.test[i]).save(folder / name)
        paths.append(str(folder / name))
    X = [*paths, *paths, "lost.png"]
    y = np.concatenate([data.y_test[order], data.y_test[order], [1]])
    kinds = [data.defect_types[i] for i in order] * 2 + ["good"]
    masks = [*data.masks[order], *data.masks[order], None]
    page = folder / "page.html"
    write_report(page, model, X, y, masks, kinds=kinds, title="<i>Fabric</i>")
    found = list(skad.inspect(model, X))
    return page, model, y, np.array(kinds), found


@pytest.fixture
def shown(browser, case):
    browser.problems.clear()
    browser.open(case[0])
    yield browser
    assert browser.problems == []


def counts(browser):
    """The counts of the summary, as two numbers or one, by their names."""
    rows = browser.run(
        "[...document.querySelectorAll('#counts dt')].map(dt =>"
        " [dt.textContent, dt.nextSibling.textContent])"
    )
    return {name: [int(w) for w in text.split() if w.isdigit()] for name, text in rows}


def expected(case, threshold):
    """The same, counted here."""
    _, model, y, _, found = case
    scores = np.array([one.score for one in found])
    held_out = model[-1].calibration_scores_
    rejected, scored = scores < threshold, ~np.isnan(scores)
    bad, good = scored & (y == -1), scored & (y == 1)
    return {
        "Rejected": [rejected.sum(), scored.sum()],
        "False alarms, held-out": [(held_out < threshold).sum(), len(held_out)],
        "Defects found": [(rejected & bad).sum(), bad.sum()],
        "False alarms, inspected": [(rejected & good).sum(), good.sum()],
        "Without a score": [1],
    }


def names_shown(browser):
    return browser.run(
        "[...document.querySelectorAll('#cards [title]')].map(e => e.title)"
    )


def choose(browser, selector, value):
    browser.run(
        f"(() => {{ const e = document.querySelector('{selector}');"
        f"e.value = {json.dumps(value)};"
        "e.dispatchEvent(new Event('change', {bubbles: true}));"
        "e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def n_shown(browser):
    return int(browser.run("document.querySelector('#status').textContent").split()[0])


def test_slider_recounts(shown, case):
    offset = case[1][-1].offset_
    assert counts(shown) == expected(case, offset)
    shown.run("document.querySelector('#threshold').focus()")
    seen = [counts(shown)]
    for key in ("PageUp", "PageDown"):
        shown.press(key, key)
        threshold = shown.run("state.threshold")
        assert threshold != offset
        assert counts(shown) == expected(case, threshold)
        seen.append(counts(shown))
    assert seen[1] != seen[0]
    shown.press("r")
    assert shown.run("state.threshold") == offset
    assert counts(shown) == seen[0]


def test_gallery_is_sorted_and_grows(shown, case):
    found = case[4]
    order = np.argsort([one.score for one in found], kind="stable")
    names = names_shown(shown)
    assert len(names) < len(found)
    assert names == [str(found[i].source) for i in order[: len(names)]]
    shown.wait(
        "(document.querySelector('#more-cards').scrollIntoView(),"
        f"document.querySelectorAll('.card').length === {len(found)})"
    )
    assert "no such file" in shown.run("document.querySelector('#cards').textContent")
    labels = shown.run(
        "[...document.querySelectorAll('.card')].map(e => e.getAttribute('aria-label'))"
    )
    rejected = sum(one.label == -1 for one in found)
    assert sum(": rejected" in label for label in labels) == rejected


def test_keys_toggle_layers(shown):
    for key, layer in LAYERS.items():
        layers = f"[...document.querySelectorAll('#cards .{layer}')]"
        visible = f"{layers}.some(e => getComputedStyle(e).display !== 'none')"
        pressed = f"document.querySelector('[data-layer={layer}]').ariaPressed"
        for _ in range(2):
            before = shown.run(visible)
            assert shown.run(pressed) == str(before).lower()
            shown.press(key)
            assert shown.run(visible) != before


def test_layers_lie_on_each_other(shown):
    shown.press("m", "t")
    sizes = shown.run(
        "[...document.querySelectorAll('#cards .frame')].slice(0, 4).map(frame =>"
        " [...frame.children].map(e => e.getBoundingClientRect()).map(b =>"
        " [b.x, b.y, b.width, b.height]))"
    )
    for boxes in sizes:
        assert len(boxes) >= 3
        np.testing.assert_allclose(boxes, [boxes[0]] * len(boxes), atol=0.1)


def test_viewer_by_keyboard(shown):
    names = names_shown(shown)
    name = "document.querySelector('#viewer-name').lastChild.textContent"
    is_open = "document.querySelector('#viewer').open"
    shown.run("document.querySelector('.card').focus()")
    shown.press("ArrowRight", "Enter")
    assert shown.run(is_open)
    assert shown.run(name) == names[1]
    shown.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert shown.run(name) == names[2]
    shown.press("Escape")
    assert not shown.run(is_open)


def test_filters(shown, case):
    _, _, y, kinds, found = case
    labels = np.array([one.label for one in found])
    choices = {
        "rejected": labels == -1,
        "accepted": labels == 1,
        "found": (labels == -1) & (y == -1),
        "missed": (labels == 1) & (y == -1),
        "alarms": (labels == -1) & (y == 1),
        "unread": labels == 0,
        "all": labels < 2,
    }
    for value, those in choices.items():
        choose(shown, "#by-result", value)
        assert n_shown(shown) == those.sum()
    choose(shown, "#by-kind", "=tear")
    assert n_shown(shown) == np.sum(kinds == "tear")
    choose(shown, "#by-name", "no such name")
    assert n_shown(shown) == 0


def test_downloads(shown, case):
    found = case[4]
    shown.run("document.querySelector('#defects-heading').focus()")
    shown.press("Enter", "Tab", "Tab", "Enter")
    text = shown.downloaded("images.csv").decode("utf-8-sig")
    rows = {row["path"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
    assert text.count("\r\n") == len(found) + 1
    for one in found[: len(found) // 2]:
        row = rows[str(one.source)]
        assert int(row["label"]) == one.label
        assert float(row["score"]) == one.score
        assert float(row["p_value"]) == one.p_value
    assert "no such file" in rows["lost.png"]["error"]

    shown.run("document.querySelector('#defects-csv').focus()")
    shown.press("Enter")
    text = shown.downloaded("defects.csv").decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    order = np.argsort([one.score for one in found], kind="stable")
    rejected = [found[i] for i in order if found[i].label == -1]
    those = [(str(one.source), d) for one in rejected for d in one.defects]
    assert len(rows) == len(those)
    for row, (name, defect) in zip(rows, those, strict=True):
        assert row["path"] == name
        assert int(row["area"]) == defect.area
        box = tuple(int(row[side]) for side in ("top", "left", "bottom", "right"))
        assert box == defect.bbox


def test_formulas_are_text(shown):
    text = shown.run("csv([['=1+1', '-x', 'a,\"b\"', 'c', -1.5, undefined]])")
    assert text == '\'=1+1,\'-x,"a,""b""",c,-1.5,\r\n'


def test_names_are_no_markup(shown):
    assert shown.run("document.querySelector('h1').textContent") == "<i>Fabric</i>"
    assert shown.run("document.querySelectorAll('h1 i, #cards b').length") == 0
    assert shown.run("document.querySelectorAll('img[src=x]').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(browser, case, width, scheme):
    browser.open(case[0], size=(width, 900), scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    ground, ink = (
        np.mean([int(v) for v in text[4:-1].split(",")])
        for text in browser.run(
            "(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))"
        )
    )
    assert (ground < ink) == (scheme == "dark")
    browser.click(".card")
    assert browser.run("document.querySelector('#viewer').offsetWidth") <= width


def test_every_control_has_a_name_and_is_reached_by_tab(shown):
    shown.run("document.querySelectorAll('details').forEach(e => e.open = true)")
    unnamed = shown.run(
        "[...document.querySelectorAll('button, input, select')].filter(e =>"
        " !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map(e => e.id)"
    )
    assert unnamed == []
    reached = set()
    for _ in range(14):
        shown.press("Tab")
        reached.add(shown.run("document.activeElement.id"))
    assert {"threshold", "reset", "by-result", "by-kind", "by-name"} <= reached


def test_a_page_of_a_model_without_labels(browser, case, tmp_path):
    page = tmp_path / "bare.html"
    X = np.random.default_rng(0).normal(size=(30, 5, 6, 8))
    write_report(page, skad.PatchCoreDetector().fit(X[:25]), X[25:])
    browser.problems.clear()
    browser.open(page)
    assert browser.problems == []
    assert n_shown(browser) == 5
    assert set(counts(browser)) == {"Rejected", "False alarms, held-out"}
    assert browser.run("document.querySelector('#kind-label').hidden")
    assert browser.run("document.querySelector('[data-layer=truth]') === null")
