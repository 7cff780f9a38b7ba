"""The verbs of the command and their arguments; imports nothing that takes time."""

from __future__ import annotations

import argparse

import skad

_IMAGES = "folder of images"
_MODEL = "file of a model, as `skad fit` writes it"


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    whole = argparse.ArgumentParser(
        prog="skad",
        description="Learn from images of normal parts only, then find defects.",
        epilog="Example: skad fit good/ -o part.skad && skad inspect part.skad new/ "
        "--out results/",
    )
    whole.add_argument("--version", action="version", version=skad.__version__)
    verbs = whole.add_subparsers(required=True, metavar="VERB")
    for add in (_add_fit, _add_inspect, _add_updates, _add_looks, _add_outputs):
        add(verbs)
    return whole


def _add_fit(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fit = _verb(verbs, "fit", "_learn:fit", "learn from a folder of normal images", "")
    fit.epilog = (
        "Without options it takes the network that comes with skad, and downloads "
        "nothing. Examples: skad fit good/ -o part.skad; skad fit good/ -o part.skad "
        "--set detector__bank_size=2000 --set features__image_size=320; skad fit "
        "good/ -o part.skad --detector EfficientADDetector --set max_steps=5000"
    )
    fit.add_argument("images", metavar="DIR", help=f"{_IMAGES}, all of them normal")
    fit.add_argument("-o", "--output", required=True, metavar="FILE")
    fit.add_argument("--features", metavar="NAME", help="default: PatchFeatures")
    fit.add_argument("--detector", default="PatchCoreDetector", metavar="NAME")
    fit.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="parameter, as features__NAME or detector__NAME; may be repeated",
    )


def _add_inspect(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inspect = _verb(
        verbs,
        "inspect",
        "_inspect:inspect",
        "judge images, and find their defects",
        "skad inspect part.skad new/ --out results/; skad inspect part.skad camera/ "
        "--out results/ --watch",
    )
    inspect.add_argument("model", metavar="MODEL", help=_MODEL)
    inspect.add_argument("images", nargs="+", metavar="FILE|DIR")
    inspect.add_argument(
        "--out",
        metavar="DIR",
        help="folder for results.csv, and for heat maps and masks of what is rejected",
    )
    inspect.add_argument(
        "--watch",
        action="store_true",
        help="wait for new images in a folder, until Ctrl-C or SIGTERM",
    )
    inspect.add_argument(
        "--interval",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="between two looks at the folder (default: %(default)s)",
    )


def _add_updates(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verbs that change a model."""
    for name, verb, text in (
        ("calibrate", "_learn:calibrate", "set the threshold from new normal images"),
        ("update", "_learn:update", "learn from more normal images"),
    ):
        one = _verb(verbs, name, verb, text, f"skad {name} part.skad more_good/")
        one.add_argument("model", metavar="MODEL", help=_MODEL)
        one.add_argument("images", metavar="DIR", help=f"{_IMAGES}, all normal")
        one.add_argument("-o", "--output", metavar="FILE", help="default: MODEL itself")


def _add_looks(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verbs that print what is known."""
    evaluate = _verb(
        verbs,
        "evaluate",
        "_judge:evaluate",
        "compute metrics from labelled images",
        "skad evaluate part.skad mvtec_ad/bottle",
    )
    evaluate.add_argument("model", metavar="MODEL", help=_MODEL)
    evaluate.add_argument("images", metavar="DIR", help="in the layout of MVTec AD")

    suspects = _verb(
        verbs,
        "suspects",
        "_judge:suspects",
        "list the training images that may be defective",
        "skad suspects part.skad good/",
    )
    suspects.add_argument("model", metavar="MODEL", help=_MODEL)
    suspects.add_argument("images", metavar="DIR", help="the folder of the fit")

    info = _verb(
        verbs,
        "info",
        "_judge:info",
        "show what a file says of its model",
        "skad info part.skad",
    )
    info.add_argument("model", metavar="MODEL", help=_MODEL)


def _add_outputs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verbs that write a file for others."""
    report = _verb(
        verbs,
        "report",
        "_judge:report",
        "write a page that shows the results",
        "skad report part.skad new/ -o report.html",
    )
    report.add_argument("model", metavar="MODEL", help=_MODEL)
    report.add_argument(
        "images",
        metavar="DIR",
        help=f"{_IMAGES}, or a data set such as MVTec AD's, whose labels and masks the "
        "page then shows",
    )
    report.add_argument("-o", "--output", required=True, metavar="FILE")

    export = _verb(
        verbs,
        "export",
        "_judge:export",
        "write the model as an ONNX graph",
        "skad export part.skad new/ -o part.onnx",
    )
    export.add_argument("model", metavar="MODEL", help=_MODEL)
    export.add_argument(
        "images",
        metavar="DIR",
        help="images of the line, all of one size, for which the graph must answer as "
        "the model does; up to 16 of them are taken, evenly spread",
    )
    export.add_argument("-o", "--output", required=True, metavar="FILE")


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    verb: str,
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    one = verbs.add_parser(
        name,
        help=text,
        description=f"{text.capitalize()}.",
        epilog=f"Example: {example}",
    )
    one.set_defaults(verb=verb)
    one.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return one
