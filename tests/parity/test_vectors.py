"""The network and its post-processing give the reference's numbers on deterministic weights and images."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

MODELS = [
    "coco_panoptic_r50",
    "coco_instance_r50",
    "ade20k_semantic_swin_tiny",
    "cityscapes_panoptic_r101",
    "fpn_masked_r50",
    "transenc_masked_r50",
    "maskformer_std_r50",
]


def relative_error(ours: torch.Tensor, recorded: np.ndarray) -> float:
    # Scores of half precision that vanish altogether are compared with its smallest normal number.
    return float(np.abs(ours.numpy() - recorded).max() / max(np.abs(recorded).max(), np.finfo(np.float16).tiny))


@pytest.fixture(scope="module")
def outputs(load_vector: Any, deterministic: ModuleType):
    """Function: network outputs and results for a vector; made once per model."""
    known: dict[str, Any] = {}

    def run(name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        if name not in known:
            vector = load_vector(name)
            height, width = vector.meta["output_hw"]
            image = deterministic.image(*vector.meta["input_hw"])
            with torch.no_grad():
                tensor = vector.model.preprocess([{"image": image}]).tensor
                raw = vector.model.sem_seg_head(vector.model.backbone(tensor))
                result = vector.model([{"image": image, "height": height, "width": width}])[0]
            known[name] = (vector, raw, result)
        return known[name]

    return run


@pytest.mark.parametrize("name", MODELS)
def test_state_dict(name: str, load_vector: Any) -> None:
    vector = load_vector(name)
    assert {k: list(v.shape) for k, v in vector.model.state_dict().items()} == vector.meta["keys"]


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_masks(name: str, outputs: Any) -> None:
    vector, raw, _ = outputs(name)
    assert relative_error(raw["pred_logits"], vector.numbers["pred_logits"]) < 2e-4
    assert relative_error(raw["pred_masks"][:, :8, 0], vector.numbers["pred_masks_first8"]) < 2e-4


@pytest.mark.parametrize("name", [m for m in MODELS if m != "coco_instance_r50"])
def test_semantic(name: str, outputs: Any) -> None:
    vector, _, result = outputs(name)
    same = result["sem_seg"].argmax(0).numpy() == vector.numbers["sem_seg_argmax"]
    assert same.mean() > 0.999
    # The recorded scores are stored in half precision.
    assert relative_error(result["sem_seg"][:4], vector.numbers["sem_seg_first4"].astype(np.float32)) < 1e-3


@pytest.mark.parametrize("name", ["coco_panoptic_r50", "cityscapes_panoptic_r101"])
def test_panoptic(name: str, outputs: Any) -> None:
    vector, _, result = outputs(name)
    ids, segments = result["panoptic_seg"]
    np.testing.assert_array_equal(ids.numpy(), vector.numbers["panoptic"])
    assert [{k: s[k] for k in ("id", "isthing", "category_id")} for s in segments] == vector.meta["segments_info"]
    assert [s["area"] for s in segments] == [int((vector.numbers["panoptic"] == s["id"]).sum()) for s in segments]


@pytest.mark.parametrize("name", ["coco_panoptic_r50", "coco_instance_r50", "cityscapes_panoptic_r101"])
def test_instance(name: str, outputs: Any) -> None:
    vector, _, result = outputs(name)
    instances, numbers = result["instances"], vector.numbers
    ours = np.lexsort((instances.pred_classes.numpy(), -instances.scores.numpy()))
    theirs = np.lexsort((numbers["inst_classes"], -numbers["inst_scores"]))
    np.testing.assert_array_equal(instances.pred_classes.numpy()[ours], numbers["inst_classes"][theirs])
    np.testing.assert_allclose(instances.scores.numpy()[ours], numbers["inst_scores"][theirs], atol=1e-4)
    areas = instances.pred_masks.flatten(1).sum(1).numpy()[ours]
    # Logits differ by rounding (1e-6 relative), which may turn a pixel whose logit is zero to that precision; a query
    # may be listed with several classes. The masks hold two million pixels together.
    difference = np.abs(areas - numbers["inst_areas"][theirs])
    assert difference.max() <= 1 and difference.sum() <= 4


def test_video(load_vector: Any, deterministic: ModuleType) -> None:
    """A clip of three frames: the network's outputs, and the ten instances at the output's size."""
    vector = load_vector("ytvis2019_r50")
    frames = [deterministic.image(*vector.meta["input_hw"], seed) for seed in range(3)]
    height, width = vector.meta["output_hw"]
    with torch.no_grad():
        raw = vector.model.clip_outputs(vector.model.preprocess(frames)[0])
        result = vector.model([{"image": frames, "height": height, "width": width}])[0]
    assert {k: list(v.shape) for k, v in vector.model.state_dict().items()} == vector.meta["keys"]
    assert relative_error(raw["pred_logits"][None], vector.numbers["pred_logits"]) < 2e-4
    assert relative_error(raw["pred_masks"][None, :8], vector.numbers["pred_masks_first8"]) < 2e-4
    assert result["image_size"] == (height, width)

    # The recorded scores are rounded, and saturate: equal ones may stand in another order.
    def listed(labels: list[int], scores: list[float], areas: list[list[int]]) -> list[tuple[int, float, list[int]]]:
        return sorted(zip(labels, scores, areas, strict=True))

    areas = [mask.flatten(1).sum(1).tolist() for mask in result["pred_masks"]]
    recorded = vector.meta["video"]
    ours = listed(result["pred_labels"], [round(s, 6) for s in result["pred_scores"]], areas)
    theirs = listed(recorded["labels"], recorded["scores"], recorded["areas"])
    assert [label for label, *_ in ours] == [label for label, *_ in theirs]
    np.testing.assert_allclose([s for _, s, _ in ours], [s for _, s, _ in theirs], atol=1e-5)
    difference = np.abs(np.array([a for *_, a in ours]) - np.array([a for *_, a in theirs]))
    assert difference.max() <= 1 and difference.sum() <= 3  # rounding, as in `test_instance`
