"""The parts of this project work with those of Mask2Former; without GPU and network."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from mask2former import Segmenter, load_config
from mask2former.data import build_mapper

from my_segmentation import RECIPE, decoder

SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *(
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
        1,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS",
        100,
        "INPUT.IMAGE_SIZE",
        64,
    ),
]


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_one_step_trains_the_classifier_with_the_loss_term():
    cfg = load_config(RECIPE, SMALL)
    model = build_model(cfg).train()
    assert isinstance(model.sem_seg_head.predictor, decoder.CosineDecoder)
    mapper = build_mapper(cfg, is_train=True)
    losses = model([mapper(record) for record in DatasetCatalog.get("discs_train")[:2]])
    assert {f"loss_area{suffix}" for suffix in ("", "_0", "_1", "_2")} <= set(losses)
    sum(losses.values()).backward()
    assert model.sem_seg_head.predictor.class_embed.weight.grad.abs().sum() > 0


def test_keys_of_the_project_act():
    cfg = load_config(RECIPE, [*SMALL, "MODEL.MINE.SCALE", 3.0, "MODEL.MINE.AREA_WEIGHT", 0.5])
    model = build_model(cfg)
    assert model.criterion.weight_dict["loss_area_1"] == 0.5
    assert model.sem_seg_head.predictor.class_embed(torch.randn(7, 256)).abs().max() <= 3.0


def test_training_evaluation_and_prediction():
    schedule = [
        "SOLVER.MAX_ITER",
        "2",
        "SOLVER.WARMUP_ITERS",
        "1",
        "SOLVER.STEPS",
        "(1,)",
        "DATALOADER.NUM_WORKERS",
        "0",
    ]
    script = Path(__file__).parents[1] / "train.py"
    subprocess.run([sys.executable, script, *map(str, SMALL), *schedule], check=True)
    result = Segmenter.load("output", device="cpu", score_threshold=0.0)("data/discs_val/0.png")
    assert set(result.instances.names) <= {"disc"} and Path("output/metrics.json").read_text()
