"""The example images of the demo: those of the repository, of scikit-image, and scenes of the shapes world."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# Shortest edge in the network, which is that of the bundled model of nuclei, and what to expect of it.
# What it knows comes first.
EXAMPLES = {
    "cells.png": (640, "fluorescence, as in the training data"),
    "ihc.png": (640, "real nuclei, but in brown-stained tissue, which the training data lacks: most are missed"),
    "cell.png": (640, "one complete cell in phase contrast, without visible nuclei: the cell is taken for one"),
    "coins.png": (640, "coins are not nuclei: outside the training domain, but detected anyway"),
}
_SCENES = 4


def example_images() -> list[Path]:
    """Return the example files: of a checkout that of its guides, and those of the scikit-image package.

    Raises:
        ValueError: scikit-image is not installed, or has none of the files.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the example images come with scikit-image: pip install scikit-image, or give images")
    directory = Path(next(iter(spec.submodule_search_locations))) / "data"
    files = [directory / name for name in EXAMPLES if (directory / name).is_file()]
    if not files:
        raise ValueError(f"{directory} contains none of {', '.join(EXAMPLES)}; give images")
    ours = Path(__file__).resolve().parents[2] / "docs" / "images" / "cells.png"
    return [ours, *files] if ours.is_file() else files


def example_scenes(directory: Path) -> list[Path]:
    """Draw scenes of the shapes world that no model was trained on, into a directory; return the files."""
    from ..data.shapes.examples import write_examples

    return write_examples(directory, _SCENES)
