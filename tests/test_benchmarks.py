"""Every benchmark runs as its documentation says, with peers or without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COMMANDS = sorted(
    path.stem
    for path in BENCHMARKS.glob("*.py")
    if "parser(__doc__)" in path.read_text()
)


def test_every_command_is_documented():
    record = (BENCHMARKS / "README.md").read_text()
    assert len(COMMANDS) >= 8
    for name in COMMANDS:
        assert f"python benchmarks/{name}.py" in record


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_runs_small(name, shared, tmp_path):
    """A table comes out; the record stays as it is without --write."""
    record = (BENCHMARKS / "README.md").read_bytes()
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--small", "--rounds", "1"]
    command += ["--data", shared / "data"]
    command += [
        "--weights",
        shared / "weights" / "mobilenetv2_100_imagenet.safetensors",
    ]
    environment = dict(os.environ, PYTHONPATH=str(BENCHMARKS.parent), MPLBACKEND="Agg")
    printed = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    ).stdout
    table = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(table) >= 3  # a header, a rule and a result
    assert (BENCHMARKS / "README.md").read_bytes() == record
