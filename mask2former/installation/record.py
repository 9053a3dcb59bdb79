"""The list of files that an installed distribution consists of, which pip removes on an upgrade."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .project import Project


def add_to_record(project: Project, files: Iterable[Path]) -> None:
    """Add files to RECORD of the installed package, so that ``pip uninstall`` and upgrades remove them with the rest.

    A library that stayed behind would be loaded by the next version, whose signatures may differ.

    Args:
        project: the installed package; nothing happens where no distribution lies beside it.
        files: files below ``project.root``.
    """
    record = next(project.root.glob("mask2former-*.dist-info/RECORD"), None)
    if record is None:
        return
    text = record.read_text("utf-8")
    known = {line.partition(",")[0] for line in text.splitlines()}
    names = [file.relative_to(project.root).as_posix() for file in files]
    missing = [f"{name},,\n" for name in names if name not in known]
    if missing:
        unfinished = record.with_name("RECORD.new")
        unfinished.write_text(text + ("" if text.endswith("\n") else "\n") + "".join(missing), "utf-8")
        os.replace(unfinished, record)
