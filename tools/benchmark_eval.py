"""`tools/benchmark.py eval`: a synthetic COCO panoptic validation, scored here and by detectron2's evaluators.

Both get the same outputs in the same order, image by image, as from `inference_on_dataset`, and write the same result
files. Only the time of the evaluators is counted, not that of generating outputs. Every number that both report must be
the same, or the run fails.
detectron2's panoptic evaluator needs panopticapi: `pip install --no-deps panopticapi-lite==0.2.0`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, DatasetEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import Tensor

from mask2former.benchmark.measure import peak_resident
from mask2former.benchmark.report import GIB, Report, Row
from mask2former.evaluation import InstanceSegEvaluator, PanopticEvaluator, SemanticEvaluator, encode_label_map
from mask2former.structures.panoptic_ids import id_to_rgb

NAME = "benchmark_coco_panoptic"
THINGS, CLASSES = 80, 133
BANDS, OBJECTS, DETECTIONS = 5, 12, 100
TASKS = ("panoptic", "instance", "semantic")

Segment = dict[str, Any]
Makers = dict[str, Callable[[], DatasetEvaluator]]


@dataclass
class Scene:
    """Synthetic ground truth: bands of stuff with discs in front of them."""

    ids: np.ndarray  # (h, w) int32 segment ids, from 1
    segments: list[Segment]  # id, category_id (contiguous), isthing

    @classmethod
    def make(cls, size: tuple[int, int], rng: np.random.Generator) -> Scene:
        """Generate a random scene of `size` (height, width)."""
        height, width = size
        wave = (height / 30 * np.sin(np.arange(width) / rng.uniform(8, 60))).astype(np.int64)
        borders = np.sort(rng.integers(0, height, BANDS - 1))
        rows = np.arange(height)[:, None] + wave
        ids = 1 + np.searchsorted(borders, rows.ravel()).reshape(size).astype(np.int32)
        stuff = rng.choice(np.arange(THINGS, CLASSES), BANDS, replace=False).tolist()
        segments = [{"id": i + 1, "category_id": k, "isthing": False} for i, k in enumerate(stuff)]
        for number in range(BANDS + 1, BANDS + 1 + OBJECTS):
            ids[disc(size, rng)] = number
            segments.append({"id": number, "category_id": int(rng.integers(THINGS)), "isthing": True})
        ids[: int(rng.integers(0, height // 20))] = 0  # unlabeled
        return cls(ids, present(ids, segments))


def present(ids: np.ndarray, segments: list[Segment]) -> list[Segment]:
    """Return the segments that have pixels."""
    pixels = np.bincount(ids.ravel(), minlength=len(segments) + 1)
    return [s for s in segments if pixels[s["id"]]]


def disc(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw an ellipse of random size, from a dot to half the image, with an uneven contour; (h, w) bool."""
    height, width = size
    radius = np.exp(rng.uniform(np.log(4), np.log(height / 3)))
    y = (np.arange(height)[:, None] - rng.uniform(0, height)) / radius
    x = (np.arange(width) - rng.uniform(0, width)) / (radius * rng.uniform(0.6, 1.6))
    return y * y + x * x < 1 + 0.1 * np.sin(np.arange(width) / 2)


def predict(scene: Scene, rng: np.random.Generator) -> tuple[dict[str, Any], Tensor]:
    """Generate predictions: the scene shifted, some classes wrong, and many extra instances with low scores.

    Returns:
        The outputs without the semantic scores, and the class (h, w) with the highest score.
    """
    shift = (int(rng.integers(-6, 7)), int(rng.integers(-6, 7)))
    ids = np.roll(scene.ids, shift, (0, 1))
    segments = []
    for s in present(ids, scene.segments):
        wrong = rng.random() < 0.15
        low, high = (0, THINGS) if s["isthing"] else (THINGS, CLASSES)
        segments.append({**s, "category_id": int(rng.integers(low, high)) if wrong else s["category_id"]})
    things = [s for s in segments if s["isthing"]]
    masks = [ids == s["id"] for s in things]
    classes = [s["category_id"] for s in things]
    while len(masks) < DETECTIONS:
        if masks and rng.random() < 0.5:  # one query is often predicted with several classes
            masks.append(masks[rng.integers(len(masks))])
        else:
            masks.append(disc(scene.ids.shape, rng))
        classes.append(int(rng.integers(THINGS)))
    instances = Instances(scene.ids.shape)
    instances.pred_masks = torch.from_numpy(np.stack(masks))
    instances.pred_boxes = Boxes(torch.zeros(DETECTIONS, 4))
    scores = rng.random(DETECTIONS).astype(np.float32)
    scores[len(things) :] *= 0.4
    instances.scores, instances.pred_classes = torch.from_numpy(scores), torch.tensor(classes)
    class_of = np.zeros(CLASSES + 1, dtype=np.int64)
    for s in segments:
        class_of[s["id"]] = s["category_id"]
    outputs = {"panoptic_seg": (torch.from_numpy(ids), segments), "instances": instances}
    return outputs, torch.from_numpy(class_of[ids])


def write_ground_truth(directory: Path, images: int, size: tuple[int, int]) -> None:
    """Write COCO's files below `directory`, and register them as NAME."""
    height, width = size
    categories = [{"id": i + 1, "name": f"class {i}", "isthing": int(i < THINGS)} for i in range(CLASSES)]
    content: dict[str, list[Any]] = {"images": [], "panoptic": [], "instances": []}
    records = []
    for sub in ("panoptic", "semantic"):
        (directory / sub).mkdir()
    for number in range(images):
        scene = Scene.make(size, np.random.default_rng(number))
        name, label = f"{number:012d}", np.full(BANDS + OBJECTS + 1, 255, dtype=np.uint8)
        codes, infos = encode_label_map(scene.ids), []
        for s in scene.segments:
            label[s["id"]] = s["category_id"]
            area = int((scene.ids == s["id"]).sum())
            infos.append({"id": s["id"], "category_id": s["category_id"] + 1, "area": area, "iscrowd": 0})
            if s["isthing"]:
                entry = {"id": len(content["instances"]) + 1, "image_id": number, "bbox": [0, 0, 1, 1]}
                content["instances"].append({**infos[-1], **entry, "segmentation": codes[s["id"]]})
        Image.fromarray(id_to_rgb(scene.ids)).save(directory / "panoptic" / f"{name}.png")
        Image.fromarray(label[scene.ids]).save(directory / "semantic" / f"{name}.png")
        content["images"].append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        content["panoptic"].append({"image_id": number, "file_name": f"{name}.png", "segments_info": infos})
        label_file = str(directory / "semantic" / f"{name}.png")
        records.append({"file_name": f"{name}.jpg", "image_id": number, "sem_seg_file_name": label_file})
    for task, used in (("panoptic", categories), ("instances", categories[:THINGS])):
        annotations = {"images": content["images"], "categories": used, "annotations": content[task]}
        (directory / f"{task}.json").write_text(json.dumps(annotations))
    register(directory, records, [c["name"] for c in categories])


def register(directory: Path, records: list[dict[str, Any]], names: list[str]) -> None:
    """Register the files in `directory` with detectron2 as NAME."""
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        json_file=str(directory / "instances.json"),
        panoptic_json=str(directory / "panoptic.json"),
        panoptic_root=str(directory / "panoptic"),
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        thing_classes=names[:THINGS],
        stuff_classes=names,
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(THINGS)},
        stuff_dataset_id_to_contiguous_id={i + 1: i for i in range(CLASSES)},
    )


def ours(directory: str) -> Makers:
    """Return a factory for each evaluator of this project."""
    return {
        "panoptic": lambda: PanopticEvaluator(NAME, directory),
        "instance": lambda: InstanceSegEvaluator(NAME, output_dir=directory),
        "semantic": lambda: SemanticEvaluator(NAME, output_dir=directory),
    }


def detectron2s(directory: str, boundary: bool) -> Makers:
    """Return a factory for each evaluator of detectron2.

    Its semantic evaluator cannot read files with NumPy 2, hence `load`; without `boundary` it skips boundary IoU.
    """

    def load(path: str, dtype: Any = None) -> np.ndarray:
        return np.array(Image.open(path, formats=("PNG",)), dtype=dtype)

    def semantic() -> DatasetEvaluator:
        evaluator = SemSegEvaluator(NAME, output_dir=directory, sem_seg_loading_fn=load)
        evaluator._compute_boundary_iou &= boundary
        return evaluator

    return {
        "panoptic": lambda: COCOPanopticEvaluator(NAME, directory),
        # detectron2's faster AP needs its compiled extension, which the build that is installed here does not include.
        "instance": lambda: COCOEvaluator(NAME, ("segm",), output_dir=directory, use_fast_impl=False),
        "semantic": semantic,
    }


@dataclass
class Validation:
    """The evaluators of one project, their results, and their seconds per task, including loading of ground truth."""

    makers: Makers
    evaluators: dict[str, DatasetEvaluator] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TASKS, 0.0))
    results: dict[str, dict[str, float]] = field(default_factory=dict)

    def start(self) -> None:
        """Build and reset the evaluators."""
        for task, make in self.makers.items():
            with self._clock(task):
                self.evaluators[task] = make()
                self.evaluators[task].reset()

    def process(self, image: dict[str, Any], output: dict[str, Any]) -> None:
        """Pass one image to all evaluators."""
        for task, evaluator in self.evaluators.items():
            with self._clock(task):
                evaluator.process([image], [output])

    def evaluate(self) -> None:
        """Compute the metrics of all evaluators."""
        for task, evaluator in self.evaluators.items():
            with self._clock(task):
                self.results.update(evaluator.evaluate())

    @contextlib.contextmanager
    def _clock(self, task: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[task] += time.perf_counter() - start


def validate(sides: Sequence[Validation], images: int, size: tuple[int, int], device: torch.device) -> None:
    """Run a complete validation. Both sides alternate per image, so that both see the same load of the machine."""
    for side in sides:
        side.start()
    scores = torch.rand(CLASSES, *size, device=device)
    for number in range(images):
        scene = Scene.make(size, np.random.default_rng(number))
        output, labels = predict(scene, np.random.default_rng(images + number))
        ids, segments = output["panoptic_seg"]
        winners = labels.to(device)[None]
        noise = scores.gather(0, winners)
        scores.scatter_(0, winners, 1.5)
        image = {"image_id": number, "file_name": f"{number:012d}.jpg"}
        for side in sides if number % 2 else reversed(sides):
            outputs = {
                "panoptic_seg": (ids.to(device, copy=True), copy.deepcopy(segments)),  # detectron2 modifies them
                "instances": output["instances"].to(device),
                "sem_seg": scores,
            }
            if device.type == "cuda":
                torch.cuda.synchronize()
            side.process(image, outputs)
        scores.scatter_(0, winners, noise)
    for side in sides:
        side.evaluate()


def compare(mine: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]) -> str:
    """Compare all numbers that both report; return a summary. SystemExit if any differs by more than 1e-9."""
    count, largest = 0, 0.0
    for task, numbers in mine.items():
        for key in numbers.keys() & theirs[task].keys():
            a, b = numbers[key], theirs[task][key]
            if math.isnan(a) and math.isnan(b):
                continue
            count, largest = count + 1, max(largest, abs(a - b))
            if not abs(a - b) <= 1e-9:
                raise SystemExit(f"{task} {key}: {a} here, {b} in detectron2")
    return f"{count} numbers agree, largest difference {largest:.1e}"


def libraries() -> str:
    """Return one line with the versions of the libraries and the number of CPU cores."""
    versions = []
    for name in ("detectron2", "sal-detectron2", "pycocotools", "panopticapi", "panopticapi-lite", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return f"{', '.join(versions)}; {os.cpu_count()} CPU cores"


def run(args: argparse.Namespace, describe: str) -> Report:
    """Validate with both projects; print times, ratios and the compared numbers."""
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")  # of NumPy about old libraries
    size = (args.size[0], args.size[1])
    print(f"{describe}\n{libraries()}")
    title = f"{args.images} images of {size[0]} x {size[1]}, {DETECTIONS} instances each, {CLASSES} classes"
    print(title)
    with tempfile.TemporaryDirectory(prefix="benchmark_eval_") as name:
        directory = Path(name)
        write_ground_truth(directory, args.images, size)
        for sub in ("ours", "theirs"):
            (directory / sub).mkdir()
        here = Validation(ours(str(directory / "ours")))
        there = Validation(detectron2s(str(directory / "theirs"), args.boundary))
        with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
            validate((here, there), args.images, size, torch.device(args.device))
    print(compare(here.results, there.results))
    main = (("PQ", "panoptic_seg", "PQ"), ("AP", "segm", "AP"), ("mIoU", "sem_seg", "mIoU"))
    print(", ".join(f"{name} {here.results[task][key]:.3f}" for name, task, key in main))
    rows = [(task, here.seconds[task], there.seconds[task]) for task in TASKS]
    rows.append(("total", sum(here.seconds.values()), sum(there.seconds.values())))
    settings = {"images": args.images, "size": list(size), "boundary": args.boundary, "compile": "off"}
    report = Report("eval", title, settings, torch.device(args.device))
    for task, mine, theirs in rows:
        print(f"{task:10s} {mine:8.2f} s here {theirs:8.2f} s detectron2 {theirs / mine:6.2f} x")
        row = Row(task)
        row.add("time", mine, "s")
        row.add("time of detectron2", theirs, "s")
        row.add("ratio", theirs / mine, "x the time here")
        report.rows.append(row)
    report.rows[-1].add("peak memory of the process", peak_resident() / GIB, "GiB")
    return report
