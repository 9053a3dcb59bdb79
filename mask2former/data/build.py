"""Data loaders for training and evaluation, from a config."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

from ..config import micro_batch_size
from ..errors import BadRecordError
from ..utils.hints import did_you_mean
from ..utils.parallel import loader_workers, one_opencv_thread_in_children
from .balancing import BalancedBatches, object_counts
from .batch_transport import PackedBatch, collate, collate_with_bits
from .clip_records import by_track, holds_videos, load_clip_records
from .dataset_mappers import build_mapper
from .dataset_mappers.clip_mappers import MixedClipDatasetMapper
from .dataset_mappers.targets import InstanceTargets, PanopticTargets, SemanticTargets
from .datasets import register_from_config
from .image_io import image_size
from .learnable import Finding, check_label_maps, check_objects, check_segments, why_no_objects
from .mapped_dataset import Mapper, Sample, TestRecords, TrainingRecords
from .sampler import Draw, IndexStream, TrainingBatches

logger = logging.getLogger(__name__)

_SIZE_READERS = 16  # threads; on network disks they wait most of the time

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")


def build_train_loader(
    cfg: CfgNode, mapper: Mapper | None = None, *, start_iteration: int = 0, seed: int | None = None
) -> DataLoader:
    """Build the endless loader of micro-batches of this rank.

    A training iteration takes SOLVER.ACCUMULATION_STEPS batches of the loader; over all ranks they hold
    SOLVER.IMS_PER_BATCH samples. With the same seed, a loader started at iteration k yields what the loader started at
    0 yields from iteration k on, augmentations included, whatever the number of workers. There are
    DATALOADER.NUM_WORKERS of them, but not more than usable cores.

    Args:
        cfg: DATASETS.TRAIN, DATASETS.COCO_JSON, INPUT, DATALOADER and SOLVER are read.
        mapper: replaces the one that INPUT.DATASET_MAPPER_NAME names.
        start_iteration: training iterations already done.
        seed: the same on all ranks; None takes cfg.SEED, or a random seed if that is negative. With a random seed a
            resumed run does not continue the order of the interrupted one.

    Returns:
        Loader of lists of samples; `skipped_records(loader)` counts the bad ones.

    Raises:
        ValueError: invalid settings, an unknown dataset, or no record to train on.
        FileNotFoundError: files of the dataset are missing.
        BadRecordError: annotations cannot be used, or none of them can be learned; the loader raises it too, for a
            record.
    """
    register_from_config(cfg, cfg.DATASETS.TRAIN)
    batch_size = micro_batch_size(cfg, comm.get_world_size())
    if start_iteration < 0:
        raise ValueError(f"start_iteration is {start_iteration}; give an iteration of 0 or more")
    records = _load_records(list(cfg.DATASETS.TRAIN), "DATASETS.TRAIN", cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    tracks = by_track(records)
    if seed is None:
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    workers = loader_workers(cfg.DATALOADER.NUM_WORKERS)
    stream = IndexStream(_repeats(cfg, tracks, seed), seed)
    settings: dict[str, Any] = {
        "rank": comm.get_rank(),
        "world_size": comm.get_world_size(),
        "start_batch": start_iteration * cfg.SOLVER.ACCUMULATION_STEPS,
        # A batch of one has one orientation anyway.
        "groups": _orientations(records) if cfg.DATALOADER.ASPECT_RATIO_GROUPING and batch_size > 1 else None,
    }
    objects = _objects_to_balance(tracks) if cfg.DATALOADER.BALANCE_OBJECTS and comm.get_world_size() > 1 else None
    batches: Sampler[list[Draw]]
    if objects is None:
        batches = TrainingBatches(stream, batch_size, **settings)
    else:
        batches = BalancedBatches(stream, objects, batch_size, **settings)
    mapper = mapper if mapper is not None else build_mapper(cfg, True)
    _check_learnable(tracks, mapper, cfg.DATASETS.TRAIN)
    skip_bad = cfg.DATALOADER.SKIP_BAD_RECORDS
    dataset = TrainingRecords(records, mapper, seed=seed, skip_bad=skip_bad, num_workers=workers)
    text = "training on %d records of %s, %d per micro-batch and rank, seed %d, from iteration %d"
    logger.info(text, len(records), ", ".join(cfg.DATASETS.TRAIN), batch_size, seed, start_iteration)
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        # Pinning memory initializes CUDA; avoid that if the model does not use it.
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available(),
        generator=_loader_generator(seed),
    )


def build_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Mapper | None = None, *, batch_size: int = 1
) -> DataLoader:
    """Build a loader that yields every record of one dataset once, divided among the ranks.

    It has DATALOADER.NUM_WORKERS workers, but not more than usable cores.

    Args:
        cfg: DATASETS.COCO_JSON, INPUT and DATALOADER are read.
        dataset_name: registered name.
        mapper: replaces the one for inference.
        batch_size: images in a batch.

    Returns:
        Loader of lists of samples. With DATALOADER.SKIP_BAD_RECORDS bad records are left out and have no prediction;
        `skipped_records(loader)` counts them.

    Raises:
        ValueError, FileNotFoundError, BadRecordError: as `build_train_loader`.
    """
    register_from_config(cfg, [dataset_name])
    records = _load_records([dataset_name], "DATASETS.TEST", filter_empty=False)
    workers = loader_workers(cfg.DATALOADER.NUM_WORKERS)
    dataset = TestRecords(
        records,
        mapper if mapper is not None else build_mapper(cfg, False),
        skip_bad=cfg.DATALOADER.SKIP_BAD_RECORDS,
        num_workers=workers,
    )
    return _Loader(
        dataset,
        batch_size=batch_size,
        sampler=InferenceSampler(len(records)),
        num_workers=workers,
        collate_fn=collate,
        generator=_loader_generator(0),
    )


def skipped_records(loader: DataLoader) -> int:
    """Return how many times a loader of this module has skipped a bad record."""
    return cast("TrainingRecords | TestRecords", loader.dataset).skipped


class _Loader(DataLoader):
    """Raises the errors that records returned, and leaves out the records that were skipped."""

    def __iter__(self) -> Iterator[list[Sample]]:  # type: ignore[override]
        # A local variable: an error keeps it, and with it the workers, until it is handled.
        with one_opencv_thread_in_children():
            batches = super().__iter__()
        for batch in batches:
            samples = batch.samples if isinstance(batch, PackedBatch) else batch
            for sample in samples:
                if isinstance(sample, BadRecordError):
                    raise sample
            usable = [sample for sample in samples if sample is not None]
            if usable:
                yield usable


def _loader_generator(seed: int) -> torch.Generator:
    """Return the generator from which a DataLoader draws at its start, instead of from the global random state."""
    return torch.Generator().manual_seed(seed)


def with_mask_bits(loader: Any) -> Any:
    """Return a loader of the same batches, whose `gt_masks` are `MaskBits`, for models with `reads_mask_bits`.

    Workers then write an eighth of the bytes, and this process, which waits for each memory page that it touches first,
    reads an eighth. A loader that `build_train_loader` has not built, or that has got another `collate_fn` since, is
    returned as it is.
    """
    if not isinstance(loader, _Loader) or loader.collate_fn is not collate:
        return loader
    packing = copy.copy(loader)
    packing.collate_fn = collate_with_bits
    return packing


def _load_records(names: Sequence[str], key: str, filter_empty: bool) -> list[dict[str, Any]]:
    """Load the records of datasets by name; raise ValueError where detectron2 would only assert."""
    if not names:
        raise ValueError(f"{key} is empty; name at least one dataset")
    for name in names:
        if name not in DatasetCatalog:
            hint = did_you_mean(name, DatasetCatalog.keys(), 3)
            raise ValueError(
                f"{key}: no dataset {name!r} is registered.{hint} Register a custom COCO JSON file with "
                f'DATASETS.COCO_JSON \'[["{name}", "annotations.json", "images"]]\''
            )
    try:
        if holds_videos(names):
            return load_clip_records(names, filter_empty)
        return get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except AssertionError as error:
        remedy = ""
        if filter_empty:
            finding = check_objects(by_track(_load_records(names, key, False)))
            why = why_no_objects(names) if not finding.error or "has an object" in finding.error else ""
            reason = "; ".join(filter(None, [finding.error, why]))
            remedy = f" DATALOADER.FILTER_EMPTY_ANNOTATIONS keeps only images with objects: {reason}"
        raise ValueError(f"{key} {', '.join(names)}: {error}{remedy}") from error


def _check_learnable(records: list[dict[str, Any]], mapper: Any, names: Sequence[str]) -> None:
    """Check that the ground truth that a mapper of this package reads has anything to learn from.

    Raises:
        BadRecordError: it has not.
    """
    targets = getattr(mapper, "targets", None)
    finding, why = Finding(), ""
    if type(targets) is InstanceTargets or isinstance(mapper, MixedClipDatasetMapper):
        finding = check_objects(records, "videos" if all("file_names" in record for record in records) else "images")
        if "has an object" in finding.error:
            why = why_no_objects(names)
            if not why:  # of datasets that other code registered, it is not known whether objects are missing
                finding = Finding(warning=finding.error)
    elif type(targets) is PanopticTargets:
        finding = check_segments(records)
    elif type(targets) is SemanticTargets:
        classes = MetadataCatalog.get(names[0]).get("stuff_classes") or []
        finding = check_label_maps(records, classes, targets.ignore_label)
    place = ", ".join(names)
    if finding.error:
        raise BadRecordError(place, "; ".join(filter(None, [finding.error, why])))
    if finding.warning:
        logger.warning("%s: %s", place, finding.warning)


def _repeats(cfg: CfgNode, records: list[dict[str, Any]], seed: int) -> np.ndarray:
    """Return how often an epoch shows each record, float (N,), by DATALOADER.SAMPLER_TRAIN."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return np.ones(len(records))
    if name == "RepeatFactorTrainingSampler":
        if not all("annotations" in record for record in records):
            raise ValueError(f"DATALOADER.SAMPLER_TRAIN {name} needs instance annotations; use TrainingSampler")
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return factors.double().numpy()
    if name == "RandomSubsetTrainingSampler":
        count = max(1, int(len(records) * cfg.DATALOADER.RANDOM_SUBSET_RATIO))
        repeats = np.zeros(len(records))
        repeats[np.random.default_rng(seed).permutation(len(records))[:count]] = 1
        return repeats
    raise ValueError(f"DATALOADER.SAMPLER_TRAIN {name!r} is not one of {', '.join(SAMPLERS)}")


def _objects_to_balance(records: list[dict[str, Any]]) -> np.ndarray | None:
    """Return the number of objects of each record, int64 (N,); None, with a warning, if no record has objects."""
    counts = object_counts(records)
    if counts is None:
        logger.warning("DATALOADER.BALANCE_OBJECTS has no effect: the records have no objects")
    return counts


def _orientations(records: list[dict[str, Any]]) -> np.ndarray | None:
    """Return 1 for images wider than high, else 0, int64 (N,); None, with a warning, if a size cannot be known.

    Records of label maps have no "width" and "height"; then the head of each image file is read.
    """
    sizes: list[tuple[int, int] | None] = [
        (record["height"], record["width"]) if "width" in record and "height" in record else None for record in records
    ]
    unknown = [index for index, size in enumerate(sizes) if size is None]
    if unknown:
        files = [_first_file(records[index]) for index in unknown]
        start = time.perf_counter()
        with ThreadPoolExecutor(_SIZE_READERS) as pool:
            for index, size in zip(unknown, pool.map(image_size, files), strict=True):
                sizes[index] = size
        text = "read the sizes of %d images in %.1f s, to group them by aspect ratio (DATALOADER.ASPECT_RATIO_GROUPING)"
        logger.info(text, len(files), time.perf_counter() - start)
    bad = sum(size is None for size in sizes)
    if bad and bad == len(sizes):
        logger.warning("DATALOADER.ASPECT_RATIO_GROUPING has no effect: no size of an image can be read")
        return None
    if bad:
        text = "DATALOADER.ASPECT_RATIO_GROUPING: the size of %d images cannot be read; they count as upright"
        logger.warning(text, bad)
    return np.array([size is not None and size[1] > size[0] for size in sizes], dtype=np.int64)


def _first_file(record: dict[str, Any]) -> Any:
    """Return the image of a record, or the first frame of a video; None if it has none."""
    return record.get("file_name") or next(iter(record.get("file_names") or ()), None)
