"""Images from every kind of source, with real files of tifffile, pillow-heif, OpenCV and NumPy."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import struct
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, features

from mask2former.data import BadRecordError, image_scaling, read_image
from mask2former.data.image_files import FORMATS
from mask2former.data.image_pages import array_layout
from mask2former.data.image_scaling import to_uint8
from mask2former.data.image_sources import count_pages, iter_pages, load_image, load_pages
from mask2former.data.tiff_pages import _check_ome, turned

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8)
GRAY = RGB[:, :, 0]
DEEP = RNG.integers(0, 65536, (4, 9, 14), dtype=np.uint16)  # pages or channels

# One image each, written by Pillow.
COMMON = ["a.png", "a.jpg", "a.tif", "a.bmp", "a.gif", "a.webp", "a.ppm", "a.jp2"]


@pytest.fixture(autouse=True)
def _warn_again() -> None:
    """Forget what other tests were warned of."""
    image_scaling._warned.clear()


@pytest.fixture
def tifffile() -> Any:
    return pytest.importorskip("tifffile")


def gray(image: np.ndarray) -> np.ndarray:
    """Return the one channel of an image whose channels are equal."""
    assert image.dtype == np.uint8 and image.shape[2] == 3 and (image == image[:, :, :1]).all()
    return image[:, :, 0]


def by_257(values: np.ndarray) -> np.ndarray:
    return np.rint(values / 257).astype(np.uint8)


# ------------------------------------------------------------------ kinds of sources
@pytest.mark.parametrize("name", COMMON)
def test_path_bytes_and_file_objects_give_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(RGB).save(path)
    expected = load_image(path)
    content = path.read_bytes()
    with path.open("rb") as file, path.open("rb", buffering=0) as unbuffered, Image.open(path) as image:
        sources = [str(path), content, bytearray(content), memoryview(content), io.BytesIO(content), file, unbuffered]
        for source in [*sources, image]:
            np.testing.assert_array_equal(load_image(source), expected)
    np.testing.assert_array_equal(read_image(str(path)), expected)


def test_a_stream_that_cannot_seek(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: (os.write(writer, (tmp_path / "a.png").read_bytes()), os.close(writer)))
    thread.start()
    with os.fdopen(reader, "rb") as file:
        np.testing.assert_array_equal(load_image(file), RGB)
    thread.join()


def test_arrays_and_tensors() -> None:
    tensor = torch.from_numpy(RGB.transpose(2, 0, 1).copy())
    sources: list[Any] = [RGB, np.dstack([RGB, GRAY]), RGB / np.float32(255), RGB / 255, tensor, tensor.float() / 255]
    sources += [tensor.double().requires_grad_() / 255, RGB.astype(np.uint16) * 257, RGB.astype(">u2") * 257]
    for source in sources:
        np.testing.assert_array_equal(load_image(source), RGB)
    for source in (GRAY, GRAY[:, :, None], torch.from_numpy(GRAY), torch.from_numpy(GRAY)[None], Image.fromarray(GRAY)):
        np.testing.assert_array_equal(gray(load_image(source)), GRAY)
    half = torch.full((1, 2, 2), 0.5)
    assert (
        np.abs(load_image(half.bfloat16()).astype(int) - 128).max() == np.abs(load_image(half.half()) - 128).max() == 0
    )
    assert load_image(GRAY > 100).max() == 255


def test_color_arrays_are_not_copied_and_results_are_writable() -> None:
    assert np.shares_memory(load_image(RGB), RGB)
    fixed = RGB.copy()
    fixed.flags.writeable = False
    assert load_image(fixed).flags.writeable


@pytest.mark.parametrize("url", ["https://example.org/a.png", "s3://bucket/a.png", "data:image/png;base64,AAAA"])
def test_urls_are_refused_with_a_hint(url: str) -> None:
    with pytest.raises(ValueError, match="download it first"):
        load_image(url)
    with pytest.raises(ValueError, match="pass the path"):
        load_image("file:///tmp/a.png")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (io.StringIO("text"), "text mode"),
        (io.BytesIO(), r"seek\(0\)"),
        (b"", "cannot be read as an image"),
        (b"no image", "these bytes: cannot be read as an image"),
        (3.5, "not float"),
        (None, "not NoneType"),
        ("", "file name"),
        ("a\0.png", "file name"),
        (np.zeros((5, 6, 7), np.uint8), r"channels=i.*page=i"),
        (np.zeros((4, 4), np.complex64), "complex64"),
        (np.zeros((4, 4), object), "object"),
        (np.zeros((4, 4), np.int32), r"int32.*stretch"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), -0.5), r"from -0\.5 .* stretch="),
        (torch.zeros(4, 4, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 4, 4).to_sparse(), r"\(3, H, W\)"),
        (torch.zeros(3, 4, 4).to_sparse(), "no image"),
    ],
)
def test_what_is_no_image_says_what_to_do(source: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_image(source)


@pytest.mark.parametrize("bad", ["p", "1%", (1, 1), (2, 1), (0, float("nan")), (0, 1, 2), 5, ("a", "b"), True])
def test_wrong_stretch(bad: Any) -> None:
    with pytest.raises(ValueError, match="stretch must be"):
        load_image(RGB, stretch=bad)


@pytest.mark.parametrize("bad", [(0, 1), (), (None, None, None), 1.5, (0, 1, 2, 3), True])
def test_wrong_channels(bad: Any) -> None:
    with pytest.raises(ValueError, match="channels must be"):
        load_image(RGB, channels=bad)


@pytest.mark.parametrize("bad", [-1, 1.0, True, "first"])
def test_wrong_pages(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"page must be|load_pages"):
        load_image(RGB, page=bad)
    with pytest.raises(ValueError, match="page must be"):
        load_pages(RGB, page=bad)


def test_load_image_refuses_all_pages() -> None:
    with pytest.raises(ValueError, match="load_pages"):
        load_image(RGB, page="all")  # type: ignore[arg-type]
    assert len(load_pages(RGB)) == len(load_pages(RGB, page=0)) == 1
    with pytest.raises(ValueError, match="one page"):
        load_image(RGB, page=1)


# ------------------------------------------------------------------ scaling
def test_16_bits_are_divided_by_257_as_in_training(tmp_path: Path) -> None:
    Image.fromarray(DEEP[0]).save(tmp_path / "a.tif")
    expected = by_257(DEEP[0])
    for source in (tmp_path / "a.tif", DEEP[0]):
        np.testing.assert_array_equal(gray(load_image(source)), expected)
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.tif"))[:, :, 0], expected)


@pytest.mark.parametrize(
    "kind", [np.uint8, np.uint16, np.uint32, np.int16, np.int64, np.float16, np.float32, np.float64]
)
def test_stretch_of_every_type(kind: Any) -> None:
    values = np.arange(101, dtype=kind).reshape(1, 101)
    np.testing.assert_allclose(gray(load_image(values, stretch="minmax"))[0], np.arange(101) * 2.55, atol=0.51)
    fixed = gray(load_image(values, stretch=(20, 70)))[0]
    assert fixed[:21].max() == 0 and fixed[70:].min() == 255 and fixed[45] in (127, 128)
    # Percentiles 1 and 99.8 of 0 ... 100 are 1 and 99.8.
    assert gray(load_image(values, stretch="percentile"))[0, [0, 1, 2, 99, 100]].tolist() == [0, 0, 3, 253, 255]


def test_dark_microscopy_is_noticed_and_stretched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)  # Pillow says what it reads at lower levels
    dark = (DEEP[0] >> 4).clip(0, 4095)  # a camera of 12 bits
    Image.fromarray(dark).save(tmp_path / "dark.tif")
    Image.fromarray(dark).save(tmp_path / "again.tif")
    assert load_image(tmp_path / "dark.tif").max() <= 16
    assert 'stretch="percentile"' in caplog.text and "dark.tif" in caplog.text
    load_image(tmp_path / "again.tif")
    assert len(caplog.records) == 1  # once for each directory
    assert np.ptp(load_image(tmp_path / "dark.tif", stretch="percentile")) == 255
    caplog.clear()
    load_image(np.full((3, 3), 0.01, np.float32))
    assert "nearly black" in caplog.text
    caplog.clear()
    load_image(np.zeros((3, 3), np.uint16))
    load_image(DEEP[0])
    assert not caplog.records


def test_a_few_bright_pixels_on_an_even_background() -> None:
    values = np.full((40, 40), 7, np.uint16)
    values[3, 4] = 900
    image = gray(load_image(values, stretch="percentile"))
    assert image[3, 4] == 255 and image[0, 0] == 0
    assert load_image(np.full((4, 4), 7, np.uint16), stretch="percentile").max() == 0


def test_nan_and_infinity_go_to_the_ends() -> None:
    values = np.array([[0.0, 1.0, 2.0, np.nan, np.inf, -np.inf]])
    assert gray(load_image(values, stretch="minmax"))[0].tolist() == [0, 128, 255, 0, 255, 0]
    assert gray(load_image(values, stretch=(1, 2)))[0].tolist() == [0, 0, 255, 0, 255, 0]
    assert gray(load_image(values / 2))[0].tolist() == [0, 128, 255, 0, 255, 0]


def test_color_keeps_its_hue_but_selected_channels_have_their_own_range() -> None:
    values = np.zeros((1, 2, 3), np.uint16)
    values[0, 1] = [100, 50, 25]
    assert load_image(values, stretch="minmax")[0, 1].tolist() == [255, 128, 64]
    assert load_image(values, stretch="minmax", channels=(0, 1, 2))[0, 1].tolist() == [255, 255, 255]


def test_percentiles_of_large_images_look_at_every_channel() -> None:
    values = np.zeros((2400, 2000, 3), np.uint16)
    values[..., 2] = 1000
    assert load_image(values, stretch="percentile")[0, 0].tolist() == [0, 0, 255]


SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)
DTYPES = st.one_of(
    hnp.scalar_dtypes(), hnp.byte_string_dtypes(), hnp.unicode_string_dtypes(), st.just(np.dtype("longdouble"))
)
OPTIONS = {
    "page": st.one_of(st.none(), st.integers(0, 5), st.just("all")),
    "channels": st.sampled_from([None, 0, 4, "red", (0, 1, 2), (2, None, 0), ("blue", "red", "green")]),
    "stretch": st.sampled_from([None, "percentile", "minmax", (0, 1), (-1e308, 1e308), (0.0, 5e-324)]),
}


@settings(max_examples=40)
@given(array=hnp.arrays(DTYPES, SHAPES), npy=st.booleans(), **OPTIONS)
def test_any_array_gives_an_image_or_a_value_error(array: np.ndarray, npy: bool, **options: Any) -> None:
    source: Any = array
    if npy:
        buffer = io.BytesIO()
        np.save(buffer, array)
        source = buffer.getvalue()
    try:
        images = load_pages(source, **options)
    except ValueError as error:
        assert str(error)
        return
    for image in images:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size


@settings(max_examples=25)
@given(
    values=hnp.arrays(
        st.sampled_from([np.float64, np.float32, np.int64, np.uint64, np.int8, np.uint16]), st.just((1, 8, 1))
    ),
    stretch=st.sampled_from(["minmax", "percentile", (-3.0, 7.5)]),
)
def test_a_stretch_keeps_the_order_of_values(values: np.ndarray, stretch: Any) -> None:
    try:
        scaled = to_uint8("x", values, stretch)[0, :, 0]
    except BadRecordError:
        return
    flat = values[0, :, 0].astype(np.float64)
    known = ~np.isnan(flat)
    order = np.argsort(flat[known], kind="stable")
    assert (np.diff(scaled[known][order].astype(int)) >= 0).all()


# ------------------------------------------------------------------ pages and channels
def save_pages(path: Path, frames: Any, **options: Any) -> Path:
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
def test_pages_of_common_files(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    path = save_pages(tmp_path / name, [np.full((8, 8), v, np.uint8) for v in (10, 120, 250)])
    assert abs(int(load_image(path)[0, 0, 0]) - 10) < 4
    assert "3 pages, page 0 is used; page=i" in caplog.text
    pages = load_pages(path)
    assert [round(int(page[4, 4, 0]), -1) for page in pages] == [10, 120, 250]
    np.testing.assert_array_equal(load_image(path, page=2), pages[2])
    np.testing.assert_array_equal(load_image(path.read_bytes(), page=1), pages[1])
    with pytest.raises(ValueError, match="no page 3; the image has 3 pages, 0 to 2"):
        load_image(path, page=3)
    with Image.open(path) as image:
        np.testing.assert_array_equal(load_image(image), pages[0])
        np.testing.assert_array_equal(load_pages(image), pages)
        assert image.tell() == 0


def test_pages_are_read_one_by_one(tmp_path: Path) -> None:
    path = save_pages(tmp_path / "a.tif", DEEP)
    pages = iter_pages(path)
    assert isinstance(pages, Iterator)
    np.testing.assert_array_equal(gray(next(pages)), by_257(DEEP[0]))


def test_pages_as_channels(tmp_path: Path) -> None:
    path = save_pages(tmp_path / "a.tif", DEEP)
    image = load_image(path, channels=(2, None, 0))
    np.testing.assert_array_equal(image, np.dstack([by_257(DEEP[2]), 0 * GRAY, by_257(DEEP[0])]))
    with pytest.raises(ValueError, match=r"no channel 4; the image has 0, 1, 2, 3"):
        load_image(path, channels=4)
    mixed = save_pages(tmp_path / "mixed.tif", [DEEP[0], DEEP[1, :4]])
    with pytest.raises(BadRecordError, match="pages 0 and 1 cannot be channels"):
        load_image(mixed, channels=(0, 1, None))
    assert [page.shape for page in load_pages(mixed)] == [(9, 14, 3), (4, 14, 3)]


def test_small_versions_in_a_tiff_are_no_pages(tmp_path: Path, tifffile: Any) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(RGB, photometric="rgb", metadata=None)
        writer.write(RGB[::2, ::2].copy(), photometric="rgb", subfiletype=1, metadata=None)
    (page,) = load_pages(tmp_path / "a.tif")
    np.testing.assert_array_equal(page, RGB)


@pytest.mark.parametrize("ome", [False, True], ids=["imagej", "ome"])
def test_z_stack_with_described_axes(tmp_path: Path, tifffile: Any, caplog: Any, ome: bool) -> None:
    path = tmp_path / ("a.ome.tif" if ome else "a.tif")
    tifffile.imwrite(path, DEEP, ome=ome, imagej=not ome, metadata={"axes": "ZYX"})
    pages = load_pages(path)
    np.testing.assert_array_equal([gray(page) for page in pages], by_257(DEEP))
    np.testing.assert_array_equal(load_image(path), pages[0])
    assert "4 pages" in caplog.text and "channels=" not in caplog.text
    with pytest.raises(ValueError, match="no channel 1"):
        load_image(path, channels=1)


@pytest.mark.parametrize("ome", [False, True], ids=["imagej", "ome"])
def test_channels_and_pages(tmp_path: Path, tifffile: Any, ome: bool) -> None:
    stack = RNG.integers(0, 65536, (3, 5, 9, 14), dtype=np.uint16)  # Z, C
    names = ["DAPI", "FITC", "Cy3", "Cy5", "BF"]
    metadata: dict = {"axes": "ZCYX"}
    if ome:
        metadata["Channel"] = {"Name": names}
    tifffile.imwrite(tmp_path / "a.tif", stack, ome=ome, imagej=not ome, metadata=metadata)
    path = tmp_path / "a.tif"
    with pytest.raises(BadRecordError, match="5 channels: 0 .DAPI., 1" if ome else "5 channels: 0, 1, 2") as caught:
        load_image(path)
    assert "channels=(r, g, b)" in str(caught.value) and str(caught.value).startswith(str(path))
    np.testing.assert_array_equal(gray(load_image(path, channels=1, page=2)), by_257(stack[2, 1]))
    image = load_image(path.read_bytes(), channels=(4, None, 4), page=0)
    np.testing.assert_array_equal(image, np.dstack([by_257(stack[0, 4]), 0 * GRAY, by_257(stack[0, 4])]))
    assert len(load_pages(path, channels=0)) == 3
    if ome:
        np.testing.assert_array_equal(gray(load_image(path, channels="fitc")), by_257(stack[0, 1]))
        with pytest.raises(ValueError, match=r"'DAPY' is not one of the channels. Did you mean 'DAPI'.*0 \(DAPI\)"):
            load_image(path, channels="DAPY")


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("last", [False, True])
def test_number_of_channels_of_a_plane(tmp_path: Path, tifffile: Any, caplog: Any, count: int, last: bool) -> None:
    values = RNG.integers(0, 65536, (count, 9, 14), dtype=np.uint16)
    array = np.ascontiguousarray(values.transpose(1, 2, 0)) if last else values
    config = {"planarconfig": "contig" if last else "separate", "photometric": "minisblack"}
    described = {"axes": "YXS" if last else "SYX"}
    tifffile.imwrite(tmp_path / "a.tif", array, metadata=described if count % 2 else None, **config)
    np.testing.assert_array_equal(gray(load_image(tmp_path / "a.tif", channels=1)), by_257(values[1]))
    if count in (3, 4):
        np.testing.assert_array_equal(load_image(tmp_path / "a.tif"), by_257(values[:3]).transpose(1, 2, 0))
        assert ("of 4 channels" in caplog.text) == (count == 4)
    else:
        with pytest.raises(BadRecordError, match=f"{count} channels: 0, 1"):
            load_image(tmp_path / "a.tif")


def test_large_stack_of_imagej_without_page_headers(tmp_path: Path, tifffile: Any) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DEEP, imagej=True, contiguous=True, metadata={"axes": "ZYX"})
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        second = tiff.pages[1].offset
        where = tiff.pages[0].offset + 2 + 12 * len(tiff.pages[0].tags)
        order = tiff.byteorder
    assert struct.unpack_from(order + "I", content, where)[0] == second
    struct.pack_into(order + "I", content, where, 0)  # the first header is the last one
    np.testing.assert_array_equal([gray(page) for page in load_pages(bytes(content))], by_257(DEEP))


def test_stack_of_tifffile_is_pages_or_channels_as_selected(tmp_path: Path, tifffile: Any, caplog: Any) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DEEP, photometric="minisblack")
    np.testing.assert_array_equal(gray(load_image(tmp_path / "a.tif")), by_257(DEEP[0]))
    assert "if they are the channels of one image: channels=(r, g, b)" in caplog.text
    image = load_image(tmp_path / "a.tif", channels=(3, 2, 1))
    np.testing.assert_array_equal(image, by_257(DEEP[[3, 2, 1]]).transpose(1, 2, 0))


def test_16_bit_color_is_stretched_with_all_its_bits(tmp_path: Path, tifffile: Any, caplog: Any) -> None:
    dark = RNG.integers(0, 200, (9, 14, 3), dtype=np.uint16)  # less than one step of 8 bits
    cv2.imwrite(str(tmp_path / "a.png"), dark[..., ::-1])
    tifffile.imwrite(tmp_path / "a.tif", dark, photometric="rgb")
    expected = np.rint(dark * (255 / 199)).astype(np.uint8)
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(load_image(tmp_path / name, stretch=(0, 199)), expected)
        assert load_image(tmp_path / name).max() == 0
    bright = (dark * 5).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "b.png"), bright[..., ::-1])
    tifffile.imwrite(tmp_path / "b.tif", bright, photometric="rgb")
    for name in ("b.png", "b.tif"):
        image_scaling._warned.clear()
        caplog.clear()
        load_image(tmp_path / name)
        assert 'stretch="percentile"' in caplog.text


def test_float_tiff(tmp_path: Path, tifffile: Any) -> None:
    values = RNG.random((9, 14, 3), dtype=np.float32)
    tifffile.imwrite(tmp_path / "color.tif", values, photometric="rgb")
    np.testing.assert_array_equal(load_image(tmp_path / "color.tif"), np.rint(values * 255).astype(np.uint8))
    tifffile.imwrite(tmp_path / "half.tif", np.full((4, 5), 300, np.float16))
    tifffile.imwrite(tmp_path / "double.tif", np.full((4, 5), 300.0))
    for name in ("half.tif", "double.tif"):
        with pytest.raises(BadRecordError, match=rf"{name}.*from 300 to 300.*stretch="):
            load_image(tmp_path / name)
        assert load_image(tmp_path / name, stretch=(0, 600))[0, 0, 0] in (127, 128)


@pytest.mark.parametrize("photometric", ["miniswhite", "palette"])
def test_white_is_0_and_palettes_in_stacks(tmp_path: Path, tifffile: Any, photometric: str) -> None:
    values = RNG.integers(0, 256, (2, 9, 14), dtype=np.uint8)
    colors = RNG.integers(0, 65536, (3, 256), dtype=np.uint16)
    options: dict = {"colormap": colors} if photometric == "palette" else {}
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, metadata={"axes": "ZYX"}, **options)
    expected = (colors >> 8).T[values] if options else np.repeat(255 - values[..., None], 3, axis=3)
    np.testing.assert_array_equal(load_pages(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, tifffile: Any, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    expected = turned(RGB, orientation)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(load_image((tmp_path / "a.png").read_bytes()), expected)
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", DEEP, photometric="minisblack", metadata={"axes": "ZYX"}, extratags=tags)
    np.testing.assert_array_equal(gray(load_image(tmp_path / "a.tif", page=1)), turned(by_257(DEEP[1]), orientation))
    deep = (RGB.astype(np.uint16) * 257)[..., ::-1]
    encoded = Image.open(io.BytesIO(cv2.imencode(".png", deep)[1].tobytes()))
    assert encoded.mode == "RGB"
    content = _png_with_exif(cv2.imencode(".png", deep)[1].tobytes(), exif.tobytes())
    np.testing.assert_array_equal(load_image(content, stretch=(0, 65535)), expected)


def _png_with_exif(png: bytes, exif: bytes) -> bytes:
    import zlib

    body = b"eXIf" + exif.removeprefix(b"Exif\0\0")
    return png[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + png[33:]


def test_axes_of_arrays_are_never_guessed_silently() -> None:
    stack, video = np.zeros((5, 6, 7), np.uint8), np.zeros((2, 6, 7, 3), np.uint8)
    stack[3], video[1] = 30, 10
    assert load_image(stack, page=3)[0, 0].tolist() == [30] * 3 and len(load_pages(stack)) == 5
    assert load_image(stack, channels=(3, 0, 3))[0, 0].tolist() == [30, 0, 30]
    assert load_image(stack.transpose(1, 2, 0), channels=3).shape == (6, 7, 3)
    assert [int(page.max()) for page in load_pages(video)] == [0, 10]
    both = np.zeros((2, 5, 6, 7), np.uint8)
    both[1, 4] = 9
    assert load_image(both, page=1, channels=4).max() == 9
    assert load_image(both.transpose(0, 2, 3, 1), page=1, channels=(4, 0, 0))[0, 0].tolist() == [9, 0, 0]
    batch = torch.from_numpy(video).permute(0, 3, 1, 2)
    assert [int(page.max()) for page in load_pages(batch)] == [0, 10]
    assert load_image(torch.from_numpy(stack), channels=3).max() == 30
    for shape in ((3,), (6, 7, 2), (2, 6, 7, 3), (1, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match="pass channels=i"):
            array_layout("an array", shape, None, None)


# ------------------------------------------------------------------ .npy, HEIC, AVIF
def test_npy_files(tmp_path: Path) -> None:
    for order in ("C", "F"):
        for values in (RGB, GRAY, DEEP[0], RGB / 255, DEEP[0].astype(">u2")):
            np.save(tmp_path / "a.npy", np.asarray(values, order=order))
            expected = load_image(np.ascontiguousarray(values))
            for source in (tmp_path / "a.npy", (tmp_path / "a.npy").read_bytes()):
                image = load_image(source)
                np.testing.assert_array_equal(image, expected)
                assert type(image) is np.ndarray and image.flags.writeable
    np.save(tmp_path / "stack.npy", DEEP)
    np.testing.assert_array_equal([gray(page) for page in load_pages(tmp_path / "stack.npy")], by_257(DEEP))
    with pytest.raises(BadRecordError, match=r"stack\.npy: must be .*page=i"):
        load_image(tmp_path / "stack.npy")
    np.save(tmp_path / "wide.npy", GRAY.astype(np.int64))
    with pytest.raises(BadRecordError, match=r"wide\.npy: .*int64.*stretch"):
        load_image(tmp_path / "wide.npy")


def test_list_of_pages_is_a_circle(tmp_path: Path) -> None:
    content = bytearray(save_pages(tmp_path / "a.tif", [GRAY, GRAY]).read_bytes())
    first = struct.unpack_from("<I", content, 4)[0]
    (second,) = struct.unpack_from("<I", content, first + 2 + 12 * struct.unpack_from("<H", content, first)[0])
    struct.pack_into("<I", content, second + 2 + 12 * struct.unpack_from("<H", content, second)[0], first)
    with pytest.raises(BadRecordError, match="after 2 pages its list of pages is a circle"):
        load_image(bytes(content))


def test_big_tiff(tmp_path: Path, tifffile: Any) -> None:
    for byteorder in "<>":
        tifffile.imwrite(tmp_path / "a.tif", DEEP, bigtiff=True, byteorder=byteorder, photometric="minisblack")
        np.testing.assert_array_equal([gray(page) for page in load_pages(tmp_path / "a.tif")], by_257(DEEP))
        content = (tmp_path / "a.tif").read_bytes()
        with pytest.raises(BadRecordError, match="truncated"):
            load_image(content[:-300])


def _npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (_npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}", pickle.dumps(print)), "could run code"),
        (_npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000)}"), "truncated"),
        (_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 4)}", bytes(15)), "truncated"),
        (_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-4, -4)}", bytes(16)), "negative"),
        (_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 1000000000000000)}"), "cannot be read|pixels"),
        (_npy("__import__('os').abort()"), "cannot be read"),
        (b"\x93NUMPY\x03\x00\x00\x00\x00\x00", "only for tables"),
        (b"\x93NUMPY", "cannot be read"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", "its header has 4294967295 bytes"),
    ],
)
def test_npy_headers_are_not_believed(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    for source in (content, tmp_path / "a.npy"):
        with pytest.raises(BadRecordError, match=match):
            load_image(source)


def test_npz_is_refused_with_a_hint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("a.npy", "x")
    with pytest.raises(BadRecordError, match=r"numpy\.load\(file\)\['name'\]"):
        load_image(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["heic", "heif"])
def test_heic(tmp_path: Path, suffix: str) -> None:
    heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(np.full((64, 96, 3), (200, 100, 50), np.uint8))
    image.paste((0, 0, 0), (0, 0, 48, 64))
    heif.from_pillow(image).save(tmp_path / f"a.{suffix}", quality=95)
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert np.abs(loaded.astype(int) - np.asarray(image)).mean() < 4
    np.testing.assert_array_equal(load_image((tmp_path / f"a.{suffix}").read_bytes()), loaded)
    assert "HEIF" not in Image.OPEN  # Pillow is not changed for the whole program
    content = (tmp_path / f"a.{suffix}").read_bytes()
    with pytest.raises(BadRecordError, match="these bytes"):
        load_image(content[: len(content) * 2 // 3])


def test_heic_orientation_is_applied_once(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(np.zeros((64, 96, 3), np.uint8))
    image.paste((255, 255, 255), (0, 0, 96, 20))
    exif = Image.Exif()
    exif[274] = 6
    heif.from_pillow(image).save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    loaded = load_image(tmp_path / "a.heic")
    assert loaded.shape == (96, 64, 3) and loaded[:, 50:].min() > 200 and loaded[:, :40].max() < 50


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 40, 3), (200, 100, 50), np.uint8)).save(tmp_path / "a.avif", quality=95)
    assert np.abs(load_image(tmp_path / "a.avif").astype(int) - (200, 100, 50)).max() < 8


@pytest.mark.parametrize(
    ("package", "name", "remedy"),
    [("tifffile", "a.tif", "pip install tifffile"), ("pillow_heif", "a.heic", "pip install pillow-heif")],
)
def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str, remedy: str
) -> None:
    module = pytest.importorskip(package)
    if package == "tifffile":
        module.imwrite(tmp_path / name, DEEP, imagej=True, metadata={"axes": "CYX"})
    else:
        module.from_pillow(Image.fromarray(np.zeros((64, 64, 3), np.uint8))).save(tmp_path / name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadRecordError, match=remedy):
        load_image(tmp_path / name)


# ------------------------------------------------------------------ untrusted files
def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.npy")
    np.testing.assert_array_equal(load_image(tmp_path / "a.npy"), RGB)
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(BadRecordError, match=r"a\.png: cannot be read as an image: it is none of"):
        load_image(tmp_path / "a.png")
    assert not {"EPS", "WMF", "PDF", "HDF5"} & set(FORMATS)


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", "/dev/null"):
        with pytest.raises(BadRecordError, match="pipe or device"):
            load_image(path)
        with pytest.raises(BadRecordError, match="pipe or device"):
            read_image(str(path))


def test_an_endless_stream_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mask2former.data.image_sources._MOST_BYTES", 1 << 25)
    with Path("/dev/zero").open("rb") as file, pytest.raises(BadRecordError, match="no image needs"):
        load_image(file)


@pytest.mark.parametrize("kind", ["png", "npy", "tif", "stack.tif", "second page"])
def test_size_is_checked_before_memory_is_allocated(
    tmp_path: Path, tifffile: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "a"
    large = np.zeros((60, 50), np.uint8)
    page = None
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, large)
    elif kind == "png":
        Image.fromarray(large).save(path, format="png")
    elif kind == "second page":
        page = 1
        save_pages(path, [GRAY, large], format="tiff")
    else:
        stack = {"data": np.stack([large] * 3), "imagej": True} if "stack" in kind else {"data": large}
        tifffile.imwrite(path, **stack)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadRecordError, match=r"limit of 2,000 pixels.*MAX_IMAGE_PIXELS") as caught:
        load_image(path, page=page)
    assert str(caught.value).count(str(path)) == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(path, page=page).shape == (60, 50, 3)


def test_a_damaged_length_in_a_file_takes_no_memory(tmp_path: Path) -> None:
    """Python allocates what is asked for, before it sees that the file is shorter."""
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    start = content.index(b"IDAT")
    (tmp_path / "a.png").write_bytes(content[: start - 4] + struct.pack(">I", 2**31 - 1) + content[start:])
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            read_image(str(tmp_path / "a.png"))
        with contextlib.suppress(ValueError):
            load_image(tmp_path / "a.png")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [*COMMON, "ome.tif", "imagej.tif", "float.tif", "a.npy"])
def test_truncated_files_are_named(tmp_path: Path, tifffile: Any, name: str) -> None:
    path = tmp_path / name
    large = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    if name == "a.npy":
        np.save(path, large)
    elif name in COMMON:
        Image.fromarray(large).save(path)
    elif name == "float.tif":
        tifffile.imwrite(path, large.astype(np.float32), photometric="rgb", compression="zlib", rowsperstrip=8)
    else:
        stack = np.ascontiguousarray(large.transpose(2, 0, 1)).astype(np.uint16)
        tifffile.imwrite(path, stack, metadata={"axes": "CYX"}, ome=name == "ome.tif", imagej=name != "ome.tif")
    content = path.read_bytes()
    for part in (0.1, 0.5, 0.8):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(BadRecordError) as caught:
            load_image(path)
        assert str(caught.value).startswith(str(path))
        with pytest.raises(BadRecordError):
            read_image(str(path))


@pytest.mark.parametrize(
    "change",
    [
        ('SizeC="4"', 'SizeC="400000000000"'),
        ("<OME ", '<!DOCTYPE x [<!ENTITY a "aaaa">]><OME '),
    ],
)
def test_descriptions_of_ome_are_not_believed(tmp_path: Path, tifffile: Any, change: tuple[str, str]) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, DEEP, ome=True, metadata={"axes": "CYX"})
    with tifffile.TiffFile(path) as tiff:
        text = tiff.ome_metadata
    assert change[0] in text
    with tifffile.TiffWriter(path) as writer:
        for plane in DEEP:
            writer.write(plane, description=text.replace(*change), metadata=None)
    with pytest.raises(BadRecordError, match="planes|entities"):
        load_image(path)


def test_other_files_that_ome_names_are_not_opened(tmp_path: Path, tifffile: Any) -> None:
    secret = tmp_path / "other.ome.tif"
    tifffile.imwrite(secret, np.full((4, 9, 14), 60000, np.uint16), metadata=None)
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="14" SizeY="9" '
        'SizeZ="4" SizeC="1" SizeT="1"><TiffData IFD="0" PlaneCount="4"><UUID FileName="other.ome.tif">urn:uuid:2'
        "</UUID></TiffData></Pixels></Image></OME>"
    )
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        for index in range(2):
            writer.write(np.zeros((9, 14), np.uint16), description=text if index == 0 else None, metadata=None)
    assert all(page.max() == 0 for page in load_pages(tmp_path / "a.ome.tif"))


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["png", "tif", "ome", "npy", "gif", "jpg"]),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
    end=st.integers(0, 3000),
)
def test_damaged_content_is_an_image_or_a_value_error(kind: str, changes: list[tuple[int, int]], end: int) -> None:
    pytest.importorskip("tifffile")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    content = bytearray(_sample(kind)[: max(end, 8)])
    for position, value in changes:
        if position < len(content):
            content[position] = value
    try:
        for page in load_pages(bytes(content), channels=0):
            assert page.dtype == np.uint8 and page.shape[2] == 3
    except ValueError as error:
        assert "these bytes" in str(error)


def _sample(kind: str) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, GRAY)
    elif kind in ("tif", "ome"):
        tifffile.imwrite(buffer, DEEP, ome=kind == "ome", imagej=kind == "tif", metadata={"axes": "CYX"})
    else:
        Image.fromarray(RGB).save(buffer, format={"jpg": "jpeg"}.get(kind, kind))
    return buffer.getvalue()


def test_missing_imagecodecs_is_named(tmp_path: Path, tifffile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {270: "ImageJ=1.54\nimages=2\nslices=2\n"}
    save_pages(tmp_path / "a.tif", [GRAY, GRAY], compression="tiff_lzw", tiffinfo=tags)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", __import__("tifffile._imagecodecs", fromlist=["x"]))
    with pytest.raises(BadRecordError, match="pip install imagecodecs"):
        load_image(tmp_path / "a.tif")


def test_ranges_in_ome_are_not_expanded(tifffile: Any) -> None:
    text = '<OME><StructuredAnnotations><ModuloAlongZ Start="0" End="1e15" Step="1"/></StructuredAnnotations></OME>'
    with pytest.raises(BadRecordError, match=r"a\.tif: the OME description speaks of more than 1,000,000 planes"):
        _check_ome("a.tif", text)
    names = '<OME><Image><Pixels SizeC="2" SizeZ="3"><Channel Name="a"/><Channel/></Pixels></Image></OME>'
    assert _check_ome("a.tif", names) == ("a", "") and _check_ome("a.tif", "<OME") == ()


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_colors_that_are_stored_one_after_the_other(
    tmp_path: Path, tifffile: Any, tile: tuple[int, int] | None, order: str
) -> None:
    """Pillow gives other colors, without an error."""
    path = tmp_path / "a.tif"
    planes = np.ascontiguousarray(RGB.transpose(2, 0, 1)).astype(np.uint16) * 257
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", byteorder=order, tile=tile)
    np.testing.assert_array_equal(load_image(path), RGB)


def test_number_of_pages(tmp_path: Path) -> None:
    pages = [Image.fromarray(GRAY)] * 3
    for name in ("a.tif", "a.gif", "a.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=[Image.fromarray(255 - GRAY), pages[0]])
        assert count_pages(tmp_path / name) == 3
    pages[0].save(tmp_path / "one.png")
    assert count_pages(tmp_path / "one.png") == 1
