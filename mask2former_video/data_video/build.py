"""Loaders of clips: those of detectron2, with records of videos and a mapper of clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import detectron2.data
from detectron2.config import CfgNode

from .._sibling import core
from .dataset_mapper import YTVISDatasetMapper

_records = core("data.clip_records")


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


def build_detection_train_loader(
    cfg: Any = None, mapper: Callable[[Any], Any] | None = None, *, dataset: Any = None, **options: Any
) -> Any:
    """Build detectron2's endless loader of training batches.

    Args:
        cfg: config; or records, with the keywords of detectron2's function.
        mapper: by default `YTVISDatasetMapper` of the config.
        dataset: records; by default those of DATASETS.TRAIN.
        options: further keywords of detectron2's function, such as `sampler`.
    """
    if not isinstance(cfg, CfgNode):
        dataset = cfg if dataset is None else dataset
        return detectron2.data.build_detection_train_loader(dataset, mapper=mapper, **options)
    if dataset is None:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    mapper = YTVISDatasetMapper(cfg, True) if mapper is None else mapper
    return detectron2.data.build_detection_train_loader(cfg, mapper=mapper, dataset=dataset, **options)


def build_detection_test_loader(
    cfg: Any = None,
    dataset_name: str | Sequence[str] | None = None,
    mapper: Callable[[Any], Any] | None = None,
    *,
    dataset: Any = None,
    **options: Any,
) -> Any:
    """Build detectron2's loader that yields each video once.

    Args:
        cfg: config; or records, with the keywords of detectron2's function.
        dataset_name: registered names.
        mapper: by default `YTVISDatasetMapper` of the config, for inference.
        dataset: records instead of names.
        options: further keywords of detectron2's function, such as `num_workers`.
    """
    if isinstance(cfg, CfgNode):
        mapper = YTVISDatasetMapper(cfg, False) if mapper is None else mapper
        options = {"num_workers": cfg.DATALOADER.NUM_WORKERS} | options
        if dataset is None and dataset_name is not None:
            dataset = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    else:
        dataset = cfg if dataset is None else dataset
    return detectron2.data.build_detection_test_loader(dataset, mapper=mapper, **options)
