"""Post-processing against a slow, direct transcription of its definition, on random and on hand-made masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.modeling import device_results, mask_resizing
from mask2former.modeling import postprocess as module
from mask2former.modeling.mask_resizing import resize_masks
from mask2former.modeling.postprocess import Settings, postprocess, postprocess_clip
from mask2former.structures.masks import boxes_from_masks, paste
from mask2former.structures.task import IMAGE_TASKS

PADDED, IMAGE, OUTPUT = (32, 48), (30, 41), (23, 37)
SEMANTIC, INSTANCE, PANOPTIC = (frozenset({task}) for task in IMAGE_TASKS)


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
@settings(max_examples=50)
def test_panoptic_equals_the_slow_one(seed: int, score: float, overlap: float) -> None:
    scores, masks = random_case(seed)
    s = Settings(PANOPTIC, object_mask_threshold=score, overlap_threshold=overlap, things=frozenset({0, 2}))
    ids, segments = run(scores, masks, s)["panoptic_seg"]
    expected_ids, expected = slow_panoptic(scores, masks, s)
    assert [(x["id"], x["isthing"], x["category_id"]) for x in segments] == expected
    assert torch.equal(ids, expected_ids)
    assert [x["area"] for x in segments] == [int((ids == x["id"]).sum()) for x in segments]


@given(st.integers(0, 2**31), st.integers(1, 60), st.booleans())
@settings(max_examples=40)
def test_instances_equal_the_slow_ones(seed: int, topk: int, panoptic: bool) -> None:
    scores, masks = random_case(seed)
    s = Settings(INSTANCE | PANOPTIC if panoptic else INSTANCE, topk=topk, things=frozenset({1, 3}))
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


@given(st.integers(0, 2**31), st.sampled_from([OUTPUT, IMAGE, (90, 123), (7, 200)]), st.booleans())
@settings(max_examples=60)
def test_patches_equal_dense_masks(seed: int, output: tuple[int, int], panoptic: bool) -> None:
    """But for a pixel whose logit is so near to 0 that rounding decides."""
    scores, masks = random_case(seed)
    masks[seed % 9] = -5.0  # an empty mask
    masks[(seed + 1) % 9, :3, :-2] = -50.0
    s = Settings(INSTANCE | PANOPTIC if panoptic else INSTANCE, topk=20, score_threshold=0.05)
    dense, ours = (
        postprocess(scores, scores, masks, PADDED, IMAGE, output, replace(s, patches=patches))["instances"]
        for patches in (False, True)
    )
    assert not ours.has("pred_masks") and len(ours) == len(dense)
    again = torch.from_numpy(paste(ours.pred_patches, output))
    assert int((again != dense.pred_masks).sum()) <= 1
    torch.testing.assert_close(ours.scores, dense.scores, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.pred_classes, dense.pred_classes)
    assert (ours.pred_boxes.tensor - dense.pred_boxes.tensor).abs().max() <= 1


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
    s = Settings(SEMANTIC | INSTANCE | PANOPTIC, object_mask_threshold=0.2)
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
    s = Settings(SEMANTIC | INSTANCE | PANOPTIC, score_threshold=0.5, object_mask_threshold=0.5)
    result = run(scores, torch.full((3, 8, 12), -5.0), s)
    assert result["panoptic_seg"][1] == [] and not result["panoptic_seg"][0].any()
    assert len(result["instances"]) == 0 and result["instances"].pred_masks.shape == (0, *OUTPUT)


def test_score_threshold_uses_the_final_score() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    masks = torch.stack((torch.full((8, 12), 0.2), torch.full((8, 12), 9.0)))  # in-mask probability 0.55 and 1.0
    kept = run(scores, masks, Settings(INSTANCE, score_threshold=0.55))["instances"]
    assert kept.scores.tolist() == pytest.approx([0.6], abs=1e-3)


def test_boxes_by_hand() -> None:
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    masks[1, 3, 0] = masks[1, 0, 5] = True
    assert boxes_from_masks(masks).tolist() == [[2, 1, 5, 3], [0, 0, 6, 4], [0, 0, 0, 0]]
    assert boxes_from_masks(masks[:0]).shape == (0, 4)


def test_masks_of_a_clip_are_made_frame_by_frame_of_chosen_queries_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    resized = module.ResizedMasks

    def counted(logits: torch.Tensor, *sizes: Any) -> Any:
        seen.append(tuple(logits.shape))
        return resized(logits, *sizes)

    monkeypatch.setattr(module, "ResizedMasks", counted)
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


def test_thresholds_are_inclusive_or_not_as_documented() -> None:
    """Scores and masks exactly at a threshold, in numbers that binary fractions hold."""
    scores = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    size = (8, 12)
    masks = torch.full((2, 8, 12), 30.0)
    s = Settings(PANOPTIC, object_mask_threshold=0.5)
    assert postprocess(scores, scores, masks, size, size, size, s)["panoptic_seg"][1] == []  # higher, not equal
    clip = postprocess_clip(scores, masks[:, None], size, size, size, topk=4, threshold=0.5)
    assert clip["pred_scores"] == [0.5, 0.5]  # equal is enough
    zero = postprocess_clip(scores, 0 * masks[:, None], size, size, size, topk=1, threshold=0.0)
    assert not zero["pred_masks"][0].any()  # a logit of zero is outside
    s = Settings(INSTANCE, topk=1)
    instances = postprocess(scores, scores, 0 * masks, size, size, size, s)["instances"]
    assert not instances.pred_masks.any() and instances.scores.tolist() == [0.0]
    # In panoptic results a probability of exactly one half is inside, and of equal queries the first one wins.
    s = Settings(PANOPTIC)
    ids, segments = postprocess(scores, scores, 0 * masks, size, size, size, s)["panoptic_seg"]
    assert (ids == 1).all() and [x["category_id"] for x in segments] == [0] and segments[0]["score"] == 0.5


@pytest.mark.parametrize(("overlap", "kept"), [(0.25, 2), (0.2501, 1)])
def test_segment_with_just_enough_left_is_kept(overlap: float, kept: int) -> None:
    """The second query keeps a quarter of its mask."""
    scores = torch.tensor([[0.9, 0.0, 0.1], [0.0, 0.6, 0.4]])
    masks = torch.full((2, 8, 8), -30.0)
    masks[0, :6], masks[1] = 30.0, 30.0
    s = Settings(PANOPTIC, overlap_threshold=overlap)
    _, segments = postprocess(scores, scores, masks, (8, 8), (8, 8), (8, 8), s)["panoptic_seg"]
    assert [x["area"] for x in segments] == [48, 16][:kept]


def test_share_that_remains_counts_all_pixels_that_were_won() -> None:
    """A query also wins pixels outside its own mask, where all others are weaker still."""
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    masks = torch.full((2, 8, 8), -3.0)
    masks[0, :2], masks[1, :4] = 30.0, 30.0
    masks[1, 4:] = -1.0
    s = Settings(PANOPTIC, overlap_threshold=0.8)
    ids, segments = postprocess(scores, scores, masks, (8, 8), (8, 8), (8, 8), s)["panoptic_seg"]
    # The second wins 16 pixels of its 32 and 32 outside it: 48 / 32 is above the threshold, its area is 16.
    assert [x["area"] for x in segments] == [16, 16] and not ids[4:].any()


def test_segments_of_one_stuff_class_are_one() -> None:
    scores = torch.tensor([[0.9, 0.0, 0.1], [0.8, 0.0, 0.2], [0.0, 0.7, 0.3], [0.0, 0.6, 0.4]])
    masks = torch.full((4, 8, 8), -30.0)
    for q in range(4):
        masks[q, 2 * q : 2 * q + 2] = 30.0
    s = Settings(PANOPTIC, things=frozenset({1}))
    ids, segments = postprocess(scores, scores, masks, (8, 8), (8, 8), (8, 8), s)["panoptic_seg"]
    assert ids[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 3, 3]
    assert [(x["id"], x["isthing"], x["area"]) for x in segments] == [(1, False, 32), (2, True, 16), (3, True, 16)]
    assert [x["score"] for x in segments] == pytest.approx([0.9, 0.7, 0.6])


def test_score_threshold_of_a_low_value() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    masks = torch.full((2, 8, 12), 9.0)
    masks[1] = 0.1  # 0.3 x 0.52 is below 0.25, 0.3 alone is not
    kept = run(scores, masks, Settings(INSTANCE, score_threshold=0.25))["instances"]
    assert len(kept) == 1


def test_score_of_an_instance_is_the_mean_inside_its_mask() -> None:
    """One pixel, where a constant in the mean would show; and an empty mask, whose score is zero."""
    scores = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    masks = torch.full((2, 8, 12), -1.0)
    masks[0, 3, 4] = 1.0
    size = (8, 12)
    s = Settings(INSTANCE)
    instances = postprocess(scores, scores, masks, size, size, size, s)["instances"]
    assert instances.scores.tolist() == pytest.approx([0.5 * torch.tensor(1.0).sigmoid().item(), 0.0], abs=1e-4)
    assert instances.pred_boxes.tensor.tolist() == [[4, 3, 5, 4], [0, 0, 0, 0]]


def test_chunks_hold_masks_of_the_larger_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded also where the output is larger, or smaller, than the padded image."""
    seen: list[int] = []
    resized = module.ResizedMasks
    monkeypatch.setattr(module, "ResizedMasks", lambda logits, *to: seen.append(len(logits)) or resized(logits, *to))
    monkeypatch.setattr(module, "_CHUNK", 2 * 16 * 16)
    scores, masks = torch.ones(4, 3).softmax(-1), torch.zeros(4, 4, 4)
    for padded, output in (((16, 16), (8, 8)), ((8, 8), (16, 16))):
        seen.clear()
        postprocess(scores, scores, masks, padded, padded, output, Settings(semantic_at_output_size=True))
        assert seen == [2, 2]


@pytest.mark.parametrize("band", [1, 2**17])
def test_a_small_object_is_resized_inside_its_box_only(monkeypatch: pytest.MonkeyPatch, band: int) -> None:
    """Also row by row; the complete masks are never made."""
    monkeypatch.setitem(mask_resizing._BAND, "cpu", band)
    masks = torch.full((2, 16, 16), -4.0)
    masks[0, 3:6, 8:10] = 4.0
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    sizes = ((64, 64), (60, 64), (600, 800))
    seen: list[int] = []
    logits_of = mask_resizing.ResizedMasks._logits
    monkeypatch.setattr(
        mask_resizing.ResizedMasks,
        "_logits",
        lambda self, index, box: (
            seen.append((box.bottom - box.top) * (box.right - box.left)) or logits_of(self, index, box)
        ),
    )
    found = postprocess(scores, scores, masks, *sizes, Settings(INSTANCE, patches=True))["instances"]
    assert 0 < sum(seen) < 600 * 800 / 16
    dense = postprocess(scores, scores, masks, *sizes, Settings(INSTANCE))["instances"]
    assert np.array_equal(paste(found.pred_patches, sizes[2]), dense.pred_masks.numpy())
    assert found.pred_patches[1].bits.size == 0 and float(found.scores[1]) == 0
    torch.testing.assert_close(found.scores, dense.scores)


def test_where_semantic_scores_are_resized() -> None:
    """Sums of resized masks, or resized sums: instances and panoptic results imply the first."""
    scores, masks = random_case(3)
    inside = run(scores, masks, Settings())["sem_seg"]
    outside = run(scores, masks, Settings(semantic_at_output_size=True))["sem_seg"]
    assert inside.shape == outside.shape == (4, *OUTPUT) and not torch.allclose(inside, outside, atol=1e-4)
    for s in (Settings(SEMANTIC | INSTANCE), Settings(SEMANTIC | PANOPTIC)):
        torch.testing.assert_close(run(scores, masks, s)["sem_seg"], outside)


def test_instances_of_stuff_are_dropped_with_panoptic_results_only() -> None:
    scores, masks = random_case(6)
    things = frozenset({1})
    alone = run(scores, masks, Settings(INSTANCE, topk=20, things=things))["instances"]
    both = run(scores, masks, Settings(INSTANCE | PANOPTIC, topk=20, things=things))
    assert len(alone) == 20 and set(alone.pred_classes.tolist()) == {0, 1, 2, 3}
    assert set(both["instances"].pred_classes.tolist()) == {1}


def test_resizing_by_steps() -> None:
    """Resize to the padded size, crop, resize to the output; no second resize where the image has the output size."""
    logits = torch.randn(2, 4, 6)
    padded = F.interpolate(logits[None], (16, 24), mode="bilinear", align_corners=False)[0]
    assert torch.equal(resize_masks(logits, (16, 24), (13, 20), None), padded[:, :13, :20])
    assert torch.equal(resize_masks(logits, (16, 24), (13, 20), (13, 20)), padded[:, :13, :20])
    for output in ((13, 30), (20, 20), (6, 7)):
        expected = F.interpolate(padded[None, :, :13, :20], output, mode="bilinear", align_corners=False)[0]
        assert torch.equal(resize_masks(logits, (16, 24), (13, 20), output), expected)


def test_instances_below_the_threshold_are_not_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class score exactly at the threshold is enough, where the mask is certain."""
    seen: list[int] = []
    resized = module.ResizedMasks
    monkeypatch.setattr(module, "ResizedMasks", lambda logits, *to: seen.append(len(logits)) or resized(logits, *to))
    scores = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.125, 0.875]])
    size = (8, 12)
    s = Settings(INSTANCE, score_threshold=0.5)
    result = postprocess(scores, scores, torch.full((3, *size), 200.0), size, size, size, s)["instances"]
    assert result.scores.tolist() == [0.5] and seen == [1]


def test_of_equal_queries_in_two_chunks_the_first_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 1)
    scores = torch.tensor([[0.75, 0.0, 0.25], [0.0, 0.75, 0.25]])
    size = (8, 12)
    s = Settings(PANOPTIC)
    _, segments = postprocess(scores, scores, torch.full((2, *size), 9.0), size, size, size, s)["panoptic_seg"]
    assert [x["category_id"] for x in segments] == [0]


@pytest.mark.gpu
def test_patches_of_a_gpu_equal_dense_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, masks = random_case(5)
    monkeypatch.setattr(device_results, "_DEVICES", set())  # as where a model replaces a result
    s = Settings(INSTANCE, topk=20)
    dense = run(scores, masks, s)["instances"]
    few = postprocess(scores.cuda(), scores, masks.cuda(), PADDED, IMAGE, OUTPUT, replace(s, patches=True))["instances"]
    assert few.has("pred_masks")  # where they are small, dense masks need no copy for each object
    monkeypatch.setattr(module, "_DENSE_ON_GPU", 0)
    many = postprocess(scores.cuda(), scores, masks.cuda(), PADDED, IMAGE, OUTPUT, replace(s, patches=True))[
        "instances"
    ]
    assert int((torch.from_numpy(paste(many.pred_patches, OUTPUT)) != dense.pred_masks).sum()) <= 1
    torch.testing.assert_close(many.scores, dense.scores, atol=1e-4, rtol=1e-4)
