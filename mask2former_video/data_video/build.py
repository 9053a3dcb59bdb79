"""Loaders of clips: those of detectron2, with records of videos and a mapper of clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import detectron2.data
import detectron2.data.build
from detectron2.config import CfgNode, configurable

from .._sibling import core
from .dataset_mapper import YTVISDatasetMapper

_records = core("data.clip_records")
_parallel = core("utils.parallel")


def get_detection_dataset_dicts(
    dataset_names: str | Sequence[str], filter_empty: bool = True, proposal_files: Sequence[str] | None = None
) -> Any:
    """Load the records of registered datasets.

    Args:
        dataset_names: one or more names.
        filter_empty: leave out videos without an object, or with crowd regions only.
        proposal_files: must be None, videos have no proposals.
    """
    if proposal_files is not None:
        raise ValueError("proposal_files are for detectors of images; videos have none")
    return _records.load_clip_records(
        [dataset_names] if isinstance(dataset_names, str) else list(dataset_names), filter_empty
    )


def filter_images_with_only_crowd_annotations(
    dataset_dicts: Sequence[dict[str, Any]], dataset_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the records that have an object which is no crowd region.

    Args:
        dataset_dicts: records of videos or images, with annotations.
        dataset_names: not used.
    """
    return _records.with_objects(dataset_dicts)


def _train_loader_from_config(
    cfg: CfgNode, mapper: Callable[[Any], Any] | None = None, *, dataset: Any = None, sampler: Any = None
) -> dict[str, Any]:
    """Return the arguments of `build_detection_train_loader` for a config.

    Args:
        cfg: config of a video model.
        mapper: by default `YTVISDatasetMapper` of the config.
        dataset: records; by default those of DATASETS.TRAIN.
        sampler: by default that of DATALOADER.SAMPLER_TRAIN.
    """
    if dataset is None:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    mapper = YTVISDatasetMapper(cfg, True) if mapper is None else mapper
    return detectron2.data.build._train_loader_from_config(cfg, mapper, dataset=dataset, sampler=sampler)


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Any, *, mapper: Callable[[Any], Any] | None, total_batch_size: int, **options: Any
) -> Any:
    """Build detectron2's endless loader of training batches.

    It is also called with a config: `(cfg, mapper=None, *, dataset=None, sampler=None)`, with further keywords.

    Args:
        dataset: records.
        mapper: maps a record to a sample.
        total_batch_size: clips of a batch, of all ranks together.
        options: further keywords of detectron2's function, such as `sampler` and `num_workers`.
    """
    return detectron2.data.build_detection_train_loader(
        dataset, mapper=mapper, total_batch_size=total_batch_size, **options
    )


def _test_loader_from_config(
    cfg: CfgNode,
    dataset_name: str | Sequence[str] | None = None,
    mapper: Callable[[Any], Any] | None = None,
    *,
    dataset: Any = None,
) -> dict[str, Any]:
    """Return the arguments of `build_detection_test_loader` for a config.

    Args:
        cfg: config of a video model.
        dataset_name: registered names.
        mapper: by default `YTVISDatasetMapper` of the config, for inference.
        dataset: records instead of names.
    """
    if dataset is None and dataset_name is not None:
        dataset = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    mapper = YTVISDatasetMapper(cfg, False) if mapper is None else mapper
    return {"dataset": dataset, "mapper": mapper, "num_workers": _parallel.loader_workers(cfg.DATALOADER.NUM_WORKERS)}


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(dataset: Any, *, mapper: Callable[[Any], Any] | None, **options: Any) -> Any:
    """Build detectron2's loader that yields each video once.

    It is also called with a config: `(cfg, dataset_name, mapper=None)`, with further keywords.

    Args:
        dataset: records.
        mapper: maps a record to a sample.
        options: further keywords of detectron2's function, such as `num_workers`.
    """
    return detectron2.data.build_detection_test_loader(dataset, mapper=mapper, **options)
