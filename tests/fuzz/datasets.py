"""What a user does with a dataset: read it for training, make samples, evaluate, check; with and without skipping."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image

from mask2former.config import load_config
from mask2former.data import build_test_loader, build_train_loader, register_from_config
from mask2former.data.datasets import catalog
from mask2former.data.inspect import check_dataset
from mask2former.data.inspect_report import format_report
from mask2former.errors import BadRecordError
from mask2former.evaluation import build_evaluator

from .judgment import Case, Outcome, check_finite, require

NAME = "fuzz_data"
SIZE = (24, 32)  # height and width

Sample = dict[str, Any]
Records = list[dict[str, Any]]
Predict = Callable[[dict[str, Any], Sample], dict[str, Any]]  # record and test sample -> what a perfect model returns


def write_images(directory: Path, names: Sequence[str]) -> None:
    """Write small images of noise."""
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(directory / name)


def small_config(config: str | None, *options: Any) -> CfgNode:
    """Return a config for tiny images, in this process and on the CPU."""
    settings: list[Any] = ["MODEL.DEVICE", "cpu", "SEED", 3, "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 1]
    settings += ["INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", SIZE[0], "INPUT.MAX_SIZE_TEST", 64, "OUTPUT_DIR", ""]
    settings += ["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), *options]
    return load_config(config, settings)


def with_dataset(cfg: CfgNode, key: str, *parts: Any, skip: bool) -> CfgNode:
    """Return a copy of a config with the dataset under `DATASETS.<key>`; an earlier one of the name is forgotten."""
    catalog.unregister(NAME)
    cfg = cfg.clone()
    cfg.DATASETS[key] = [[NAME, *map(str, parts)]]
    cfg.DATALOADER.SKIP_BAD_RECORDS = skip
    return cfg


def use_dataset(
    case: Case,
    cfg: CfgNode,
    *,
    predict: Predict,
    check_results: Callable[[dict[str, Any], Records], None],
) -> None:
    """Train, evaluate and check, and compare what they say about the same files.

    Args:
        case: the case.
        cfg: of `with_dataset`.
        predict: see `Predict`.
        check_results: gets the results and the records of an evaluation in which every record had a sample.
    """
    registered = case.attempt(register_from_config, cfg, [NAME])
    if not registered.accepted:
        return
    records = case.attempt(DatasetCatalog.get, NAME)
    trained = case.attempt(_train, cfg)
    evaluated = case.attempt(_evaluate, cfg, predict)
    if trained.accepted:
        # Also where the training data has one bad record among good ones, which `_train` raises. A training sample has
        # some frames of a video only; an evaluation may find that one of the others is no file.
        unread = cfg.DATASETS.YTVIS_JSON and f"{os.sep}frames{os.sep}" in str(evaluated.error)
        require(unread or evaluated.accepted, f"what trains does not evaluate: {evaluated.error}")
    if not records.accepted:
        require(not trained.accepted, f"is trained on, but cannot be read: {records.error}")
        require(not evaluated.accepted, f"is evaluated, but cannot be read: {records.error}")
    if evaluated.accepted and records.accepted:
        results, complete = evaluated.value
        if complete and trained.accepted and trained.value:
            check_results(results, records.value)
    _check(case, cfg, records, trained)


def _train(cfg: CfgNode) -> bool:
    """Make the sample of every record; raises the first error, returns whether no record was left out."""
    dataset: Any = build_train_loader(cfg).dataset
    count = 0
    for index in range(len(dataset)):
        sample = dataset.try_map(index)
        if isinstance(sample, BadRecordError):
            raise sample
        if sample is not None:
            _check_sample(sample)
            count += 1
    if not count:
        raise BadRecordError(NAME, "the harness found no usable record")
    return count == len(dataset)


def _check_sample(sample: Sample) -> None:
    check_finite({key: value for key, value in sample.items() if not isinstance(value, (str, int))}, "the sample")
    many = sample.get("instances")
    for instances in many if isinstance(many, list) else [many]:
        if instances is not None and instances.has("gt_masks"):
            require(len(instances.gt_masks) == len(instances.gt_classes), "masks and classes differ in number")


def _evaluate(cfg: CfgNode, predict: Predict) -> tuple[dict[str, Any], bool]:
    """Evaluate a model that finds everything; returns the results, and whether every record had a sample."""
    evaluator = build_evaluator(cfg, NAME)
    evaluator.reset()
    by_key = {_key(record): record for record in DatasetCatalog.get(NAME)}
    count = 0
    for batch in build_test_loader(cfg, NAME):
        outputs = [predict(by_key[_key(sample)], sample) for sample in batch]
        evaluator.process(batch, outputs)
        count += len(batch)
    return evaluator.evaluate() or {}, count == len(by_key)


def _key(record: dict[str, Any]) -> Any:
    """Return what a record and its sample have in common."""
    return next(record[key] for key in ("image_id", "video_id", "file_name") if key in record)


def _check(case: Case, cfg: CfgNode, records: Outcome, trained: Outcome) -> None:
    checked = case.attempt(check_dataset, NAME, workers=1)
    if not checked.accepted:
        require(not trained.accepted, f"is trained on, but cannot be checked: {checked.error}")
        return
    require(records.accepted, f"is checked, but cannot be read: {records.error}")
    require(isinstance(format_report(checked.value), str), "no report")
    told = checked.value.problems or checked.value.finding.error
    if not told and not cfg.DATALOADER.SKIP_BAD_RECORDS and not trained.accepted:
        text = str(trained.error)
        require(
            "harness" in text or "annotations" in text.lower() or "empty" in text,
            f"check finds nothing, training: {text}",
        )
