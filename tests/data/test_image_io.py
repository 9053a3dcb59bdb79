from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import Image, features

from mask2former.data import BadRecordError, read_image
from mask2former.data.formats.files import image_size
from mask2former.data.formats.label_maps import read_ids
from mask2former.data.image_io import (
    IMAGE_SUFFIXES,
    LABEL_MAP_SUFFIXES,
    WRITABLE_SUFFIXES,
    check_image_size,
    image_names,
    read_label_map,
    read_panoptic_png,
)
from mask2former.data.preparation.work import is_complete


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "RGB"])
def test_every_mode_becomes_color(tmp_path: Path, rgb: np.ndarray, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    original = Image.fromarray(rgb).convert(mode)
    original.save(path)
    image = read_image(str(path))
    assert image.shape == rgb.shape and image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, np.asarray(original.convert("RGB")))
    np.testing.assert_array_equal(read_image(str(path), "BGR")[:, :, ::-1], image)


def test_palette_with_transparency(tmp_path: Path, rgb: np.ndarray) -> None:
    image = Image.fromarray(rgb).convert("P")
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    assert read_image(str(tmp_path / "a.png")).shape == rgb.shape


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_keep_their_scale(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257 * 100, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = read_image(str(tmp_path / f"a.{suffix}"))
    assert image[0, :, 0].tolist() == [0, 0, 1, 100, 255]
    assert (image == image[:, :, :1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_in_detectron2(tmp_path: Path, rgb: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = str(tmp_path / "a.png")
    Image.fromarray(rgb).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), detection_utils.read_image(path, "RGB"))


def test_unusable_files_are_named(tmp_path: Path, rgb: np.ndarray) -> None:
    complete = tmp_path / "complete.png"
    Image.fromarray(rgb).save(complete)
    (tmp_path / "cut.png").write_bytes(complete.read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.fromarray(np.full((3, 3), 70000, np.int32)).save(tmp_path / "int.tif")
    Image.fromarray(np.full((3, 3), 2.5, np.float32)).save(tmp_path / "float.tif")
    for name in ("cut.png", "text.jpg", "empty.jpg", "int.tif", "float.tif", "absent.png", "."):
        with pytest.raises(BadRecordError) as caught:
            read_image(str(tmp_path / name))
        assert str(caught.value).startswith(str(tmp_path))
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT"):
        read_image(str(complete), "YUV-BT.601")


def test_every_image_suffix_is_read(tmp_path: Path) -> None:
    """Pillow of this installation reads what directories are searched for."""
    assert LABEL_MAP_SUFFIXES | WRITABLE_SUFFIXES <= IMAGE_SUFFIXES
    gray = Image.fromarray(np.full((16, 20), 100, np.uint8))
    for suffix in sorted(IMAGE_SUFFIXES - {".heic", ".heif"}):  # they need a package, see test_image_sources.py
        assert suffix == suffix.lower()
        if suffix == ".npy":
            np.save(tmp_path / "a.NPY.npy", np.asarray(gray))
            (tmp_path / "a.NPY.npy").rename(tmp_path / "a.NPY")
        elif suffix == ".avif" and not features.check("avif"):
            continue
        else:
            gray.save(tmp_path / f"a{suffix.upper()}")
        pixels = read_image(str(tmp_path / f"a{suffix.upper()}"))
        assert pixels.shape == (16, 20, 3) and np.abs(pixels.astype(int) - 100).max() <= 2, suffix
    for suffix in sorted(LABEL_MAP_SUFFIXES):
        assert np.all(read_label_map(str(tmp_path / f"a{suffix.upper()}")) == 100), suffix


def test_floats_from_0_to_1_and_the_first_page(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "float.tif")
    assert read_image(str(tmp_path / "float.tif"))[0, :, 0].tolist() == [0, 128, 255]
    pages = [Image.new("L", (3, 2), value) for value in (10, 20)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert (read_image(str(tmp_path / "pages.tif")) == 10).all()


def test_images_among_the_files_of_a_directory() -> None:
    names = ["b.PNG", "a.tif", ".c.png", "a.npy", "notes.txt", "b_seg.NPY"]
    assert image_names(names) == ["b.PNG", "a.tif"]
    assert image_names(["2.npy", "1.npy", "notes.txt"]) == ["2.npy", "1.npy"]


def test_size_must_be_that_of_the_record() -> None:
    record: dict = {}
    check_image_size(record, (3, 4), "a.png")
    assert record == {"height": 3, "width": 4}
    with pytest.raises(BadRecordError, match=r"a\.png: the image is 4x3 .* says 3x4; width and height are swapped"):
        check_image_size({"height": 4, "width": 3}, (3, 4), "a.png")


def test_panoptic_ids(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    Image.fromarray(np.array([[[1, 2, 3], [0, 0, 0]]], np.uint8)).save(path)
    assert read_panoptic_png(path).tolist() == [[1 + 2 * 256 + 3 * 65536, 0]]
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(path)
    with pytest.raises(BadRecordError, match="RGB"):
        read_panoptic_png(path)


def test_label_maps_keep_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 3], [255, 7]], np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette(list(range(256)) * 3)
    images = {
        "gray.png": (Image.fromarray(values), values),
        "palette.png": (palette, values),
        "wide.tif": (Image.fromarray(values.astype(np.uint16) * 257), values.astype(int) * 257),
        "wide.png": (Image.fromarray(values.astype(np.uint16) * 100), values.astype(int) * 100),
        "two.png": (Image.fromarray(values > 2), values > 2),
    }
    for name, (image, expected) in images.items():
        image.save(tmp_path / name)
        labels = read_label_map(str(tmp_path / name))
        assert labels.dtype == np.int32 and (labels == expected).all(), name
    Image.new("RGB", (2, 2)).save(tmp_path / "color.png")
    with pytest.raises(BadRecordError, match=r"color\.png: a label map has one channel .* this one is RGB"):
        read_label_map(str(tmp_path / "color.png"))


def postscript(path: Path) -> Path:
    """Write a file that makes Pillow start Ghostscript, whatever its suffix."""
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    return path


def test_no_reader_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **_: started.append(args))
    path = postscript(tmp_path / "a.png")
    for read in (
        lambda: read_image(str(path)),
        lambda: read_label_map(str(path)),
        lambda: read_panoptic_png(str(path)),
        lambda: image_size(path),
        lambda: read_ids(path),
    ):
        with pytest.raises(BadRecordError, match=r"a\.png"):
            read()
    assert not is_complete(path, "RGB", (8, 8)) and not started


def test_pillow_opens_only_formats_of_the_list() -> None:
    """Image.open without `formats` takes every format that Pillow knows, of which one starts a program."""
    root = Path(__file__).parents[2]
    found = []
    for file in (path for name in ("mask2former", "datasets", "tools", "demo") for path in (root / name).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            opens = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open")
            if opens and "formats=" not in ast.unparse(node):
                found.append(f"{file.relative_to(root)}:{node.lineno}")
    assert not found


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_ground_truth_has_one_page(tmp_path: Path, name: str) -> None:
    pages = [Image.new("L", (3, 2), value) for value in (1, 2)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    for read in (lambda: read_label_map(str(tmp_path / name)), lambda: read_ids(tmp_path / name)):
        with pytest.raises(BadRecordError, match=rf"{name}: has 2 pages, but .* has one"):
            read()


def test_pipes_are_no_ground_truth(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for read in (lambda p: read_label_map(str(p)), image_size, read_ids):
        with pytest.raises(BadRecordError, match="pipe or device"):
            read(tmp_path / "a.png")


def test_photographs_are_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left, to be shown turned back
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(str(tmp_path / "photo.png")), pixels)
