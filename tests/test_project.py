"""The files around the code agree with each other."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import skad

ROOT = Path(__file__).resolve().parents[1]
# Whoever publishes the project puts the account's name into all of these at once:
# sed -i 's/\bOWNER\b/name/' FILES. The documentation reads pyproject.toml.
FILES_WITH_OWNER = ("pyproject.toml", "CITATION.cff")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_owner(project):
    """All addresses of the project name the same account, in the files listed only."""
    pattern = re.compile(r"github\.com/([\w-]+)/skad\b|//([\w-]+)\.github\.io/skad\b")
    folders = (".", "docs", "examples", ".github", ".github/workflows", ".ci")
    owners = {}
    for folder in folders:
        for path in (ROOT / folder).iterdir():
            if path.suffix in {".toml", ".md", ".cff", ".rst", ".py", ".yml"}:
                found = pattern.findall(path.read_text())
                if found:
                    owners[path.name] = {a or b for a, b in found}
    assert sorted(owners) == sorted(FILES_WITH_OWNER)
    assert len(set.union(*owners.values())) == 1
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= set(project["urls"])


def test_classifiers_are_the_versions_that_must_pass(project):
    """A version of Python is claimed if, and only if, its job in CI must pass."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    whole, others = workflow["jobs"]["all"], workflow["jobs"]["python"]
    setup = next(
        step for step in whole["steps"] if "setup-python" in step.get("uses", "")
    )
    tested = {setup["with"]["python-version"]}
    tested |= {
        job["python"]
        for job in others["strategy"]["matrix"]["include"]
        if not job["trial"]
    }
    prefix = "Programming Language :: Python :: "
    claimed = {
        entry.removeprefix(prefix)
        for entry in project["classifiers"]
        if re.fullmatch(re.escape(prefix) + r"3\.\d+", entry)
    }
    assert claimed == tested
    assert project["requires-python"] == f">={min(tested)}"


def test_version_has_a_section_in_the_changelog():
    version = skad.__version__.split(".dev")[0]
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(version)}\b", text, re.MULTILINE)


def test_citation_names_the_licence_of_the_package(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == project["license"]
    assert citation["repository-code"] == project["urls"]["Homepage"]


def test_commands_that_ci_reads_are_in_the_readme():
    """CI runs the commands of the README, so their markers must be there."""
    run = (ROOT / ".ci/run").read_text()
    readme = (ROOT / "README.md").read_text()
    names = re.findall(r"readme_command\.py (\w+)", run)
    assert names
    for name in names:
        assert f"<!-- ci: {name} -->" in readme


def script(path):
    """The module of a script."""
    spec = importlib.util.spec_from_file_location("_", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_values_are_described():
    """tests/data/README.md says what is in the files."""
    page = script("tests/data/describe.py").page()
    assert (ROOT / "tests/data/README.md").read_text() == page, (
        "run python tests/data/describe.py"
    )


def test_picture_of_the_architecture_shows_the_layers():
    picture = script("docs/draw_layers.py").picture()
    assert (ROOT / "docs/_static/layers.svg").read_text() == picture, (
        "run python docs/draw_layers.py"
    )


def test_files_that_the_architecture_names_exist():
    text = (ROOT / "docs/development/architecture.rst").read_text()
    paths = re.findall(r"``((?:skad|tests|benchmarks)/[\w./]+)``", text)
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]
