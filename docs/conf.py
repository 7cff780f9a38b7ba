"""How Sphinx builds the documentation."""

import logging
import tomllib
from pathlib import Path

import skad

ROOT = Path(__file__).resolve().parents[1]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]

project = "skad"
author = "skad developers"
copyright = author
version = release = skad.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "myst_parser",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
default_role = "literal"

autodoc_typehints = "none"
autosummary_generate = True
autosummary_ignore_module_all = False
numpydoc_show_class_members = False
# Every parameter of what the API pages show is documented, in order.
numpydoc_validation_checks = {"GL06", "GL07", "PR01", "PR02", "PR03", "SS03", "SS06"}

intersphinx_mapping = {
    "joblib": ("https://joblib.readthedocs.io/en/stable/", None),
    "matplotlib": ("https://matplotlib.org/stable/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "python": ("https://docs.python.org/3/", None),
    "scipy": ("https://docs.scipy.org/doc/scipy/", None),
    "sklearn": ("https://scikit-learn.org/stable/", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
}
intersphinx_timeout = 10
# Without a network, links to other projects stay text.
suppress_warnings = ["intersphinx.unreachable"]

# Every example runs in the build, so none may need data that it does not make.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"\.py$",
    "doc_module": ("skad",),
    "backreferences_dir": "generated/backreferences",
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
}

html_theme = "pydata_sphinx_theme"
html_title = "skad"
html_baseurl = URLS["Documentation"]
html_show_sourcelink = False
html_theme_options = {
    "github_url": URLS["Homepage"],
    "navigation_with_keys": False,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {page: [] for page in ("install", "changelog")}


def skip_inherited_from_sklearn(app, what, name, obj, skip, options):
    """Leave out what scikit-learn documents: its labels do not resolve here."""
    inherited = str(getattr(obj, "__module__", "")).startswith("sklearn")
    return True if inherited else None


class UnreachableInventory(logging.Filter):
    """Give a name to the warning that another project's index cannot be reached.

    Sphinx gives it none, so that `suppress_warnings` could not tell it from others.
    """

    def filter(self, record):
        if "failed to reach any of the inventories" in str(record.msg):
            record.type, record.subtype = "intersphinx", "unreachable"
        return True


def setup(app):
    """Connect what is written above."""
    logging.getLogger("sphinx.sphinx.ext.intersphinx").addFilter(UnreachableInventory())
    app.connect("autodoc-skip-member", skip_inherited_from_sklearn)
