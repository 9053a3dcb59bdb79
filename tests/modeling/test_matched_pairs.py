"""Indices of matched pairs, from the CPU and from a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from mask2former.modeling.matched_pairs import Assignment, Pairs
from mask2former.ops import linear_assignment

CPU = torch.device("cpu")
LAYERS, Q = 3, 5


@pytest.mark.parametrize("counts", [(2, 0, 4), (0, 0), (8, 1, 5), (7,)])
def test_pairs_of_a_device_are_those_of_scipy(counts: tuple[int, ...]) -> None:
    """Also where there are more objects than queries."""
    cost = torch.randn(len(counts), LAYERS, Q, max(counts))
    assignments = []
    for image, count in zip(cost.numpy(), counts, strict=True):
        found = [linear_sum_assignment(layer[:, :count]) for layer in image]
        matched = min(count, Q)
        queries, targets = (np.concatenate(x) for x in zip(*found, strict=True))
        assignments.append(Assignment(np.repeat(np.arange(LAYERS), matched), queries, targets))
    expected = Pairs.of(assignments, counts, Q, CPU)
    solution = linear_assignment(cost.flatten(0, 1), torch.tensor(counts).repeat_interleave(LAYERS))
    found_pairs = Pairs.of_solution(solution.unflatten(0, (-1, LAYERS)), counts, Q)
    assert found_pairs.sizes == expected.sizes == [LAYERS * min(count, Q) for count in counts]
    for name in ("layer", "position", "object"):
        assert torch.equal(getattr(found_pairs, name), getattr(expected, name)), name


def test_indices_by_hand() -> None:
    first = Assignment(np.array([0, 1]), np.array([3, 0]), np.array([0, 0]))
    second = Assignment(np.array([0, 0, 1, 1]), np.array([1, 4, 2, 3]), np.array([1, 0, 0, 1]))
    pairs = Pairs.of([first, second], (1, 2), Q, CPU)
    assert pairs.sizes == [2, 4] and pairs.layer.tolist() == [0, 1, 0, 0, 1, 1]
    grid = torch.arange(2 * 2 * Q).view(2, 2, Q)  # layers, images, queries
    expected = [grid[0, 0, 3], grid[1, 0, 0], grid[0, 1, 1], grid[0, 1, 4], grid[1, 1, 2], grid[1, 1, 3]]
    assert pairs.position.tolist() == [int(x) for x in expected]
    assert pairs.object.tolist() == [0, 0, 2, 1, 1, 2]
