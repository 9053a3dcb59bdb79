"""Put tools/ and this directory on sys.path: scripts and helpers of tests import each other by name."""

import sys
from pathlib import Path

import pytest

from mask2former.data.shapes import Options
from mask2former.data.shapes.files import Recipe, write_dataset

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tools"), str(Path(__file__).resolve().parent)]


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw eight easy images of shapes for training and two for validation, below DETECTRON2_DATASETS."""
    root = tmp_path_factory.mktemp("datasets")
    easy = Options((64, 64), (1, 2), ("disk", "star", "sky", "grass", "brick"))
    recipe = Recipe(easy, 0, {"train": 8, "val": 2}, {"train": 0, "val": 0})
    write_dataset(root / "shapes", recipe, workers=1)
    return root
