"""Parse the arguments, run a verb, and turn errors into one line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from skad._command._parser import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 after an error."""
    arguments = parser().parse_args(argv)
    module, _, function = arguments.verb.partition(":")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            run = getattr(import_module(f"skad._command.{module}"), function)
            run(arguments)
        except KeyboardInterrupt:
            print("skad: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # nobody reads on, as of `skad suspects ... | head`
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            return 0
        except Exception as error:
            if arguments.debug:
                raise
            text = " ".join(str(error).split()) or type(error).__name__
            print(f"skad: error: {text}", file=sys.stderr)
            return 2
    return 0


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"skad: warning: {' '.join(str(message).split())}", file=sys.stderr)
