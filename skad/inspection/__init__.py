"""All about one image at once, its defects, and how many known ones are found."""

from skad.inspection._defects import Defect, find_defects
from skad.inspection._inspect import Inspection, inspect
from skad.inspection._recall import RecallReport, RecallRow, recall_report

__all__ = [
    "Defect",
    "Inspection",
    "RecallReport",
    "RecallRow",
    "find_defects",
    "inspect",
    "recall_report",
]
