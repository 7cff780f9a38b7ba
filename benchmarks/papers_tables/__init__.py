"""The tables that `papers.py` repeats, a module for each method.

Published numbers are percent, means over all categories of a data set. Where a number
is not here, it was not at hand, or no reliable source gave it.
"""

from papers_tables import (
    anomalydino,
    cutpaste,
    draem,
    efficientad,
    padim,
    patchcore,
    prn,
    simplenet,
    spade,
    spd,
    subspacead,
)
from papers_tables._table import CATEGORIES, Row, Table, images

__all__ = ["CATEGORIES", "TABLES", "Row", "Table", "images"]

TABLES: dict[str, Table] = (
    patchcore.TABLES
    | padim.TABLES
    | spade.TABLES
    | simplenet.TABLES
    | efficientad.TABLES
    | draem.TABLES
    | cutpaste.TABLES
    | prn.TABLES
    | spd.TABLES
    | anomalydino.TABLES
    | subspacead.TABLES
)
