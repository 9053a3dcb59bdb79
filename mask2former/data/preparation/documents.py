"""One json file from many pictures, made so that an interrupted run loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from ...utils.file_io import write_json
from .work import Outcome, Report, work

# Of a picture's payload; the flag says whether its entry is needed, or only the files that belong to it.
Convert = Callable[[Any, bool], Outcome]


def build_document(
    target: Path,
    tasks: Mapping[str, Any],
    convert: Convert,
    assemble: Callable[[list[Any]], dict[str, Any]],
    *,
    workers: int,
    overwrite: bool,
) -> Report:
    """Make a json file with an entry per picture, and let `convert` make the files that belong to it.

    Entries are kept beside the file (NAME.partial) until all are there. A second run takes them up; once the json
    file is there it only checks the other files. Where a picture failed, the json file is not written.

    Args:
        target: the json file, an object with `images`.
        tasks: per picture its id in `images` and what `convert` is called with.
        convert: gives the entry of a picture.
        assemble: the document of all entries, in the order of `tasks`.
        workers: processes.
        overwrite: make everything anew.
    """
    report = Report(target.stem, str(target))
    journal = _Journal(target.with_name(f"{target.name}.partial"))
    if overwrite:
        journal.remove()
    complete = not overwrite and _image_ids(target) == set(tasks)
    with journal:
        pending = [(name, payload, not complete and name not in journal.entries) for name, payload in tasks.items()]
        for (name, _, wanted), outcome in work(partial(_call, convert), pending, workers, report.title):
            report.add(outcome)
            if wanted and isinstance(outcome, Outcome):
                journal.add(name, outcome.entry)
    if complete or not report.failures:
        if not complete:
            write_json(target, assemble([journal.entries[name] for name in tasks]))
        journal.remove()
    return report


def _call(convert: Convert, task: tuple[str, Any, bool]) -> Outcome:
    return convert(task[1], task[2])


def _image_ids(path: Path) -> set[str] | None:
    """Ids of the pictures of a document as text; None where it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        return {str(image["id"]) for image in content["images"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None


class _Journal:
    """Entries by name in a file that grows line by line; a line cut short by a crash is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self.entries: dict[str, Any] = {}

    def __enter__(self) -> _Journal:
        text = self._path.read_bytes() if self._path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        self.entries = {name: entry for name, entry in map(json.loads, whole.splitlines())}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.truncate(len(whole))
        self._file = self._path.open("a", encoding="ascii")
        return self

    def add(self, name: str, entry: Any) -> None:
        assert self._file is not None
        self.entries[name] = entry
        self._file.write(json.dumps([name, entry], allow_nan=False) + "\n")

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
