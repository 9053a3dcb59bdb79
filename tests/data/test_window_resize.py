from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mask2former.data.window_resize import resize_image, resize_images, resize_window, resizes_windows

compiled = pytest.mark.skipif(not hasattr(torch.ops.mask2former, "resize_window"), reason="needs the compiled op")


@compiled
@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 90),
    st.integers(1, 130),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_a_window_is_that_of_pillows_resize(
    size: tuple[int, int], higher: int, width: int, backwards: list[bool], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels = pixels[tuple(slice(None, None, -1) if flag else slice(None) for flag in backwards)]
    height = size[0] + higher
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.BILINEAR))
    top, left = int(rng.integers(height)), int(rng.integers(width))
    bottom, right = int(rng.integers(top, height)) + 1, int(rng.integers(left, width)) + 1
    out = torch.full((3, bottom - top + 2, right - left + 3), 7, dtype=torch.uint8)
    resize_window(pixels, (height, width), (top, left), out[:, 1:-1, 2:-1])
    np.testing.assert_array_equal(out[:, 1:-1, 2:-1].permute(1, 2, 0), expected[top:bottom, left:right])
    out[:, 1:-1, 2:-1] = 7
    assert (out == 7).all(), "nothing is written beside the window"


@compiled
def test_extreme_pixels_do_not_overflow() -> None:
    for value in (0, 255):
        pixels = np.full((50, 300, 3), value, np.uint8)
        out = torch.zeros(3, 77, 13, dtype=torch.uint8)
        resize_window(pixels, (77, 13), (0, 0), out)
        assert (out == value).all()


@compiled
@pytest.mark.parametrize(
    ("size", "origin", "message"),
    [((9, 20), (0, 0), "must not shrink"), ((20, 20), (15, 0), "inside"), ((20, 20), (-1, 0), "inside")],
)
def test_wrong_calls_of_the_op(size: tuple[int, int], origin: tuple[int, int], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        resize_window(np.zeros((10, 10, 3), np.uint8), size, origin, torch.zeros(3, 8, 8, dtype=torch.uint8))


def test_what_is_left_to_pillow() -> None:
    pixels = np.zeros((10, 12, 3), np.uint8)
    resize = T.ResizeTransform(10, 12, 20, 24)
    assert resizes_windows(resize, pixels) == hasattr(torch.ops.mask2former, "resize_window")
    assert not resizes_windows(T.ResizeTransform(10, 12, 9, 24), pixels)
    assert not resizes_windows(T.ResizeTransform(10, 12, 20, 24, Image.BICUBIC), pixels)
    assert not resizes_windows(resize, pixels[:, :, :1])
    assert not resizes_windows(resize, pixels[:9])
    assert not resizes_windows(resize, pixels.astype(np.float32))
    assert not resizes_windows(T.HFlipTransform(12), pixels)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("size", [(20, 30), (31, 47), (31, 20), (11, 40), (9, 7)])
def test_a_complete_image_is_that_of_the_transform(size: tuple[int, int], contiguous: bool) -> None:
    """The size it has, larger, narrower, lower, smaller."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)[:, 5:35]
    pixels = np.ascontiguousarray(pixels) if contiguous else pixels
    before = pixels.copy()
    for transform in (T.ResizeTransform(20, 30, *size), T.NoOpTransform()):
        planes = resize_image(pixels, transform)
        assert planes.dtype == torch.uint8
        np.testing.assert_array_equal(planes.permute(1, 2, 0).numpy(), transform.apply_image(pixels))
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("threads", [1, 3])
def test_images_resized_together_are_those_resized_alone(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, of several sizes, with some that keep their size."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (10 + i, 12, 3), dtype=np.uint8) for i in range(7)]
    transforms = [T.ResizeTransform(10 + i, 12, 10 + i % 3 * 5, 12 + i % 2) for i in range(7)]
    transforms[2] = T.ResizeTransform(12, 12, 12, 12)
    together = resize_images(images, transforms)
    alone = [resize_image(*pair) for pair in zip(images, transforms, strict=True)]
    assert len(together) == 7 and all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert resize_images([], []) == []
    with pytest.raises(AssertionError):  # of detectron2, for a transform of another image
        resize_images(images[:2], transforms[1:3])


@pytest.mark.gpu
def test_images_for_a_gpu_are_in_pinned_memory() -> None:
    images = [np.full((9, 7, 3), i, np.uint8)[..., ::-1] for i in range(3)]
    transforms = [T.ResizeTransform(9, 7, 9 + i, 7) for i in range(3)]
    pinned = resize_images(images, transforms, pinned=True)
    assert all(image.is_pinned() for image in pinned)
    assert all(torch.equal(a, b) for a, b in zip(pinned, resize_images(images, transforms), strict=True))
