"""Check that .ci/minimum.txt pins the floors that pyproject.toml promises."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def versions(lines, operator):
    """Map each package of ``lines`` to the version behind ``operator``."""
    pattern = re.compile(rf"([\w-]+){operator}([\w.]+)")
    return dict(found.groups() for line in lines if (found := pattern.match(line)))


project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
required = project["dependencies"] + project["optional-dependencies"]["plot"]
floors = versions(required, ">=")
pins = versions((ROOT / ".ci/minimum.txt").read_text().splitlines(), "==")
wrong = [
    f"{name}: pyproject.toml says {floor}, .ci/minimum.txt {pins.get(name)}"
    for name, floor in floors.items()
    if pins.get(name) != floor
]
sys.exit("\n".join(wrong) or 0)
