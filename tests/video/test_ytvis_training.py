"""train_net.py on clips, from the command line to video AP and results.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import train_net
from mask2former.engine import argument_parser, launch

TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.NAME", "TimmBackbone"),
    *("MODEL.TIMM.NAME", "mobilenetv3_small_050", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
    *("MODEL.SEM_SEG_HEAD.MASK_DIM", "32", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2", "MODEL.MASK_FORMER.HIDDEN_DIM", "32"),
    *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "32", "MODEL.MASK_FORMER.DEC_LAYERS", "2"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64"),
    *("INPUT.MIN_SIZE_TRAIN", "(32, 48)", "INPUT.MIN_SIZE_TEST", "32", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.AMP.ENABLED", "False"),
    *("SEED", "5", "SOLVER.WARMUP_ITERS", "0", "DATASETS.TRAIN", "('clips',)", "DATASETS.TEST", "('clips',)"),
]


@pytest.fixture
def command(write_videos: Callable[[], tuple[str, str]], tmp_path: Path) -> Iterator[list[str]]:
    """Return arguments for a tiny VideoMaskFormer on the three videos."""
    entry = ["clips", *write_videos()]
    options = [*TINY, "DATASETS.YTVIS_JSON", repr([entry]), "OUTPUT_DIR", str(tmp_path / "run")]
    yield ["--config-file", "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml", "--debug", *options]
    for name in ("mask2former", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()


def test_two_iterations_and_an_evaluation(command: list[str], tmp_path: Path) -> None:
    assert launch(train_net.main, argument_parser().parse_args(command)) == 0
    run = tmp_path / "run"
    assert torch.load(run / "model_final.pth", weights_only=True)["iteration"] == 1
    metrics = json.loads((run / "inference" / "metrics.json").read_text())["clips"]["segm"]
    assert set(metrics) >= {"AP", "AP50", "AP75", "AR1", "AR10", "AP-bar", "AP-cell"}
    results = json.loads((run / "inference" / "results.json").read_text())
    lengths = {result["video_id"]: len(result["segmentations"]) for result in results}
    assert lengths == {2: 3, 4: 6, 9: 1} and {result["category_id"] for result in results} <= {3, 7}


def test_videos_and_images_in_one_training(command: list[str], video_content: dict, tmp_path: Path) -> None:
    video = next(v for v in video_content["videos"] if v["id"] == 9)
    image = {"id": 1, "height": video["height"], "width": video["width"], "file_name": video["file_names"][0]}
    track = next(a for a in video_content["annotations"] if a["video_id"] == 9)
    mask = track["segmentations"][0]
    entry = {"id": 1, "image_id": 1, "category_id": track["category_id"], "iscrowd": 0, "segmentation": mask}
    entry |= {"bbox": [6, 6, 20, 18], "area": 360}
    photos = {"images": [image], "annotations": [entry], "categories": video_content["categories"]}
    (tmp_path / "photos.json").write_text(json.dumps(photos))
    overrides = ["DATASETS.COCO_JSON", repr([["photos", str(tmp_path / "photos.json"), str(tmp_path / "frames")]])]
    overrides += ["DATASETS.TRAIN", "('clips', 'clips', 'photos')", "INPUT.DATASET_MAPPER_NAME", "mixed_clips"]
    arguments = argument_parser().parse_args([*command, *overrides, "SOLVER.MAX_ITER", "4"])
    assert launch(train_net.main, arguments) == 0
    assert "training on 7 records of clips, clips, photos" in (tmp_path / "run" / "log.txt").read_text()


def test_training_on_a_test_split_says_so(command: list[str], video_content: dict, tmp_path: Path) -> None:
    content = {**video_content, "annotations": None}
    (tmp_path / "videos.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="training sample has no 'annotations'; .* a test server have no ground truth"):
        launch(train_net.main, argument_parser().parse_args(command))
