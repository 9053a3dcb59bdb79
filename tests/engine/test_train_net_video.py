"""train_net_video.py from the command line to video AP and results.json, on a few drawn videos."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

import train_net
import train_net_video
from mask2former.checkpoint import load_weights
from mask2former.data.datasets import unregister
from mask2former.engine import argument_parser, launch
from mask2former.segmenter import Segmenter

FRAMES, HEIGHT, WIDTH, SIDE = 4, 48, 64, 14
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.SWIN.EMBED_DIM", "16", "MODEL.SWIN.DEPTHS", "[1, 1, 2, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2, 4, 8]"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "32"),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "32"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8"),
    *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2"),
    *("SOLVER.WARMUP_ITERS", "0"),
    *("SOLVER.AMP.ENABLED", "False", "TEST.DETECTIONS_PER_VIDEO", "5", "SEED", "3"),
]


def draw_videos(directory: Path, name: str, count: int) -> list[str]:
    """Videos of a bright square that moves, and of a dark one that leaves: [name, JSON, images]."""
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for video in range(1, count + 1):
        (directory / name / str(video)).mkdir(parents=True)
        tracks: list[list[Any]] = [[], []]
        for frame in range(FRAMES):
            image = Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 120))
            for row, track in enumerate(tracks):
                if row == 1 and frame >= 2:
                    track.append(None)
                    continue
                x, y = 4 + 6 * frame + video, 4 + 22 * row
                ImageDraw.Draw(image).rectangle((x, y, x + SIDE - 1, y + SIDE - 1), fill=(235 - 230 * row,) * 3)
                track.append([[x, y, x + SIDE, y, x + SIDE, y + SIDE, x, y + SIDE]])
            image.save(directory / name / str(video) / f"{frame}.png")
        for row, segmentations in enumerate(tracks):
            entry = {"id": len(annotations) + 1, "video_id": video, "category_id": row + 1, "iscrowd": 0}
            areas = [None if s is None else SIDE**2 for s in segmentations]
            annotations.append({**entry, "segmentations": segmentations, "areas": areas})
        files = [f"{video}/{frame}.png" for frame in range(FRAMES)]
        videos.append({"id": video, "height": HEIGHT, "width": WIDTH, "length": FRAMES, "file_names": files})
    categories = [{"id": 1, "name": "bright"}, {"id": 2, "name": "dark"}]
    file = directory / f"{name}.json"
    file.write_text(json.dumps({"videos": videos, "annotations": annotations, "categories": categories}))
    return [name, str(file), str(directory / name)]


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[list[str]]:
    """Config keys of a tiny model on two drawn datasets."""
    names = (f"moving_train_{tmp_path.name}", f"moving_val_{tmp_path.name}")
    train, val = draw_videos(tmp_path / "data", names[0], 3), draw_videos(tmp_path / "data", names[1], 2)
    own = ["DATASETS.YTVIS_JSON", repr([train, val]), "DATASETS.TRAIN", f"('{names[0]}',)"]
    yield [*own, "DATASETS.TEST", f"('{names[1]}',)", *TINY]
    for name in names:
        unregister(name)
    for logger in ("mask2former", "detectron2", "fvcore"):
        logging.getLogger(logger).handlers.clear()


def run(config: str, settings: list[str], directory: Path, *options: str, flags: tuple[str, ...] = ()) -> int:
    arguments = ["--config-file", config, "--debug", *flags, *settings, "OUTPUT_DIR", str(directory), *options]
    return launch(train_net_video.main, argument_parser().parse_args(arguments))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["video_maskformer2_R50_bs16_8ep", "swin/video_maskformer2_swin_tiny_bs16_8ep"])
def test_two_steps_and_an_evaluation(tmp_path: Path, settings: list[str], backbone: str) -> None:
    config = f"youtubevis_2019/{backbone}.yaml"
    assert run(config, settings, tmp_path / "out") == 0
    line = json.loads((tmp_path / "out/metrics.json").read_text().splitlines()[0])
    assert 0 < line["total_loss"] < 1000
    first = load_weights(str(tmp_path / "out/model_final.safetensors"))
    assert all(torch.isfinite(value).all() for value in first.values() if value.is_floating_point())

    unregister(f"moving_train_{tmp_path.name}")  # another machine, without the dataset, still knows the classes
    unregister(f"moving_val_{tmp_path.name}")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    segment = Segmenter.load(str(tmp_path / "out"), device="cpu")
    assert segment.classes.names == ("bright", "dark") and segment.classes.dataset_ids == (1, 2)
    (tmp_path / "elsewhere").rename(tmp_path / "data")

    name = f"moving_val_{tmp_path.name}"
    metrics = json.loads((tmp_path / "out/inference/metrics.json").read_text())[name]["segm"]
    assert {"AP", "AP50", "AP75", "AR1", "AR10"} <= set(metrics)
    results = json.loads((tmp_path / "out/inference/results.json").read_text())
    assert [r["video_id"] for r in results] == [1] * 5 + [2] * 5
    for result in results:
        assert len(result["segmentations"]) == FRAMES and result["category_id"] in (1, 2)
        assert all(code is None or code["size"] == [HEIGHT, WIDTH] for code in result["segmentations"])

    weights = ("MODEL.WEIGHTS", str(tmp_path / "out/model_final.safetensors"))
    assert run(config, settings, tmp_path / "again", *weights, flags=("--eval-only",)) == 0
    again = json.loads((tmp_path / "again/inference/metrics.json").read_text())[name]["segm"]
    assert again == pytest.approx(metrics, nan_ok=True)

    windows = (*weights, "TEST.WINDOW_FRAMES", "2", "TEST.WINDOW_OVERLAP", "1")
    assert run(config, settings, tmp_path / "windows", *windows, flags=("--eval-only",)) == 0
    results = json.loads((tmp_path / "windows/inference/results.json").read_text())
    assert {r["video_id"] for r in results} == {1, 2}
    assert all(len(r["segmentations"]) == FRAMES for r in results)


def test_the_name_of_the_reference_forwards() -> None:
    assert train_net_video.main is train_net.main
