"""Batches in which all ranks have about as many objects, so that no rank waits for the one with a dense image."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from .sampler import Draw, IndexStream

# Batches of all ranks between which draws are exchanged; fewer where an epoch is short.
_WINDOW = 8
_WINDOWS_OF_AN_EPOCH = 4


class BalancedBatches(Sampler[list[Draw]]):
    """Endless batches of one rank: those of `TrainingBatches` for all ranks together, dealt out in another way.

    Draws that follow each other in the stream make a window of a few batches of all ranks. Sorted by their objects they
    are cut into rows of one draw for each rank; the rows are shuffled, and each batch takes the next ones. Of the draws
    of a batch, those with the most objects first, each goes to the rank that has the fewest objects so far.

    Where an epoch ends within a window, its draws stay in their batches and change the rank only, so that the records
    of an epoch are those of the stream.

    Args:
        stream: equal on all ranks.
        objects: int (N,), number of objects of each record.
        batch_size, rank, world_size, start_batch: see `TrainingBatches`.
        groups: int (N,), group of each record. The batches of all ranks then have records of one group at a time, and
            skipping batches replays the grouping.
    """

    def __init__(
        self,
        stream: IndexStream,
        objects: np.ndarray,
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        start_batch: int = 0,
        groups: np.ndarray | None = None,
    ) -> None:
        self.stream = stream
        self.objects = objects
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.start_batch = start_batch
        self.groups = groups
        self._draws_at_once = batch_size * world_size
        windows = float(stream.repeats.sum()) / (_WINDOWS_OF_AN_EPOCH * self._draws_at_once)
        self.window = int(np.clip(windows, 1, _WINDOW))  # in batches

    def __iter__(self) -> Iterator[list[Draw]]:
        first, skipped = divmod(self.start_batch, self.window)
        for number, window in enumerate(self._windows(first), start=first):
            yield from self._deal(number, window)[skipped:]
            skipped = 0

    def _windows(self, first: int) -> Iterator[list[tuple[int, Draw]]]:
        """Yield the windows from number `first` on, each draw after the number of its epoch."""
        size = self.window * self._draws_at_once
        if self.groups is None:
            draws = self.stream.draws_of_epochs(first * size, 1)
            while True:
                yield list(itertools.islice(draws, size))
        pending: dict[int, list[tuple[int, Draw]]] = {}
        count = 0
        for epoch, draw in self.stream.draws_of_epochs(0, 1):
            group = int(self.groups[draw.record])
            window = pending.setdefault(group, [])
            window.append((epoch, draw))
            if len(window) == size:
                del pending[group]
                if count >= first:
                    yield window
                count += 1

    def _deal(self, number: int, window: Sequence[tuple[int, Draw]]) -> list[list[Draw]]:
        """Return the batches of this rank that a window makes."""
        draws = [draw for _, draw in window]
        if window[0][0] == window[-1][0]:  # of one epoch
            ordered = self._densest_first(draws)
            rows = [ordered[start : start + self.world_size] for start in range(0, len(ordered), self.world_size)]
            order = np.random.default_rng([self.stream.seed, number, self.world_size]).permutation(len(rows))
            draws = [draw for row in order for draw in rows[row]]
        starts = range(0, len(draws), self._draws_at_once)
        return [self._of_this_rank(draws[start : start + self._draws_at_once]) for start in starts]

    def _densest_first(self, draws: Sequence[Draw]) -> list[Draw]:
        return sorted(draws, key=lambda draw: (-self.objects[draw.record], draw.position))

    def _of_this_rank(self, draws: Sequence[Draw]) -> list[Draw]:
        """Return what this rank gets of the draws of a batch."""
        batches: list[list[Draw]] = [[] for _ in range(self.world_size)]
        objects = [0] * self.world_size
        for draw in self._densest_first(draws):
            open_ranks = (rank for rank, batch in enumerate(batches) if len(batch) < self.batch_size)
            rank = min(open_ranks, key=objects.__getitem__)
            batches[rank].append(draw)
            objects[rank] += int(self.objects[draw.record])
        return batches[self.rank]


def object_counts(records: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Count what records ask a model to find: annotations that are no crowd regions, or segments; int64 (N,).

    Args:
        records: in detectron2's format; of videos with one annotation an object.

    Returns:
        None where no record has either, as those of label maps.
    """
    if not any("annotations" in record or "segments_info" in record for record in records):
        return None
    entries = (record.get("annotations", record.get("segments_info")) or () for record in records)
    return np.array([sum(not entry.get("iscrowd", 0) for entry in each) for each in entries], dtype=np.int64)
