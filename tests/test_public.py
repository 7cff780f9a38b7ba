"""What holds for every public name: it is listed, has hints and a docstring.

Public are the names on the page ``docs/api.rst``, and of a class all methods and
properties whose names do not begin with an underscore and that skad defines.
"""

import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.rst"
MODULES = (
    "skad",
    "skad.base",
    "skad.calibration",
    "skad.datasets",
    "skad.detectors",
    "skad.export",
    "skad.features",
    "skad.images",
    "skad.inspection",
    "skad.metrics",
    "skad.model_selection",
    "skad.monitoring",
    "skad.neighbors",
    "skad.parallel",
    "skad.persistence",
    "skad.presets",
    "skad.report",
    "skad.synthesis",
)
# Of numpydoc's checks, those that skad does not follow: a longer summary (ES01), a
# section "See Also" (SA01) and an example (EX01) where they help; names of returned
# values (RT02), as in scikit-learn; a description that begins with a small letter
# (PR08), where it goes on from the type.
NOT_FOLLOWED = {"ES01", "EX01", "PR08", "RT02", "SA01"}
# It yields, through an iterator of another function, which numpydoc cannot know.
YIELDS = {"skad.inspect": {"RT01"}}
UNLISTED = {"__version__", "NotHeldOutError", "check_scores", "decide"}


def listed():
    """Map the full name of each entry of the page to the directive that lists it."""
    names, module, directive = {}, None, None
    for line in PAGE.read_text().splitlines():
        if found := re.match(r"\.\. currentmodule:: (\S+)", line):
            module, directive = found[1], None
        elif found := re.match(r"\.\. (autosummary|data)::\s*(\S*)", line):
            directive = found[1]
            if found[2]:
                names[f"{module}.{found[2]}"] = directive
        elif line and not line.startswith(" "):
            directive = None
        elif directive and (found := re.match(r"\s+(\w+)$", line)):
            names[f"{module}.{found[1]}"] = directive
    return names


def public_objects():
    """Map full names to documented objects, members of classes after the class."""
    result = {}
    for name, directive in listed().items():
        if directive == "data":
            continue
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        result[name] = value
        if inspect.isclass(value):
            for member in dir(value):
                if not member.startswith("_"):
                    result[f"{name}.{member}"] = inspect.getattr_static(value, member)
    return {name: value for name, value in result.items() if is_ours(value)}


def function_of(value):
    """The function behind a method, property, constructor or function, or None."""
    if inspect.isclass(value):
        value = value.__init__
    for attribute in ("fget", "__func__", "func", "fn"):
        value = getattr(value, attribute, None) or value
    value = inspect.unwrap(value) if callable(value) else value
    return value if inspect.isfunction(value) else None


def is_ours(value):
    """Whether skad defines the class, or the function behind a member."""
    where = value if inspect.isclass(value) else function_of(value)
    return getattr(where, "__module__", "").startswith("skad")


PUBLIC = public_objects()


def test_the_page_lists_every_name_of___all__():
    names = listed()
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            value = getattr(importlib.import_module(module), name)
            homes = [f"{home}.{name}" for home in MODULES]
            same = [
                home
                for home in homes
                if home in names
                and getattr(importlib.import_module(home.rpartition(".")[0]), name)
                is value
            ]
            assert same or name in UNLISTED, f"{module}.{name}"


def test_every_listed_name_can_be_imported():
    for name in listed():
        module, _, attribute = name.rpartition(".")
        assert module in MODULES
        assert attribute in importlib.import_module(module).__all__, name


def test_docstrings():
    """What numpydoc finds: sections, order, parameters against signatures, returns."""
    validate = pytest.importorskip("numpydoc.validate").validate
    wrong = [
        f"{name}: {code} {message}"
        for name in PUBLIC
        if not is_forwarded(PUBLIC[name])
        for code, message in validate(name)["errors"]
        if code not in NOT_FOLLOWED | YIELDS.get(name, set())
    ]
    assert not wrong, "\n".join(wrong)


def is_forwarded(value):
    """A property made by a function, which numpydoc cannot find in a file."""
    return isinstance(value, property) and "<locals>" in value.fget.__qualname__


def test_type_hints():
    """Each parameter of each public signature has a hint, and each return value."""
    missing = set()
    for value in PUBLIC.values():
        function = function_of(value)
        if not is_ours(function) or is_forwarded(value):
            continue
        where = f"{function.__module__}.{function.__qualname__}"
        signature = inspect.signature(function)
        missing |= {
            f"{where}({name})"
            for name, parameter in signature.parameters.items()
            if parameter.annotation is parameter.empty and name not in {"self", "cls"}
        }
        is_constructor = function.__name__ == "__init__"
        if signature.return_annotation is signature.empty and not is_constructor:
            missing.add(f"{where} -> ?")
    assert not missing, "\n".join(sorted(missing))
