"""Example images: those of the repository, which the included model knows, then those of scikit-image."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# In the order in which the page shows them: for the included model its domain comes first.
_REPOSITORY = ("docs/images/cells.png",)
_CELLS = ("ihc.png", "cell.png", "coins.png")
_SCENES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def example_files(cells: bool, scenes: bool) -> list[Path]:
    """Return the example images that are on this machine.

    Args:
        cells: whether cells come first, which the included model knows.
        scenes: whether everyday photos are shown.
    """
    repository = Path(__file__).resolve().parents[3]
    files = [repository / name for name in _REPOSITORY]
    spec = importlib.util.find_spec("skimage")
    if spec is not None and spec.submodule_search_locations:
        directory = Path(next(iter(spec.submodule_search_locations))) / "data"
        files += [directory / name for name in _CELLS]
        photos = [directory / name for name in _SCENES] if scenes else []
        files = files + photos if cells else photos + files
    return [file for file in files if file.is_file()]
