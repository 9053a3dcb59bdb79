"""Which object of a new window is which object of the windows before: matching, and statistics of the tracks.

Objects are compared by the cosine of their query embeddings (queries of one object stay alike from frame to frame,
as MinVIS observed, arXiv 2208.02245) and, on frames that both windows saw, by the overlap of their masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment


@dataclass
class TrackState:
    """What is remembered of a track.

    Attributes:
        scores: (K,) class scores, averaged over its windows and weighted by their frames.
        frames: number of frames in those windows.
        first, last: first frame, and end (exclusive) of the last window in which it was found.
        embed: (C,) unit length, of the last window; None once the track is closed.
    """

    scores: np.ndarray
    frames: int
    first: int
    last: int
    embed: np.ndarray | None


def similarity(embeds: np.ndarray, others: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """(A, N) likeness, at most 1, of objects with unit embeddings (A, C) and (N, C).

    The cosine, or where `iou` (A, N) is a number its mean with the cosine; NaN says that the masks tell nothing.
    """
    cosine = embeds @ others.T
    return np.where(np.isnan(iou), cosine, 0.5 * (cosine + iou))


def assign(likeness: np.ndarray, threshold: float | np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column) of the assignment with the largest sum of what exceeds `threshold` (of all, or of each)."""
    gain = np.clip(likeness - threshold, 0.0, None)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(a), int(b)) for a, b in zip(rows, columns, strict=True) if gain[a, b] > 0]


class TrackTable:
    """All tracks of a video so far. Memory: a few hundred bytes for each closed track, no masks.

    Args:
        match_threshold: a pair whose masks can be compared and whose likeness is not above it is not one object.
        patience: a track that was not found for more than so many frames is closed.
        embed_threshold: the same for pairs of which only the embeddings can be compared.
    """

    def __init__(self, match_threshold: float, patience: int, embed_threshold: float = 0.6) -> None:
        self.match_threshold, self.patience, self.embed_threshold = match_threshold, patience, embed_threshold
        self.tracks: dict[int, TrackState] = {}

    def active(self) -> list[int]:
        """Numbers of the tracks that may go on."""
        return [number for number, track in self.tracks.items() if track.embed is not None]

    def update(
        self,
        scores: np.ndarray,
        embeds: np.ndarray,
        frames: tuple[int, int],
        iou: Mapping[int, np.ndarray] | None = None,
        found: np.ndarray | None = None,
        lasting: np.ndarray | None = None,
    ) -> np.ndarray:
        """Continue tracks by the objects of a window, and start new ones.

        Args:
            scores: (N, K) class scores of the window's objects; embeds: (N, C), unit length.
            frames: first frame of the window and its end.
            iou: for a track number, (N,) overlap of its mask with the objects on shared frames, or NaN.
            found: (N,) bool, objects to be used; default: all.
            lasting: (N,) bool, objects whose tracks may be continued by later windows; default: all.

        Returns:
            (N,) int64: track number (from 1) of each object, 0 for one that is not used.
        """
        self._close(frames[0])
        used = np.arange(len(scores)) if found is None else np.flatnonzero(found)
        numbers = np.zeros(len(scores), dtype=np.int64)
        active = self.active()
        newest = max((self.tracks[n].last for n in active), default=0)
        # Tracks of the window before choose first: a track that was lost may take back only what they leave.
        for known in ([n for n in active if self.tracks[n].last == newest], active):
            known = [n for n in known if n not in numbers]
            self._match(known, used[numbers[used] == 0], embeds, iou or {}, numbers)
        for i in used:
            if not numbers[i]:
                numbers[i] = len(self.tracks) + 1
            self._extend(int(numbers[i]), scores[i], embeds[i], frames)
            if lasting is not None and not lasting[i]:
                self.tracks[int(numbers[i])].embed = None
        return numbers

    def _match(
        self, known: list[int], free: np.ndarray, embeds: np.ndarray, iou: Mapping[int, np.ndarray], numbers: np.ndarray
    ) -> None:
        """Write the numbers of `known` tracks to those of the `free` objects that they go on as."""
        if not known or not len(free):
            return
        nothing = np.full(len(embeds), np.nan, dtype=np.float32)
        overlap = np.stack([iou.get(n, nothing) for n in known])[:, free]
        old = np.stack([e for n in known if (e := self.tracks[n].embed) is not None])
        threshold = np.where(np.isnan(overlap), self.embed_threshold, self.match_threshold)
        for a, b in assign(similarity(old, embeds[free], overlap), threshold):
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
                self.tracks[number].embed = None

    # ---- to a file and back
    def as_arrays(self) -> dict[str, np.ndarray]:
        """The table as a few arrays."""
        tracks = list(self.tracks.values())
        active = self.active()
        embeds = [e for n in active if (e := self.tracks[n].embed) is not None]
        return {
            "scores": np.stack([t.scores for t in tracks]) if tracks else np.zeros((0, 0), np.float32),
            "spans": np.array([(t.frames, t.first, t.last) for t in tracks], dtype=np.int64).reshape(-1, 3),
            "active": np.array(active, dtype=np.int64),
            "embeds": np.stack(embeds) if embeds else np.zeros((0, 0), np.float32),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `as_arrays` gave."""
        embeds = dict(zip(arrays["active"].tolist(), arrays["embeds"], strict=True))
        rows = zip(arrays["scores"], arrays["spans"].tolist(), strict=True)
        self.tracks = {
            number: TrackState(scores, frames, first, last, embeds.get(number))
            for number, (scores, (frames, first, last)) in enumerate(rows, start=1)
        }
