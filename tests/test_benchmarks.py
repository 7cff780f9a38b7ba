"""Every benchmark runs as its documentation says, with peers or without."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from skad.features._small import WEIGHTS, SkadSmall

EXPLAINED = 0.89, 0.88  # of the variance at strides 8 and 16; measured: 0.91 and 0.91
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


@pytest.fixture
def making(monkeypatch):
    """The script that makes skad_small."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import skad_small

    return skad_small


def test_parts_begin_with_the_spread_of_what_they_imitate(making):
    """So that none has to learn the scale of its block first."""
    rng = np.random.default_rng(0)
    network = SkadSmall().train()
    batch = torch.from_numpy(rng.normal(size=(8, 3, 64, 64)).astype(np.float32))
    with torch.no_grad():
        maps, x = [], batch
        for part in making.parts_of(network):
            x = part(x)
            mean, deviation = rng.normal(size=(2, 1, x.shape[1], 1, 1))
            noise = rng.normal(mean, abs(deviation), x.shape)
            maps.append(torch.from_numpy(noise.astype(np.float32)))
        scales = making.prepared(network, maps)
        given = making.apart(network, batch, maps)
    before, over = [batch, *maps[:-1]], (0, 2, 3)
    parts = making.parts_of(network)
    for part, x, g, w, scale in zip(parts, before, given, maps, scales, strict=True):
        torch.testing.assert_close(w.std(dim=over), scale.flatten())
        if getattr(part, "residual", False):
            g, w = g - x, w - x
        torch.testing.assert_close(
            g.mean(dim=over), w.mean(dim=over), atol=0.01, rtol=0
        )
        torch.testing.assert_close(g.std(dim=over), w.std(dim=over), atol=0, rtol=0.05)


def test_blocks_are_as_many_as_those_imitated(making, shared):
    """And their maps as large."""
    weights = shared / "weights" / "mobilenetv2_100_imagenet.safetensors"
    large, batch = making.Large(weights), torch.zeros(1, 3, 64, 64)
    given = making.apart(SkadSmall().eval(), batch, maps := large(batch))
    assert [g.shape for g in given] == [w.shape for w in maps]


def test_network_explains_photographs_that_it_never_saw(making, shared):
    """Most of the variance of MobileNetV2's features, at both strides."""
    weights = shared / "weights" / "mobilenetv2_100_imagenet.safetensors"
    large, rng = making.Large(weights), np.random.default_rng(0)
    pictures = making.Pictures(sorted((shared / "data" / "natural").iterdir())[::20])
    drawn = [pictures.draw(224, rng, plain=True) for _ in range(50)]
    batch = making.as_input(np.stack(drawn))
    network = SkadSmall()
    wanted = making.at_levels(network, large(batch))
    scales = [w.float().std(dim=(0, 2, 3))[:, None, None] for w in wanted]
    network.load_state_dict(load_file(str(WEIGHTS)))
    found = making.explained(network, [(batch, wanted)], scales)
    assert found[0] >= EXPLAINED[0]
    assert found[1] >= EXPLAINED[1]
