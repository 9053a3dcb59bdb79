"""Assignment and losses agree with the reference on a recorded case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.matcher import HungarianMatcher
from tests.parity.float64 import everything_in_float64

DRAWS = 60


@pytest.fixture(params=[np.float32, np.float64])
def case(request: pytest.FixtureRequest) -> Iterator[dict[str, np.ndarray]]:
    """The recorded case, in the precision of training, and in float64, where rounding has no part in a failure."""
    with np.load(Path(__file__).parent / "data" / "criterion.npz") as archive:
        recorded = dict(archive)
    for name in ("pred_logits", "pred_masks"):
        recorded[name] = recorded[name].astype(request.param)
    with everything_in_float64() if request.param is np.float64 else nullcontext():
        yield recorded


def inputs(case: dict[str, np.ndarray]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    outputs = {k: torch.from_numpy(case[k]) for k in ("pred_logits", "pred_masks")}
    targets = [
        {"labels": torch.from_numpy(case[f"labels{i}"]), "masks": torch.from_numpy(case[f"masks{i}"])} for i in (0, 1)
    ]
    return outputs, targets


def test_assignment(case: dict[str, np.ndarray]) -> None:
    outputs, targets = inputs(case)
    for i, pair in enumerate(HungarianMatcher(2, 5, 5)(outputs, targets)):
        np.testing.assert_array_equal(np.stack(pair), case[f"index{i}"])


def test_losses(case: dict[str, np.ndarray]) -> None:
    """The reference draws other points, so means are compared. Ours are seeded: they are the same in every run."""
    outputs, targets = inputs(case)
    criterion = SetCriterion(5, HungarianMatcher(2, 5, 5), {}, eos_coef=0.1)
    draws = [criterion(outputs, targets) for _ in range(DRAWS)]
    assert draws[0]["loss_mask"].dtype == outputs["pred_masks"].dtype
    for name in ("loss_ce", "loss_mask", "loss_dice"):
        values = np.array([float(d[name]) for d in draws])
        error = np.hypot(case[f"stderr_{name}"], values.std() / DRAWS**0.5)
        assert abs(values.mean() - case[f"mean_{name}"]) <= 3 * error + 1e-6
        # The spread over draws tells that points are drawn the same way.
        assert values.std() == pytest.approx(float(case[f"std_{name}"]), rel=0.35, abs=1e-6)
