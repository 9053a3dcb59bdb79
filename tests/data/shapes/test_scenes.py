"""Scenes and their drawings: determinism, exact masks, what is left out, and what moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.data.shapes import STUFF_CLASSES, THING_CLASSES, Light, Options, Pose, Scene, Thing, render, sample
from mask2former.data.shapes.annotations import class_indices, segment_ids, segments, tracks
from mask2former.data.shapes.outlines import OUTLINES
from mask2former.data.shapes.rendering import LEAST_PART, LEAST_PIXELS
from mask2former.data.shapes.scene import SMALLEST
from mask2former.structures.masks import segmentation_to_mask

SMALL = Options(size=(64, 80), objects=(2, 12))
FLAT = Light(np.ones(3, np.float32), (0.0, 0.0), (1.0, 0.0), 0.0, 0.0)


def disk(x: float, y: float, radius: float, seed: int = 1) -> Thing:
    rings = OUTLINES["disk"](np.random.default_rng(0))
    return Thing("disk", rings, Pose((x, y), radius, 0.0), np.eye(2), seed=seed)


def scene(*things: Thing, size: tuple[int, int] = (40, 60), light: Light = FLAT) -> Scene:
    return Scene(size, np.zeros(size, np.uint8), 0, ("sand",), things, light)


def test_there_are_enough_classes() -> None:
    assert len(THING_CLASSES) >= 10 and tuple(OUTLINES) == THING_CLASSES
    assert set(STUFF_CLASSES) == {"sky", "grass", "water", "brick", "sand"}


def test_samples_depend_on_their_number_alone() -> None:
    first = sample(SMALL, 3, "train", 5)
    again = sample(SMALL, 3, "train", 5)
    assert (first.images[0] == again.images[0]).all() and (first.ids[0] == again.ids[0]).all()
    others = [
        sample(SMALL, 4, "train", 5),
        sample(SMALL, 3, "val", 5),
        sample(SMALL, 3, "train", 6),
        sample(SMALL, 3, "train", 5, kind="clip"),
    ]
    assert all((first.images[0] != other.images[0]).any() for other in others)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**40),
    st.integers(32, 96),
    st.integers(32, 96),
    st.integers(1, 30),
    st.integers(0, 20),
)
def test_every_image_is_completely_and_exactly_labeled(seed: int, height: int, width: int, low: int, more: int) -> None:
    rendering = sample(Options((height, width), (low, low + more)), seed, "train", 0)
    image, ids = rendering.images[0], rendering.ids[0]
    assert image.shape == (height, width, 3) and image.dtype == np.uint8 and ids.shape == (height, width)
    assert ids.min() >= 1 and ids.max() <= len(rendering.names)
    assert 2 <= len(rendering.scene.stuff) <= 4 and len(rendering.scene.things) <= low + more
    found = segments(rendering)
    numbers = segment_ids(rendering)[ids]
    classes = class_indices(rendering)[ids]
    assert sum(entry["area"] for entry in found) == height * width
    assert len({entry["id"] for entry in found}) == len(found)
    for entry in found:
        mask = segmentation_to_mask(entry["segmentation"], (height, width))
        assert (mask == (numbers == entry["id"])).all() and mask.sum() == entry["area"]
        assert set(classes[mask]) == {entry["category_id"] - 1}
        y, x = np.nonzero(mask)
        assert entry["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        if entry["isthing"]:
            assert entry["area"] >= LEAST_PIXELS
    assert {entry["id"] // 1000 for entry in found if entry["isthing"]} <= set(range(1, len(THING_CLASSES) + 1))
    assert all(thing.at(0).radius >= SMALLEST for thing in rendering.scene.things)


def test_depth_order_and_exact_masks() -> None:
    """The upper of two disks is complete, and the lower one is what it leaves, to the pixel."""
    rendering = render(scene(disk(20, 20, 12), disk(30, 20, 8, seed=2)))
    y, x = np.mgrid[0:40, 0:60] + 0.5
    lower, upper = np.hypot(x - 20, y - 20), np.hypot(x - 30, y - 20)
    ids = rendering.ids[0]
    clear = (abs(lower - 12) > 0.6) & (abs(upper - 8) > 0.6)  # where the pixel is on one side of both borders
    expected = np.where(upper < 8, 3, np.where(lower < 12, 2, 1))
    assert (ids == expected)[clear].all() and clear.mean() > 0.9
    assert (ids == 3).sum() == pytest.approx(np.pi * 64, rel=0.05)


def test_the_border_is_blended_and_the_inside_is_not() -> None:
    plain = render(scene(light=FLAT)).images[0].astype(int)
    drawn = render(scene(disk(30, 20, 10))).images[0].astype(int)
    y, x = np.mgrid[0:40, 0:60] + 0.5
    distance = np.hypot(x - 30, y - 20)
    changed = (plain != drawn).any(axis=2)
    assert not changed[distance > 11].any() and changed[distance < 9].all()
    # Pixels that the disk covers to less than a half are labeled as sand, though they have some of its color.
    blended = changed & (render(scene(disk(30, 20, 10))).ids[0] == 1)
    assert 8 < blended.sum() < 60


def test_shadows_darken_without_a_label() -> None:
    dark = replace(FLAT, shadow=0.5)
    lit, shaded = (render(scene(disk(20, 20, 8), light=light)) for light in (FLAT, dark))
    assert (lit.ids[0] == shaded.ids[0]).all()
    right = slice(18, 22), slice(28, 29)
    assert shaded.images[0][right].mean() < 0.9 * lit.images[0][right].mean()
    left = slice(18, 22), slice(2, 8)
    assert (shaded.images[0][left] == lit.images[0][left]).all()


def test_hidden_things_are_left_out() -> None:
    hidden, outside, corner = disk(30, 20, 6), disk(-30, 20, 6), disk(-3, -3, 5)
    rendering = render(scene(hidden, outside, corner, disk(30, 20, 12, seed=2)))
    assert [thing.pose.radius for thing in rendering.scene.things] == [12]
    # A thing that only shows a rim goes too, and what lay below that rim is seen again.
    almost = render(scene(disk(30, 20, 12.4), disk(30, 20, 12, seed=2)))
    assert len(almost.scene.things) == 1 and set(np.unique(almost.ids[0])) == {1, 2}
    part = render(scene(disk(25, 20, 12), disk(30, 20, 12, seed=2)))
    visible = (part.ids[0] == 2).sum()
    assert len(part.scene.things) == 2 and visible >= LEAST_PART * np.pi * 144


def test_many_objects_are_small_ones_and_some_are_large() -> None:
    options = Options()
    shown = [sample(options, 0, "train", number) for number in range(40)]
    counts = [len(rendering.scene.things) for rendering in shown]
    assert min(counts) <= 4 and 40 <= max(counts) <= 60
    areas = [entry["area"] for rendering in shown for entry in segments(rendering) if entry["isthing"]]
    assert min(areas) < 40 and max(areas) > 64**2 / 2
    assert {thing.category for rendering in shown for thing in rendering.scene.things} == set(THING_CLASSES)
    assert {name for rendering in shown for name in rendering.scene.stuff} == set(STUFF_CLASSES)


def test_color_alone_does_not_tell_stuff() -> None:
    """Regions whose mean color is nearest are often of another class."""
    colors, names = [], []
    for number in range(120):
        rendering = sample(Options((64, 64), (1, 3)), 0, "train", number)
        for index, name in enumerate(rendering.scene.stuff, start=1):
            if (rendering.ids[0] == index).any():
                colors.append(rendering.images[0][rendering.ids[0] == index].mean(axis=0))
                names.append(name)
    distance = np.square(np.array(colors)[:, None] - np.array(colors)).sum(axis=2)
    nearest = np.argsort(distance + np.diag(np.full(len(names), np.inf)), axis=1)[:, 0]
    right = np.mean([names[other] == name for other, name in zip(nearest, names, strict=True)])
    assert 0.2 < right < 0.7, right


# ------------------------------------------------------------------ clips
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**40), st.integers(2, 8))
def test_tracks_are_the_things_of_the_frames(seed: int, frames: int) -> None:
    rendering = sample(SMALL, seed, "val", 1, frames=frames, kind="clip")
    assert len(rendering.images) == len(rendering.ids) == frames
    found = tracks(rendering)
    assert len(found) == len(rendering.scene.things)
    first = len(rendering.scene.stuff) + 1
    for number, (thing, track) in enumerate(zip(rendering.scene.things, found, strict=True), start=first):
        assert track["category_id"] == THING_CLASSES.index(thing.category) + 1
        assert max(area or 0 for area in track["areas"]) >= LEAST_PIXELS
        assert len(track["segmentations"]) == len(track["areas"]) == len(track["bboxes"]) == frames
        for ids, rle, area in zip(rendering.ids, track["segmentations"], track["areas"], strict=True):
            mask = ids == number
            assert (rle is None) == (area is None) == (not mask.any())
            if rle is not None:
                assert (segmentation_to_mask(rle, ids.shape) == mask).all() and mask.sum() == area


def test_a_thing_keeps_its_id_while_it_moves_out_and_behind() -> None:
    runner = replace(disk(30, 20, 5), velocity=(4.0, 0.0))
    wall = disk(30, 20, 9, seed=2)
    clip = replace(scene(runner, wall), frames=15)
    rendering = render(clip)
    seen = [(ids == 2).sum() for ids in rendering.ids]
    assert seen[0] > 20 and seen[7] == 0 and seen[-1] > 20  # before, behind and after the wall
    center = [np.nonzero(ids == 2)[1].mean() for ids, area in zip(rendering.ids, seen, strict=True) if area]
    assert center == sorted(center)
    leaving = render(replace(scene(replace(runner, velocity=(8.0, 0.0))), frames=15))
    assert [(ids == 2).any() for ids in leaving.ids] == [abs(8.0 * (t - 7)) < 35 for t in range(15)]


def test_the_camera_moves_ground_and_things_alike() -> None:
    regions = np.zeros((48, 68), np.uint8)
    regions[:, 34:] = 1
    clip = Scene((40, 60), regions, 4, ("sand", "sky"), (disk(30, 20, 6),), FLAT, pan=(2.0, 0.0), frames=5)
    rendering = render(clip)
    for frame, ids in enumerate(rendering.ids):
        shift = 2 * (frame - 2)
        assert np.flatnonzero(ids[0] == 2)[0] == 30 - shift
        assert np.nonzero(ids == 3)[1].mean() == pytest.approx(29.5 - shift, abs=0.01)


def test_clips_have_things_that_come_and_go() -> None:
    clips = [sample(Options(), 0, "train", number, frames=6, kind="clip") for number in range(12)]
    presence = [[area is not None for area in track["areas"]] for clip in clips for track in tracks(clip)]
    assert any(not row[0] for row in presence) and any(not row[-1] for row in presence)
    assert any(clip.scene.camera_at(0) != clip.scene.camera_at(5) for clip in clips)


# ------------------------------------------------------------------ options
def test_options_restrict_what_is_drawn() -> None:
    options = Options((48, 48), (1, 4), ("ring", "star", "sky", "sand"))
    for number in range(10):
        rendering = sample(options, 0, "train", number)
        assert set(rendering.names) <= {"ring", "star", "sky", "sand"} and len(rendering.scene.things) <= 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (16, 64)}, "each side must be 32 to 4096"),
        ({"objects": (5, 2)}, "smaller number first"),
        ({"objects": (1, 1000)}, "1 to 200"),
        ({"classes": ("discs", "sky")}, "no class 'discs'"),
        ({"classes": ("disk",)}, "one kind of stuff"),
        ({"classes": ("sky",)}, "at least one thing"),
    ],
)
def test_bad_options_say_what_is_possible(values: dict[str, tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**values)  # type: ignore[arg-type]
