"""The model that comes with the package: the file is the one described, and it finds what looks like nuclei."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mask2former import Segmenter, zoo

SIZE = 256
CENTERS = [(40, 48), (60, 200), (120, 120), (170, 40), (180, 190), (225, 110), (36, 130), (128, 220)]


@pytest.fixture(scope="module")
def segment() -> Segmenter:
    return Segmenter.load("nuclei", device="cpu")


def discs() -> tuple[np.ndarray, np.ndarray]:
    """A fluorescence-like image uint8 (H, W) and its ground-truth masks bool (N, H, W)."""
    y, x = np.mgrid[:SIZE, :SIZE]
    radius = 10 + np.arange(len(CENTERS)) % 4 * 2
    distance = np.stack([np.hypot(y - cy, x - cx) for cy, cx in CENTERS])
    masks = distance < radius[:, None, None]
    noise = np.random.default_rng(0).normal(0, 3, (SIZE, SIZE))
    return (18 + 110 * masks.any(0) + noise).clip(0, 255).astype(np.uint8), masks


def test_file_is_the_described_one() -> None:
    entry = zoo.lookup("nuclei")
    content = zoo.resolve_weights(entry).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry.sha256
    assert len(content) <= 16 * 2**20


def test_finds_bright_discs(segment: Segmenter) -> None:
    image, ground_truth = discs()
    predicted = segment(image).filter(non_overlapping=True).instances.masks
    intersection, union = (ground_truth[:, None] & predicted), (ground_truth[:, None] | predicted)
    overlap = intersection.sum((2, 3)) / np.maximum(union.sum((2, 3)), 1)
    assert (overlap.max(1) > 0.7).sum() >= len(CENTERS) - 1
    assert len(predicted) <= len(CENTERS) + 3


def test_finds_nothing_where_nothing_is(segment: Segmenter) -> None:
    noise = np.random.default_rng(0).normal(20, 3, (SIZE, SIZE)).clip(0, 255).astype(np.uint8)
    assert len(segment(noise)) <= 1
    assert list(segment.classes.names) == ["nucleus"]
