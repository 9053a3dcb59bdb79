"""Matching of the objects of a window to the tracks of earlier windows, and statistics of the tracks.

Objects are compared by the cosine similarity of their query embeddings (queries of one object stay similar from frame
to frame, as MinVIS observed, arXiv 2208.02245) and, on frames shared by both windows, by the overlap of their masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment


@dataclass
class TrackState:
    """State of a track that may continue.

    Attributes:
        scores: (K,) class scores, averaged over its windows and weighted by their frames.
        frames: number of frames in those windows.
        first, last: first frame, and end (exclusive) of the last window in which it was matched.
        embed: (C,) embedding of unit length from the last window.
    """

    scores: np.ndarray
    frames: int
    first: int
    last: int
    embed: np.ndarray


def similarity(embeds: np.ndarray, others: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Compute the similarity (A, N), at most 1, of objects with unit embeddings (A, C) and (N, C).

    This is the cosine, or where `iou` (A, N) is not NaN the mean of cosine and IoU; NaN: no masks to compare.
    """
    cosine = embeds @ others.T
    return np.where(np.isnan(iou), cosine, 0.5 * (cosine + iou))


def assign(scores: np.ndarray, threshold: float | np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs (row, column) of the assignment that maximizes the sum of scores above `threshold`.

    Args:
        scores: (A, N) similarities.
        threshold: one for all pairs, or (A, N) for each pair; pairs that do not exceed it are not assigned.
    """
    gain = np.clip(scores - threshold, 0.0, None)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(a), int(b)) for a, b in zip(rows, columns, strict=True) if gain[a, b] > 0]


class TrackTable:
    """Tracks of a video that may continue; tracks that have ended are removed (`take_closed`).

    Args:
        match_threshold: similarity that a pair with comparable masks must exceed to be matched.
        patience: a track that is not matched for more than this number of frames is closed.
        embed_threshold: the same threshold for pairs of which only the embeddings can be compared.
    """

    def __init__(self, match_threshold: float, patience: int, embed_threshold: float = 0.6) -> None:
        self.match_threshold, self.patience, self.embed_threshold = match_threshold, patience, embed_threshold
        self.tracks: dict[int, TrackState] = {}
        self.count = 0  # all tracks so far, closed ones included
        self._closed: list[list[float]] = []

    def active(self) -> list[int]:
        """Return the numbers of the tracks that may continue."""
        return list(self.tracks)

    def take_closed(self) -> np.ndarray:
        """Return rows (number, frames, first, last, K scores), float64, of tracks that ended since the last call."""
        rows, self._closed = self._closed, []
        return np.array(rows, dtype=np.float64) if rows else np.zeros((0, 0))

    def update(
        self,
        scores: np.ndarray,
        embeds: np.ndarray,
        frames: tuple[int, int],
        iou: Mapping[int, np.ndarray] | None = None,
        found: np.ndarray | None = None,
        lasting: np.ndarray | None = None,
    ) -> np.ndarray:
        """Extend tracks with the objects of a window, and start new ones.

        Args:
            scores: (N, K) class scores of the window's objects.
            embeds: (N, C) embeddings of unit length.
            frames: first frame of the window and its end (exclusive).
            iou: track number -> (N,) IoU of its mask with each object on the shared frames, or NaN.
            found: (N,) bool, objects to use; default: all.
            lasting: (N,) bool, objects whose tracks later windows may continue; default: all.

        Returns:
            (N,) int64 track number (from 1) of each object, 0 for objects that are not used.
        """
        self._close(frames[0])
        used = np.arange(len(scores)) if found is None else np.flatnonzero(found)
        numbers = np.zeros(len(scores), dtype=np.int64)
        active = self.active()
        newest = max((self.tracks[n].last for n in active), default=0)
        # Tracks of the previous window are matched first; lost tracks are matched only to the remaining objects.
        for known in ([n for n in active if self.tracks[n].last == newest], active):
            known = [n for n in known if n not in numbers]
            self._match(known, used[numbers[used] == 0], embeds, iou or {}, numbers)
        for i in used:
            if not numbers[i]:
                self.count += 1
                numbers[i] = self.count
            self._extend(int(numbers[i]), scores[i], embeds[i], frames)
            if lasting is not None and not lasting[i]:
                self._end(int(numbers[i]))
        return numbers

    def _match(
        self, known: list[int], free: np.ndarray, embeds: np.ndarray, iou: Mapping[int, np.ndarray], numbers: np.ndarray
    ) -> None:
        """Match `known` tracks to `free` objects, and write the track numbers into `numbers`."""
        if not known or not len(free):
            return
        no_masks = np.full(len(embeds), np.nan, dtype=np.float32)
        overlap = np.stack([iou.get(n, no_masks) for n in known])[:, free]
        track_embeds = np.stack([self.tracks[n].embed for n in known])
        threshold = np.where(np.isnan(overlap), self.embed_threshold, self.match_threshold)
        for a, b in assign(similarity(track_embeds, embeds[free], overlap), threshold):
            numbers[free[b]] = known[a]

    def _extend(self, number: int, scores: np.ndarray, embed: np.ndarray, frames: tuple[int, int]) -> None:
        count = frames[1] - frames[0]
        track = self.tracks.get(number)
        if track is None:
            self.tracks[number] = TrackState(scores.astype(np.float32), count, frames[0], frames[1], embed)
            return
        track.frames += count
        track.scores = track.scores + (scores - track.scores) * np.float32(count / track.frames)
        track.last, track.embed = frames[1], embed

    def _close(self, start: int) -> None:
        for number in self.active():
            if start - self.tracks[number].last > self.patience:
                self._end(number)

    def _end(self, number: int) -> None:
        track = self.tracks.pop(number)
        self._closed.append([number, track.frames, track.first, track.last, *map(float, track.scores)])

    # ---- serialization
    def as_arrays(self) -> dict[str, np.ndarray]:
        """Return the state of the table as arrays, for `restore`."""
        tracks = list(self.tracks.values())
        return {
            "count": np.array(self.count),
            "active": np.array(self.active(), dtype=np.int64),
            "scores": np.stack([t.scores for t in tracks]) if tracks else np.zeros((0, 0), np.float32),
            "spans": np.array([(t.frames, t.first, t.last) for t in tracks], dtype=np.int64).reshape(-1, 3),
            "embeds": np.stack([t.embed for t in tracks]) if tracks else np.zeros((0, 0), np.float32),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Load the state that `as_arrays` returned; KeyError if an array is missing."""
        self.count = int(arrays["count"])
        names = ("active", "scores", "spans", "embeds")
        rows = zip(*(arrays[name] for name in names), strict=True)
        self.tracks = {
            int(number): TrackState(scores, int(frames), int(first), int(last), embed)
            for number, scores, (frames, first, last), embed in rows
        }


def all_tracks(active: Mapping[str, np.ndarray], closed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and spans of all tracks of a video.

    Args:
        active: arrays of `TrackTable.as_arrays`.
        closed: all rows that `TrackTable.take_closed` returned.

    Returns:
        Scores (N, K) float32 and spans (N, 3) int64 (frames, first, last); row n is track n + 1.
    """
    count = int(active["count"])
    classes = max(active["scores"].shape[1], closed.shape[1] - 4)
    scores, spans = np.zeros((count, max(classes, 0)), np.float32), np.zeros((count, 3), np.int64)
    if len(closed):
        rows = closed[:, 0].astype(np.int64) - 1
        scores[rows], spans[rows] = closed[:, 4:], closed[:, 1:4]
    if len(active["active"]):
        rows = active["active"] - 1
        scores[rows], spans[rows] = active["scores"], active["spans"]
    return scores, spans
