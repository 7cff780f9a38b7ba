"""The command ``skad``: from a folder of images to the line, without a script."""

from skad._command._main import main

__all__ = ["main"]
