"""What a file of a model may hold: types by their exact names, each in its own place.

skops checks by itself that a file holds trusted types only. Which of its ways to make
an object goes with which type is checked here, on the text of the file and before skops
makes anything: so no function and no constructor is called with values from a file,
whatever else skops knows how to call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from inspect import isfunction
from typing import Any

# Public estimators, and what fitted ones hold. tests/persistence/ compares both with
# the models that it saves.
SKAD_OBJECTS = frozenset(
    {
        "skad._moments.Moments",
        "skad._training_images.LeftBehind",
        "skad.calibration._per_group.ThresholdPerGroup",
        "skad.detectors._cutpaste.CutPasteDetector",
        "skad.detectors._draem.DRAEMDetector",
        "skad.detectors._efficientad.EfficientADDetector",
        "skad.detectors._fusion.FusionDetector",
        "skad.detectors._gaussians.Gaussians",
        "skad.detectors._padim.PaDiMDetector",
        "skad.detectors._patchcore.PatchCoreDetector",
        "skad.detectors._patchwise.PatchwiseDetector",
        "skad.detectors._prn.PRNDetector",
        "skad.detectors._puad.ImagePUADDetector",
        "skad.detectors._puad.PUADDetector",
        "skad.detectors._simplenet.SimpleNetDetector",
        "skad.detectors._spade.SPADEDetector",
        "skad.detectors._subspace.SubspaceDetector",
        "skad.detectors._teacher.Teacher",
        "skad.features._fused.FusedFeatures",
        "skad.features._network.PatchFeatures",
        "skad.features._patchwise.Patchwise",
        "skad.features._pcanet.PCANetFeatures",
        "skad.features._spd.SPDPatchFeatures",
        "skad.features._tiled.TiledFeatures",
        "skad.features._tiled.Tiling",
        "skad.images._batches.NamedImages",
        "skad.metrics._scorers.PixelScorer",
        "skad.model_selection.OneClassSplit",
        "skad.pipeline.Pipeline",
        "skad.synthesis._augmented.AugmentedViews",
        "skad.synthesis._transformer.SyntheticAnomalies",
    }
)
NAMED_TUPLES = frozenset({"skad.networks._frozen.Layout"})
_SCORER_OF_SKAD = "skad.metrics._scorers._of_scored"

# What searches and forests of scikit-learn hold beside estimators, which skops knows.
_TREE = "sklearn.tree._tree.Tree"  # looked at again in _trees.py
_SKLEARN_OBJECTS = frozenset(
    {
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.metrics._scorer._Scorer",
        "sklearn.model_selection._split.GroupKFold",
        "sklearn.model_selection._split.KFold",
        "sklearn.model_selection._split.PredefinedSplit",
        "sklearn.model_selection._split.RepeatedKFold",
        "sklearn.model_selection._split.ShuffleSplit",
        "sklearn.model_selection._split.StratifiedKFold",
        "sklearn.model_selection._split.StratifiedShuffleSplit",
    }
)

_PRIMITIVES = frozenset(f"builtins.{name}" for name in ("bool", "float", "int", "str"))
_NUMBERS = frozenset(
    f"numpy.{name}"
    for name in (
        *("bool", "bool_", "float16", "float32", "float64", "str_"),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
)
_BY_LOADER = {
    "DTypeNode": frozenset({"numpy.dtype"}),
    "DictNode": frozenset({"builtins.dict", "collections.OrderedDict"}),
    "JsonNode": frozenset({"builtins.str"}),
    "ListNode": frozenset({"builtins.list"}),
    "MaskedArrayNode": frozenset({"numpy.ma.MaskedArray", "numpy.ma.core.MaskedArray"}),
    "NdArrayNode": _NUMBERS | {"numpy.ndarray"},
    "RandomStateNode": frozenset({"numpy.random.mtrand.RandomState"}),
    "SetNode": frozenset({"builtins.set"}),
    "SliceNode": frozenset({"builtins.slice"}),
    "TreeNode": frozenset({_TREE}),
    "TupleNode": NAMED_TUPLES | {"builtins.tuple"},
    "TypeNode": _PRIMITIVES | _NUMBERS,
}


@cache
def functions() -> frozenset[str]:
    """Metrics, which the scorers of searches refer to."""
    import sklearn.metrics

    import skad.metrics

    found = {_SCORER_OF_SKAD}
    for module in (sklearn.metrics, skad.metrics):
        for name in module.__all__:
            value = getattr(module, name)
            if isfunction(value):
                found.add(f"{value.__module__}.{value.__name__}")
    return frozenset(found)


def trusted() -> list[str]:
    """Names that skops is told to trust, beyond those that it trusts by itself."""
    ours = SKAD_OBJECTS | NAMED_TUPLES | _SKLEARN_OBJECTS | functions()
    return sorted(ours | {_TREE, "numpy.dtype"})


def may_make(loader: str, name: str) -> bool:
    """Whether a file may have skops make an object of this name in this way."""
    if loader == "ObjectNode":
        # Of scikit-learn, skops trusts the estimators only.
        return name in SKAD_OBJECTS or name.startswith("sklearn.")
    if loader == "FunctionNode":
        # Of NumPy and SciPy, skops trusts the universal functions only.
        return name in functions() or name.startswith(("numpy.", "scipy.special."))
    return name in _BY_LOADER.get(loader, ())


# -- the text of a file ----------------------------------------------------------------

# Parameters that would have timm fetch or read other weights than the file's own.
_FORBIDDEN_KEYS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
_STRUCTURE = ("__reduce__", "args", "attrs", "content", "key_types", "type")


def nodes(schema: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each part of a schema of skops that stands for an object, and its place.

    The place is made of the names of attributes and the numbers of items.
    """
    rest: list[tuple[Any, tuple[str, ...]]] = [(schema, ())]
    while rest:
        value, place = rest.pop()
        if isinstance(value, dict):
            if "__loader__" in value:
                yield value, ".".join(place) or "the model"
            parts = list(value.items())
        elif isinstance(value, list):
            parts = [(str(i), part) for i, part in enumerate(value)]
        else:
            continue
        for key, part in reversed(parts):
            inner = place if key in _STRUCTURE else (*place, str(key))
            if isinstance(part, (dict, list)):
                rest.append((part, inner))


def name_of(node: dict[str, Any]) -> str:
    """Full name of the type, or function, of a node."""
    return f"{node.get('__module__')}.{node.get('__class__')}"


def refusal(schema: Any) -> str | None:
    """Why a model must not be made from a schema, or None."""
    if not isinstance(schema, dict) or schema.get("__loader__") != "ObjectNode":
        return "it holds no estimator"
    kinds: dict[Any, tuple[Any, str]] = {}
    for node, place in nodes(schema):
        loader, name = node["__loader__"], name_of(node)
        if not isinstance(loader, str) or not may_make(loader, name):
            return f"{place} is {name} ({loader}), which no model of skad holds"
        # skops makes objects of one number once, from the first that it meets.
        number = node.get("__id__")
        if number and kinds.setdefault(number, (loader, name)) != (loader, name):
            return f"{place} is of two types at once"
        reason = _wrong_content(loader, node)
        if reason is not None:
            return f"{place} {reason}"
    return None


def _wrong_content(loader: str, node: dict[str, Any]) -> str | None:
    """What is wrong with the content of a node, or None."""
    if loader == "JsonNode":
        value = json.loads(node["content"])
        if not isinstance(value, (str, int, float, type(None))):
            return "is no number and no text"
    if loader == "DictNode":
        wrong = [key for key in _FORBIDDEN_KEYS if key in node["content"]]
        if wrong:
            return f"has the key {wrong[0]!r}, which may lead to other files"
        kinds = node["key_types"]["content"]
        if any(kind["__loader__"] != "TypeNode" for kind in kinds):
            return "has keys that are neither numbers nor text"
    return None
