"""`tools/benchmark.py sizes`: `Segmenter` on images that all have different sizes, from the start of a program on.

Every image is segmented alone, once in each of two passes. The first image of all pays for what a start costs (kernels
are loaded, code is compiled): it stands beside the time of building, and is not part of the first pass. Then the same
images run with MODEL.COMPILE "off", in the same process but with memory of their own: how much time graphs and compiled
code save, and whether results differ. What that second segmenter needs to start is not reported: the process is warm.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from mask2former.benchmark.inference import segmenter_of
from mask2former.benchmark.measure import held_by_graphs, peak_resident, wait
from mask2former.benchmark.report import GIB, Figure, Report, Row
from mask2former.benchmark.synthetic import build, config_of, eager, settings
from mask2former.data.transforms import ResizeShortestEdge
from mask2former.results import Result
from mask2former.segmenter import Segmenter

PASSES = ("first pass", "second pass")
_EVERY = 20  # images between two lines of progress

Labels = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass
class Counts:
    """What has been prepared for sizes: `captures` of CUDA graphs and `compilations`."""

    captures: int = 0
    compilations: int = 0

    @classmethod
    def now(cls, segment: Segmenter) -> Counts:
        """Count what a segmenter has captured, and what this process has compiled.

        Dynamo counts each graph that it hands to a compiler: once for backbone, pixel decoder and decoder, and again
        when other sizes need other code, also if the compiler then finds that on the disk. The documented
        `torch._dynamo.utils.compile_times` tells seconds of functions, not how many compilations there were.
        """
        dynamo: Any = sys.modules.get("torch._dynamo.utils")  # its import belongs to the first image that needs it
        compilations = 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])
        return cls(segment.model.runtime.captured, compilations)  # type: ignore[union-attr,arg-type]

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.captures - other.captures, self.compilations - other.compilations)


@dataclass
class Side:
    """What was measured with one value of MODEL.COMPILE.

    Attributes:
        building: seconds of model and segmenter.
        shapes: number of different sizes that the network sees.
        seconds: of each image, for both passes, in the order of their images.
        counts: of the first image, of the rest of the first pass, of the second pass.
        held: number of CUDA graphs at the end.
        graphs: bytes that these hold; None elsewhere than on CUDA.
        memory: bytes that PyTorch reserved at most on a GPU; None elsewhere.
        labels: of the second pass, by image.
    """

    building: float
    shapes: int
    seconds: list[list[float]] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)
    held: int = 0
    graphs: int | None = None
    memory: int | None = None
    labels: dict[int, Labels] = field(default_factory=dict)


def run(args: argparse.Namespace, config: str) -> Report:
    """Measure the passes, and those with MODEL.COMPILE "off" if that is not what is measured anyway.

    Args:
        args: those of `inference.run` without `source`, `compare` and `repeats`; `images`, and `size` of the largest.
        config: config file.

    Raises:
        ValueError: a video model, fewer than two images, or more than there are sizes.
    """
    cfg = config_of(args, config)
    sizes = draw(args.images, tuple(args.size))
    device, mode = torch.device(cfg.MODEL.DEVICE), cfg.MODEL.COMPILE
    precision, dense = "bf16" if args.bf16 else "fp32", ", dense" if args.dense else ""
    name = f"{config}, {args.images} sizes up to {args.size[0]} x {args.size[1]}, {precision}{dense}, compile {mode}"
    report = Report("sizes", name, settings(args, config, cfg, "images"), device)
    # With --dense nearly all queries find an object, of which a segmenter warns for each image.
    log = logging.getLogger(Segmenter.__module__)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        here = measure(args, cfg, sizes)
        report.rows = rows_of(here, mode)
        report.rows[-1].figures.insert(0, Figure("padded shapes", here.shapes))
        if mode != "off":
            _say("\n".join(map(str, report.rows)))
            off = measure(args, eager(cfg), sizes)
            report.rows += [*_beside(report.rows, rows_of(off, "off")), *difference_rows(here.labels, off.labels)]
    finally:
        log.setLevel(level)
    return report


def draw(images: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Draw different sizes (height, width), the same in every run.

    Aspect ratios are 0.5 to 2, wide and high ones equally often; a size is a half to all of the largest of its ratio
    whose edges are not longer than the shortest and the longest of `size`.

    Raises:
        ValueError: fewer than two images, or more than there are sizes.
    """
    if images < 2:
        raise ValueError(f"--images must be at least 2, not {images}")
    generator, found = np.random.default_rng(0), dict[tuple[int, int], None]()
    for _ in range(50 * images):
        ratio = 2.0 ** generator.uniform(0, 1)
        longest = min(max(size), min(size) * ratio) * generator.uniform(0.5, 1)
        edges = max(1, round(longest / ratio)), max(1, round(longest))
        found[edges if generator.random() < 0.5 else edges[::-1]] = None
        if len(found) == images:
            return list(found)
    raise ValueError(f"there are not {images} different sizes (--images) up to {size[0]} x {size[1]} (--size)")


def padded(cfg: CfgNode, sizes: Sequence[tuple[int, int]], divisor: int) -> set[tuple[int, int]]:
    """Return the different sizes (H, W) that the network sees: resized as in evaluation, padded to a multiple."""
    shortest, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    seen = (ResizeShortestEdge.get_output_shape(*size, shortest, longest) for size in sizes)
    return {(-(-height // divisor) * divisor, -(-width // divisor) * divisor) for height, width in seen}


def measure(args: argparse.Namespace, cfg: CfgNode, sizes: Sequence[tuple[int, int]]) -> Side:
    """Build a segmenter, and let it segment all images twice, each time in another random order."""
    device, mode = torch.device(cfg.MODEL.DEVICE), cfg.MODEL.COMPILE
    others = _release(device)
    start = time.perf_counter()
    segment = segmenter_of(args, cfg, build(cfg, dense=args.dense))
    wait(device)
    side = Side(time.perf_counter() - start, 0)
    model: Any = segment.model
    side.shapes = len(padded(cfg, sizes, max(1, model.size_divisibility)))
    _say(f"compile {mode}: built in {side.building:.1f} s")
    noise = np.random.default_rng(0).integers(0, 256, (max(args.size), max(args.size), 3), dtype=np.uint8)
    base = before = Counts.now(segment)
    for number, name in enumerate(PASSES):
        seconds: list[float] = []
        order = np.random.default_rng(number).permutation(len(sizes)).tolist()
        for index in order:
            height, width = sizes[index]
            image = np.ascontiguousarray(noise[:height, :width])
            start = time.perf_counter()
            result: Result = segment(image, tile="off")
            wait(device)
            seconds.append(time.perf_counter() - start)
            now = Counts.now(segment)
            if number == 0 and index == order[0]:
                side.counts.append(now - base)
                base = now
            if number == 1:
                side.labels[index] = labels_of(result)
            if now.compilations > before.compilations or len(seconds) in (1, len(order)) or not len(seconds) % _EVERY:
                _say(
                    f"compile {mode}, {name}: image {len(seconds)} of {len(order)} ({height} x {width}) took "
                    f"{seconds[-1]:.3f} s; {now.captures} captures and {now.compilations} compilations so far"
                )
            before = now
        side.seconds.append(seconds)
        side.counts.append(now - base)
        base = now
    if device.type == "cuda":
        # Not what was allocated at most plus what graphs hold: activations of a graph are allocated while it is
        # captured, and would be counted twice. Read before the count of what graphs hold, which releases memory.
        side.memory = torch.cuda.max_memory_reserved(device) - others
        side.held = model.runtime.held
        side.graphs = held_by_graphs(device) if side.held else 0
    return side


def _release(device: torch.device) -> int:
    """Free what the segmenter before has left; return the bytes on a GPU that stay reserved."""
    gc.collect()
    if device.type != "cuda" or not torch.cuda.is_initialized():  # whose start belongs to that of the program
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_reserved(device)


def labels_of(result: Result) -> Labels:
    """Return, by task, the class indices of all objects and a map (H, W) of class index + 1, 0 without an object.

    Where instances overlap, the map shows the one with the highest score. Objects of semantic results: none.
    """
    small = np.min_scalar_type(len(result.classes))  # maps of all images are kept
    found = {}
    if result.instances is not None:
        labels = result.instances.labels
        found["instance"] = (
            np.sort(labels),
            np.concatenate([[0], labels + 1]).astype(small)[result.instances.label_map()],
        )
    if result.panoptic is not None:
        segments = result.panoptic.segments
        of_ids = np.zeros(max((s.id for s in segments), default=0) + 1, dtype=small)
        for segment in segments:
            of_ids[segment.id] = segment.label + 1
        labels = np.sort(np.array([s.label for s in segments], dtype=np.int64))
        found["panoptic"] = labels, of_ids[result.panoptic.map]
    if result.semantic is not None:
        found["semantic"] = np.zeros(0, dtype=np.int64), result.semantic.astype(small) + small.type(1)
    return found


def rows_of(side: Side, mode: str) -> list[Row]:
    """Return the rows of a segmenter: its start, its passes, and what is there in the end."""
    on_gpu = side.memory is not None
    start = Row("start")
    start.add("building", side.building, "s")
    start.add("first image", side.seconds[0][0], "s")
    rows = [start]
    for name, seconds in zip(PASSES, (side.seconds[0][1:], side.seconds[1]), strict=True):
        row = Row(name, [Figure.of("time", [s * 1e3 for s in seconds], "ms")])
        row.add("images", len(seconds) / sum(seconds), "images/s")
        row.add("slowest", max(seconds) * 1e3, "ms")
        rows.append(row)
    for row, counts in zip(rows, side.counts, strict=True):
        if on_gpu and mode != "off":
            row.add("captures", counts.captures)
        if mode == "compile":
            row.add("compilations", counts.compilations)
    end = Row("after both passes")
    if on_gpu and mode != "off":
        end.add("graphs held", side.held)
        end.add("graphs dropped", sum(counts.captures for counts in side.counts) - side.held)
        end.add("memory of graphs", (side.graphs or 0) / GIB, "GiB")
    if side.memory is not None:
        end.add("peak memory reserved", side.memory / GIB, "GiB")
    else:
        end.add("peak memory of the process", peak_resident() / GIB, "GiB")
    return [*rows, end]


def _beside(here: Sequence[Row], off: Sequence[Row]) -> list[Row]:
    """Return the rows of "off" that can be compared, named so, with the ratio of their times."""
    times = {row.name: row.value("time") for row in here if row.name in PASSES}
    found = []
    for row in off[1:]:
        if row.name in times:
            row.add("ratio", row.value("time") / times[row.name], "x the time here")
        found.append(Row(f"off, {row.name}", row.figures))
    return found


def difference_rows(here: dict[int, Labels], off: dict[int, Labels]) -> list[Row]:
    """Count, for each task, the images whose results differ in any way, and the pixels of another class."""
    rows = []
    for task in next(iter(here.values())):
        pairs = [(here[index][task], off[index][task]) for index in here]
        pixels = [int(np.count_nonzero(ours[1] != theirs[1])) for ours, theirs in pairs]
        same = [np.array_equal(ours[0], theirs[0]) for ours, theirs in pairs]
        row = Row(f"{task} results, beside off")
        row.add("images that differ", sum(bool(count) or not equal for count, equal in zip(pixels, same, strict=True)))
        row.add("pixels that differ", sum(pixels) / sum(ours[1].size for ours, _ in pairs) * 100, "%")
        if task != "semantic":
            row.add("objects of an image", sum(len(ours[0]) for ours, _ in pairs) / len(pairs))
        rows.append(row)
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
