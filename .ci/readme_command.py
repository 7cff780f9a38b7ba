"""Print a command of the README, so that CI runs what its readers run.

A command is the code block that follows the marker ``<!-- ci: NAME -->``.
"""

import re
import sys
from pathlib import Path

name = sys.argv[1]
readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
block = re.search(rf"<!-- ci: {name} -->\s*```\w*\n(.*?)```", readme, re.DOTALL)
if block is None:
    sys.exit(f"README.md has no code block behind the marker <!-- ci: {name} -->")
print(block.group(1).strip())
