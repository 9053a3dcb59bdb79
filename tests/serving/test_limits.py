from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.serving.errors import ServingError, TooLargeError, UnreadableImageError, UnsupportedTypeError
from mask2former.serving.limits import Limits, check_array, decode_image, image_format, read_header, video_format

from .conftest import png

SMALL = Limits(max_bytes=200_000, max_pixels=10_000, max_side=200)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int, rows: bytes = b"") -> bytes:
    """Return a PNG whose header says a size, with whatever for its rows."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(width: int, height: int, samples: int = 1, pages: int = 1) -> bytes:
    """Return a TIFF of directories without pixels."""
    data, position = b"II*\0" + struct.pack("<I", 8), 8
    for page in range(pages):
        tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, samples), (279, 1)]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        position += 2 + len(entries) + 4
        last = page == pages - 1
        data += struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0 if last else position)
    return data


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats_are_known_by_their_content(kind: str) -> None:
    data = png(6, 8, kind=kind)
    header = read_header(data, SMALL)
    assert (header.format, header.width, header.height, header.pixels) == (kind, 8, 6, 48)
    assert decode_image(data, SMALL).shape == (6, 8, 3)


def test_the_orientation_is_applied() -> None:
    image, buffer = Image.new("RGB", (8, 6)), io.BytesIO()
    exif = image.getexif()
    exif[274] = 6
    image.save(buffer, "JPEG", exif=exif)
    assert decode_image(buffer.getvalue(), SMALL).shape == (8, 6, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"%PDF-1.7",
        b"PK\3\4 zip",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"\x93NUMPY\1\0",
        b"P6 8 6 255 ",
        b"\0\0\0\x18ftypmp42",
        b"/etc/passwd",
    ],
)
def test_other_types_are_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedTypeError, match="PNG"):
        decode_image(data + b"\0" * 100, SMALL)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", UnreadableImageError),
        (png()[:40], UnreadableImageError),
        (png()[:-60], UnreadableImageError),
        (png(kind="JPEG")[:30], UnreadableImageError),
        (png(kind="WEBP")[:30], UnreadableImageError),
        (png(kind="GIF")[:12], UnreadableImageError),
        (png(kind="TIFF")[:20], UnreadableImageError),
        (png_of_size(0, 5), UnreadableImageError),
        (png_of_size(8, 6, b"\0" * 3), UnreadableImageError),
        (png() + b"\0" * 200_000, TooLargeError),
        (png_of_size(2**31 - 1, 2**31 - 1), TooLargeError),
        (png_of_size(201, 2), TooLargeError),
        (png_of_size(101, 100), TooLargeError),
        (png_of_size(60_000, 60_000, b"\0" * 1_000_000), TooLargeError),  # a bomb
        (tiff(100, 90, samples=2000), UnreadableImageError),
        (tiff(10, 10, samples=0), UnreadableImageError),
    ],
)
def test_bad_images_are_refused(data: bytes, error: type[ServingError]) -> None:
    with pytest.raises(error) as raised:
        decode_image(data, SMALL)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 400


def test_long_page_lists_are_refused_before_they_are_walked() -> None:
    with pytest.raises(UnreadableImageError, match="10000 pages"):
        read_header(tiff(10, 10, pages=10_002), Limits())


def test_nothing_is_decoded_before_the_size_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(TooLargeError, match="150x150"):
        decode_image(png(150, 150), SMALL)


def test_several_pages_give_the_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(buffer.getvalue(), SMALL)[0, 0].tolist() == [255, 0, 0]


def test_damaged_images_are_refused_or_read_but_nothing_else() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        whole = png(24, 32, kind=kind)
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(int(rng.integers(1, 6))):
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
            try:
                outcomes.add(decode_image(bytes(data[: int(rng.integers(8, len(data) + 1))]), SMALL).ndim)
            except ServingError as error:
                outcomes.add(error.status)
    assert outcomes <= {3, 413, 415, 422} and 422 in outcomes


def test_arrays() -> None:
    assert check_array(np.zeros((6, 8, 3), np.uint8), SMALL).shape == (6, 8, 3)
    for array in (np.zeros((6, 8), np.uint8), np.zeros((6, 8, 3)), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(UnreadableImageError):
            check_array(array, SMALL)
    with pytest.raises(TooLargeError):
        check_array(np.zeros((101, 100, 3), np.uint8), SMALL)


def test_types_of_videos() -> None:
    assert video_format(b"\0\0\0\x18ftypmp42" + bytes(40)) == "MP4"
    assert video_format(b"\0\0\0\x14ftypqt  " + bytes(40)) == "MOV"
    assert video_format(b"\x1aE\xdf\xa3....webm" + bytes(40)) == "WEBM"
    assert video_format(b"RIFF\0\0\0\0AVI LIST") == "AVI"
    assert video_format(b"\0\0\0\x18ftypheic") is None
    assert video_format(b"#EXTM3U\nhttp://example.com/") is None  # a playlist would fetch other files
    assert image_format(b"\0\0\0\x18ftypavif") == "AVIF"
