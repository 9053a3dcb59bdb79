#!/usr/bin/env python
"""Time a large image in tiles: a mosaic of the images of a COCO dataset, whose objects are known.

python tools/benchmark_tiles.py instances_val.json IMAGES --edge 3000
python tools/benchmark_tiles.py instances_val.json IMAGES --device cuda --batch 8 --tile off
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mask2former import Segmenter
from mask2former.cli.parser import path
from mask2former.data.image_sources import load_image
from mask2former.utils.failures import run_program
from mask2former.utils.file_io import read_json


def mosaic(content: dict[str, Any], directory: Path, edge: int, heights: Sequence[int] = ()) -> tuple[np.ndarray, int]:
    """Return rows of images of one height, at most `edge` pixels wide and high, and the number of their objects."""
    objects = Counter(annotation["image_id"] for annotation in content["annotations"])
    heights = heights or sorted({i["height"] for i in content["images"] if i["height"] <= edge // 4}, reverse=True)
    canvas, y, count = np.zeros((edge, edge, 3), np.uint8), 0, 0
    for height in heights:
        left = [image for image in content["images"] if image["height"] == height]
        while left and y + height <= edge:
            x = 0
            while fitting := next((image for image in left if x + image["width"] <= edge), None):
                left.remove(fitting)
                canvas[y : y + height, x : x + fitting["width"]] = load_image(directory / fitting["file_name"])
                x, count = x + fitting["width"], count + objects[fitting["id"]]
            if not x:
                break  # wider than the mosaic
            y += height
    return canvas[:y], count


def memory() -> float:
    """Return the peak of the process in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=path, help="COCO JSON")
    parser.add_argument("images", type=path, help="directory of its images")
    parser.add_argument("--edge", type=int, default=3000, help="of the mosaic, in pixels (default: %(default)s)")
    parser.add_argument("--heights", type=int, nargs="+", default=(), help="of its images (default: all but high ones)")
    parser.add_argument("--model", help="name or directory (default: the bundled model)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--tile", default="auto", help="auto, off or pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="tiles in one forward pass (default: %(default)s)")
    return run_program(parser, _measure, arguments)


def _measure(args: argparse.Namespace) -> None:
    image, count = mosaic(read_json(args.annotations, "annotations"), args.images, args.edge, args.heights)
    if not image.size:
        raise ValueError(f"no image of {args.annotations} is low enough for a mosaic of {args.edge} pixels")
    segment = Segmenter.load(args.model, device=args.device)
    segment(image[:64, :64], tile="off")  # kernels are chosen and compiled before the clock runs
    before, start = memory(), time.perf_counter()
    tile = int(args.tile) if args.tile.isdecimal() else args.tile
    result = segment(image, tile=tile, batch_size=args.batch, progress=True)
    seconds = time.perf_counter() - start
    gpu = f", GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if segment.device.type == "cuda" else ""
    print(
        f"{image.shape[1]}x{image.shape[0]}, tile {args.tile}, batch {args.batch}, {segment.device}: "
        f"{sum(result.counts().values())} of {count} objects, {seconds:.1f} s, "
        f"process {before:.2f} -> {memory():.2f} GiB{gpu}; torch {torch.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
