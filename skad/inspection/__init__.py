"""Everything about one image at once, and the defects that it has."""

from skad.inspection._defects import Defect, find_defects
from skad.inspection._inspect import Inspection, inspect

__all__ = ["Defect", "Inspection", "find_defects", "inspect"]
