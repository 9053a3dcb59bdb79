"""Example images: those of the repository, which the included model knows, then those of scikit-image."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# In the order in which the page shows them: for the included model its domain comes first.
_REPOSITORY = ("docs/images/cells.png",)
_CELLS = ("ihc.png", "cell.png", "coins.png")
_SCENES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def example_files(cells: bool) -> list[Path]:
    """Return the example images that are on this machine.

    Args:
        cells: whether the first model is one of cells, else of everyday photos.
    """
    repository = Path(__file__).resolve().parents[3]
    files = [repository / name for name in _REPOSITORY]
    spec = importlib.util.find_spec("skimage")
    if spec is not None and spec.submodule_search_locations:
        directory = Path(next(iter(spec.submodule_search_locations))) / "data"
        order = _CELLS + _SCENES if cells else _SCENES + _CELLS
        shown = [directory / name for name in order]
        files = files + shown if cells else shown + files
    return [file for file in files if file.is_file()]
