import skad

project = "skad"
author = "skad developers"
copyright = author
version = release = skad.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
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
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
}


def skip_inherited_from_sklearn(app, what, name, obj, skip, options):
    """Leave out what scikit-learn documents: its labels do not resolve here."""
    inherited = str(getattr(obj, "__module__", "")).startswith("sklearn")
    return True if inherited else None


def setup(app):
    app.connect("autodoc-skip-member", skip_inherited_from_sklearn)
