"""Post-processing with fixed shapes gives the results of `modeling.postprocess`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.export.results import Instances, Panoptic, Semantic
from mask2former.modeling.postprocess import Settings, postprocess, postprocess_clip
from mask2former.structures.task import Task

PADDED, IMAGE = (64, 96), (57, 83)
QUERIES, CLASSES = 20, 5
THINGS = torch.tensor([True, True, False, False, True])


def logits(seed: int) -> tuple[Tensor, Tensor]:
    """Return class logits (2, Q, K + 1) and smooth mask logits (2, Q, 16, 24)."""
    g = torch.Generator().manual_seed(seed)
    masks = F.interpolate(torch.randn(2, QUERIES, 4, 6, generator=g), (16, 24), mode="bilinear", align_corners=False)
    return 3 * torch.randn(2, QUERIES, CLASSES + 1, generator=g), 5 * masks


def wanted(classes: Tensor, masks: Tensor, settings: Settings) -> dict[str, Any]:
    return postprocess(classes.softmax(-1), None, masks, PADDED, IMAGE, IMAGE, settings)


def settings(task: Task, **values: Any) -> Settings:
    return replace(Settings(tasks=frozenset({task}), semantic_at_output_size=True), **values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_instances(seed: int, threshold: float) -> None:
    classes, masks = logits(seed)
    part = Instances(30, torch.ones(CLASSES, dtype=torch.bool), 0.0, mask_scores=True)
    scores, labels, found = part(classes, masks, PADDED, torch.tensor([IMAGE] * 2), torch.tensor(threshold))
    for i in range(2):
        expected = wanted(classes[i], masks[i], settings(Task.INSTANCE, topk=30, score_threshold=threshold))[
            "instances"
        ]
        kept = labels[i] >= 0
        torch.testing.assert_close(scores[i][kept], expected.scores)
        assert labels[i][kept].equal(expected.pred_classes)
        assert found[i][kept][:, : IMAGE[0], : IMAGE[1]].equal(expected.pred_masks)
        assert not found[i, :, IMAGE[0] :].any() and not found[i, :, :, IMAGE[1] :].any()
        assert not found[i][~kept].any() and not scores[i][~kept].any()
    assert threshold == 0 or 0 < int((labels >= 0).sum()) < labels.numel()


def test_instances_of_some_classes() -> None:
    classes, masks = logits(3)
    part = Instances(1000, THINGS, 0.0, mask_scores=True)  # more than there are
    _, labels, _ = part(classes, masks, PADDED, torch.tensor([PADDED] * 2), torch.tensor(0.0))
    assert labels.shape == (2, QUERIES * CLASSES)
    assert set(labels.flatten().tolist()) == {-1, 0, 1, 4}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.5, 0.3), (0.3, 0.8), (1.0, 0.5)])
def test_panoptic(seed: int, thresholds: tuple[float, float]) -> None:
    classes, masks = logits(seed)
    part = Panoptic(THINGS, *thresholds)
    values = [torch.tensor(value) for value in thresholds]
    outputs = part(classes, masks, PADDED, torch.tensor([IMAGE] * 2), *values)
    for i in range(2):
        named = {"object_mask_threshold": thresholds[0], "overlap_threshold": thresholds[1]}
        expected = settings(Task.PANOPTIC, things={0, 1, 4}, **named)
        expected_map, segments = wanted(classes[i], masks[i], expected)["panoptic_seg"]
        segment_map, scores, labels, areas = (output[i] for output in outputs)
        assert segment_map[: IMAGE[0], : IMAGE[1]].equal(expected_map.long())
        assert not segment_map[IMAGE[0] :].any() and not segment_map[:, IMAGE[1] :].any()
        count = len(segments)
        assert labels.tolist() == [s["category_id"] for s in segments] + [-1] * (QUERIES - count)
        assert areas.tolist() == [s["area"] for s in segments] + [0] * (QUERIES - count)
        torch.testing.assert_close(scores[:count], torch.tensor([float(s["score"]) for s in segments]))


def test_semantic() -> None:
    classes, masks = logits(0)
    (labels,) = Semantic()(classes, masks, PADDED, torch.tensor([IMAGE] * 2))
    for i in range(2):
        expected = wanted(classes[i], masks[i], settings(Task.SEMANTIC, semantic_scores=False))["sem_seg"]
        assert labels[i, : IMAGE[0], : IMAGE[1]].equal(expected.long())
        assert (labels[i, IMAGE[0] :] == -1).all()


def test_clips() -> None:
    classes, masks = logits(0)
    clip = torch.stack((masks, -masks, 0.5 * masks), 2)  # (2, Q, 3, 16, 24)
    part = Instances(8, torch.ones(CLASSES, dtype=torch.bool), 0.0, mask_scores=False)
    scores, labels, found = part(classes, clip, PADDED, torch.tensor([IMAGE] * 2), torch.tensor(0.0))
    assert found.shape == (2, 8, 3, *PADDED)
    for i in range(2):
        expected = postprocess_clip(classes[i].softmax(-1), clip[i], PADDED, IMAGE, IMAGE, 8, 0.0)
        torch.testing.assert_close(scores[i], torch.tensor(expected["pred_scores"]))
        assert labels[i].tolist() == expected["pred_labels"]
        assert found[i, ..., : IMAGE[0], : IMAGE[1]].equal(torch.stack(expected["pred_masks"]))
