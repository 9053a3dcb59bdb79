"""train_net.py from the command line to the metrics, on a handful of drawn images."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import train_net
from mask2former.config import load_config
from mask2former.data.datasets import unregister
from mask2former.engine import Trainer, argument_parser, launch

TINY_MODEL = [
    *(
        "MODEL.DEVICE",
        "cpu",
        "MODEL.TIMM.NAME",
        "mobilenetv3_small_050",
        "MODEL.SEM_SEG_HEAD.CONVS_DIM",
        "32",
    ),
    *("MODEL.SEM_SEG_HEAD.MASK_DIM", "32", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"),
    *("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD", "32"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "32"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8"),
    *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64", "INPUT.IMAGE_SIZE", "64", "INPUT.MIN_SIZE_TEST", "64"),
    *("INPUT.MAX_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"),
    *(
        "SOLVER.MAX_ITER",
        "4",
        "SOLVER.WARMUP_ITERS",
        "0",
        "SOLVER.CHECKPOINT_PERIOD",
        "2",
        "TEST.EVAL_PERIOD",
        "2",
        "SEED",
        "11",
    ),
    *("TEST.DETECTIONS_PER_IMAGE", "20", "SOLVER.AMP.ENABLED", "False"),
]


def draw_dataset(directory: Path, name: str, count: int) -> list[str]:
    """Images with one or two bright discs, and their COCO json: [name, JSON, images]."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    generator = np.random.default_rng(len(name))
    (directory / name).mkdir(parents=True)
    for i in range(count):
        image = Image.new("RGB", (64, 48), (20, 20, 40))
        for _ in range(i % 2 + 1):
            x, y = (int(v) for v in generator.integers(4, 28, 2))
            ImageDraw.Draw(image).rectangle((x, y, x + 15, y + 11), fill=(220, 200, 180))
            corners = [x, y, x + 16, y, x + 16, y + 12, x, y + 12]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": 192,
                    "bbox": [x, y, 16, 12],
                    "segmentation": [corners],
                }
            )
        image.save(directory / name / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 48})
    categories = [{"id": 1, "name": "disc"}]
    file = directory / f"{name}.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return [name, str(file), str(directory / name)]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[list[str]]:
    """Arguments for a tiny MaskFormer on two drawn datasets."""
    train, val = (
        draw_dataset(tmp_path / "data", "drawn_train", 6),
        draw_dataset(tmp_path / "data", "drawn_val", 2),
    )
    yield [
        *("--config-file", "nuclei/maskformer2_efficientnet_lite0.yaml", "--debug"),
        *("DATASETS.COCO_JSON", repr([train, val]), "DATASETS.TRAIN", "('drawn_train',)"),
        *("DATASETS.TEST", "('drawn_val',)", *TINY_MODEL),
    ]
    for name in ("drawn_train", "drawn_val"):
        unregister(name)
    for name in ("mask2former", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()


def run(command: list[str], directory: Path, *options: str, flags: tuple[str, ...] = ()) -> int:
    config = command[:3]
    arguments = [*config, *flags, *command[3:], "OUTPUT_DIR", str(directory), *options]
    return launch(train_net.main, argument_parser().parse_args(arguments))


@pytest.mark.slow
def test_training_resuming_and_evaluating(tmp_path: Path, command: list[str]) -> None:
    views = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(32, 64)"]
    assert run(command, tmp_path / "straight", *views) == 0
    names = {p.name for p in (tmp_path / "straight").iterdir()}
    assert {"model_final.pth", "model_final.safetensors", "model_best.safetensors", "metrics.json"} <= names
    assert {"config.yaml", "log.txt", "model_0000001.pth", "last_checkpoint"} <= names
    results = json.loads((tmp_path / "straight/inference/metrics.json").read_text())
    assert set(results["drawn_val"]["segm"]) >= {"AP", "AP50"}
    augmented = json.loads((tmp_path / "straight/inference_TTA/metrics.json").read_text())
    assert set(augmented["drawn_val"]["segm_TTA"]) == set(results["drawn_val"]["segm"])

    # Workers make no difference to what is loaded.
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copy(tmp_path / "straight/model_0000001.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    assert run(command, resumed, "DATALOADER.NUM_WORKERS", "1", flags=("--resume",)) == 0
    first, second = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("straight", "resumed")
    )
    assert first["iteration"] == second["iteration"] == 3
    for key in ("model", "ema"):
        ours = first[key] if key == "model" else first[key]["average"]
        theirs = second[key] if key == "model" else second[key]["average"]
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name

    # An evaluation does not need the training data.
    shutil.rmtree(tmp_path / "data/drawn_train")
    (tmp_path / "data/drawn_train.json").unlink()
    weights = str(tmp_path / "straight/model_final.safetensors")
    assert run(command, tmp_path / "test", "MODEL.WEIGHTS", weights, *views, flags=("--eval-only",)) == 0
    again = json.loads((tmp_path / "test/inference/metrics.json").read_text())
    assert again["drawn_val"]["segm"] == results["drawn_val"]["segm"]
    assert json.loads((tmp_path / "test/inference_TTA/metrics.json").read_text()) == augmented


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_whole_job_saves_a_checkpoint(tmp_path: Path, command: list[str], number: signal.Signals) -> None:
    """As a batch system or Ctrl-C sends it: to the loader's worker processes too."""
    options = [
        "OUTPUT_DIR",
        str(tmp_path / "out"),
        "SOLVER.MAX_ITER",
        "100000",
        "DATALOADER.NUM_WORKERS",
        "2",
    ]
    with (tmp_path / "text").open("w") as output:
        job = subprocess.Popen(
            [sys.executable, train_net.__file__, *command, *options, "TEST.EVAL_PERIOD", "0"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not (tmp_path / "out/last_checkpoint").is_file() and job.poll() is None:
            time.sleep(0.05)
        assert job.poll() is None, (tmp_path / "text").read_text()
        os.killpg(job.pid, number)
        job.wait()
    finally:
        job.kill()
        job.wait()
    text = (tmp_path / "text").read_text()
    assert job.returncode == 128 + number, text
    assert f"Stopped by {number.name}" in text
    assert "Traceback" not in text
    assert (tmp_path / "out" / (tmp_path / "out/last_checkpoint").read_text()).is_file()
    assert f"continue with --resume from {tmp_path / 'out'}." in text


def test_signal_does_not_take_the_data_of_an_evaluation_away(tmp_path: Path) -> None:
    entry = draw_dataset(tmp_path / "data", "drawn_val", 30)
    cfg = load_config(None, ["DATASETS.COCO_JSON", repr([entry]), "DATALOADER.NUM_WORKERS", "2"])
    cfg.INPUT.FORMAT = "RGB"
    try:
        loader = Trainer.build_test_loader(cfg, "drawn_val")
        batches = iter(loader)
        first = [next(batches), next(batches)]  # one of each worker: both are ready
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGTERM)
        assert len([*first, *batches]) == 30
    finally:
        unregister("drawn_val")


def test_accumulation_and_bf16(tmp_path: Path, command: list[str]) -> None:
    options = ("SOLVER.ACCUMULATION_STEPS", "2", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")
    assert run(command, tmp_path, *options, "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()") == 0
    line = json.loads((tmp_path / "metrics.json").read_text().splitlines()[0])
    assert 0 < line["total_loss"] < 1000


def test_broken_ground_truth_is_found_before_the_first_step(tmp_path: Path, command: list[str]) -> None:
    file = tmp_path / "data/drawn_val.json"
    content = json.loads(file.read_text())
    del content["annotations"][0]["segmentation"], content["annotations"][0]["bbox"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"drawn_val\.json: annotation 1"):
        run(command, tmp_path / "out")
    assert "Starting training" not in (tmp_path / "out/log.txt").read_text()


def test_wrong_data_path_is_told_in_one_line(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "data")
    command.remove("--debug")
    command.insert(2, "--resume")
    assert run(command, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "drawn_train.json" in error
    assert "Traceback" not in error
