"""`mask2former train`, from a directory of drawn images to a model that can be loaded."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from mask2former import Segmenter
from mask2former.checkpoint import load_weights
from mask2former.checkpoint.writing import save_safetensors
from mask2former.cli import train
from mask2former.config import load_config
from mask2former.engine.class_head import CLASS_WEIGHT
from mask2former.engine.output_directory import OutputDirectory

pytestmark = pytest.mark.usefixtures("forget_own_names")

TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "mobilenetv3_small_050", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
    *("MODEL.SEM_SEG_HEAD.MASK_DIM", "32", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"),
    *("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD", "32"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "32"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8"),
    *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64", "INPUT.IMAGE_SIZE", "64", "INPUT.MIN_SIZE_TEST", "64"),
    *("INPUT.MAX_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "20"),
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny model with random weights, as a training output directory."""
    directory = tmp_path / "base"
    cfg = load_config("nuclei/maskformer2_efficientnet_lite0.yaml", TINY)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    save_safetensors(build_model(cfg), directory / "model_final.safetensors")
    (directory / "config.yaml").write_text(cfg.dump())
    (directory / "classes.json").write_text('["nucleus"]')
    return directory


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    for name in ("mask2former", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()


def draw(directory: Path, count: int = 4, names: tuple[str, ...] = ("disc",), prefix: str = "") -> Path:
    """Images with bright boxes, and their COCO JSON."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    generator = np.random.default_rng(count)
    directory.mkdir(parents=True)
    for i in range(count):
        pixels = generator.integers(0, 40, (48, 64, 3)).astype(np.uint8)
        for k in range(2):
            x, y = int(generator.integers(2, 14)) + 30 * k, int(generator.integers(4, 30))
            pixels[y : y + 12, x : x + 16] = 220
            number = len(annotations) + 1
            annotations.append(
                {
                    **{"id": number, "image_id": i + 1, "category_id": number % len(names) + 1, "iscrowd": 0},
                    **{"area": 192, "bbox": [x, y, 16, 12]},
                    "segmentation": [[x, y, x + 16, y, x + 16, y + 12, x, y + 12]],
                }
            )
        Image.fromarray(pixels).save(directory / f"{prefix}{i}.png")
        images.append({"id": i + 1, "file_name": f"{prefix}{i}.png", "width": 64, "height": 48})
    categories = [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (directory / "annotations.json").write_text(json.dumps(content))
    return directory


def command(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return train.run(parser.parse_args([str(item) for item in arguments]))


@pytest.mark.slow
def test_trains_evaluates_first_and_loads(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    data = draw(tmp_path / "cells")
    assert command("--data", data, "--model", base, "--output", out, "--iterations", "4") == 0
    printed = capsys.readouterr().out
    assert "AP before training " in printed and "mask2former predict IMAGES --model" in printed
    names = {path.name for path in out.iterdir()}
    assert {"config.yaml", "classes.json", "model_best.safetensors", "model_final.safetensors", "data"} <= names
    log = (out / "log.txt").read_text()
    assert "Classes: disc. The model knows them, so its class head is kept (disc starts from nucleus)." in log
    assert "Only 1 image for validation" in log
    assert log.index("Before training: segm/AP") < log.index("iter 4/4")
    first = log.index("s for the first step")  # before the evaluation that follows it
    assert log.index("Before training: segm/AP") < first < log.index("Start inference", first)
    train_part, val_part = (json.loads((out / f"data/{name}.json").read_text()) for name in ("train", "val"))
    assert [len(part["images"]) for part in (train_part, val_part)] == [3, 1]

    segment = Segmenter.load(str(out), device="cpu")
    assert segment.classes.names == ("disc",)
    assert segment(data / "0.png").image.shape == (48, 64, 3)

    with pytest.raises(ValueError, match=r"finished training.*--resume --iterations"):
        command("--data", data, "--model", base, "--output", out)
    kept = {name: (out / name).read_bytes() for name in ("config.yaml", "data/config.yaml")}
    assert command("--output", out, "--resume", "--iterations", "6", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "9") == 2
    assert {name: (out / name).read_bytes() for name in kept} == kept  # the checkpoint does not fit
    with pytest.raises(ValueError, match="is not the data of this training"):
        command("--output", out, "--resume", "--data", draw(tmp_path / "more", 5, prefix="x"))
    assert command("--output", out, "--resume", "--data", data, "--iterations", "6") == 0
    assert all("MAX_ITER: 6" in (out / name).read_text() for name in kept)
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 5
    assert "Resuming after 4 of 6 iterations" in (out / "log.txt").read_text()


@pytest.mark.slow
def test_early_stop_and_new_classes(tmp_path: Path, base: Path) -> None:
    out = tmp_path / "out"
    options = ["--lr", "1e-12", "--patience", "1", "--iterations", "9"]  # nothing improves
    data = draw(tmp_path / "cells", names=("disc", "nucleus"))
    assert command("--data", data, "--model", base, "--output", out, *options, "TEST.EVAL_PERIOD", "2") == 0
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 1
    assert "Stopping early after 2 iterations" in (out / "log.txt").read_text()
    initial, model = load_weights(out / "data/initial.safetensors"), load_weights(base / "model_final.safetensors")
    assert torch.equal(initial[CLASS_WEIGHT][1:], model[CLASS_WEIGHT])  # nucleus and no-object
    assert Segmenter.load(str(out), device="cpu").classes.names == ("disc", "nucleus")


@pytest.mark.slow
def test_minutes_measure_the_speed(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw(tmp_path / "cells")
    assert command("--data", data, "--model", base, "--minutes", "0.5", "--dry-run", "--output", tmp_path / "o") == 0
    assert "what fits into 0.5 minutes at" in capsys.readouterr().out
    assert not (tmp_path / "o").exists()


def test_dry_run_explains_and_writes_nothing(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw(tmp_path / "cells", 10)
    assert command("--data", data, "--model", base, "--output", tmp_path / "out", "--dry-run") == 0
    printed = capsys.readouterr().out
    for word in ("Data:", "Model:", "Classes:", "Images:", "Batch:", "Length:", "Learning rate:", "Evaluation:"):
        assert f"\n{word}" in f"\n{printed}"
    assert "of which 1 are put aside for validation (seed 0)" in printed
    assert "Warning: Only 1 image for validation" in printed
    assert not (tmp_path / "out").exists()


def test_dry_run_of_a_resumed_training_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "out" / "data" / "config.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("SOLVER:\n  MAX_ITER: 7\n")
    assert command("--output", tmp_path / "out", "--resume", "--iterations", "9", "--dry-run") == 0
    assert recipe.read_text() == "SOLVER:\n  MAX_ITER: 7\n"
    assert "up to iteration 9" in capsys.readouterr().out


def test_directories_that_are_not_ours(tmp_path: Path, base: Path) -> None:
    data = draw(tmp_path / "cells")
    with pytest.raises(ValueError, match="not empty"):
        command("--data", data, "--model", base, "--output", data)
    with pytest.raises(ValueError, match="no training to resume"):
        command("--data", data, "--output", tmp_path / "out", "--resume")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        command("--data", data, "--model", base, "--output", tmp_path / "file")
    started = tmp_path / "started"
    (started / "data").mkdir(parents=True)
    (started / "data/config.yaml").write_text("SEED: 1\n")
    OutputDirectory(started).check_new()  # ended before its first checkpoint
    (started / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(ValueError, match=r"interrupted: `--resume`"):
        OutputDirectory(started).check_new()
    (started / "last_checkpoint").unlink()
    (started / "model_0000005.pth").touch()  # its name got lost
    with pytest.raises(ValueError, match=r"interrupted: `--resume`"):
        OutputDirectory(started).check_new()
    (started / "last_checkpoint").write_text("model_0000005.pth")
    before = (started / "data/config.yaml").read_bytes()
    for mistake in (["--iterations", "5"], ["SOLVER.OPTIMIZER", "SGD"]):
        with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER is 5, but 6|SOLVER\.OPTIMIZER SGD"):
            command("--output", started, "--resume", *mistake)
    assert (started / "data/config.yaml").read_bytes() == before
    with pytest.raises(ValueError, match="only --iterations can change"):
        command("--output", started, "--resume", "--lr", "0.1")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "what to train on"),
        (["--config-file", "x.yaml", "--data", "d"], "--data has no effect with --config-file"),
        (["--data", "d", "SEED", "1", "--model", "nuclei"], "--model stands behind"),
        (["--data", "d", "--eval-only"], "--eval-only needs --config-file"),
        (["--data", "absent"], "absent does not exist"),
        (["--data", "d", "--num-machines", "2"], "one machine"),
    ],
)
def test_mistakes_in_the_command(arguments: list[str], text: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=text):
        command(*arguments)


def test_data_without_images_for_training(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ValueError, match="no model named 'nucleii'"):
        command("--data", draw(tmp_path / "cells"), "--model", "nucleii", "--dry-run")
    draw(tmp_path / "bad", 1)
    with pytest.raises(ValueError, match="1 different image cannot make 2 parts"):
        command("--data", tmp_path / "bad", "--model", base, "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--config-file", "c.yaml", "--iterations", "5"], "--iterations"),
        (["--config-file", "c.yaml", "--data", "d"], "--data"),
        (["--config-file", "c.yaml", "--dry-run"], "--dry-run"),
        (["--output", "o", "--resume", "--model", "nuclei"], "--model"),
        (["--output", "o", "--resume", "--val", "0.2"], "--val"),
    ],
)
def test_no_argument_is_ignored(arguments: list[str], option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} has no effect with --(config-file|resume)"):
        command(*arguments)
