"""First weights of the class head for other classes."""

from __future__ import annotations

import torch

from mask2former.engine.class_head import (
    CLASS_BIAS,
    CLASS_WEIGHT,
    adapted_weights,
    is_unchanged,
    matching_classes,
)


def test_matching_by_name() -> None:
    assert matching_classes(["Traffic-Light", "cat", "new"], ["cat", "traffic light"]) == [1, 0, None]
    assert matching_classes(["cell"], ["nucleus"]) == [0]  # the only class of both
    assert matching_classes(["cell", "debris"], ["nucleus"]) == [None, None]
    assert matching_classes(["a"], None) == [None]
    assert matching_classes(["++", "+"], ["+", "++"]) == [1, 0]
    assert is_unchanged([0, 1], 2)
    assert not is_unchanged([1, 0], 2) and not is_unchanged([0], 2)


def test_rows_of_known_classes_and_no_object_are_kept() -> None:
    weight, bias = torch.arange(12.0).reshape(4, 3), torch.tensor([1.0, 2.0, 3.0, 9.0])
    state = {
        CLASS_WEIGHT: weight.half(),
        CLASS_BIAS: bias.half(),
        "other": torch.ones(1),
        "criterion.empty_weight": bias,
    }
    adapted = adapted_weights(state, [2, None], seed=5)
    assert adapted[CLASS_WEIGHT].shape == (3, 3)
    assert torch.equal(adapted[CLASS_WEIGHT][[0, 2]], weight[[2, 3]])
    assert torch.equal(adapted[CLASS_BIAS], torch.tensor([3.0, 2.0, 9.0]))  # the new class: the mean of the others
    assert 0 < adapted[CLASS_WEIGHT][1].abs().max() < 0.1
    assert set(adapted) == {CLASS_WEIGHT, CLASS_BIAS, "other"}
    again = adapted_weights(state, [2, None], seed=5)
    assert torch.equal(adapted[CLASS_WEIGHT], again[CLASS_WEIGHT])


def test_weights_without_a_class_head_pass() -> None:
    assert set(adapted_weights({"backbone.x": torch.ones(1)}, [None])) == {"backbone.x"}
