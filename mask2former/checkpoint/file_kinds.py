"""What a weight file really is: files under the wrong name, and what downloads leave in place of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from ..errors import CorruptCheckpointError

_HEAD = 4096  # bytes that are looked at
_SPACE = b"\xef\xbb\xbf \t\r\n"  # and the byte order mark
_LFS = b"version https://git-lfs"
# What files begin with that are no weights, or weights in a wrapping that is not opened here.
_BEGINNINGS = (
    (_LFS, "this is a Git LFS pointer, not the weights; run `git lfs pull`"),
    (b"\x1f\x8b", "this is a gzip file; decompress it first"),
    (b"BZh", "this is a bzip2 file; decompress it first"),
    (b"\xfd7zXZ", "this is an xz file; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "this is a Zstandard file; decompress it first"),
    (b"7z\xbc\xaf", "this is a 7z archive; extract the weights first"),
    (b"\x89HDF", "this is an HDF5 file (Keras?); its weights must be converted first"),
    (b"GGUF", "this is a GGUF file, not one of PyTorch"),
    (b"\x93NUMPY", "this is a single NumPy array, not a dictionary of weights"),
    (b"%PDF", "this is a PDF document, not weights"),
)


def kind_of(file: Path) -> Literal["zip", "safetensors", "other"]:
    """Return the format of a weight file by its beginning, whatever its suffix; "other" may be a pickle.

    Raises:
        CorruptCheckpointError: it is empty, a Git LFS pointer, a web page, JSON, or packed; the message says so.
    """
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    # The length of the header, 8 bytes of which the upper ones are zero, and JSON.
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    reason = _not_weights(head, file)
    if reason is not None:
        raise CorruptCheckpointError(f"{file}: {reason}")
    return "other"


def _not_weights(head: bytes, file: Path) -> str | None:
    if not head.strip(b"\0"):
        return "the file is empty" if not head else "the file holds zeros only; download or save it again"
    for beginning, reason in _BEGINNINGS:
        if head.startswith(beginning):
            return reason
    text = head.lstrip(_SPACE)
    if text.startswith(_LFS):
        return _BEGINNINGS[0][1]
    if text.startswith(b"<") and _is_text(head):
        kind = "a web page (HTML)"
        if text.startswith(b"<?xml") and b"<html" not in text.lower():
            kind = "an error message of a server (XML)"
        return f"this is {kind}, not weights; the download address was wrong, or needs a login: {_shown(text)}"
    if file.name.endswith(".json"):
        return None
    if text[:1] in (b"{", b"[") and _is_text(head):
        return f"this is JSON, not weights: {_shown(text)}"
    return None


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n" for byte in head)


def _shown(text: bytes) -> str:
    """Return the first words of a text for a message, in one printable line."""
    return json.dumps(" ".join(text[:200].decode("utf-8", "replace").split())[:80])
