"""The verb inspect: a table, heat maps and masks, also of a folder that fills up."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import skad
from skad._command._pictures import Pictures
from skad._progress import progress
from skad.images import list_images

COLUMNS = (
    "path",
    "label",
    "score",
    "decision",
    "p_value",
    "n_defects",
    "boxes",
    "error",
)
_PATIENCE = 5.0  # seconds that an unreadable file of a watched folder has to become one


def inspect(arguments: Namespace) -> None:
    """Judge images one after the other."""
    model = skad.load(arguments.model)
    out = None if arguments.out is None else Path(arguments.out)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if arguments.watch:
            told = stack.enter_context(_until_told())
            watched = _WatchedFolder(arguments.images, arguments.interval, told)
            images: Any = iter(watched)
            base = watched.folder
        else:
            images, base = _listed(arguments.images)
        table = stack.enter_context(_Table(out, arguments.watch, arguments.json))
        if arguments.watch:
            images = (path for path in images if str(path) not in table.known)
        pictures = None if out is None else Pictures(out, base, model)
        counts = {1: 0, -1: 0, 0: 0}
        shows = sys.stderr.isatty() and out is not None and not arguments.watch
        n_images = 0 if arguments.watch else len(images)
        bar = stack.enter_context(progress(n_images, "images", shows, unit="image"))
        for one in skad.inspect(model, images, maps="rejected"):
            if arguments.watch and one.error and _is_recent(one.source):
                watched.look_again_at(one.source)
                continue
            table.add(one)
            bar.update(1)
            counts[one.label] += 1
            if pictures is not None:
                pictures.update(one)
    print(
        f"{counts[1]} normal, {counts[-1]} anomalous, {counts[0]} not judged",
        file=sys.stderr,
    )


def _is_recent(path: Any) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime < _PATIENCE
    except OSError:
        return False


def _listed(names: list[str]) -> tuple[list[Path], Path]:
    """The images of files and folders, and the folder that holds them all."""
    found: list[Path] = []
    folders = []
    for path in map(Path, names):
        found += list_images(path, nested=True) if path.is_dir() else [path]
        folders.append(os.path.abspath(path if path.is_dir() else path.parent))
    return found, Path(os.path.commonpath(folders))


class _WatchedFolder:
    """Yields each image of a folder once it is complete, until told to end.

    An image is complete when its size and its time stand still between two looks.
    """

    def __init__(self, names: list[str], interval: float, told: list[int]) -> None:
        if len(names) != 1 or not Path(names[0]).is_dir():
            raise ValueError("--watch needs one folder that exists.")
        self.folder = Path(names[0])
        self._interval, self._told = interval, told
        self._taken: set[Path] = set()
        self._seen: dict[Path, tuple[int, int]] = {}  # sizes and times of the others

    def __iter__(self) -> Iterator[Path]:
        while not self._told:
            for path in _present(self.folder):
                if self._told:
                    return
                if path not in self._taken and self._is_complete(path):
                    self._taken.add(path)
                    yield path
            ends = time.monotonic() + self._interval
            while not self._told and time.monotonic() < ends:
                time.sleep(min(0.1, self._interval))

    def look_again_at(self, path: Path) -> None:
        """Yield an image once more."""
        self._taken.discard(path)

    def _is_complete(self, path: Path) -> bool:
        try:
            state = path.stat()
        except OSError:
            return False  # gone again
        before = self._seen.get(path)
        self._seen[path] = state.st_size, state.st_mtime_ns
        if state.st_size == 0 or self._seen[path] != before:
            return False
        del self._seen[path]
        return True


def _present(folder: Path) -> list[Path]:
    try:
        return list_images(folder, nested=True)
    except FileNotFoundError:
        return []


@contextmanager
def _until_told() -> Iterator[list[int]]:
    """A list that is not empty once Ctrl-C or SIGTERM came."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [
        signal.signal(kind, lambda number, _: told.append(number)) for kind in kinds
    ]
    try:
        yield told
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


class _Table:
    """Rows of inspections, each on the disk as soon as it is known."""

    def __init__(self, out: Path | None, goes_on: bool, as_json: bool) -> None:
        self.as_json = as_json
        self.known: set[str] = set()
        self._file: Any = sys.stdout
        if out is not None:
            path = out / "results.csv"
            if goes_on and path.exists():
                with open(path, newline="", encoding="utf-8") as old:
                    self.known = {row["path"] for row in csv.DictReader(old)}
            mode = "a" if self.known else "w"
            self._file = open(path, mode, newline="", encoding="utf-8")  # noqa: SIM115
        self._to_file = out is not None
        self._csv = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")
        if not self.known and (self._to_file or not as_json):
            self._csv.writeheader()

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.flush()
        if self._to_file:
            self._file.close()

    def add(self, one: Any) -> None:
        """Write the row of an inspection."""
        boxes = [list(defect.bbox) for defect in one.defects or ()]
        row = {
            "path": str(one.source),
            "label": one.label,
            "score": _number(one.score),
            "decision": _number(one.decision),
            "p_value": _number(one.p_value),
            "n_defects": len(boxes),
            "boxes": boxes,
            "error": one.error,
        }
        if self.as_json:
            print(json.dumps(row), flush=True)
        if self._to_file or not self.as_json:
            row["boxes"] = "; ".join(" ".join(map(str, box)) for box in boxes)
            self._csv.writerow(row)
            self._file.flush()


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
