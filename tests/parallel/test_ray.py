"""ray.data, where it is installed."""

import numpy as np
import pytest
from PIL import Image

from skad import PatchCoreDetector, PatchFeatures, make_pipeline
from skad.datasets import make_textures
from skad.parallel import Scorer

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine():
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=300_000_000,
    )
    yield
    ray.shutdown()


def test_batches_are_scored(engine, tmp_path):
    data = make_textures(n_normal=30, n_anomalous=5, size=32, random_state=0)
    features = PatchFeatures("skad_small", image_size=32)
    model = make_pipeline(features, PatchCoreDetector(coreset_ratio=0.5))
    model.fit(data.train)
    paths = [str(tmp_path / f"{i}.png") for i in range(len(data.test))]
    for path, image in zip(paths, data.test, strict=True):
        Image.fromarray(image).save(path)
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths.append(str(tmp_path / "bad.png"))
    scorer = Scorer(model)
    table = ray.data.from_items([{"path": path} for path in paths])
    table = table.map_batches(lambda batch: {**batch, **scorer(batch)}, batch_size=4)
    rows = {row["path"]: row for row in table.take_all()}
    scores = np.array([rows[path]["score"] for path in paths])
    np.testing.assert_allclose(scores[:-1], model.score_samples(paths[:-1]), rtol=1e-6)
    assert np.isnan(scores[-1])
    assert "no image that Pillow knows" in rows[paths[-1]]["error"]
