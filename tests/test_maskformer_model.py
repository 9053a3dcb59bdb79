"""Complete models: every config builds, runs a training iteration and predicts, at tiny size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Instances

from mask2former import MaskFormer
from mask2former.errors import ConfigError
from mask2former.structures.mask_bits import MaskBits
from mask2former.structures.task import Task

from .modeling.tiny_models import clip, record, step_and_predict_without_syncs, tiny, without_gradient

R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"

ROOT = Path(__file__).parents[1] / "configs"
RECIPES = sorted(  # per-pixel baselines are another meta-architecture
    str(p.relative_to(ROOT))
    for p in ROOT.rglob("*.yaml")
    if "common" not in p.parts and not p.name.startswith(("Base", "per_pixel_"))
)
VIDEO = [name for name in RECIPES if Path(name).name.startswith("video_")]
IMAGE = [name for name in RECIPES if name not in VIDEO]


def marked(names: list[str]) -> list[Any]:
    """ResNet-50 stands for the other backbones in `make test-fast`."""
    return [name if "_R50_" in name else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("config", marked(IMAGE))
def test_iteration_and_prediction(config: str) -> None:
    # Which classes of Mapillary Vistas v2.0 are things is in its own files.
    stand_in = ["DATASETS.TRAIN", ("mapillary_vistas_panoptic_train",)] if "mapillary-vistas-v2" in config else []
    model = tiny(config, *stand_in)
    classes = model.sem_seg_head.num_classes
    batch = [record(64, 96, 3, classes), record(50, 70, 0, classes)]
    losses = model.train()(batch)
    denoised = sum("denoising" in name for name in losses)  # of all predictions but that before the first layer
    assert denoised == (3 * 3 if getattr(model.sem_seg_head.predictor, "training_queries", None) else 0)
    assert len(losses) == 3 * 4 + denoised and all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    with torch.no_grad():
        results = model.eval()(batch)
    tasks = model.settings.tasks
    for result, sample in zip(results, batch, strict=True):
        size = (sample["height"], sample["width"])
        assert ("sem_seg" in result, "instances" in result, "panoptic_seg" in result) == (
            Task.SEMANTIC in tasks,
            Task.INSTANCE in tasks,
            Task.PANOPTIC in tasks,
        )
        if Task.SEMANTIC in tasks:
            assert result["sem_seg"].shape == (classes, *size)
        if Task.PANOPTIC in tasks:
            assert result["panoptic_seg"][0].shape == size and result["panoptic_seg"][0].dtype == torch.int32
        if Task.INSTANCE in tasks:
            assert result["instances"].pred_masks.shape[1:] == size
            assert result["instances"].pred_masks.dtype == torch.bool


@pytest.mark.parametrize("config", marked(VIDEO))
def test_iteration_and_prediction_of_the_video_recipes(config: str) -> None:
    model = tiny(config, "MODEL.MASK_FORMER.DEC_LAYERS", 10)
    classes = model.sem_seg_head.num_classes
    losses = model.train()([clip(64, 96, 2, 3, classes), clip(50, 70, 2, 0)])
    assert len(losses) == 3 * 10 and all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    with torch.no_grad():
        results = model.eval()([clip(64, 96, 3, 0), clip(50, 70, 1, 0)])
    most = 100 if config.startswith("shapes/") else 10  # clips of shapes have up to 60 things
    for result, size, frames in zip(results, [(69, 93), (55, 67)], [3, 1], strict=True):
        assert result["image_size"] == size
        assert [len(result[f"pred_{key}"]) for key in ("scores", "labels", "masks")] == [most] * 3
        assert all(m.shape == (frames, *size) and m.dtype == torch.bool for m in result["pred_masks"])
        assert result["pred_scores"] == sorted(result["pred_scores"], reverse=True)


def test_all_video_recipes_are_there() -> None:
    assert sum(name.startswith("youtubevis_") for name in VIDEO) == 12


@pytest.mark.parametrize(("name", "losses"), [("per_pixel_baseline", 1), ("per_pixel_baseline_plus", 4)])
def test_iteration_and_prediction_of_the_per_pixel_baselines(name: str, losses: int) -> None:
    config = f"ade20k/semantic-segmentation/maskformer/{name}_R50_bs16_160k.yaml"
    model = tiny(config, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 150)
    batch = [{**record(64, 96, 0), "sem_seg": torch.arange(64 * 96).view(64, 96) % 150}]
    computed = model.train()(batch)
    assert len(computed) == losses and all(torch.isfinite(v) for v in computed.values())
    sum(computed.values()).backward()
    assert without_gradient(model) == []
    with torch.no_grad():
        assert model.eval()(batch)[0]["sem_seg"].shape == (150, 69, 93)


def test_more_detections_than_pairs_is_fine() -> None:
    model = tiny("nuclei/maskformer2_R50.yaml", "TEST.DETECTIONS_PER_IMAGE", 500).eval()
    with torch.no_grad():
        assert len(model([record(64, 64, 0)])[0]["instances"]) == 10


def test_classes_instead_of_semantic_scores() -> None:
    config, batch = R50, [record(64, 96, 0), record(50, 70, 0)]
    model = tiny(config).eval()
    with torch.no_grad():
        scores = model(batch)
        model.semantic_scores = False
        classes = model(batch)
    for a, b in zip(scores, classes, strict=True):
        assert b["sem_seg"].dtype == torch.uint8 and torch.equal(b["sem_seg"], a["sem_seg"].argmax(0).byte())
        assert torch.equal(a["panoptic_seg"][0], b["panoptic_seg"][0])
    assert not tiny(config, "TEST.SEMANTIC_SCORES", False).settings.semantic_scores


def test_training_without_instances_names_the_file_and_the_key() -> None:
    model = tiny("nuclei/maskformer2_R50.yaml").train()
    broken = record(64, 64, 1)
    del broken["instances"]
    with pytest.raises(ValueError, match=r"a\.jpg.*DATASET_MAPPER_NAME"):
        model([broken])


def test_losses_with_bits_of_masks_are_the_same() -> None:
    model = tiny(R50)
    batch = [record(64, 96, 3, 80), record(50, 70, 0, 80)]
    losses = []
    for _ in range(3):
        torch.manual_seed(0)
        losses.append(model(batch))
        batch[len(losses) - 1 : len(losses)] = [_with_bits(sample) for sample in batch[len(losses) - 1 : len(losses)]]
    assert all(torch.equal(value, other[name]) for name, value in losses[0].items() for other in losses[1:])


def _with_bits(sample: dict[str, Any]) -> dict[str, Any]:
    instances = Instances(sample["instances"].image_size, **sample["instances"].get_fields())
    instances.gt_masks = MaskBits.of(instances.gt_masks)
    return {**sample, "instances": instances}


def test_bits_are_read_on_a_gpu_by_unchanged_code(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(R50)
    assert not model.reads_mask_bits
    monkeypatch.setattr(MaskFormer, "device", torch.device("cuda"))
    assert model.reads_mask_bits
    handle = model.register_forward_pre_hook(lambda *_: None)
    assert not model.reads_mask_bits
    handle.remove()
    model.preprocess = lambda batch: None
    assert not model.reads_mask_bits


@pytest.mark.gpu
def test_losses_with_bits_on_a_gpu_are_the_same() -> None:
    model = tiny(R50, "MODEL.DEVICE", "cuda")
    assert model.reads_mask_bits
    batch = [record(64, 96, 3, 80), record(50, 70, 0, 80)]
    losses = []
    for samples in (batch, [_with_bits(sample) for sample in batch]):
        torch.manual_seed(0)
        losses.append(model(samples))
    assert all(torch.allclose(losses[0][name], losses[1][name], rtol=1e-4) for name in losses[0])


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
@pytest.mark.parametrize(
    "config",
    [
        "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
        "coco/panoptic-segmentation/maskformer/maskformer_R50_bs64_554k.yaml",
        "ade20k/semantic-segmentation/maskformer/per_pixel_baseline_R50_bs16_160k.yaml",
        "ade20k/semantic-segmentation/maskformer/per_pixel_baseline_plus_R50_bs16_160k.yaml",
    ],
)
def test_no_hidden_host_syncs(config: str) -> None:
    queries = ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 150) if "plus" in config else ()
    model = tiny(config, *queries, "MODEL.DEVICE", "cuda")
    batch = [record(64, 96, 3, 133), record(50, 70, 0, 133)]
    for item in batch:
        item["image"], item["sem_seg"] = item["image"].cuda(), item["sem_seg"].cuda()
        item["instances"] = item["instances"].to("cuda")
    step_and_predict_without_syncs(model, batch)


@pytest.mark.parametrize(
    "config", ["nuclei/maskformer2_R50.yaml", "coco/instance-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"]
)
def test_complete_model_in_half_precision(config: str) -> None:
    """`model.bfloat16()` predicts without autocast, close to fp32."""
    model = tiny(config).eval()
    image = [{"image": record(64, 96, 0)["image"]}]
    with torch.no_grad():
        exact = model(image)[0]["instances"]
        rounded = model.bfloat16()(image)[0]["instances"]
    assert rounded.pred_masks.shape == exact.pred_masks.shape
    assert (rounded.scores.float() - exact.scores).abs().max() < 0.1


@pytest.mark.parametrize("training", [True, False])
def test_images_too_small_for_the_normalization_are_named(training: bool) -> None:
    model = tiny("coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml").train(training)
    normalize = torch.nn.GroupNorm(32, 32)
    model.sem_seg_head.forward = lambda features: normalize(torch.zeros(1, 32, 1, 1))
    sample = {**record(20, 30, 0, 3), "file_name": "tiny.png"}
    told = r"images \(tiny\.png\) of \d+ x \d+ pixels, .* too small .* INPUT\.MIN_SIZE_TEST .*CONVS_DIM"
    with torch.no_grad(), pytest.raises(ValueError, match=told):
        model([sample])


def test_a_head_of_another_kind_is_named() -> None:
    """detectron2's heads build with the same keys."""
    with pytest.raises(
        ConfigError, match=r"MODEL\.SEM_SEG_HEAD\.NAME SemSegFPNHead .*META_ARCHITECTURE MaskFormer needs"
    ):
        tiny(next(name for name in IMAGE if "_R50_" in name), "MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead")


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(64, 64), (50, 63)])
def test_images_of_one_size_are_batched_together(
    size: tuple[int, int], kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml")
    images = [record(*size, 1, seed=i)["image"].to(kind) for i in range(2)]
    apart = model.pad_images(images)
    monkeypatch.setattr(type(model), "_uploads", True)  # as for a GPU
    together = model.pad_images(images)
    assert torch.equal(together.tensor, apart.tensor) and together.tensor.dtype == apart.tensor.dtype
    assert [tuple(each) for each in together.image_sizes] == [tuple(each) for each in apart.image_sizes]


def test_images_may_have_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml")
    monkeypatch.setattr(type(model), "_uploads", True)
    images = [record(64, 64, 1)["image"].float().requires_grad_() for _ in range(2)]
    model.pad_images(images).tensor.sum().backward()
    assert all(image.grad is not None for image in images)
