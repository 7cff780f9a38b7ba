"""Everything about one image at once, its defects, and suspicious training images."""

from skad.inspection._defects import Defect, find_defects
from skad.inspection._explain import Explanation, explain
from skad.inspection._inspect import Inspection, inspect
from skad.inspection._suspects import suspects

__all__ = [
    "Defect",
    "Explanation",
    "Inspection",
    "explain",
    "find_defects",
    "inspect",
    "suspects",
]
