"""The models that come with the package: the files are those described, and they find what they are made for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from mask2former import Segmenter, load_config, zoo
from mask2former.data.shapes import Options, sample
from mask2former.data.shapes.annotations import class_indices
from mask2former.data.shapes.examples import EXAMPLE_SEED
from mask2former.model_source import SHAPES_MODEL, locate_model, stored_classes

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


@pytest.mark.parametrize("name", zoo.list_bundled())
def test_file_is_the_described_one(name: str) -> None:
    entry = zoo.lookup(name)
    content = zoo.resolve_weights(entry).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry.sha256
    assert len(content) <= 16 * 2**20


@pytest.mark.parametrize("name", zoo.list_bundled())
def test_row_agrees_with_config_and_card(name: str) -> None:
    entry = zoo.lookup(name)
    model = load_config(entry.config_file).MODEL
    assert entry.queries == model.MASK_FORMER.NUM_OBJECT_QUERIES
    assert (model.META_ARCHITECTURE == "VideoMaskFormer") == entry.task.startswith("video")
    assert model.MASK_FORMER.TEST[f"{entry.task.split()[-1].upper()}_ON"] and entry.metrics and entry.license
    card = (zoo.resolve_weights(entry).parent / "README.md").read_text("utf-8")
    assert card.startswith(f"# Model card: {name}\n")
    assert all(f"| {value:.1f} |" in card for value in entry.metrics.values())
    assert model.WEIGHTS == "" and model.TIMM.WEIGHTS == ""


@pytest.mark.parametrize("name", zoo.list_bundled())
def test_classes_are_known_without_the_dataset(name: str) -> None:
    config, weights = locate_model(name, None, None)
    classes = stored_classes(config, Path(str(weights)))
    assert classes is not None
    assert len(classes.names) == load_config(zoo.lookup(name).config_file).MODEL.SEM_SEG_HEAD.NUM_CLASSES


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


@pytest.mark.slow
@pytest.mark.skipif(SHAPES_MODEL not in zoo.list_bundled(), reason="this checkout does not have the model")
def test_names_most_pixels_of_scenes_that_it_has_not_seen() -> None:
    model = Segmenter.load(SHAPES_MODEL, device="cpu", task="panoptic")
    right = []
    for number in range(2):
        scene = sample(Options(), EXAMPLE_SEED, "val", number)
        panoptic = model(scene.images[0]).panoptic
        label_of = np.full(panoptic.map.max() + 1, -1)
        label_of[[segment.id for segment in panoptic.segments]] = [segment.label for segment in panoptic.segments]
        right.append((label_of[panoptic.map] == class_indices(scene)[scene.ids[0]]).mean())
        assert any(segment.is_thing for segment in panoptic.segments)
    assert min(right) > 0.5


@pytest.mark.slow
def test_follows_things_through_a_clip_that_it_has_not_seen() -> None:
    clip = sample(Options(objects=(3, 8)), EXAMPLE_SEED, "val", 0, frames=6, kind="clip")
    result = Segmenter.load("shapes-video", device="cpu").track(clip.images)
    found = {track.id: np.zeros((6, SIZE, SIZE), bool) for track in result.tracks}
    for frame in result:
        for number, mask in zip(frame.ids, frame.instances.masks, strict=True):
            found[int(number)][frame.index] = mask
    ids = np.stack(clip.ids)
    masks = [ids == number for number in np.unique(ids) if number > len(clip.scene.stuff)]
    overlaps = [max(((m & f).sum() / (m | f).sum() for f in found.values()), default=0.0) for m in masks]
    assert np.mean([overlap > 0.5 for overlap in overlaps]) > 0.5
