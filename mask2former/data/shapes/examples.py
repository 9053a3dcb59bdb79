"""Example images of the shapes world, drawn where they are shown: in the demo and in the web app."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .sampling import sample
from .scene import Options

EXAMPLE_SEED = 2026
"""Not the seed of any dataset that a published model is trained or measured on: no model has seen the scenes."""


def write_examples(directory: Path, count: int) -> list[Path]:
    """Draw scenes with few to many things, and write them as shapes_1.png, shapes_2.png, ...

    Args:
        directory: is made if it is not there.
        count: number of images.

    Returns:
        The files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(count):
        files.append(directory / f"shapes_{number + 1}.png")
        Image.fromarray(sample(Options(), EXAMPLE_SEED, "val", number).images[0]).save(files[-1])
    return files
