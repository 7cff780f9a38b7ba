"""A file that is damaged, foreign or hostile is refused, and executes nothing."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

import skad

skops_io = pytest.importorskip("skops.io", reason='needs pip install "skad[line]"')


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(30, 3, 3, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(features, tmp_path_factory):
    """The bytes of a good file."""
    path = tmp_path_factory.mktemp("good") / "part.skad"
    skad.save(skad.PatchCoreDetector().fit(features), path)
    return path.read_bytes()


@pytest.fixture
def part(tmp_path):
    return tmp_path / "part.skad"


@pytest.fixture
def trap(tmp_path):
    """A file that appears if something is executed."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def refused(path, message):
    for read in (skad.load, skad.model_info):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


class Deadly:
    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return Path.touch, (self.trap,)


def test_files_of_other_kinds(part, trap):
    for content, message in (
        (pickle.dumps(Deadly(trap)), "perhaps one of pickle or joblib, which runs"),
        (b"", "it is empty"),
        (b"good parts, lamp 2\n", "it is no file of skad.save"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "it is no file of skad.save"),
        (b"PK\x03\x04" + bytes(100), "it is damaged, or only a part of a file"),
    ):
        part.write_bytes(content)
        refused(part, message)


def test_a_folder_and_nothing(tmp_path):
    refused(tmp_path, "it is a folder")
    for read in (skad.load, skad.model_info):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.skad"):
            read(tmp_path / "gone.skad")


def test_a_pickle_of_joblib(part, trap):
    import joblib

    for compress in (0, 3):
        joblib.dump(Deadly(trap), part, compress=compress)
        refused(part, "one of pickle or joblib")


def test_an_archive_of_something_else(part):
    with zipfile.ZipFile(part, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(0))
    refused(part, "it is an archive, but no file of skad.save")
    skops_io.dump(IsolationForest(), part)
    refused(part, "it is an archive, but no file of skad.save")


def test_every_part_of_a_file_is_refused(whole, part):
    for length in (*range(1, 400, 37), *range(400, len(whole), 997), len(whole) - 1):
        part.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"part\.skad' was not loaded"):
            skad.load(part)


def test_changed_bytes_are_refused_or_without_effect(whole, part, features):
    """Whichever bit of the file is turned, no other model is loaded."""
    part.write_bytes(whole)
    expected = skad.load(part).score_samples(features)
    rng = np.random.default_rng(0)
    n_refused = 0
    for place in rng.integers(0, len(whole), 150):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        part.write_bytes(changed)
        try:
            loaded = skad.load(part)
        except ValueError:
            n_refused += 1
        else:
            np.testing.assert_array_equal(loaded.score_samples(features), expected)
    assert n_refused > 120


# -- files that somebody has written with care -----------------------------------------


def node(loader, name, **content):
    module, _, cls = name.rpartition(".")
    return {"__class__": cls, "__module__": module, "__loader__": loader, **content}


def text(value):
    return node("JsonNode", "builtins.str", content=json.dumps(value), is_json=True)


def tuple_of(*items):
    return node("TupleNode", "builtins.tuple", content=list(items))


def dict_of(**items):
    types = [node("TypeNode", "builtins.str") for _ in items]
    return node(
        "DictNode",
        "builtins.dict",
        content=items,
        key_types=node("ListNode", "builtins.list", content=types),
    )


def with_schema(whole, change, more=()):
    """The bytes of a file after a change of its schema, with sums that are right."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as source,
        zipfile.ZipFile(target, "w") as copy,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name == "schema.json":
                schema = json.loads(content)
                content = json.dumps(change(schema) or schema)
            copy.writestr(name, content)
        for name, content in more:
            copy.writestr(name, content)
    return target.getvalue()


def with_attribute(whole, name, value, **more):
    def change(schema):
        schema["content"]["content"][name] = value
        types = schema["content"]["key_types"]["content"]
        types.append(node("TypeNode", "builtins.str"))

    return with_schema(whole, change, **more)


def attacks(trap):
    touch = f"open({str(trap)!r}, 'w')"
    call = {"content": tuple_of(text(touch))}
    itself = node("ObjectNode", "skad.features._network.PatchFeatures")
    return {
        "os.system": node("FunctionNode", "os.system"),
        "posix.system": node("TypeNode", "posix.system"),
        "eval": node("ConstructorFromReduceNode", "builtins.eval", **call),
        "exec as a list": node("ListNode", "builtins.exec", content=[text(touch)]),
        "eval as a dict": node(
            "DictNode",
            "builtins.dict",
            content={touch: text(1)},
            key_types=node(
                "ListNode",
                "builtins.list",
                content=[node("FunctionNode", "builtins.eval")],
            ),
        ),
        "a metric as a type of keys": node(
            "DictNode",
            "builtins.dict",
            content={touch: text(1)},
            key_types=node(
                "ListNode",
                "builtins.list",
                content=[node("FunctionNode", "skad.metrics._image.image_auroc")],
            ),
        ),
        "a trusted class that is called": node(
            "ConstructorFromReduceNode",
            "skad.features._network.PatchFeatures",
            **call,
        ),
        "partial": node(
            "PartialNode",
            "functools.partial",
            content={
                "func": node("FunctionNode", "builtins.eval"),
                "args": tuple_of(text(touch)),
                "kwds": dict_of(),
                "namespace": text(None),
            },
        ),
        "operator": node(
            "OperatorFuncNode",
            "operator.methodcaller",
            attrs=tuple_of(text("save"), text(str(trap))),
        ),
        "method": node(
            "MethodNode",
            "skad.features._network.PatchFeatures",
            content={"func": "fit", "obj": itself},
        ),
        "generator": node(
            "RandomGeneratorNode",
            "numpy.random._generator.Generator",
            content={
                "bit_generator": dict_of(bit_generator=text("seed")),
                "seed_seq": dict_of(),
            },
        ),
        "file on the disk": node(
            "NdArrayNode", "numpy.memmap", type="numpy", file="1.npy"
        ),
        "class of another package": node("ObjectNode", "subprocess.Popen"),
        "function of the package": node("FunctionNode", "skad.persistence._load.load"),
        "class of scikit-learn that calls": node(
            "ObjectNode", "sklearn.utils._bunch.Bunch"
        ),
        "dictionary as text": text({"checkpoint_path": str(trap)}),
        "weights from elsewhere": dict_of(checkpoint_path=text(str(trap))),
        "another source of weights": dict_of(pretrained_cfg=dict_of()),
        "unknown loader": node("NoNode", "builtins.dict"),
        "no loader": {"__loader__": ["TypeNode"]},
    }


@pytest.mark.parametrize("name", attacks(Path()))
def test_what_would_execute_is_refused(name, whole, part, trap):
    part.write_bytes(with_attribute(whole, "estimator_", attacks(trap)[name]))
    with pytest.raises(ValueError, match=r"part\.skad' was not loaded: ") as caught:
        skad.load(part)
    assert "estimator_" in str(caught.value) or "sklearn" in str(caught.value)


def test_the_good_file_of_these_tests_loads(whole, part, features):
    part.write_bytes(with_attribute(whole, "note_", dict_of(lamp=text(2))))
    loaded = skad.load(part)
    assert loaded.note_ == {"lamp": 2}
    assert np.isfinite(loaded.score_samples(features)).all()


def test_an_object_that_turns_into_another(whole, part, trap):
    """skops makes the objects of one number once: both must be the same."""
    first = node("FunctionNode", "skad.metrics._image.image_auroc", __id__=9**9)
    second = node("TypeNode", "builtins.str", __id__=9**9)
    part.write_bytes(with_attribute(whole, "a_", dict_of(a=first, b=second)))
    with pytest.raises(ValueError, match="of two types at once"):
        skad.load(part)


def test_an_array_of_objects_is_no_pickle(whole, part, trap):
    stream = io.BytesIO()
    np.save(stream, np.array([Deadly(trap)], object), allow_pickle=True)
    array = node("NdArrayNode", "numpy.ndarray", type="numpy", file="bad.npy")
    more = [("bad.npy", stream.getvalue())]
    part.write_bytes(with_attribute(whole, "a_", array, more=more))
    with pytest.raises(ValueError, match=r"part\.skad.*allow_pickle=False"):
        skad.load(part)


def test_an_array_that_claims_to_be_huge(whole, part):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }"
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    array = node("NdArrayNode", "numpy.ndarray", type="numpy", file="bad.npy")
    part.write_bytes(with_attribute(whole, "a_", array, more=[("bad.npy", start)]))
    with pytest.raises(ValueError, match=r"part\.skad' was not loaded"):
        skad.load(part)


def test_an_archive_that_grows(whole, part):
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("skad.json", b" " * 10_000_000)
        archive.writestr("schema.json", b"{}")
    refused(part, "compressed files")


def test_deep_and_damaged_schemas(whole, part):
    for schema, message in (
        (b"[" * 100_000 + b"]" * 100_000, "RecursionError"),
        (b"{", "JSONDecodeError"),
        (b"{}", "no estimator"),
        (json.dumps(dict_of(a=text(1))).encode(), "no estimator"),
    ):
        target = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(whole)) as source,
            zipfile.ZipFile(target, "w") as copy,
        ):
            copy.writestr("skad.json", source.read("skad.json"))
            copy.writestr("schema.json", schema)
        part.write_bytes(target.getvalue())
        with pytest.raises(ValueError, match=message) as caught:
            skad.load(part)
        assert str(part) in str(caught.value)


# -- trees -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forest(features, tmp_path_factory):
    path = tmp_path_factory.mktemp("forest") / "part.skad"
    estimator = IsolationForest(n_estimators=2, random_state=0)
    skad.save(skad.PatchwiseDetector(estimator).fit(features), path)
    return path.read_bytes()


def trees_of(schema):
    from skad.persistence._trusted import nodes

    return [one for one, _ in nodes(schema) if one["__loader__"] == "TreeNode"]


@pytest.mark.parametrize(
    "change",
    ["left_child far", "right_child itself", "feature far", "features"],
)
def test_damaged_trees_are_refused(change, forest, part):
    def nodes_of(schema):
        content = trees_of(schema)[0]["content"]["content"]
        return content, content["nodes"]["file"]

    with zipfile.ZipFile(io.BytesIO(forest)) as archive:
        schema = json.loads(archive.read("schema.json"))
        _, file = nodes_of(schema)
        array = np.load(io.BytesIO(archive.read(file)))
    field, _, where = change.partition(" ")
    if field in (array.dtype.names or ()):
        array[field][0] = {"far": 10**9, "itself": 0}[where]
    stream = io.BytesIO()
    np.save(stream, array)

    def edit(schema):
        content, _ = nodes_of(schema)
        content["nodes"]["file"] = "bad.npy"
        if change == "features":
            arguments = trees_of(schema)[0]["__reduce__"]["args"]["content"]
            arguments[0]["content"] = "1000"

    part.write_bytes(with_schema(forest, edit, more=[("bad.npy", stream.getvalue())]))
    with pytest.raises(ValueError, match=r"part\.skad.*damaged tree"):
        skad.load(part)


def test_a_tree_does_not_count_more_nodes_than_it_has(forest, part):
    """Some versions of scikit-learn take the number from the file, others do not."""

    def edit(schema):
        content = trees_of(schema)[0]["content"]["content"]
        content["node_count"]["content"] = "1000000"

    part.write_bytes(with_schema(forest, edit))
    try:
        tree = skad.load(part).estimator_.estimators_[0].tree_
    except ValueError:
        return
    assert tree.node_count == tree.capacity


def test_a_tree_of_no_forest(features, part):
    from sklearn.tree import DecisionTreeRegressor

    tree = DecisionTreeRegressor().fit(features.reshape(30, -1), np.arange(30))
    with pytest.raises(TypeError, match="a tree, but of no IsolationForest"):
        skad.save(tree, part)


# -- versions --------------------------------------------------------------------------


def with_version(whole, version):
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as source,
        zipfile.ZipFile(target, "w") as copy,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name == "skad.json":
                info = json.loads(content)
                info["versions"]["skad"] = version
                content = json.dumps(info)
            copy.writestr(name, content)
    return target.getvalue()


@pytest.mark.parametrize("last", ["0", "1", "9.dev0", "7rc1"])
def test_another_patch_version_loads(last, whole, part, features, recwarn):
    major, minor = skad.__version__.split(".")[:2]
    part.write_bytes(with_version(whole, f"{major}.{minor}.{last}"))
    assert np.isfinite(skad.load(part).score_samples(features)).all()
    assert len(recwarn) == 0


@pytest.mark.parametrize("version", ["0.0.9", "0.2.0", "1.1.0"])
def test_another_minor_version_warns(version, whole, part, features):
    part.write_bytes(with_version(whole, version))
    message = rf"part\.skad' was saved with skad {version}, and this is skad 0\.1"
    with pytest.warns(UserWarning, match=message) as caught:
        loaded = skad.load(part)
    assert caught[0].filename == __file__
    assert np.isfinite(loaded.score_samples(features)).all()


def test_a_later_format(whole, part):
    def later(source):
        target = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(source)) as archive,
            zipfile.ZipFile(target, "w") as copy,
        ):
            copy.writestr("skad.json", json.dumps({"format": 2}))
            copy.writestr("schema.json", archive.read("schema.json"))
        return target.getvalue()

    part.write_bytes(later(whole))
    refused(part, "format 2, written by a later version of skad")
