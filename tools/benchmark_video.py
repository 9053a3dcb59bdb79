"""Time and memory of video instance segmentation on a long synthetic clip; run by `tools/benchmark.py video`.

Frames are generated on the fly (colored discs that move over noise), so that only the program itself uses memory.
Weights are random. To have the work of a real video, every window keeps all its candidates, and mask logits are shifted
until about a sixth of the pixels are foreground.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from mask2former.benchmark.measure import peak_resident
from mask2former.benchmark.report import GIB, Figure, Report, Row
from mask2former.config import load_config
from mask2former.structures.classes import ClassTable
from mask2former.video.frame_source import FrameSource, UnreadFrame
from mask2former.video.journal import Journal
from mask2former.video.results import VideoResult
from mask2former.video.tracking import clip_model
from mask2former.video.windows import ClipModel, LongClip, WindowSettings

CONFIG = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"


class MovingDiscs(FrameSource):
    """A video of `length` frames (H, W, 3) with eight moving discs."""

    name = "discs"

    def __init__(self, length: int, size: tuple[int, int]) -> None:
        self.length, self.size = length, size
        rng = np.random.default_rng(0)
        self.noise = rng.integers(0, 64, (*size, 3), dtype=np.uint8)
        self.discs = rng.random((8, 6))

    def _read(self, start: int) -> Iterator[UnreadFrame]:
        height, width = self.size
        y, x = np.mgrid[:height, :width]
        for index in range(start, self.length or 0):
            image = self.noise.copy()
            for row, column, speed, *color in self.discs:
                center = (column + speed * index / 50) % 1 * width
                inside = (y - row * height) ** 2 + (x - center) ** 2 < (height / 12) ** 2
                image[inside] = np.array(color) * 191 + 64
            yield UnreadFrame(index, index / 25, partial(np.copy, image), index)


class Busy:
    """Wrapper of a model that makes its masks non-empty."""

    def __init__(self, model: ClipModel) -> None:
        self.preprocess, self._outputs = model.preprocess, model.clip_outputs

    def clip_outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of the model with shifted mask logits."""
        outputs = self._outputs(images)
        deviation, mean = torch.std_mean(outputs["pred_masks"], dim=(1, 2, 3), keepdim=True)
        outputs["pred_masks"].sub_(mean + deviation)
        return outputs


def resident() -> float:
    """Return the resident memory of this process in GiB; NaN without /proc."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * resource.getpagesize() / GIB if path.is_file() else float("nan")


def network(args: argparse.Namespace) -> tuple[Any, Any]:
    """Build the model in evaluation mode; also return its config."""
    cfg = load_config(args.config_file or CONFIG, ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", *args.opts])
    return build_model(cfg).eval(), cfg


def run(args: argparse.Namespace, hardware: str) -> Report:
    """Run the benchmark and print its numbers."""
    model, cfg = network(args)
    length, overlap = (1, 0) if args.online else (args.window, args.overlap)
    s = WindowSettings(length, overlap, min_score=0.0)
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")
    source = MovingDiscs(args.frames, tuple(args.size))
    resized = resize.get_transform(source.noise).apply_image(source.noise).shape

    def prepare(image: np.ndarray) -> torch.Tensor:
        pixels = resize.get_transform(image).apply_image(image)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    print(hardware)
    print(
        f"{args.frames} frames {args.size[1]}x{args.size[0]}, {resized[1]}x{resized[0]} in the network; "
        f"windows of {s.window}, {s.overlap} shared; {'bf16' if args.bf16 else 'fp32'}; {args.config_file or CONFIG}"
    )
    marks: list[tuple[int, float, float]] = [(0, time.perf_counter(), resident())]
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory) / "work", {"benchmark": 1})
        context = torch.autocast(model.device.type, torch.bfloat16) if args.bf16 else nullcontext()
        clip = LongClip(Busy(clip_model(model, s)), source, journal, s, prepare, lambda: context)
        clip.run(lambda done: marks.append((done, time.perf_counter(), resident())))
        tracked, start = peak_resident() / GIB, time.perf_counter()
        result = VideoResult(source, journal, ClassTable.numbered(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES))
        size = result.save(Path(directory) / "result.json")[0].stat().st_size
        saving = time.perf_counter() - start
        disk = sum(p.stat().st_size for p in journal.directory.iterdir())
    report(marks, model.device)
    print(f"peak memory of the process {peak_resident() / GIB:.2f} GiB (without saving {tracked:.2f})")
    print(
        f"{len(clip.table.tracks)} tracks; journal {disk / 2**20:.1f} MiB; result.json of {len(result.tracks)} tracks "
        f"{size / 2**20:.1f} MiB in {saving:.1f} s"
    )
    config = args.config_file or CONFIG
    settings = {"config": config, "frames": args.frames, "size": list(args.size), "window": s.window}
    settings |= {"overlap": s.overlap, "bf16": args.bf16, "opts": args.opts, "compile": "off"}
    title = f"{config}, {args.frames} frames of {args.size[0]} x {args.size[1]}, {'bf16' if args.bf16 else 'fp32'}"
    return Report("video", title, settings, model.device, rows=[row(marks, model.device, saving)])


def row(marks: list[tuple[int, float, float]], device: torch.device, saving: float) -> Row:
    """Summarize the windows: seconds of each, frames a second of all, and memory."""
    seconds = [after[1] - before[1] for before, after in itertools.pairwise(marks)]
    found = Row("windows", [Figure.of("time", [s * 1e3 for s in seconds], "ms a window")])
    found.add("frames", marks[-1][0] / (marks[-1][1] - marks[0][1]), "frames/s")
    if device.type == "cuda":
        found.add("peak memory", torch.cuda.max_memory_allocated(device) / GIB, "GiB")
    found.add("memory of the process", marks[-1][2], "GiB")
    found.add("peak memory of the process", peak_resident() / GIB, "GiB")
    found.add("saving", saving, "s")
    return found


def report(marks: list[tuple[int, float, float]], device: torch.device) -> None:
    """Print speed, and memory after the windows, which does not grow with their number."""
    total = marks[-1][1] - marks[0][1]
    print(f"{len(marks) - 1} windows, {total:.1f} s, {marks[-1][0] / total:.2f} frames/s")
    rows = marks[1:]
    if len(rows) > 2:
        steady = (rows[-2][0] - rows[0][0]) / (rows[-2][1] - rows[0][1])
        print(f"without the first and the last window {steady:.2f} frames/s")
    shown = rows if len(rows) <= 8 else [rows[i * (len(rows) - 1) // 7] for i in range(8)]
    print("memory of the process after frame: " + ", ".join(f"{done}: {gib:.2f} GiB" for done, _, gib in shown))
    if device.type == "cuda":
        peak, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        print(f"peak GPU memory {peak / GIB:.2f} GiB allocated, {reserved / GIB:.2f} GiB reserved")


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the arguments that only apply to videos."""
    group.add_argument("--frames", type=int, default=60, help="length of the clip")
    group.add_argument("--window", type=int, default=24, help="frames that the network processes together")
    group.add_argument("--overlap", type=int, default=6, help="frames that two windows share")
    group.add_argument("--online", action="store_true", help="windows of one frame")
