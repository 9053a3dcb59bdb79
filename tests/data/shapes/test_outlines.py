"""Outlines lie in the unit circle, have the area that they should, and holes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mask2former.data.shapes.outlines import OUTLINES, Rings


def fill(rings: Rings, radius: int = 100) -> np.ndarray:
    """Return bool (2 radius + 1, 2 radius + 1): the inside of the outline; its center is in the middle."""
    canvas = np.zeros((2 * radius + 1, 2 * radius + 1), np.uint8)
    cv2.fillPoly(canvas, [np.round(ring * radius + radius).astype(np.int32) for ring in rings], 1)
    return canvas.astype(bool)


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_fit_the_unit_circle(name: str) -> None:
    for seed in range(20):
        rings = OUTLINES[name](np.random.default_rng(seed))
        radii = np.concatenate([np.hypot(*ring.T) for ring in rings])
        assert radii.max() < 1.2 and radii.max() > 0.9, seed
        part = fill(rings).sum() / (np.pi * 100**2)
        assert 0.15 < part < 1.01, (seed, part)


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_are_in_one_piece(name: str) -> None:
    for seed in range(20):
        count, _ = cv2.connectedComponents(fill(OUTLINES[name](np.random.default_rng(seed))).astype(np.uint8))
        assert count == 2, seed  # the outside, and the thing


def test_classes_differ() -> None:
    """No two classes cover the same pixels, at any of the angles that are tried."""
    masks = {name: fill(make(np.random.default_rng(0)), 40) for name, make in OUTLINES.items()}
    for name, mask in masks.items():
        for other, still in masks.items():
            if name < other:
                for angle in range(0, 360, 15):
                    turn = cv2.getRotationMatrix2D((40, 40), angle, 1.0)
                    turned = cv2.warpAffine(mask.astype(np.uint8), turn, mask.shape) > 0
                    assert (turned & still).sum() / (turned | still).sum() < 0.85, (name, other, angle)


def test_known_areas_and_holes() -> None:
    rng = np.random.default_rng(0)
    assert fill(OUTLINES["disk"](rng)).sum() == pytest.approx(np.pi * 100**2, rel=0.02)
    assert fill(OUTLINES["square"](rng)).sum() == pytest.approx(152**2, rel=0.02)
    assert not fill(OUTLINES["ring"](rng))[100, 100] and fill(OUTLINES["ring"](rng))[100, 15]
    # The crescent is the disk without a disk that is shifted to the right.
    crescent = fill(OUTLINES["crescent"](rng))
    assert crescent[100, 5] and not crescent[100, 100] and not crescent[100, 195]
