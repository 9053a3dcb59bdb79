"""Whole models: every config builds, takes a training step and predicts, at tiny size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from mask2former.config import load_config

ROOT = Path(__file__).parents[2] / "configs"
RUNNABLE = sorted(
    str(p.relative_to(ROOT)) for p in ROOT.rglob("*.yaml") if "common" not in p.parts and not p.name.startswith("Base")
)
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
    *("MODEL.SWIN.EMBED_DIM", 16, "MODEL.SWIN.DEPTHS", [1, 1, 2, 1], "MODEL.SWIN.NUM_HEADS", [1, 2, 4, 8]),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 16),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", 32, "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 32, "MODEL.MASK_FORMER.DEC_LAYERS", 4),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 10, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64),
]


def tiny(config: str, *overrides: Any) -> torch.nn.Module:
    return build_model(load_config(config, [*TINY, *overrides]))


def record(height: int, width: int, objects: int, classes: int = 1, seed: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_classes = torch.randint(0, classes, (objects,), generator=g)
    instances.gt_masks = torch.rand(objects, height, width, generator=g) > 0.5
    image = torch.randint(0, 256, (3, height, width), generator=g, dtype=torch.uint8)
    return {"image": image, "height": height + 5, "width": width - 3, "instances": instances, "file_name": "a.jpg"}


@pytest.mark.parametrize("config", RUNNABLE)
def test_step_and_prediction(config: str) -> None:
    model = tiny(config)
    classes = model.sem_seg_head.num_classes
    batch = [record(64, 96, 3, classes), record(50, 70, 0, classes)]
    losses = model.train()(batch)
    assert len(losses) == 3 * 4 and all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():
        results = model.eval()(batch)
    settings = model.settings
    for result, wanted in zip(results, batch, strict=True):
        size = (wanted["height"], wanted["width"])
        assert ("sem_seg" in result, "instances" in result, "panoptic_seg" in result) == (
            settings.semantic,
            settings.instance,
            settings.panoptic,
        )
        if settings.semantic:
            assert result["sem_seg"].shape == (classes, *size)
        if settings.panoptic:
            assert result["panoptic_seg"][0].shape == size and result["panoptic_seg"][0].dtype == torch.int32
        if settings.instance:
            assert result["instances"].pred_masks.shape[1:] == size
            assert result["instances"].pred_masks.dtype == torch.bool


def test_more_detections_than_pairs_is_fine() -> None:
    model = tiny("nuclei/maskformer2_R50.yaml", "TEST.DETECTIONS_PER_IMAGE", 500).eval()
    with torch.no_grad():
        assert len(model([record(64, 64, 0)])[0]["instances"]) == 10


def test_training_without_instances_names_the_file_and_the_key() -> None:
    model = tiny("nuclei/maskformer2_R50.yaml").train()
    broken = record(64, 64, 1)
    del broken["instances"]
    with pytest.raises(ValueError, match=r"a\.jpg.*DATASET_MAPPER_NAME"):
        model([broken])


def test_weights_follow_the_loss_names() -> None:
    model = tiny("nuclei/maskformer2_R50.yaml", "MODEL.MASK_FORMER.MASK_WEIGHT", 0.0).train()
    losses = model([record(64, 64, 2)])
    assert losses["loss_mask"] == losses["loss_mask_2"] == 0
    assert losses["loss_dice"] > 0


def test_result_size_defaults_to_the_image() -> None:
    model = tiny("nuclei/maskformer2_R50.yaml").eval()
    with torch.no_grad():
        result = model([{"image": record(40, 72, 0)["image"]}])[0]
    assert result["instances"].image_size == (40, 72)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_keeps_losses_in_fp32(dtype: torch.dtype) -> None:
    model = tiny("nuclei/maskformer2_efficientnet_lite0.yaml").train()
    with torch.autocast("cpu", dtype):
        losses = model([record(64, 64, 2), record(64, 64, 1)])
    assert {v.dtype for v in losses.values()} == {torch.float32}
    assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.gpu
def test_no_hidden_host_syncs() -> None:
    model = tiny("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", "MODEL.DEVICE", "cuda")
    batch = [record(64, 96, 3, 133), record(50, 70, 0, 133)]
    for item in batch:
        item["image"] = item["image"].cuda()
        item["instances"] = item["instances"].to("cuda")
    model.train()(batch)  # caches and workspaces
    model.eval()(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(model.train()(batch).values()).backward()
        with torch.no_grad():
            model.eval()(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "config", ["nuclei/maskformer2_R50.yaml", "coco/instance-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"]
)
def test_whole_model_in_half_precision(config: str) -> None:
    """`model.bfloat16()` predicts without autocast, close to fp32."""
    model = tiny(config).eval()
    picture = [{"image": record(64, 96, 0)["image"]}]
    with torch.no_grad():
        exact = model(picture)[0]["instances"]
        rounded = model.bfloat16()(picture)[0]["instances"]
    assert rounded.pred_masks.shape == exact.pred_masks.shape
    assert (rounded.scores.float() - exact.scores).abs().max() < 0.1
