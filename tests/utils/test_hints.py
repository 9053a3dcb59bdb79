"""Tests of suggestions for unknown names."""

from __future__ import annotations

from mask2former.utils.hints import did_you_mean


def test_best_names_first() -> None:
    known = ["coco_train", "coco_val", "coco_test", "ade20k"]
    assert did_you_mean("coco_trai", known) == " Did you mean 'coco_train'?"
    assert did_you_mean("coco_tral", known, 2) == " Did you mean 'coco_train' or 'coco_val'?"
    assert did_you_mean("coco_tral", iter(known), 3) == " Did you mean 'coco_train', 'coco_val' or 'coco_test'?"


def test_nothing_similar() -> None:
    assert did_you_mean("xyz", ["coco_train", "ade20k"], 3) == did_you_mean("coco", []) == ""
