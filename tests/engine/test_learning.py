"""Trainings on the shapes world: a tiny model really learns, and each of its recipes runs from files to metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former.data.shapes import Options, Split
from mask2former.data.shapes.files import Recipe, write_dataset

ROOT = Path(__file__).parents[2]
EASY = ("disk", "star", "sky", "grass", "brick")


def train(root: Path, config: str, output: Path, *opts: str) -> dict[str, float]:
    """Run `mask2former train` on the CPU and return the last metrics."""
    command = [sys.executable, "-m", "mask2former", "train", "--config-file", f"configs/shapes/{config}.yaml"]
    command += ["--num-gpus", "0", "--output", str(output), *opts]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    metrics: dict[str, float] = {}
    for line in (output / "metrics.json").read_text().splitlines():
        metrics |= json.loads(line)
    return metrics


@pytest.mark.slow
@pytest.mark.timeout(7200)  # two minutes on two free cores
def test_a_tiny_model_learns_shapes(tmp_path: Path) -> None:
    """From random weights, measured on scenes that it has not seen.

    The bounds leave room for other rounding. A model that finds no things at all has a PQ of 55.
    """
    recipe = Recipe(Options((64, 64), (1, 2), EASY), 0, {"train": 1000, "val": 100}, {"train": 0, "val": 0})
    write_dataset(tmp_path / "shapes", recipe)
    metrics = train(tmp_path, "panoptic_tiny", tmp_path / "out", "SEED", "0")
    assert metrics["panoptic_seg/PQ"] >= 60, metrics
    assert metrics["panoptic_seg/PQ_th"] >= 15 and metrics["panoptic_seg/PQ_st"] >= 80, metrics


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    counts: dict[Split, int] = {"train": 4, "val": 2}
    write_dataset(root / "shapes", Recipe(Options((64, 64), (2, 4)), 0, {**counts}, {**counts}, frames=3), workers=1)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric"),
    [("panoptic", "panoptic_seg/PQ"), ("instance", "segm/AP"), ("semantic", "sem_seg/mIoU"), ("video", "segm/AP")],
)
def test_recipes_train_and_evaluate(task: str, metric: str, small_world: Path, tmp_path: Path) -> None:
    opts = [
        "SOLVER.MAX_ITER",
        "1",
        "SOLVER.WARMUP_ITERS",
        "0",
        "SOLVER.IMS_PER_BATCH",
        "2",
        "DATALOADER.NUM_WORKERS",
        "0",
    ]
    opts += ["INPUT.MIN_SIZE_TEST", "64", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64"]
    if task in ("panoptic", "instance"):
        opts += ["INPUT.IMAGE_SIZE", "64"]
    metrics = train(small_world, f"{task}_efficientnet_lite0", tmp_path / "out", *opts)
    assert 0 <= metrics[metric] <= 100 and metrics["total_loss"] > 0
