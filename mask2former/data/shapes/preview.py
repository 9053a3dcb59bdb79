"""The contact sheet of the shapes world: images, their segments, and the frames of a clip."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ...structures.colors import color_of, shade_of
from ...utils.file_io import write_bytes
from ..image_io import WRITABLE_SUFFIXES
from .rendering import Rendering
from .sampling import sample
from .scene import CLASSES, Options

_COLUMNS = 6
_TILE = 160  # pixels, of the longest edge
_GAP = 4
_INDEX = {entry["name"]: index for index, entry in enumerate(CLASSES)}


def check_preview(path: Path) -> None:
    """Check that a contact sheet can be written to a path, by its suffix.

    Raises:
        ValueError: it is a directory, or no name of an image file that can be written.
    """
    if path.suffix.lower() not in WRITABLE_SUFFIXES or path.is_dir():
        raise ValueError(f"--preview {path}: give an image file, {', '.join(sorted(WRITABLE_SUFFIXES))}")


def write_preview(path: Path, options: Options, seed: int) -> Path:
    """Write a contact sheet; each row of images stands above the row of its segments, the last two are of a clip.

    Args:
        path: image file, as .jpg or .png.
        options: what scenes may hold.
        seed: that of the dataset, whose first validation scenes are drawn.
    """
    check_preview(path)
    suffix = path.suffix.lower()
    shown = [sample(options, seed, "val", number) for number in range(2 * _COLUMNS)]
    clip = sample(options, seed, "val", 0, frames=2 * _COLUMNS, kind="clip")
    rows: list[list[np.ndarray]] = []
    for start in (0, _COLUMNS):
        part = shown[start : start + _COLUMNS]
        rows += [[one.images[0] for one in part], [segment_colors(one) for one in part]]
    frames = range(0, 2 * _COLUMNS, 2)
    rows += [
        [clip.images[frame] for frame in frames],
        [segment_colors(clip, frame, by_object=True) for frame in frames],
    ]
    buffer = io.BytesIO()
    options_of_format = {"quality": 80, "optimize": True} if suffix in (".jpg", ".jpeg") else {}
    Image.fromarray(_sheet(rows)).save(buffer, format=Image.registered_extensions()[suffix], **options_of_format)
    return write_bytes(path, buffer.getvalue())


def segment_colors(rendering: Rendering, frame: int = 0, *, by_object: bool = False) -> np.ndarray:
    """Return the segments of a frame in colors, uint8 (H, W, 3), with dark borders.

    Args:
        rendering: the scene.
        frame: index of the frame.
        by_object: each thing in its own color, the same in all frames; else in a shade of that of its class.
    """
    table = [(0, 0, 0)]
    seen: Counter[str] = Counter()
    for number, name in enumerate(rendering.names):
        r, g, b = CLASSES[_INDEX[name]]["color"]
        if number < len(rendering.scene.stuff):
            table.append((r // 2, g // 2, b // 2))
        else:
            table.append(color_of(number) if by_object else shade_of((r, g, b), seen[name]))
        seen[name] += 1
    ids = rendering.ids[frame]
    colors = np.array(table, np.uint8)[ids]
    border = np.zeros(ids.shape, bool)
    border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    border[1:] |= ids[1:] != ids[:-1]
    colors[border] = colors[border] // 3
    return colors


def _sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Return the tiles of all rows in a grid, with more room below each pair of rows."""
    height, width = rows[0][0].shape[:2]
    scale = _TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    pairs = (len(rows) + 1) // 2
    full_height = len(rows) * (size[1] + _GAP) + _GAP * (pairs + 1)
    sheet = np.full((full_height, len(rows[0]) * (size[0] + _GAP) + _GAP, 3), 24, np.uint8)
    for number, row in enumerate(rows):
        top = _GAP + number * (size[1] + _GAP) + (number // 2) * _GAP
        for column, tile in enumerate(row):
            left = _GAP + column * (size[0] + _GAP)
            sheet[top : top + size[1], left : left + size[0]] = cv2.resize(tile, size, interpolation=method)
    return sheet
