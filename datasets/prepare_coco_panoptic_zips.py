#!/usr/bin/env python3
"""Unpack COCO's panoptic annotations, zip files inside a zip file.

Reads   <root>/coco/panoptic_annotations_trainval2017.zip, or its content in <root>/coco or
        <root>/coco/annotations: panoptic_{train,val}2017.json and panoptic_{train,val}2017.zip
Writes  <root>/coco/annotations/panoptic_{train,val}2017.json
        <root>/coco/panoptic_{train,val}2017/*.png

Only files with the names above are unpacked. Existing files are compared with the checksum in the archive; a second run
unpacks only files that are missing or differ.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from mask2former.data import BadRecordError
from mask2former.data.preparation.cli import argument_parser, run
from mask2former.data.preparation.work import Outcome, Report, Stage, convert_all
from mask2former.utils.atomic_file import atomic_write
from mask2former.utils.file_io import read_json_object, write_bytes

ARCHIVE = "panoptic_annotations_trainval2017.zip"
LARGEST_IMAGE = 64 << 20  # bytes; a PNG file of COCO has about 10,000


def open_zip(path: Path) -> ZipFile:
    """Open an archive, once in each process: a file object shared by processes has only one position.

    Raises:
        BadRecordError: it is truncated or not a zip file.
    """
    return _open_zip(path, os.getpid())


@lru_cache(maxsize=2)
def _open_zip(path: Path, _process: int) -> ZipFile:
    try:
        return ZipFile(path)
    except BadZipFile as error:
        raise BadRecordError(path, f"{error}; the download is incomplete, download it again") from error


def members(path: Path, pattern: re.Pattern[str]) -> list[ZipInfo]:
    """Return the files of an archive whose path matches a pattern.

    Raises:
        BadRecordError: the path of a member leads out of the target directory; COCO's archives have none.
    """
    matches = []
    for member in open_zip(path).infolist():
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in member.filename:
            raise BadRecordError(
                path, "its path leads out of the target directory; this is not COCO's archive", member.filename
            )
        if pattern.fullmatch(member.filename):
            matches.append(member)
    return matches


def same_content(path: Path, member: ZipInfo) -> bool:
    """Return whether a file has the size and checksum of a member of an archive."""
    if not path.is_file() or path.stat().st_size != member.file_size:
        return False
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum == member.CRC


def unpack_file(archive: Path, member: ZipInfo, target: Path) -> None:
    """Unpack one member to a file and verify its checksum.

    Raises:
        BadRecordError: the archive is damaged.
    """
    try:
        with open_zip(archive).open(member) as source, atomic_write(target) as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except (BadZipFile, zlib.error, EOFError) as error:
        raise BadRecordError(
            archive, f"{error}; the download is damaged, download it again", member.filename
        ) from error


def unpack_image(archive: Path, target: Path, overwrite: bool, member: ZipInfo) -> Outcome:
    """Unpack one PNG file unless it exists with the same content."""
    path = target / PurePosixPath(member.filename).name
    present = path.exists()
    if present and not overwrite and same_content(path, member):
        return Outcome(Stage.KEPT)
    if member.file_size > LARGEST_IMAGE:
        raise BadRecordError(
            archive,
            f"has {member.file_size} bytes, more than an image of COCO; download the archive again",
            member.filename,
        )
    unpack_file(archive, member, path)
    return Outcome(Stage.REPAIRED if present and not overwrite else Stage.WRITTEN)


@contextlib.contextmanager
def images_archive(base: Path, split: str) -> Iterator[Path]:
    """Provide the inner archive of a split; if it is inside the outer archive, it is unpacked temporarily."""
    name = f"panoptic_{split}2017.zip"
    inner = find_in(base, name)
    if inner is not None:
        yield inner
        return
    outer = outer_archive(base, name)
    temporary = base / f".{name}.tmp"
    try:
        unpack_file(outer, only_member(outer, name), temporary)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        _open_zip.cache_clear()


def find_in(base: Path, name: str) -> Path | None:
    """Return the path of a file in coco/annotations or coco, or None."""
    return next((directory / name for directory in (base / "annotations", base) if (directory / name).is_file()), None)


def outer_archive(base: Path, needed: str) -> Path:
    """Return the path of the downloaded archive.

    Raises:
        FileNotFoundError: it does not exist; names the download page.
    """
    archive = find_in(base, ARCHIVE)
    if archive is None:
        raise FileNotFoundError(
            f"{base} has neither {ARCHIVE} nor {needed}. Download 'Panoptic Train/Val annotations' from "
            f"https://cocodataset.org/#download and put it at {base / ARCHIVE}, or set DETECTRON2_DATASETS or --root "
            "to the directory that holds coco/."
        )
    return archive


def only_member(archive: Path, name: str) -> ZipInfo:
    """Return the only file of an archive with this name.

    Raises:
        BadRecordError: there is none, or more than one.
    """
    matches = members(archive, re.compile(rf"(?:annotations/)?{re.escape(name)}"))
    if len(matches) != 1:
        reason = f"has {len(matches)} files {name}, but needs one; download it again"
        raise BadRecordError(archive, reason)
    return matches[0]


def ensure_json(base: Path, split: str, overwrite: bool) -> Path:
    """Unpack or copy annotations/panoptic_SPLIT2017.json unless it exists, and return its path."""
    name = f"panoptic_{split}2017.json"
    target, present = base / "annotations" / name, find_in(base, name)
    if present is None or find_in(base, ARCHIVE) is not None:
        outer = outer_archive(base, name)
        member = only_member(outer, name)
        if overwrite or not same_content(target, member):
            unpack_file(outer, member, target)
    elif present != target:
        write_bytes(target, present.read_bytes())
    return target


def prepare(args: argparse.Namespace) -> Iterator[Report]:
    base = args.root / "coco"
    for split in args.splits:
        json_file = ensure_json(base, split, args.overwrite)
        target = base / f"panoptic_{split}2017"
        with images_archive(base, split) as archive:
            images = members(archive, re.compile(rf"(?:panoptic_{split}2017/)?\d+\.png"))
            report = convert_all(
                partial(unpack_image, archive, target, args.overwrite),
                images,
                args.workers,
                f"panoptic_{split}2017",
                target,
            )
        annotations = read_json_object(str(json_file), lists=("annotations",))["annotations"]
        names = [str(annotation.get("file_name")) for annotation in annotations]
        missing = [name for name in names if not (target / name).is_file()]
        report.failures += [f"{target / name}: named in {json_file}, but not in the archive" for name in missing]
        yield report


def main(argv: Sequence[str] | None = None) -> int:
    return run(argument_parser(__doc__, splits=["val", "train"]), prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
