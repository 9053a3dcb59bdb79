"""Journals of videos: changed files of a run that has finished, or that was stopped."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from mask2former.segmenter import Segmenter
from tests.video.moving_shapes import ShapeModel, images

from .judgment import Case, Finding, check_finite
from .mutation import mutate, mutate_bytes, write_json

FRAMES = 8


class _Stopped(Exception):
    """Stands for the end of a process."""


def prepare(root: Path) -> dict[str, Any]:
    """Track a video of moving squares, once to its end and once to a stop; return the directories."""
    _track(root / "finished")
    try:
        _track(root / "stopped", stop_at=2)
    except KeyboardInterrupt:
        return {"root": root}
    raise AssertionError("the run was not stopped")


def _track(directory: Path, stop_at: int | None = None) -> Any:
    segment = Segmenter(ShapeModel(stop_at=stop_at), classes=["a", "b", "c"], min_size=0, score_threshold=0.0)
    return segment.track(images(FRAMES), work_dir=directory, window=3, overlap=1)


def run(state: dict[str, Any], case: Case) -> None:
    """Change a file of a journal, resume the run and read its results."""
    random = case.random
    directory = case.directory / "journal"
    shutil.copytree(state["root"] / random.choice(("finished", "stopped")), directory)
    files = sorted(path for path in directory.iterdir() if path.is_file())
    file = random.choice(files)
    _change(random, file)
    tracked = case.attempt(_track, directory)
    if not tracked.accepted:
        return
    read = case.attempt(_read, tracked.value)
    if read.accepted:
        check_finite(read.value, "the score of a track")


def _read(result: Any) -> list[float]:
    for _, _, shown in result.masks():
        for rle in shown.values():
            if not isinstance(rle["counts"], (str, bytes)):
                raise Finding(f"a mask is {rle!r}")
    return [track.score for track in result.tracks]


def _change(random: Random, file: Path) -> None:
    data = file.read_bytes()
    choice = random.random()
    if choice < 0.1:
        file.unlink()
    elif choice < 0.2:
        file.write_bytes(random.choice((b"", b"\0" * len(data), data[: len(data) // 2])))
    elif file.suffix == ".json" and choice < 0.85:
        file.write_bytes(write_json(random, mutate(random, json.loads(data))))
    elif file.suffix == ".npz" and choice < 0.7:
        file.write_bytes(_arrays(random, data))
    else:
        file.write_bytes(mutate_bytes(random, data))


def _arrays(random: Random, data: bytes) -> bytes:
    with np.load(io.BytesIO(data)) as content:
        arrays = dict(content)
    name = random.choice(sorted(arrays))
    value = arrays[name]
    changed: tuple[Any, ...] = (
        None, value[None], value.reshape(-1)[:-1], np.zeros((0, 0)), value.astype(np.float32), value * 0 - 1,
        value.astype(str), np.array(None),
        np.full(value.shape, np.nan), np.array(10**9), np.full(value.shape, 2**62), value.astype(bool), np.array([]),
    )  # fmt: skip
    arrays[name] = random.choice(changed)
    if arrays[name] is None:
        del arrays[name]
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()
