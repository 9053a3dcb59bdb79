"""Journals with changed files: an error that names the file, never other results or an error of the program."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former.segmenter import Segmenter

from .moving_shapes import ShapeModel, images

FRAMES = 8


def track(directory: Path, stop_at: int | None = None) -> Any:
    segment = Segmenter(ShapeModel(stop_at=stop_at), classes=["a", "b", "c"], min_size=0, score_threshold=0.0)
    return segment.track(images(FRAMES), work_dir=directory, window=3, overlap=1)


@pytest.fixture(scope="module")
def journals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("journals")
    track(root / "finished")
    with pytest.raises(KeyboardInterrupt):
        track(root / "stopped", stop_at=2)
    return root


@pytest.fixture
def finished(journals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(journals / "finished", tmp_path / "finished"))


@pytest.fixture
def stopped(journals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(journals / "stopped", tmp_path / "stopped"))


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


def change_state(directory: Path, **arrays: Any) -> None:
    with np.load(directory / "state.npz") as file:
        state = {**file, **{name: np.asarray(value) for name, value in arrays.items()}}
    np.savez(directory / "state.npz", **{name: value for name, value in state.items() if value.dtype != object})


def is_refused(directory: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is damaged .*delete .* to start over"):
        list(track(directory).masks())


def test_an_intact_journal_is_read_and_resumed(finished: Path, stopped: Path) -> None:
    assert list(track(finished).masks()) == list(track(stopped).masks())


@pytest.mark.parametrize(
    "change",
    [
        lambda window: [1],
        lambda window: window.pop("start") and None,
        lambda window: window.update(start=1),
        lambda window: window.update(start=float(window["start"])),
        lambda window: window.update(stop=100),
        lambda window: window.update(seconds=1),
        lambda window: window.update(seconds=window["seconds"][1:]),
        lambda window: window.update(seconds=["0"] * len(window["seconds"])),
        lambda window: window.update(tracks=3),
        lambda window: window.update(tracks={"x": []}),
        lambda window: window.update(tracks={"99": [""] * len(window["seconds"])}),
        lambda window: window.update(tracks={"1": 5}),
        lambda window: window.update(tracks={"1": [""] * (len(window["seconds"]) - 1)}),
        lambda window: window.update(tracks={"1": [True] * len(window["seconds"])}),
        lambda window: window.update(tracks={"1": ["0" * 9] * len(window["seconds"])}),
    ],
)
def test_windows(finished: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    change_json(finished / "window_000001.json", change)
    is_refused(finished, "window_000001.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: [1],
        lambda facts: facts.pop("height") and None,
        lambda facts: facts.update(frames=FRAMES - 1),
        lambda facts: facts.update(frames=True),
        lambda facts: facts.update(width=10),
        lambda facts: facts.update(damaged="no"),
        lambda facts: facts.update(every=0),
        lambda facts: facts.update(first="0"),
    ],
)
def test_facts(finished: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    change_json(finished / "finished.json", change)
    is_refused(finished, "finished.json")


def test_another_first_frame_is_noticed_where_frames_are_read(finished: Path) -> None:
    change_json(finished / "finished.json", lambda facts: facts.update(first=2))
    with pytest.raises(ValueError, match=r"finished\.json is damaged"):
        list(track(finished))


@pytest.mark.parametrize(
    "arrays",
    [
        {"count": 10**9},
        {"count": np.array(None)},
        {"count": [3]},
        {"active": [1]},
        {"active": [-1, -1]},
        {"scores": np.full((2, 3), np.inf)},
        {"scores": np.zeros((0, 0))},
        {"scores": np.full((2, 4), 0.5)},
        {"spans": np.zeros((2, 3), np.int64)},
        {"spans": np.full((2, 3), np.nan)},
        {"embeds": np.zeros((1, 4), np.float32)},
        {"end": "8"},
        {"end": 7},
        {"size": [48, 96, 1]},
        {"size": [0, 96]},
        {"done": [1]},
        {"done": -1},
        {"log_present": [1.0, 2.0]},
        {"log_present": [-1, 2]},
    ],
)
def test_state(finished: Path, arrays: dict[str, Any]) -> None:
    change_state(finished, **arrays)
    is_refused(finished, r"(state\.npz|finished\.json)")


@pytest.mark.parametrize(
    "arrays",
    [
        {"end": 4},
        {"size": [2**62, 2**62]},
        {"done": 1},
        {"shared_ids": [1]},
        {"shared_ids": [1, 1]},
        {"shared_ids": [1, 99]},
        {"shared_bits": np.zeros((2, 3), np.uint8)},
        {"shared_bits": np.zeros((2, 3))},
        {"active": np.zeros(0, np.int64)},
    ],
)
def test_a_changed_state_is_not_resumed(stopped: Path, arrays: dict[str, Any]) -> None:
    change_state(stopped, **arrays)
    is_refused(stopped, r"(state\.npz|present\.log)")


@pytest.mark.parametrize("row", [[0, 99], [99, 1], [np.nan, 1], [0.5, 1]])
def test_logs(finished: Path, row: list[float]) -> None:
    content = np.fromfile(finished / "present.log", dtype="<f8")
    content[:2] = row
    content.tofile(finished / "present.log")
    is_refused(finished, r"present\.log")


def test_a_log_as_long_as_the_state_says_takes_no_memory(finished: Path) -> None:
    change_state(finished, log_present=[2**62, 2**62])
    is_refused(finished, r"present\.log")


def test_a_run_that_is_not_an_object(finished: Path) -> None:
    (finished / "run.json").write_text("[1]")
    is_refused(finished, r"run\.json")


def test_a_missing_window_or_state(finished: Path) -> None:
    (finished / "window_000001.json").unlink()
    is_refused(finished, r"window_000001\.json")
    (finished / "state.npz").unlink()
    is_refused(finished, r"state\.npz")
