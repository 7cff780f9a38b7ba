"""All about one image, suspicious training images, and how many defects are found."""

from skad.inspection._defects import Defect, find_defects
from skad.inspection._explain import Explanation, explain
from skad.inspection._inspect import Inspection, inspect
from skad.inspection._recall import RecallReport, RecallRow, recall_report
from skad.inspection._suspects import suspects

__all__ = [
    "Defect",
    "Explanation",
    "Inspection",
    "RecallReport",
    "RecallRow",
    "explain",
    "find_defects",
    "inspect",
    "recall_report",
    "suspects",
]
