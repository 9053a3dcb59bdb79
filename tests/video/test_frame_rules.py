"""Tracking frame by frame follows the rules that make objects of instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util
from torch import Tensor

from mask2former.objects import ObjectRules
from mask2former.segmenter import Segmenter
from mask2former.structures.rle import encode_masks
from mask2former.video.frame_rules import objects_of_frame, tracking_rules
from mask2former.video.journal import JournalMismatch
from mask2former.video.results import VideoResult

from ..modeling.tiny_models import tiny
from .moving_shapes import ShapeModel, images

NUCLEI = "nuclei/maskformer2_efficientnet_lite0.yaml"


class TwiceModel(ShapeModel):
    """Finds each square twice, with another embedding and a lower score, and a speck beside one of the two masks."""

    def clip_outputs(self, images: Tensor) -> dict[str, Any]:
        found = super().clip_outputs(images)
        logits, masks, embeds = found["pred_logits"], found["pred_masks"], found["pred_embeds"]
        weaker = logits.clone()
        weaker[:, :-1] -= 0.5
        masks[:, :, -1, -1] = torch.where(masks.amax((2, 3)) > 0, 10.0, -10.0)
        return {
            "pred_logits": torch.cat([weaker, logits]),
            "pred_masks": torch.cat([masks, masks]),
            "pred_embeds": torch.block_diag(embeds, embeds),
        }


def track(rules: ObjectRules | None, **options: Any) -> VideoResult:
    segment = Segmenter(TwiceModel(), classes=["a", "b", "c"], min_size=0, rules=rules)
    return segment.track(images(12), **{"online": True, **options})


def areas(result: VideoResult) -> list[list[int]]:
    return [sorted(int(mask_util.area(rle)) for rle in rles.values()) for _, _, rles in result.masks()]


def test_an_object_that_two_queries_find_is_one_track() -> None:
    assert len(track(None).tracks) == 6  # without rules all candidates are followed
    result = track(ObjectRules(non_overlapping=True))
    assert [(track.label, track.first, track.last) for track in result.tracks] == [(0, 0, 12), (1, 0, 12), (2, 11, 12)]
    assert [round(track.score, 2) for track in result.tracks] == [0.9, 0.8, 0.7]  # of the better ones
    assert [len(frame) for frame in areas(result)] == [2] * 11 + [3]
    assert [len(frame) for frame in areas(track(ObjectRules(nms_iou=0.5)))] == [2] * 11 + [3]


def test_masks_are_those_that_the_rules_make() -> None:
    specks = areas(track(ObjectRules(nms_iou=0.5)))
    clean = areas(track(ObjectRules(nms_iou=0.5, components="largest")))
    for with_speck, without in zip(specks[:11], clean[:11], strict=True):
        assert without == pytest.approx([256, 256], abs=8)  # 16 x 16 pixels with rounded corners
        assert all(4 <= a - b <= 16 for a, b in zip(with_speck, without, strict=True))
    assert track(ObjectRules(nms_iou=0.5, components="largest", min_area=300)).tracks == ()
    assert areas(track(ObjectRules(nms_iou=0.5, components="split"))) == specks  # parts stay together


def test_rules_that_change_no_mask_are_not_followed() -> None:
    assert tracking_rules(ObjectRules(score_threshold=0.4, max_overlap=0.3, components="split")) is None
    followed = tracking_rules(ObjectRules(score_threshold=0.4, min_area=25))
    assert followed == ObjectRules(score_threshold=0.0, min_area=25)


def test_windows_of_several_frames_have_no_rules() -> None:
    plain, ruled = (track(rules, online=False, window=6, overlap=2) for rules in (None, ObjectRules(min_area=300)))
    assert ruled.tracks == plain.tracks and areas(ruled) == areas(plain)


def test_the_better_of_two_candidates_has_class_score_and_mask_score() -> None:
    logits = torch.full((2, 8, 8), -8.0)
    logits[0, 2:6, 2:6], logits[1, 2:6, 2:6] = 0.1, 8.0  # the first has an unsure mask
    scores = np.array([[0.9], [0.8]], np.float32)
    size = (8, 8)
    rules = ObjectRules(score_threshold=0.0, non_overlapping=True)
    found = objects_of_frame(scores, logits, np.array([True, True]), rules, size, size, size)
    assert found.rows.tolist() == [1] and found.masks.areas.tolist() == [16]
    found = objects_of_frame(scores, logits, np.array([True, False]), rules, size, size, size)
    assert found.rows.tolist() == [0]
    found = objects_of_frame(scores, logits, np.array([False, False]), rules, size, size, size)
    assert found.rows.tolist() == [] and found.counts() == []


def test_a_candidate_without_pixels_has_an_empty_mask() -> None:
    size = (4, 4)
    rules = ObjectRules(score_threshold=0.0, fill_holes=True)
    scores, logits = np.ones((1, 1), np.float32), torch.full((1, 4, 4), -1.0)
    assert objects_of_frame(scores, logits, np.array([True]), rules, size, size, size).counts() == [""]


def test_one_frame_has_the_objects_of_the_image() -> None:
    """The same model with the same rules finds the same masks in an image and in a video of this image."""
    torch.manual_seed(0)
    rules = ObjectRules(score_threshold=0.0, fill_holes=True, non_overlapping=True, components="largest", min_area=4)
    segment = Segmenter(tiny(NUCLEI).eval(), classes=["nucleus"], min_size=0, rules=rules)
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    expected = segment(image).instances
    (_, _, rles), *_ = segment.track([image], online=True, top_k=1000).masks()
    found = sorted(rle["counts"] for rle in rles.values())
    assert found == sorted(rle["counts"] for rle in encode_masks(torch.from_numpy(expected.masks)))
    assert len(found) > 1


def test_a_run_with_other_rules_does_not_continue(tmp_path: Path) -> None:
    track(ObjectRules(min_area=10), work_dir=tmp_path)
    track(ObjectRules(min_area=10, score_threshold=0.2), work_dir=tmp_path)  # which selects tracks afterwards
    with pytest.raises(JournalMismatch):
        track(ObjectRules(min_area=11), work_dir=tmp_path)
