"""Rules that make objects of instances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mask2former.config import load_config
from mask2former.objects import ObjectRules
from mask2former.result_parts import InstanceResult


def instances(masks: list[np.ndarray], scores: list[float], labels: list[int] | None = None) -> InstanceResult:
    marks = np.array(labels or [0] * len(masks), np.int64)
    return InstanceResult.from_masks(np.stack(masks), np.array(scores, np.float32), marks, [f"c{k}" for k in marks])


def rectangle(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((20, 30), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_default_rules_are_a_threshold_only() -> None:
    given_ = instances([rectangle(0, 5, 0, 5), rectangle(0, 5, 0, 6)], [0.5, 0.49])
    kept = ObjectRules().apply(given_)
    assert len(kept) == 1 and (kept.masks == given_.masks[:1]).all()


def test_duplicates_of_the_same_class_are_dropped_the_better_one_stays() -> None:
    masks = [rectangle(0, 10, 0, 10), rectangle(0, 10, 0, 11), rectangle(0, 10, 5, 15)]
    found = instances(masks, [0.6, 0.9, 0.7])
    assert ObjectRules(nms_iou=0.5).apply(found).scores.tolist() == pytest.approx([0.9, 0.7])
    assert len(ObjectRules(nms_iou=0.95).apply(found)) == 3
    assert len(ObjectRules(nms_iou=0.5).apply(instances(masks, [0.6, 0.9, 0.7], [0, 1, 0]))) == 3


def test_holes_are_filled_and_parts_kept_or_split() -> None:
    ring = rectangle(0, 7, 0, 7) & ~rectangle(2, 5, 2, 5)
    speck = rectangle(15, 17, 20, 22)
    found = instances([ring | speck], [0.8])
    assert ObjectRules(fill_holes=True).apply(found).areas.tolist() == [49 + 4]
    assert ObjectRules(components="largest").apply(found).areas.tolist() == [40]
    split = ObjectRules(components="split").apply(found)
    assert split.areas.tolist() == [40, 4] and split.names == ("c0", "c0")
    assert ObjectRules(components="split", min_area=5).apply(found).areas.tolist() == [40]
    corner = rectangle(0, 2, 0, 2) | rectangle(2, 4, 2, 4)
    assert len(ObjectRules(components="split").apply(instances([corner], [0.8]))) == 1


def test_overlap_is_given_to_the_best() -> None:
    found = instances([rectangle(0, 10, 0, 10), rectangle(0, 10, 6, 16)], [0.6, 0.9])
    parts = ObjectRules(non_overlapping=True).apply(found)
    assert parts.areas.tolist() == [60, 100] and not (parts.masks[0] & parts.masks[1]).any()
    assert len(ObjectRules(non_overlapping=True, max_overlap=0.3).apply(found)) == 1


@given(
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.floats(0, 1),
    st.booleans(),
    st.floats(0, 1),
    st.sampled_from(["all", "largest", "split"]),
    st.integers(0, 20),
)
def test_any_rules_give_objects_that_keep_their_promises(
    seed: int, fill: bool, iou: float, exclusive: bool, overlap: float, components: str, area: int
) -> None:
    rng = np.random.default_rng(seed)
    masks = [np.kron(rng.random((5, 6)) < 0.4, np.ones((4, 5), bool)) for _ in range(5)]
    rules = ObjectRules(0.3, fill, iou, exclusive, overlap, components, area)
    found = instances(masks, rng.random(5).tolist(), rng.integers(0, 2, 5).tolist())
    objects = rules.apply(found)
    assert (objects.scores >= np.float32(0.3)).all() and (objects.areas >= rules.min_area).all()
    assert len(objects.names) == len(objects.labels) == len(objects.scores) == len(objects.patches)
    assert all(name == f"c{k}" for name, k in zip(objects.names, objects.labels, strict=True))
    if rules.non_overlapping:
        assert objects.masks.sum(axis=0).max(initial=0) <= 1


def test_config_node_gives_the_rules_and_names_wrong_values() -> None:
    key = "MODEL.MASK_FORMER.TEST.INSTANCES"
    assert ObjectRules.from_config(load_config()) == ObjectRules()
    cfg = load_config(None, [f"{key}.NMS_IOU", "0.4", f"{key}.COMPONENTS", "split", f"{key}.MIN_AREA", "7"])
    assert ObjectRules.from_config(cfg) == ObjectRules(nms_iou=0.4, components="split", min_area=7)
    with pytest.raises(ValueError, match=rf"{key}: components must be one of all, largest, split, not 'biggest'"):
        ObjectRules.from_config(load_config(None, [f"{key}.COMPONENTS", "biggest"]))


@pytest.mark.parametrize(
    "wrong",
    [{"score_threshold": 1.5}, {"nms_iou": -1}, {"max_overlap": float("nan")}, {"min_area": -1}, {"min_area": 0.5}],
)
def test_values_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ObjectRules(**wrong)
