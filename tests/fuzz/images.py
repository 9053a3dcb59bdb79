"""Image files: changed bytes and structure of every format that can be written, read as images and as labels."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from mask2former.data import read_image
from mask2former.data.image_io import read_label_map, read_panoptic_png
from mask2former.data.image_sources import iter_pages, load_image

from .judgment import Case, require
from .mutation import mutate_bytes

_PAGES = 20  # of a file that are looked at


def prepare(root: Path) -> list[tuple[str, bytes]]:
    """Return intact files: (suffix, bytes)."""
    random = np.random.default_rng(0)
    color = Image.fromarray(random.integers(0, 256, (12, 17, 3), dtype=np.uint8))
    gray16 = Image.fromarray(random.integers(0, 65536, (12, 17)).astype(np.uint16))
    files = []
    for suffix, name, image, options in (
        (".png", "PNG", color, {}),
        (".png", "PNG", gray16, {}),
        (".png", "PNG", color.convert("P"), {"transparency": 3}),
        (".jpg", "JPEG", color, {"exif": _exif()}),
        (".jpg", "JPEG", color.convert("CMYK"), {"progressive": True}),
        (".tif", "TIFF", color, {"compression": "tiff_lzw"}),
        (".tif", "TIFF", gray16, {"save_all": True, "append_images": [gray16, gray16]}),
        (".tif", "TIFF", color.convert("F"), {}),
        (".tif", "TIFF", color, {"compression": "jpeg"}),
        (".bmp", "BMP", color, {}),
        (".webp", "WEBP", color, {"lossless": True}),
        (".webp", "WEBP", color, {"save_all": True, "append_images": [color.rotate(90)]}),
        (".gif", "GIF", color, {"save_all": True, "append_images": [color.rotate(180)]}),
        (".ppm", "PPM", color, {}),
        (".jp2", "JPEG2000", color, {}),
    ):
        stream = io.BytesIO()
        image.save(stream, name, **options)
        files.append((suffix, stream.getvalue()))
    for array in (random.integers(0, 256, (12, 17, 3), dtype=np.uint8), random.random((5, 12, 17)).astype(np.float32)):
        stream = io.BytesIO()
        np.save(stream, array)
        files.append((".npy", stream.getvalue()))
    return files


def _exif() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return exif.tobytes()


def run(files: list[tuple[str, bytes]], case: Case) -> None:
    """Write a changed file and read it in every way."""
    random = case.random
    suffix, data = random.choice(files)
    data = _structure(random, suffix, data) if random.random() < 0.4 else mutate_bytes(random, data)
    if random.random() < 0.2:
        suffix = random.choice((".png", ".jpg", ".tif", ".npy", ".eps", ".heic", ".avif", ""))
    file = case.directory / f"image{suffix}"
    if random.random() < 0.01:
        os.mkfifo(file)
    else:
        file.write_bytes(data)
    shown = case.attempt(load_image, str(file))
    trained = case.attempt(read_image, str(file))
    require(shown.accepted == trained.accepted, f"inference and training disagree: {shown.error} {trained.error}")
    if shown.accepted:
        _check_pixels(shown.value)
        require(np.array_equal(shown.value, trained.value), "inference and training see different images")
    options = random.choice(
        ({}, {"stretch": "percentile"}, {"stretch": "minmax"}, {"channels": 0}, {"channels": (0, 1, 2)}, {"page": 1})
    )
    case.attempt(_all_pages, str(file), options)
    case.attempt(load_image, data)
    for read in (read_label_map, read_panoptic_png):
        labels = case.attempt(read, str(file))
        require(
            not labels.accepted or (labels.value.ndim == 2 and labels.value.dtype == np.int32),
            "labels are no int32 (H, W)",
        )


def _all_pages(file: str, options: dict[str, Any]) -> None:
    for number, page in enumerate(iter_pages(file, **options)):
        _check_pixels(page)
        if number >= _PAGES:
            return


def _check_pixels(image: np.ndarray) -> None:
    require(
        image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, f"an image is {image.dtype} {image.shape}"
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(random: Random) -> bytes:
    """Return a PNG with valid checksums and odd content."""
    width, height = random.choice(((4, 3), (0, 3), (10**5, 10**5), (2**31, 1), (20_000, 1), (1, 20_000), (4, 3)))
    depth, color = random.choice(((8, 0), (16, 0), (8, 2), (16, 2), (8, 3), (1, 0), (8, 6), (16, 4), (5, 2), (8, 1)))
    header = struct.pack(
        ">IIBBBBB", width, height, depth, color, 0, random.choice((0, 0, 1)), random.choice((0, 0, 1, 2))
    )
    pixels = zlib.compress(random.choice((b"\0" * 99, random.randbytes(200), b"\0" * 10**6, b"")))
    extra = random.choice(
        (
            b"",
            _chunk(b"PLTE", b"\1" * 9),
            _chunk(b"tRNS", b"\1"),
            _chunk(b"iCCP", b"x\0\0" + zlib.compress(b"\0" * 10**7)),
            _chunk(b"tEXt", b"a\0" + b"b" * 1000),
            _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b" * 10**7)),
            _chunk(b"eXIf", b"MM\0*"),
        )
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + extra
        + _chunk(b"IDAT", pixels)
        + random.choice((_chunk(b"IEND", b""), b""))
    )


def _tiff(random: Random) -> bytes:
    """Return a TIFF whose directory has odd entries, or points to itself."""
    order = random.choice("<>")
    entries = {
        256: (4, 4),
        257: (4, 3),
        258: (3, 8),
        259: (3, 1),
        262: (3, 1),
        273: (4, 200),
        277: (3, 1),
        278: (4, 3),
        279: (4, 12),
    }
    for _ in range(random.choice((1, 2))):
        tag = random.choice((*entries, 270, 284, 322, 323, 324, 330, 338, 339, 34665, 320, 347))
        entries[tag] = (
            random.choice((1, 2, 3, 4, 5, 7, 12, 13, 16)),
            random.choice((0, 1, 2, 3, 7, 16, 32, 64, 255, 65535, 2**31, 2**32 - 1)),
        )
    if random.random() < 0.2:
        del entries[random.choice(list(entries))]
    table = b""
    for tag, (kind, value) in sorted(entries.items()):
        short = struct.pack(order + "HH", value & 0xFFFF, 0) if kind == 3 else struct.pack(order + "I", value)
        table += struct.pack(order + "HHI", tag, kind, random.choice((1,) * 9 + (0, 2, 1000, 2**31))) + short
    following = random.choice((0, 0, 8, 4, 10**6))
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", random.choice((42, 42, 42, 43)), 8)
    content = magic + struct.pack(order + "H", len(entries)) + table + struct.pack(order + "I", following)
    return content.ljust(200, b"\0") + bytes(range(12))


def _npy(random: Random) -> bytes:
    kinds = (
        "|u1",
        "<f4",
        "<f8",
        "<u2",
        ">i4",
        "|b1",
        "<c8",
        "|O",
        "|S3",
        "<U2",
        "<M8[s]",
        [("a", "<f4")],
        "|V5",
        "<f2",
    )
    shapes: tuple[Any, ...] = (
        (4, 3),
        (4, 3, 3),
        (2, 4, 3),
        (),
        (0, 3),
        (4, 3, 7),
        (1, 1, 1, 1, 1),
        (10**6, 10**6),
        (-1, 3),
        (2**63, 2),
        "x",
        (4.0, 3),
    )
    header = str(
        {"descr": random.choice(kinds), "fortran_order": random.choice((False, True)), "shape": random.choice(shapes)}
    )
    header = random.choice(
        (header,) * 6 + ("[" * 500, "{}", "__import__('os').mkdir('executed')", header[:-5], "x" * 60_000)
    )
    text = header.encode("latin1", "replace") + b"\n"
    values = np.array(random.choice((0, 1, -1, np.nan, np.inf, 1e300))).tobytes() * 50
    return (
        b"\x93NUMPY"
        + random.choice((b"\1\0",) * 4 + (b"\2\0", b"\x09\0"))
        + struct.pack("<H", len(text))
        + text
        + values
    )


def _structure(random: Random, suffix: str, data: bytes) -> bytes:
    """Return a file whose parts are valid, but do not belong together."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    texts = (
        eps,
        b"",
        b"\0" * 50,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4\n",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"P6 100000 100000 255\n" + b"x" * 99,
        b"P5 4 3 70000\n" + b"x" * 99,
        b"GIF89a" + b"\xff" * 20,
        b"\xff\xd8\xff\xe0" + b"\0" * 30,
        b"SIMPLE  = T" + b" " * 3000,
        b"\0\0\0\x18ftypheic" + b"\0" * 40,
        b"PK\3\4" + b"\0" * 40,
        b"BM" + b"\xff" * 60,
    )
    return random.choice(
        (
            lambda: _png(random),
            lambda: _png(random),
            lambda: _tiff(random),
            lambda: _tiff(random),
            lambda: _npy(random),
            lambda: random.choice(texts),
            lambda: data + data,
            lambda: data + b"\0" * 1000,
            lambda: data[: len(data) // 2],
        )
    )()
