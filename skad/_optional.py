"""Packages that only some uses need: the extras of pyproject.toml."""

from importlib import import_module
from types import ModuleType


def optional(module: str, user: str, extra: str) -> ModuleType:
    """Import a module of a package that skad does not depend on.

    Parameters
    ----------
    module : str
        Name of the module, such as ``"matplotlib.pyplot"``.

    user : str
        The public name that needs it, with which the error begins.

    extra : str
        The extra of skad that installs it.

    Returns
    -------
    module : module

    Raises
    ------
    ImportError
        If it is not installed; the message says what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f'{user} needs {package}: pip install "skad[{extra}]".'
        ) from error
