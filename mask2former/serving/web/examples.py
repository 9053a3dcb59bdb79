"""Example images: those that the included models know, then those of scikit-image."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ...model_source import DEFAULT_MODEL, SHAPES_MODEL

_REPOSITORY = ("docs/images/cells.png",)
_CELLS = ("ihc.png", "cell.png", "coins.png")
_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def example_files(default: str, photos: bool, shapes: Sequence[Path] = ()) -> list[Path]:
    """Return the example images that are on this machine, in the order in which the page shows them.

    Args:
        default: name of the model that is selected first; what an included one knows comes first.
        photos: whether everyday photos are shown.
        shapes: images of the shapes world; empty where no model knows it.
    """
    repository = Path(__file__).resolve().parents[3]
    known = {DEFAULT_MODEL: [repository / name for name in _REPOSITORY], SHAPES_MODEL: list(shapes)}
    first = known.pop(default, [])
    files = first + [file for each in known.values() for file in each]
    spec = importlib.util.find_spec("skimage")
    if spec is not None and spec.submodule_search_locations:
        directory = Path(next(iter(spec.submodule_search_locations))) / "data"
        files += [directory / name for name in _CELLS]
        scenes = [directory / name for name in _PHOTOS] if photos else []
        files = files + scenes if first else scenes + files
    return [file for file in files if file.is_file()]
