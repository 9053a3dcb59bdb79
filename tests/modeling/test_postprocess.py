"""Post-processing against a slow, direct transcription of its definition, on random and on hand-made masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.modeling import postprocess as module
from mask2former.modeling.postprocess import Settings, postprocess, postprocess_clip, resize_masks
from mask2former.structures.masks import boxes_from_masks

PADDED, IMAGE, OUTPUT = (32, 48), (30, 41), (23, 37)


def random_case(seed: int, queries: int = 9, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    scores = (4 * torch.randn(queries, classes + 1, generator=g)).softmax(-1)
    coarse = 6 * torch.randn(1, queries, 3, 4, generator=g)
    return scores, F.interpolate(coarse, (8, 12), mode="bicubic")[0]


def run(scores: torch.Tensor, masks: torch.Tensor, s: Settings) -> dict[str, Any]:
    return postprocess(scores, scores, masks, PADDED, IMAGE, OUTPUT, s)


def slow_panoptic(scores: torch.Tensor, masks: torch.Tensor, s: Settings) -> tuple[torch.Tensor, list[tuple]]:
    """Query by query, pixel sets as bool maps."""
    probability = resize_masks(masks, PADDED, IMAGE, OUTPUT).sigmoid()
    best, labels = scores.max(-1)
    kept = [q for q in range(len(scores)) if labels[q] != scores.shape[1] - 1 and best[q] > s.object_mask_threshold]
    result, segments, stuff = torch.zeros(OUTPUT, dtype=torch.int32), [], {}
    if not kept:
        return result, segments
    winner = torch.stack([best[q] * probability[q] for q in kept]).argmax(0)
    for k, q in enumerate(kept):
        label, own = int(labels[q]), probability[q] >= 0.5
        visible = (winner == k) & own
        if visible.sum() == 0 or (winner == k).sum() / own.sum() < s.overlap_threshold:
            continue
        if not s.is_thing(label) and label in stuff:
            result[visible] = stuff[label]
            continue
        segments.append((len(segments) + 1, s.is_thing(label), label))
        stuff.setdefault(label, len(segments)) if not s.is_thing(label) else None
        result[visible] = len(segments)
    return result, segments


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 0.8]), st.sampled_from([0.0, 0.5, 0.8]))
@settings(max_examples=50, deadline=None)
def test_panoptic_equals_the_slow_one(seed: int, score: float, overlap: float) -> None:
    scores, masks = random_case(seed)
    s = Settings(
        semantic=False, panoptic=True, object_mask_threshold=score, overlap_threshold=overlap, things=frozenset({0, 2})
    )
    ids, segments = run(scores, masks, s)["panoptic_seg"]
    expected_ids, expected = slow_panoptic(scores, masks, s)
    assert [(x["id"], x["isthing"], x["category_id"]) for x in segments] == expected
    assert torch.equal(ids, expected_ids)
    assert [x["area"] for x in segments] == [int((ids == x["id"]).sum()) for x in segments]


@given(st.integers(0, 2**31), st.integers(1, 60), st.booleans())
@settings(max_examples=40, deadline=None)
def test_instances_equal_the_slow_ones(seed: int, topk: int, panoptic: bool) -> None:
    scores, masks = random_case(seed)
    s = Settings(semantic=False, instance=True, panoptic=panoptic, topk=topk, things=frozenset({1, 3}))
    ours = run(scores, masks, s)["instances"]
    logits = resize_masks(masks, PADDED, IMAGE, OUTPUT)
    flat = sorted(((float(scores[q, c]), q, c) for q in range(9) for c in range(4)), reverse=True)[:topk]
    flat = [x for x in flat if not panoptic or x[2] in (1, 3)]
    assert len(ours) == len(flat)
    for i, (score, query, label) in enumerate(flat):
        inside = logits[query] > 0
        factor = (logits[query].sigmoid() * inside).sum() / (inside.sum() + 1e-6)
        assert torch.equal(ours.pred_masks[i], inside)
        assert int(ours.pred_classes[i]) == label
        assert float(ours.scores[i]) == pytest.approx(score * float(factor), abs=1e-5)


@pytest.mark.parametrize("at_output", [True, False])
def test_semantic_equals_the_slow_one(at_output: bool) -> None:
    scores, masks = random_case(3)
    ours = run(scores, masks, Settings(semantic_at_output_size=at_output))["sem_seg"]
    probability = resize_masks(masks, PADDED, IMAGE, OUTPUT if at_output else None).sigmoid()
    expected = torch.einsum("qk,qhw->khw", scores[:, :-1], probability)
    if not at_output:
        expected = F.interpolate(expected[None], OUTPUT, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_results_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, masks = random_case(5)
    s = Settings(instance=True, panoptic=True, object_mask_threshold=0.2)
    whole = run(scores, masks, s)
    monkeypatch.setattr(module, "_CHUNK", 2 * PADDED[0] * PADDED[1])
    parts = run(scores, masks, s)
    torch.testing.assert_close(whole["sem_seg"], parts["sem_seg"], atol=1e-6, rtol=1e-6)
    assert torch.equal(whole["panoptic_seg"][0], parts["panoptic_seg"][0])
    assert whole["panoptic_seg"][1] == parts["panoptic_seg"][1]
    assert torch.equal(whole["instances"].pred_masks, parts["instances"].pred_masks)
    torch.testing.assert_close(whole["instances"].scores, parts["instances"].scores)


def test_nothing_found() -> None:
    scores = torch.tensor([[0.0, 0.0, 1.0]] * 3)
    s = Settings(instance=True, panoptic=True, score_threshold=0.5, object_mask_threshold=0.5)
    result = run(scores, torch.full((3, 8, 12), -5.0), s)
    assert result["panoptic_seg"][1] == [] and not result["panoptic_seg"][0].any()
    assert len(result["instances"]) == 0 and result["instances"].pred_masks.shape == (0, *OUTPUT)


def test_score_threshold_uses_the_final_score() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    masks = torch.stack((torch.full((8, 12), 0.2), torch.full((8, 12), 9.0)))  # in-mask probability 0.55 and 1.0
    kept = run(scores, masks, Settings(semantic=False, instance=True, score_threshold=0.55))["instances"]
    assert kept.scores.tolist() == pytest.approx([0.6], abs=1e-3)


def test_boxes_by_hand() -> None:
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    masks[1, 3, 0] = masks[1, 0, 5] = True
    assert boxes_from_masks(masks).tolist() == [[2, 1, 5, 3], [0, 0, 6, 4], [0, 0, 0, 0]]
    assert boxes_from_masks(masks[:0]).shape == (0, 4)


def test_masks_of_a_clip_are_made_frame_by_frame_of_chosen_queries_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    resize = module.resize_masks

    def counted(logits: torch.Tensor, *sizes: Any) -> torch.Tensor:
        seen.append(tuple(logits.shape))
        return resize(logits, *sizes)

    monkeypatch.setattr(module, "resize_masks", counted)
    scores = torch.tensor([[0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.0, 0.9, 0.1], [0.2, 0.2, 0.6]])
    logits = torch.full((4, 5, 2, 2), -1.0)
    logits[0, 3], logits[2] = 1.0, 1.0
    result = postprocess_clip(scores, logits, (8, 8), (8, 8), (6, 4), topk=3, threshold=0.3)
    assert seen == [(2, 2, 2)] * 5  # queries 0 (twice chosen) and 2
    assert result["pred_labels"] == [1, 0, 1] and result["pred_scores"] == pytest.approx([0.9, 0.5, 0.4])
    assert [m.flatten(1).sum(1).tolist() for m in result["pred_masks"]] == [[24] * 5, *[[0, 0, 0, 24, 0]] * 2]
    monkeypatch.setattr(module, "_CHUNK", 1)  # one mask at a time
    again = postprocess_clip(scores, logits, (8, 8), (8, 8), (6, 4), topk=3, threshold=0.3)
    assert seen[5:] == [(1, 2, 2)] * 10
    assert all(torch.equal(a, b) for a, b in zip(again["pred_masks"], result["pred_masks"], strict=True))
