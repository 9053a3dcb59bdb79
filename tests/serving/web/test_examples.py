"""Which example images the web app shows, and in which order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.data.shapes import Options, sample
from mask2former.data.shapes.examples import EXAMPLE_SEED, write_examples
from mask2former.serving.web.examples import example_files


def names(files: list[Path]) -> list[str]:
    return [file.stem for file in files]


def test_what_the_default_model_knows_comes_first(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    shapes = write_examples(tmp_path, 2)
    cells, photos = ["ihc", "cell", "coins"], ["astronaut", "chelsea", "coffee", "rocket"]
    assert names(example_files("nuclei", False)) == ["cells", *cells]
    assert names(example_files("nuclei", True, shapes)) == ["cells", "shapes_1", "shapes_2", *cells, *photos]
    assert names(example_files("shapes", False, shapes)) == ["shapes_1", "shapes_2", "cells", *cells]
    assert names(example_files("mine", True)) == [*photos, "cells", *cells]


def test_scenes_are_those_of_the_seed(tmp_path: Path) -> None:
    (file,) = write_examples(tmp_path / "new", 1)
    with Image.open(file) as image:
        assert (np.asarray(image) == sample(Options(), EXAMPLE_SEED, "val", 0).images[0]).all()
