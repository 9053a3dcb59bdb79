"""The README.md of a dataset of the shapes world."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from .scene import STUFF_CLASSES, THING_CLASSES


def readme(recipe: dict[str, Any]) -> str:
    """Return the text about a dataset.

    Args:
        recipe: content of its shapes.json.
    """
    options = recipe["options"]
    height, width = options["size"]
    low, high = options["objects"]
    drawn = ", ".join(options["classes"]) or "all"
    return f"""# Shapes world

Drawn by `mask2former data shapes`, version {recipe["version"]}, seed {recipe["seed"]}. It holds no photograph
and no work of others, so nobody needs a license for it. Masks are exact, not annotated by hand.

| | train | val |
|---|---|---|
| images | {recipe["images"]["train"]} | {recipe["images"]["val"]} |
| clips of {recipe["frames"]} frames | {recipe["clips"]["train"]} | {recipe["clips"]["val"]} |

Images have {height} x {width} pixels (height x width) and {low} to {high} objects. Classes drawn: {drawn}.

| path | content |
|---|---|
| `shapes.json` | seed, version and options: the same values give the same dataset |
| `classes.txt` | names of the classes; the line number, from 0, is the class index |
| `images/train/`, `images/val/` | JPEG images |
| `annotations/instances_*.json` | COCO instances: the things, visible pixels only |
| `annotations/panoptic_*.json`, `panoptic_*/` | COCO panoptic: id = R + 256 G + 65536 B |
| `semantic_*/` | label maps: the value of a pixel is its class index |
| `videos/*.json`, `videos/*/JPEGImages/` | clips in the format of YouTube-VIS; an annotation is one thing |

Things: {", ".join(THING_CLASSES)}. Stuff: {", ".join(STUFF_CLASSES)}. Every pixel belongs to the topmost thing
that covers at least half of it, else to the stuff below.

The files are the same for any number of worker processes. Other versions of NumPy ({np.__version__} here) and OpenCV
({cv2.__version__}) may draw a few pixels differently.
"""
