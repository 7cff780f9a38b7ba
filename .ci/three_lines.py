"""Run the three lines of the handbook with the skad that is installed.

CI calls this in a folder without a checkout, so that only the wheel can serve.
"""

import sys
from pathlib import Path

import skad
from skad import PatchCoreDetector, PatchFeatures, Pipeline
from skad.datasets import make_textures

root = Path(sys.argv[0]).resolve().parents[1]
if root in Path(skad.__file__).resolve().parents:
    sys.exit("This is the checkout, not an installed skad.")
if not Path(skad.__file__).with_name("py.typed").exists():
    sys.exit("The wheel has no py.typed, so its type hints do not count.")

data = make_textures(30, 4, size=64, random_state=0)
model = Pipeline([PatchFeatures("skad_small", image_size=64), PatchCoreDetector()])
model.fit(data.train)
labels = model.predict(data.test)
maps = model.anomaly_map(data.test)
print(f"skad {skad.__version__}: {labels}, maps {maps.shape}")
