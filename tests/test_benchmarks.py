"""Every benchmark runs as its documentation says, with peers or without."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from skad.networks._small import WEIGHTS, SkadSmall
from skad.networks._training import run_steps

EXPLAINED = 0.95, 0.94  # of the variance at strides 8 and 16; measured: 0.96 and 0.96
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
def test_runs_small(name, shared, few_photographs, new_process, tmp_path):
    """A table comes out; the record stays as it is without --write."""
    record = (BENCHMARKS / "README.md").read_bytes()
    # Of two processes with two threads each, every thread waits for the others.
    options = ["--small", "--rounds", "1", "--threads", "1"]
    options += ["--data", few_photographs]
    options += [
        "--weights",
        shared / "weights" / "mobilenetv2_100_imagenet.safetensors",
    ]
    if name == "large":  # the other part starts processes that idle for minutes
        options += ["--part", "tiles"]
    script = BENCHMARKS / f"{name}.py"
    printed = new_process(*options, script=script, folder=tmp_path)
    table = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(table) >= 3  # a header, a rule and a result
    assert (BENCHMARKS / "README.md").read_bytes() == record


def test_a_call_keeps_to_few_files(monkeypatch, tmp_path):
    """Bounds as measured; the targets are in the script."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import calls

    traces = calls.counted(calls.image_files(tmp_path, n=24))
    assert traces["fit"].n_changes < 219
    assert traces["anomaly_map"].n_changes < 95
    for trace in traces.values():
        assert set(trace.opened.values()) == {1}


@pytest.fixture
def making(monkeypatch):
    """The script that makes skad_small."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import skad_small

    return skad_small


def test_parts_begin_with_the_spread_of_what_they_imitate(making):
    """So that none has to learn it first; those that clip begin elsewhere."""
    rng = np.random.default_rng(0)
    network = SkadSmall().train()
    x = torch.from_numpy(rng.normal(size=(8, 3, 64, 64)).astype(np.float32))
    pairs, over = [], (0, 2, 3)
    with torch.no_grad():
        for part in making.parts_of(network):
            before, x = x, part(x)
            mean, deviation = rng.normal(size=(2, 1, x.shape[1], 1, 1))
            after = rng.normal(mean, abs(deviation) + 0.1, x.shape)
            pairs.append((before, torch.from_numpy(after.astype(np.float32))))
        making.prepared(network, pairs)
        linear = 0
        for part, (before, w) in zip(making.parts_of(network), pairs, strict=True):
            if isinstance(list(part.modules())[-1], torch.nn.ReLU6):
                continue
            g, linear = part(before), linear + 1
            torch.testing.assert_close(
                g.mean(dim=over), w.mean(dim=over), atol=0.01, rtol=0
            )
            torch.testing.assert_close(
                g.std(dim=over), w.std(dim=over), atol=0, rtol=0.05
            )
    assert linear == 13  # one of each block


def test_parts_are_as_many_as_those_imitated(making, shared):
    """And their maps as large."""
    weights = shared / "weights" / "mobilenetv2_100_imagenet.safetensors"
    network, batch = SkadSmall().eval(), torch.zeros(1, 3, 64, 64)
    pairs, levels = making.Large(weights)(batch)
    for part, (before, after) in zip(making.parts_of(network), pairs, strict=True):
        assert part(before.float()).shape == after.shape
    assert [g.shape for g in network.levels(batch)] == [w.shape for w in levels]


def test_layers_are_at_the_level_that_they_imitate(making, shared):
    """What goes into the layer after a level is the map of that level."""
    weights = shared / "weights" / "mobilenetv2_100_imagenet.safetensors"
    network, rng = SkadSmall(), np.random.default_rng(0)
    batch = torch.from_numpy(rng.normal(size=(1, 3, 64, 64)).astype(np.float32))
    pairs, (level2, _) = making.Large(weights)(batch)
    at = making.parts_of(network).index(network.layer3[0].body[0])
    torch.testing.assert_close(pairs[at][0], level2)


def test_checkpoint_keeps_the_log(making, tmp_path, monkeypatch):
    """A run that goes on has the rows before the cut, and those after."""
    monkeypatch.setattr("skad.networks._training.CHECKPOINT_SECONDS", 0)

    def run(log, killed_at=None):
        def step(number):
            log.append([number, 0.5])
            if number == killed_at:
                raise RuntimeError("killed")
            return torch.tensor(0.5)

        run_steps(step, {"log": log}, 5, label="log", checkpoint=tmp_path / "log.pt")

    with pytest.raises(RuntimeError, match="killed"):
        run(making.Log(), killed_at=3)
    run(log := making.Log())
    assert log == [[number, 0.5] for number in range(5)]


def test_network_explains_photographs_that_it_never_saw(making, shared):
    """Most of the variance of MobileNetV2's features, at both strides."""
    weights = shared / "weights" / "mobilenetv2_100_imagenet.safetensors"
    large, rng = making.Large(weights), np.random.default_rng(0)
    pictures = making.Pictures(sorted((shared / "data" / "natural").iterdir())[::20])
    rendered = [pictures.draw(224, rng, plain=True) for _ in range(50)]
    batch = making.as_input(np.stack(rendered))
    network = SkadSmall()
    _, targets = large(batch)
    scales = [making.standard_deviation(t) for t in targets]
    network.load_state_dict(load_file(str(WEIGHTS)))
    found = making.explained(network, [(batch, targets)], scales)
    assert found[0] >= EXPLAINED[0]
    assert found[1] >= EXPLAINED[1]
