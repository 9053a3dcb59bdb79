"""Checks of what the journal of a video holds, before it is used: its files may be damaged or changed.

Each error names the file, and says to delete the journal: it can be computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..structures.masks import SegmentationError, rle_runs
from .journal import Journal

_STATE = "state.npz"
_LARGEST = 2**53  # numbers of a log are float64
_SCORES = 1.001  # largest score, with the rounding of averages


def check_tracks(journal: Journal, present: np.ndarray, closed: np.ndarray) -> None:
    """Check the state that `LongClip` writes after each window, together with its logs.

    Args:
        present: (M, 2) window and track of each appearance.
        closed: (N, 4 + K) rows of `TrackTable.take_closed`, or (0, 0).

    Raises:
        ValueError: an array is missing, has another shape or type, or contradicts another.
    """
    count, end = (_whole(journal, name, lowest) for name, lowest in (("count", 0), ("end", 1)))
    active = _array(journal, "active", "i", 1)
    scores, spans, embeds = (_array(journal, name, kind, 2) for name, kind in _TABLE)
    size, shared = _array(journal, "size", "i", 1), _array(journal, "shared_ids", "i", 1)
    bits = _array(journal, "shared_bits", "u", 2)
    classes = {array.shape[1] - extra for array, extra in ((scores, 0), (closed, 4)) if len(array)}
    numbers = np.concatenate([active, closed[:, 0] if len(closed) else []])
    all_spans = np.concatenate([spans, closed[:, 1:4]]) if len(closed) else spans
    all_scores = [scores, closed[:, 4:]]
    checks = {
        "active": len(numbers) == count and np.array_equal(np.sort(numbers), np.arange(1, count + 1)),
        "scores": len(scores) == len(active)
        and len(classes) <= 1
        and min(classes, default=1) > 0
        and all(bool(((rows >= 0) & (rows <= _SCORES)).all()) for rows in all_scores),
        "spans": spans.shape == (len(active), 3) and _are_spans(all_spans, end),
        "embeds": len(embeds) == len(active) and bool(np.isfinite(embeds).all()),
        "size": size.shape == (2,) and bool((size >= 1).all()),
        "shared_ids": len(np.unique(shared)) == len(shared) and _within(shared, 1, count),
        "shared_bits": len(bits) == len(shared) and bits.dtype == np.uint8,
    }
    for name, holds in checks.items():
        if not holds:
            raise journal.damage(_STATE, f"{name} does not fit the rest")
    rows = present.shape[1] == 2 and _within(present[:, 0], 0, journal.done - 1) and _within(present[:, 1], 1, count)
    if len(present) and not rows:
        raise journal.damage("present.log", "it has rows that are no window and track")


_TABLE = (("scores", "f"), ("spans", "i"), ("embeds", "f"))


def _array(journal: Journal, name: str, kind: str, dimensions: int) -> np.ndarray:
    value = journal.state.get(name)
    if value is None:
        raise journal.damage(_STATE, f"it has no {name}")
    if value.dtype.kind != kind or value.ndim != dimensions:
        raise journal.damage(_STATE, f"{name} has type {value.dtype} and shape {value.shape}")
    return value


def _whole(journal: Journal, name: str, lowest: int) -> int:
    value = int(_array(journal, name, "i", 0))
    if not lowest <= value <= _LARGEST:
        raise journal.damage(_STATE, f"{name} is {value}")
    return value


def _within(values: np.ndarray, lowest: int, highest: int) -> bool:
    """Return whether all are whole numbers of a range; NaN is not."""
    return bool(((values >= lowest) & (values <= highest) & (values == np.rint(values))).all())


def _are_spans(rows: np.ndarray, end: int) -> bool:
    """Return whether rows (frames, first, last) are spans of frames before `end`."""
    return _within(rows, 0, _LARGEST) and bool(
        ((rows[:, 0] >= 1) & (rows[:, 1] < rows[:, 2]) & (rows[:, 2] <= end)).all()
    )


def check_last_window(journal: Journal, overlap: int) -> None:
    """Check that the last finished window ends where the state says, before the run goes on from there.

    Raises:
        ValueError: it does not.
    """
    end = int(journal.state["end"])
    window = _object(journal, journal.window(journal.done - 1)) if journal.done else {}
    if window.get("stop") not in (end, end - (overlap - overlap // 2)):
        raise journal.damage(_STATE, f"its {journal.done} windows do not end at frame {end}")


def checked_facts(journal: Journal) -> dict[str, Any]:
    """Return the facts of a finished run: frames, height, width, damaged, first and every.

    Raises:
        ValueError: one is missing or malformed, or contradicts the state; see also `check_tracks`.
    """
    facts = {"first": 0, "every": 1, **_object(journal, "finished.json")}  # earlier versions tracked complete videos
    lowest = {"frames": 1, "height": 1, "width": 1, "first": 0, "every": 1}
    wrong = [k for k, v in lowest.items() if type(facts.get(k)) is not int or not v <= facts[k] <= _LARGEST]
    if wrong or type(facts.get("damaged")) is not bool:
        raise journal.damage("finished.json", f"{', '.join(wrong) or 'damaged'}: missing or not a valid value")
    state = [_whole(journal, "end", 1), *_array(journal, "size", "i", 1).tolist()]
    if state != [facts["frames"], facts["height"], facts["width"]]:
        raise journal.damage("finished.json", f"it has other frames, height or width than {_STATE}: {state}")
    return facts


def checked_windows(journal: Journal, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Yield what `Journal.windows` does.

    Args:
        size: height and width of the masks.

    Raises:
        ValueError: an entry is missing or malformed, a mask is not one of the size, or the windows do not follow each
            other to the end of the video.
    """
    count, end = _whole(journal, "count", 0), _whole(journal, "end", 1)
    start = 0
    for index, window in enumerate(journal.windows()):
        name = journal.window(index)
        _require_object(journal, name, window)
        stop = window.get("stop")
        stop = stop if type(stop) is int else -1
        follows = type(window.get("start")) is int and window["start"] == start
        if not follows or not start < stop <= end or (index == journal.done - 1 and stop != end):
            raise journal.damage(name, f"it is of other frames than {start} to at most {end}")
        seconds, tracks = window.get("seconds"), window.get("tracks")
        if not isinstance(seconds, list) or len(seconds) != stop - start or not all(map(_is_time, seconds)):
            raise journal.damage(name, "its seconds are not one number for each frame")
        if not isinstance(tracks, dict):
            raise journal.damage(name, "it has no object under 'tracks'")
        for number, masks in tracks.items():
            if not (number.isascii() and number.isdecimal() and number == number.lstrip("0") and len(number) < 17):
                raise journal.damage(name, f"{number[:40]!r} is not the number of a track")
            if int(number) > count:
                raise journal.damage(name, f"it has the track {number} of {count}")
            _check_masks(journal, name, number, masks, stop - start, size)
        yield window
        start = stop


def _check_masks(journal: Journal, name: str, number: str, masks: Any, length: int, size: tuple[int, int]) -> None:
    if not isinstance(masks, list) or len(masks) != length or not all(isinstance(counts, str) for counts in masks):
        raise journal.damage(name, f"track {number} has not one mask for each frame")
    for counts in masks:
        if counts:
            try:
                rle_runs({"size": list(size), "counts": counts}, size)
            except SegmentationError as error:
                raise journal.damage(name, f"a mask of track {number}: {error}") from error


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST and math.isfinite(value)


def _object(journal: Journal, name: str) -> Mapping[str, Any]:
    value = journal.read(name)
    _require_object(journal, name, value)
    return value


def _require_object(journal: Journal, name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise journal.damage(name, "it does not contain a JSON object")
