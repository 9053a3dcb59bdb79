"""`tools/benchmark.py data`: the mapper of a recipe on synthetic images, in CPU time of one thread, stage by stage.

Images are JPEG files of --size pixels with 8 to 20 objects, which have polygons, a panoptic PNG and a label map. Beside
each stage of an instance mapper stands the plain way to the same result: the complete image transformed after every
augmentation, and a dense mask of the complete image for each object. Both ways alternate; a stage's time is the mean
over the images of the shortest of the repeats. Every image and mask must be the same, or the run fails. The last rows
are what a worker of the loader costs, handing over included, and what the process that gets its samples does, beside
PyTorch's own way to hand them over.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import PadTransform
from PIL import Image
from torch.utils.data import DataLoader

from mask2former.config import load_config
from mask2former.data import SegmentationMapper, build_mapper
from mask2former.data.batch_transport import collate_with_bits
from mask2former.data.dataset_mappers import InstanceTargets
from mask2former.data.dataset_mappers.segmentation_mapper import read_and_augment, with_padding
from mask2former.data.image_io import read_image
from mask2former.data.mapped_dataset import TrainingRecords
from mask2former.data.mask_transforms import flatten
from mask2former.data.sampler import Draw, random_state
from mask2former.structures.mask_bits import MaskBits
from mask2former.structures.masks import segmentation_to_mask
from mask2former.structures.panoptic_ids import id_to_rgb

CONFIG = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
CLASSES = 8  # in every recipe
QUALITY = 96  # JPEG files of about 160 kB at 480 x 640, as COCO's
BATCH = 8  # samples that leave a worker together

Record = dict[str, Any]
Times = dict[str, list[float]]  # stage -> shortest CPU seconds of each image
Result = TypeVar("Result")


def photo(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Generate an image with structure of all sizes, uint8 (h, w, 3)."""
    pixels = np.full((*size, 3), 120.0)
    for cell, contrast in ((160, 60), (40, 30), (10, 16), (3, 8)):
        grid = rng.normal(0, contrast, (size[0] // cell + 2, size[1] // cell + 2, 3))
        pixels += cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)


def outline(size: tuple[int, int], rng: np.random.Generator) -> list[float]:
    """Generate a polygon of 12 to 70 points inside an image, from a dot to half the image."""
    angles = np.linspace(0, 2 * np.pi, int(rng.integers(12, 70)), endpoint=False)
    radius = np.exp(rng.uniform(np.log(6), np.log(max(7, size[0] / 3))))
    radii = radius * (1 + 0.25 * np.sin(3 * angles + rng.uniform(0, 6)) + rng.normal(0, 0.04, len(angles)))
    x = rng.uniform(0, size[1]) + radii * np.cos(angles) * rng.uniform(0.6, 1.5)
    y = rng.uniform(0, size[0]) + radii * np.sin(angles)
    points = np.stack([np.clip(x, 0, size[1]), np.clip(y, 0, size[0])], axis=1)
    return np.round(points, 2).reshape(-1).tolist()


def write_records(directory: Path, images: int, size: tuple[int, int]) -> list[Record]:
    """Write images, panoptic PNG files and label maps; return their records in detectron2's format."""
    records = []
    for number in range(images):
        rng = np.random.default_rng(number)
        stem = str(directory / f"{number}")
        Image.fromarray(photo(size, rng)).save(f"{stem}.jpg", quality=QUALITY)
        annotations, segments = [], []
        ids, labels = np.zeros(size, np.int32), np.full(size, 255, np.uint8)
        for position in range(int(rng.integers(8, 21))):
            entry = {"id": position + 1, "category_id": int(rng.integers(CLASSES)), "iscrowd": 0}
            polygons = [outline(size, rng) for _ in range(1 + (rng.random() < 0.15))]
            mask = segmentation_to_mask(polygons, size)
            ids[mask], labels[mask] = entry["id"], entry["category_id"]
            annotations.append({**entry, "segmentation": polygons})
            segments.append({**entry, "isthing": True})
        Image.fromarray(id_to_rgb(ids)).save(f"{stem}_ids.png")
        Image.fromarray(labels).save(f"{stem}_labels.png")
        files = {"pan_seg_file_name": f"{stem}_ids.png", "sem_seg_file_name": f"{stem}_labels.png"}
        record = {"file_name": f"{stem}.jpg", "height": size[0], "width": size[1], "image_id": number, **files}
        records.append({**record, "annotations": annotations, "segments_info": segments})
    return records


def cpu_time(function: Callable[[], Result]) -> tuple[float, Result]:
    """Return the CPU time of a call in seconds, and its result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


class Stages:
    """The stages of an instance mapper, one after the other."""

    def __init__(self, mapper: SegmentationMapper) -> None:
        self.mapper = mapper
        self.chain = with_padding(mapper.tfm_gens, mapper.padding())

    def ours(self, record: Record, clock: Callable[..., Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and masks; `clock(stage, function)` calls the stages."""
        targets = self.mapper.targets
        assert targets is not None
        image_format = self.mapper.img_format
        clock("read", lambda: read_image(record["file_name"], image_format))  # a part of the next one, see `report`
        image = clock("augment", lambda: read_and_augment(record, dict(record), self.chain, image_format, targets))
        pixels = clock("tensor", image.to_tensor)
        clock("padding mask", image.padding_mask)
        return pixels, clock("masks", lambda: targets.entries(record, image))["instances"].gt_masks

    def plain(self, record: Record, clock: Callable[..., Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and masks in the plain way."""
        pixels = clock("read", lambda: read_image(record["file_name"], self.mapper.img_format))
        inputs = T.AugInput(pixels)
        transforms = flatten(T.TransformList([clock("augment", lambda: self.chain(inputs))]))
        tensor = clock("tensor", lambda: torch.from_numpy(inputs.image.transpose(2, 0, 1).copy()))
        size = pixels.shape[:2]
        clock("padding mask", lambda: T.TransformList(transforms).apply_segmentation(np.ones(size, np.uint8)) != 1)
        return tensor, clock("masks", lambda: dense_masks(record, transforms, size))


def dense_masks(record: Record, transforms: list[T.Transform], size: tuple[int, ...]) -> torch.Tensor:
    """Return the masks of the objects of a record that stay in the image, bool (N, H, W), each made in full size."""
    cut = [t for t in transforms if isinstance(t, T.CropTransform | PadTransform)]
    moves = [t for t in transforms if not isinstance(t, T.CropTransform | PadTransform)]
    height, width = next(((t.new_h, t.new_w) for t in moves if isinstance(t, T.ResizeTransform)), size)
    masks = []
    for entry in record["annotations"]:
        points = [np.array(polygon).reshape(-1, 2) for polygon in entry["segmentation"]]
        for transform in moves:
            points = [transform.apply_coords(each) for each in points]
        codes = coco_mask.frPyObjects([each.reshape(-1) for each in points], height, width)
        masks.append(T.TransformList(cut).apply_segmentation(coco_mask.decode(coco_mask.merge(codes))) == 1)
    return torch.from_numpy(np.stack([mask for mask in masks if mask.any()] or [np.zeros(0, bool)]))


def compare_stages(mapper: SegmentationMapper, records: list[Record], repeats: int) -> tuple[Times, Times]:
    """Time the stages here and in the plain way; SystemExit if an image or a mask differs."""
    stages = Stages(mapper)
    both: tuple[Times, Times] = ({}, {})
    for number, record in enumerate(records):
        shortest: list[dict[str, float]] = [{}, {}]
        for _ in range(repeats):
            results = []
            for side, way in enumerate((stages.ours, stages.plain)):

                def clock(stage: str, function: Callable[[], Any], times: dict[str, float] = shortest[side]) -> Any:
                    seconds, result = cpu_time(function)
                    times[stage] = min(times.get(stage, seconds), seconds)
                    return result

                with random_state(0, number):
                    results.append(way(record, clock))
        for mine, theirs in zip(*results, strict=True):
            if not torch.equal(mine, theirs):
                raise SystemExit(f"image {number}: the two ways differ")
        shortest[0]["augment"] -= shortest[0]["read"]
        for side, times in enumerate(shortest):
            for stage, seconds in times.items():
                both[side].setdefault(stage, []).append(seconds)
    return both


def mapper_time(mapper: Any, records: list[Record], repeats: int) -> float:
    """Return the mean over the records of the shortest CPU time of the complete mapper, in seconds."""
    shortest = []
    for number, record in enumerate(records):
        times = []
        for _ in range(repeats):
            with random_state(0, number):
                times.append(cpu_time(lambda record=record: mapper(record))[0])  # type: ignore[misc]
        shortest.append(min(times))
    return float(np.mean(shortest))


def loader_times(mapper: Any, records: list[Record], collate_fn: Callable[[list[Any]], Any]) -> tuple[float, float]:
    """Return the CPU seconds of a loader for a sample: of a worker, and of this process, which receives it.

    Args:
        collate_fn: makes what leaves the worker of the samples of a batch.
    """
    spent = []
    for rounds in (1, 3):  # the difference is free of the start
        draws = [Draw(i % len(records), i) for i in range(rounds * len(records))]
        before, start = os.times(), time.process_time()
        dataset = TrainingRecords(records, mapper, seed=0)
        loader = DataLoader(dataset, BATCH, sampler=draws, num_workers=1, collate_fn=collate_fn)
        for batch in loader:
            upload(batch)
        del loader
        after = os.times()
        worker = after.children_user + after.children_system - before.children_user - before.children_system
        spent.append(np.array([worker, time.process_time() - start]))
    # Of a few small images the start may vary by more than they take.
    in_worker, here = np.maximum(spent[1] - spent[0], 0) / (2 * len(records))
    return float(in_worker), float(here)


def upload(batch: Iterable[Any]) -> None:
    """Do what a model does with the masks of a batch before they are copied to a GPU: gather their bits."""
    given = [sample["instances"].gt_masks for sample in batch if "instances" in sample]
    bits = [(each if isinstance(each, MaskBits) else MaskBits.of(each)).bits for each in given]
    np.concatenate([np.zeros(0, np.uint8), *(each.numpy().reshape(-1) for each in bits)])


def run(args: argparse.Namespace, describe: str) -> dict[str, float]:
    """Time the mapper of a config; print and return the figures in milliseconds an image.

    Args:
        args: `config_file` (None for COCO instances), `size` of the images, number of `images`, `repeats`.
        describe: first line, the hardware.
    """
    logging.disable(logging.INFO)
    cv2.setNumThreads(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = args.config_file or CONFIG
    mapper = build_mapper(load_config(config), True)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark_data_") as name:
        records = write_records(Path(name), args.images, (args.size[0], args.size[1]))
        size = sum(os.path.getsize(record["file_name"]) for record in records) / len(records) / 1000
        print(f"{describe}\n{config}: {len(records)} images of {args.size[0]} x {args.size[1]}, {size:.0f} kB each")
        if isinstance(mapper, SegmentationMapper) and type(mapper.targets) is InstanceTargets:
            mine, theirs = compare_stages(mapper, records, args.repeats)
            print("stage                  here     plain   ratio   (ms an image, one thread, CPU time)")
            for stage in mine:
                report(stage, float(np.mean(mine[stage])), float(np.mean(theirs[stage])), figures)
            here, plain = (sum(float(np.mean(times)) for times in side.values()) for side in (mine, theirs))
            report("sum", here, plain, figures)
        figures["mapper"] = 1000 * mapper_time(mapper, records, args.repeats)
        # The plain way: each tensor in shared memory of its own, masks as bool.
        mine_times, their_times = (loader_times(mapper, records, way) for way in (collate_with_bits, list))
        for name, mine_seconds, their_seconds in zip(("worker", "receiver"), mine_times, their_times, strict=True):
            report(name, mine_seconds, their_seconds, figures)
    torch.set_num_threads(threads)
    for what in ("mapper", "worker"):
        rate = 1000 / figures[what] if figures[what] > 0 else float("nan")
        print(f"{what:16s} {figures[what]:10.2f} ms an image: {rate:.0f} images/s a core, {16 * rate:.0f} on 16 cores")
    return figures


def report(stage: str, here: float, plain: float, figures: dict[str, float]) -> None:
    """Print the seconds of a stage, and keep them in milliseconds."""
    figures[stage], figures[f"{stage}, plain"] = 1000 * here, 1000 * plain
    ratio = plain / here if here > 0 else float("nan")  # the clock of other processes is coarse
    print(f"{stage:16s} {1000 * here:10.2f}{1000 * plain:10.2f}{ratio:8.2f}")
