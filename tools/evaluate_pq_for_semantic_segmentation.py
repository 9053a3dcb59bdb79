#!/usr/bin/env python
"""Panoptic quality of semantic predictions: each class of an image is one segment (PQ-stuff).

    python tools/evaluate_pq_for_semantic_segmentation.py --dataset-name ade20k_sem_seg_val \\
        --json-file output/inference/sem_seg_predictions.json

Unlike mIoU, PQ evaluates each image by itself: a predicted class that is not in the image is a false positive, however
few pixels it has. A segment is matched if its IoU is above 0.5; pixels without a label in the ground truth are ignored.
Numbers are in percent; nan for classes that are in neither ground truth nor predictions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "mask2former").is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

from mask2former.utils.failures import run_program  # noqa: E402

REFERENCE_DATASETS = ("ade20k_sem_seg_val", "coco_2017_test_stuff_10k_sem_seg", "ade20k_full_sem_seg_val")
SUMMARY = ("PQ", "SQ", "RQ")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset-name",
        default=REFERENCE_DATASETS[0],
        metavar="NAME",
        help=f"registered dataset with label maps: {', '.join(REFERENCE_DATASETS)} or any other "
        f"(default {REFERENCE_DATASETS[0]})",
    )
    parser.add_argument(
        "--json-file", required=True, metavar="FILE", help="sem_seg_predictions.json of a semantic evaluation"
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help="only for datasets that a config registers: that config (DATASETS)"
    )
    return run_program(parser, _evaluate, argv, mistake=1)


def _evaluate(args: argparse.Namespace) -> None:
    from mask2former.evaluation.semantic_pq import evaluate_semantic_pq
    from mask2former.utils.tables import side_by_side

    skip = _require_dataset(args.dataset_name, args.config_file)
    metrics = evaluate_semantic_pq(args.dataset_name, args.json_file, skip_bad_records=skip)
    classes = [(name.removeprefix("PQ-"), value) for name, value in metrics.items() if name not in SUMMARY]
    print(side_by_side(("class", "PQ"), classes))
    print(
        "  ".join(f"{name} {metrics[name]:.3f}" for name in SUMMARY), f"({args.dataset_name}, each class one segment)"
    )


def _require_dataset(name: str, config_file: str | None) -> bool:
    """Check that a dataset is registered, by the config if there is one; return whether it skips bad records."""
    from detectron2.data import DatasetCatalog

    from mask2former.config import load_config
    from mask2former.data import register_from_config
    from mask2former.utils.hints import did_you_mean

    cfg = load_config(config_file) if config_file else None
    if cfg is not None:
        register_from_config(cfg, [name])
    if name not in DatasetCatalog:
        hint = did_you_mean(name, DatasetCatalog.list(), 3)
        raise ValueError(
            f"dataset {name!r} is not registered.{hint} For a dataset that a config registers, add --config-file."
        )
    return cfg is not None and bool(cfg.DATALOADER.SKIP_BAD_RECORDS)


if __name__ == "__main__":
    sys.exit(main())
