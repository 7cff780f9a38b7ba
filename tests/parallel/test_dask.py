"""dask.distributed as the engine: processes of workers that read files by themselves.

One cluster starts its workers itself, and starts them again when they die. The other
one has workers that were started by hand and connect by TCP, as on other machines.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import joblib
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.base import clone

from skad import PatchCoreDetector, PatchFeatures, make_pipeline
from skad.datasets import make_textures
from skad.images import ImageError
from skad.parallel import Scorer, fit_parts

dask = pytest.importorskip("dask")
bag = pytest.importorskip("dask.bag")
distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.slow

N_FILES, PART_SIZE = 1000, 125
SETTINGS = {"distributed.worker.memory.terminate": False}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the workers: the number of threads changes the last bits of features."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A thousand small photographs of metal, by shifts of fifty."""
    folder = tmp_path_factory.mktemp("photographs")
    images = make_textures(50, 0, texture="metal", size=32, random_state=0).train
    rng = np.random.default_rng(0)
    paths = []
    for i in range(N_FILES):
        image = np.roll(images[i % 50], rng.integers(0, 32, 2), (0, 1))
        paths.append(str(folder / f"{i:04d}.png"))
        Image.fromarray(image).save(paths[-1], compress_level=1)
    return paths


@pytest.fixture(scope="module")
def model():
    features = PatchFeatures("skad_small", image_size=32)
    return make_pipeline(features, PatchCoreDetector(coreset_ratio=0.05))


@pytest.fixture(scope="module")
def alone(model, files):
    """The model, fitted in this process."""
    return fit_parts(model, files, part_size=PART_SIZE)


@pytest.fixture(scope="module")
def cluster():
    """Two processes on this machine, which are started again if they die."""
    with (
        dask.config.set(SETTINGS),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def by_hand(tmp_path_factory):
    """Start workers in processes of their own, each in a folder of its own.

    They have nothing of this process but its interpreter and the path to skad.
    `before` of each is what comes before its command.
    """
    with ExitStack() as stack:

        def start(*folders, host="127.0.0.1", before=((), ())):
            stack.enter_context(dask.config.set(SETTINGS))
            cluster = stack.enter_context(
                distributed.LocalCluster(n_workers=0, host=host, dashboard_address=":0")
            )
            client = stack.enter_context(distributed.Client(cluster))
            command = [sys.executable, "-m", "distributed.cli.dask_worker"]
            command += [cluster.scheduler_address, "--nthreads", "1", "--no-nanny"]
            command += ["--no-dashboard", "--local-directory"]
            root = os.path.dirname(pytest.importorskip("skad").__path__[0])
            workers = []
            for folder, first in zip(folders, before, strict=True):
                home = tmp_path_factory.mktemp("home")
                worker = subprocess.Popen(
                    [*first, *command, str(home)],
                    cwd=folder,
                    env={
                        "PATH": os.environ.get("PATH", ""),
                        "PYTHONPATH": root,
                        "HOME": str(home),
                        "TMPDIR": str(home),
                        "OMP_NUM_THREADS": "1",
                    },
                )
                stack.callback(worker.wait, 60)
                workers.append(worker)
            for worker in workers:  # all of them, before the first one is waited for
                stack.callback(worker.terminate)
            client.wait_for_workers(len(folders), timeout=120)
            return client

        yield start


@pytest.fixture
def network_namespaces():
    """Two machines for all that the network knows, each with an address of its own.

    Gives the address of this process, and what commands on each of them start with.
    """
    ip = shutil.which("ip")
    if ip is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs ip and root")

    def run(*words):
        subprocess.run([ip, *words], check=True, capture_output=True)

    bridge = f"skad{os.getpid() % 100_000}"
    subnet = f"10.213.{os.getpid() % 256}"
    names = [f"{bridge}n{i}" for i in range(2)]
    with ExitStack() as stack:
        try:
            run("link", "add", bridge, "type", "bridge")
            stack.callback(run, "link", "del", bridge)
            run("addr", "add", f"{subnet}.1/24", "dev", bridge)
            run("link", "set", bridge, "up")
            for i, name in enumerate(names):
                run("netns", "add", name)
                stack.callback(run, "netns", "del", name)
                outside, inside = f"{bridge}a{i}", f"{bridge}b{i}"
                run("link", "add", outside, "type", "veth", "peer", "name", inside)
                run("link", "set", outside, "master", bridge, "up")
                run("link", "set", inside, "netns", name)
                run("-n", name, "addr", "add", f"{subnet}.{i + 2}/24", "dev", inside)
                run("-n", name, "link", "set", inside, "up")
                run("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network of namespaces: {error.stderr.decode()}")
        yield f"{subnet}.1", [[ip, "netns", "exec", name] for name in names]


def scored(model, paths):
    """Rows of a dask bag, whose partitions one scorer takes."""
    scorer = Scorer(model)
    parts = bag.from_sequence(paths, partition_size=100).map_partitions(
        lambda some: [scorer({"path": list(some)})]
    )
    answers = parts.compute()
    return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}


def test_workers_fit_and_score(model, files, alone, cluster, tmp_path):
    with joblib.parallel_config(backend="dask"):
        together = fit_parts(model, files, part_size=PART_SIZE)
    assert_array_equal(together[-1].bank_, alone[-1].bank_)
    assert together[-1].offset_ == alone[-1].offset_
    (tmp_path / "bad.png").write_bytes(b"no image")
    some = [*files[:500], str(tmp_path / "bad.png"), *files[500:]]
    answer = scored(together, some)
    expected = alone.score_samples(files)
    np.testing.assert_allclose(np.delete(answer["score"], 500), expected, rtol=1e-6)
    assert np.isnan(answer["score"][500])
    assert answer["label"][500] == 0
    assert "no image that Pillow knows" in answer["error"][500]
    assert answer["error"][499] is None


def test_worker_is_killed(model, files, alone, cluster, tmp_path):
    """Its parts go to the other one, and to the one that takes its place."""
    folder = tmp_path / "done"
    victim = next(iter(cluster.run(os.getpid).values()))

    def kill():
        while len(list(folder.glob("part-*.joblib"))) < 3:  # two parts are done
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with joblib.parallel_config(backend="dask"):
        model = fit_parts(model, files, part_size=PART_SIZE, checkpoint_dir=folder)
    killer.join()
    assert victim not in cluster.run(os.getpid).values()
    assert_array_equal(model[-1].bank_, alone[-1].bank_)
    assert model[-1].offset_ == alone[-1].offset_
    assert list(folder.iterdir()) == []


def test_data_frame_is_scored(files, alone, cluster):
    pandas = pytest.importorskip("pandas")
    dataframe = pytest.importorskip("dask.dataframe")
    scorer = Scorer(alone)
    frame = pandas.DataFrame({"path": files[:200]})
    table = dataframe.from_pandas(frame, npartitions=3)
    meta = frame.head(0).assign(**scorer({"path": []}))
    answer = table.map_partitions(lambda part: part.assign(**scorer(part)), meta=meta)
    np.testing.assert_allclose(
        answer.compute()["score"], alone.score_samples(files[:200]), rtol=1e-6
    )


def check_like_alone(client, model, files, alone):
    """Both workers fit, and both score, and all is as in this process."""
    with joblib.parallel_config(backend="dask", client=client):
        together = fit_parts(model, files, part_size=PART_SIZE)
    assert_array_equal(together[-1].bank_, alone[-1].bank_)
    assert together[-1].offset_ == alone[-1].offset_
    np.testing.assert_allclose(
        together[-1].calibration_scores_, alone[-1].calibration_scores_, rtol=1e-9
    )
    some = files[:200]
    answer = scored(together, some)
    np.testing.assert_allclose(answer["score"], alone.score_samples(some), rtol=1e-6)
    assert_array_equal(answer["label"], np.where(answer["decision"] < 0, -1, 1))
    assert answer["error"].tolist() == [None] * len(some)
    loaded = client.run(lambda: "skad" in sys.modules)
    assert list(loaded.values()) == [True, True]


def test_workers_that_connect_by_tcp(model, files, alone, by_hand, tmp_path_factory):
    folders = [tmp_path_factory.mktemp("worker") for _ in range(2)]
    client = by_hand(*folders)
    assert set(client.run(os.getcwd).values()) == set(map(str, folders))
    assert len(set(client.run(os.getenv, "HOME").values())) == 2
    check_like_alone(client, model, files, alone)


def test_workers_in_other_networks(
    network_namespaces, model, files, alone, by_hand, tmp_path_factory
):
    host, before = network_namespaces
    folders = [tmp_path_factory.mktemp("worker") for _ in range(2)]
    client = by_hand(*folders, host=host, before=before)
    addresses = client.scheduler_info()["workers"]
    assert len({address.split(":")[1] for address in addresses}) == 2
    check_like_alone(client, model, files, alone)


@pytest.mark.skipif(not os.path.exists("/proc/self/cwd"), reason="needs Linux")
def test_worker_without_shared_disk(model, files, by_hand, tmp_path, monkeypatch):
    """The same path leads elsewhere there: into the folder of each process."""
    client = by_hand(tmp_path, tmp_path)  # joblib leaves one alone: it works itself
    monkeypatch.chdir(os.path.dirname(files[0]))
    paths = [f"/proc/self/cwd/{os.path.basename(path)}" for path in files]
    with joblib.parallel_config(backend="dask", client=client):
        with pytest.raises(ImageError, match="give all machines the same files"):
            fit_parts(model, paths, part_size=PART_SIZE)
        skipping = clone(model).set_params(patchfeatures__on_error="skip")
        with pytest.raises(ImageError, match="which this process can read"):
            fit_parts(skipping, paths, part_size=PART_SIZE)
