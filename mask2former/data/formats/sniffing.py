"""Which program wrote a JSON or XML file, from its first and last bytes."""

from __future__ import annotations

import re
from pathlib import Path

_BYTES = 1 << 18
_COCO = (re.compile(r'"images"\s*:\s*\['), re.compile(r'"categories"\s*:\s*\['))
_LABELME = re.compile(r'"shapes"\s*:\s*\[')
_TASK = re.compile(r'"(annotations|completions|data|predictions|annotation_id|\w+labels)"\s*:')


def ends(path: Path) -> tuple[str, str]:
    """Return the first and the last 256 KiB of a file as text; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_BYTES)
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _BYTES))
            tail = file.read(_BYTES)
    except OSError:
        return "", ""
    return head.decode("utf-8-sig", "replace"), tail.decode("utf-8", "replace")


def json_kind(path: Path) -> str | None:
    """Return "coco", "labelme" or "label_studio" for a JSON file that looks like it, else None.

    Large COCO files are not read for this: their keys stand at one of the two ends.
    """
    head, tail = ends(path)
    start = head.lstrip()[:1]
    if start == "{":
        if _LABELME.search(head) and ('"imagePath"' in head or '"imagePath"' in tail):
            return "labelme"
        found = [bool(pattern.search(head) or pattern.search(tail)) for pattern in _COCO]
        if all(found) or (any(found) and '"annotations"' in head + tail):
            return "coco"
    elif start == "[" and _TASK.search(head):
        return "label_studio"
    return None


def is_cvat(path: Path) -> bool:
    """Return whether an XML file is an export of CVAT."""
    head, _ = ends(path)
    return re.search(r"<annotations[\s>]", head) is not None
