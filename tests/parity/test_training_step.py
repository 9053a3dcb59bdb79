"""One training step computes the recorded losses, assignment and gradients.

The numbers were made by this project at a commit whose training had been compared with the reference's; the file names
it. They are not to move: a change that makes a step faster or simpler gives the same to rounding. A change that is
meant to train differently records them anew, with `python -m tests.parity.record_training_step`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import scipy.optimize
import torch

from mask2former.modeling import matcher
from tests.parity.training_step import RECORD, STEPS, FixedPoints, assignments, differences, points, run


def recorded(name: str) -> dict[str, Any]:
    return json.loads(RECORD.read_text())["steps"][name]


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_step_computes_what_is_recorded(name: str) -> None:
    lines = list(differences(recorded(name), run(name)))
    assert not lines, "\n".join([f"{len(lines)} values differ:", *lines])


@pytest.mark.parametrize("name", STEPS)
def test_record_is_complete(name: str) -> None:
    record, step = recorded(name), STEPS[name]
    assert len(record["losses"]) == 3 * 10
    for image, objects in enumerate(step.objects):
        predictions = record["assignment"].get(f"image {image}", [])
        assert len(predictions) == (10 if objects else 0)
        assert all(sorted(targets) == list(range(len(objects))) for _, targets in predictions)
    for kind in ("groups", "modules"):
        assert all(entry["gradients"] == entry["parameters"] and entry["norm"] > 0 for entry in record[kind].values())
    totals = {sum(entry["parameters"] for entry in record[kind].values()) for kind in ("groups", "modules")}
    assert len(totals) == 1


def test_points_depend_on_their_number_alone() -> None:
    with FixedPoints():
        many, one, more = torch.rand(3, 50, 2), torch.rand((1, 50, 2), device="cpu"), torch.rand(1, 60, 2)
        again, other = torch.rand(50, 2), torch.rand(3, 50)
    assert (many == one).all() and (again == one[0]).all()
    assert not torch.isin(more, one).any()
    assert len(other.unique()) > 140
    assert not (torch.rand(1, 50, 2) == one).all()


def test_points_are_evenly_spread() -> None:
    cells = (points(1000) * 5).long()
    counts = (cells[:, 0] * 5 + cells[:, 1]).bincount(minlength=25)
    assert 36 <= counts.min() <= counts.max() <= 44


def test_assignments_are_read_under_every_name() -> None:
    cost = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 5.0]])
    before = matcher.linear_sum_assignment
    with assignments() as calls:
        for function in (scipy.optimize.linear_sum_assignment, matcher.linear_sum_assignment):
            function(cost)
            function(cost[:, :0])
    assert calls == [(2, [[0, 1], [1, 0]])] * 2
    assert matcher.linear_sum_assignment is scipy.optimize.linear_sum_assignment is before


def test_differences_are_named() -> None:
    record = {"a": {"x": 1.0, "y": 2}, "b": [[1, 2]], "c": 1.0}
    assert not list(differences(record, {"a": {"x": 1 + 1e-12, "y": 2}, "b": [[1, 2]], "c": 1.0}))
    lines = list(differences(record, {"a": {"x": 1 + 1e-8, "y": 3}, "b": [[2, 1]], "d": 1.0}))
    assert [line.split(":")[0] for line in lines] == ["/a/x", "/a/y", "/b/0", "/c", "/d"]
    assert list(differences({"x": 1.0}, {"x": float("nan")}))
