"""Every benchmark runs as its documentation says, with peers or without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from skad.features._small import SkadSmall

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


def test_channels_that_do_nothing_are_left_out(monkeypatch):
    """A network whose other channels are off gives the same without them."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from skad_small import narrowed

    kept = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide, small = SkadSmall(widths=(6, 8, 10, 12)), SkadSmall(widths=(3, 4, 5, 6))
        for name, module in wide.named_modules():
            if not isinstance(module, torch.nn.BatchNorm2d):
                continue
            n = module.num_features
            # All that is added up in a stage has channels in common.
            added = name.startswith("stage") and "norm1" not in name
            flow = name[:6] if added else name
            on = kept.setdefault(flow, torch.randperm(n) < n // 2)
            for values in (module.weight, module.bias, module.running_mean):
                values.data.normal_().mul_(on)
        x = torch.randn(2, 3, 64, 64)
    narrowed(wide.state_dict(), small)
    with torch.inference_mode():
        for a, b in zip(wide.eval().levels(x), small.eval().levels(x), strict=True):
            torch.testing.assert_close(a, b)
