#!/usr/bin/env python3
"""Run demo/mask2former.ipynb and keep what it shows of the three tasks, docs/images/notebook.png.

    python tools/make_notebook_image.py [--output FILE]

It takes a few minutes on a CPU, and needs nbclient and ipykernel. The notebook itself is not changed.
"""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CELL = "shapes = Segmenter.load"  # begins the cell whose images are kept


def shown_images(notebook: Path, start: str) -> list[Image.Image]:
    """Run a notebook and return the images that the cell with this beginning displays.

    Raises:
        ValueError: there is no such cell, or it displays none.
    """
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    NotebookClient(content, timeout=3600, resources={"metadata": {"path": str(ROOT)}}).execute()
    found = [
        Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])), formats=("PNG",)).convert("RGB")
        for cell in content.cells
        if cell.cell_type == "code" and cell.source.startswith(start)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    if not found:
        raise ValueError(f"{notebook} has no cell that begins with {start!r} and displays images")
    return found


def main() -> None:
    """Make the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images/notebook.png", metavar="FILE")
    output = parser.parse_args().output
    image = shown_images(ROOT / "demo/mask2former.ipynb", CELL)[0]
    image.quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)
    print(f"{output}: {image.width} x {image.height}, {output.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
