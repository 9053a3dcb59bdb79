"""An endless stream of training samples that can start at any position.

The sample at position p of the stream, its record and its augmentation, depends on the seed and p alone: not on the
number of workers, not on how often a run was interrupted, and (without grouping by aspect ratio) not on the number of
ranks that share a batch.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One sample to load: index of the record, and position in the stream."""

    record: int
    position: int


class IndexStream:
    """The shuffled record indices of one epoch after the other.

    Args:
        repeats: how often each record appears in an epoch, float (N,), >= 0 with a positive sum; fractions are rounded
            at random in every epoch. All ones is plain shuffling.
        seed: the same on all ranks.

    Raises:
        ValueError: no record has a positive number of repeats.
    """

    def __init__(self, repeats: np.ndarray, seed: int) -> None:
        self.repeats = np.asarray(repeats, dtype=np.float64)
        if not self.repeats.size or not self.repeats.sum() > 0:
            raise ValueError("there is no record to sample from; check the dataset and DATALOADER.SAMPLER_TRAIN")
        self.seed = seed
        self._constant = bool((self.repeats == np.floor(self.repeats)).all())

    def epoch(self, number: int) -> np.ndarray:
        """Return the record indices of one epoch, int (M,); M varies with fractional repeats and may be 0."""
        generator = np.random.default_rng([self.seed, number])
        counts = np.floor(self.repeats).astype(np.int64)
        if not self._constant:
            counts += generator.random(len(counts)) < self.repeats - counts
        return generator.permutation(np.repeat(np.arange(len(counts)), counts))

    def draws(self, start: int, step: int) -> Iterator[Draw]:
        """Yield the draws at positions start, start + step, start + 2 step, ... without end."""
        return (draw for _, draw in self.draws_of_epochs(start, step))

    def draws_of_epochs(self, start: int, step: int) -> Iterator[tuple[int, Draw]]:
        """Yield the same draws, each after the number of its epoch."""
        epoch, first = 0, 0  # number of the epoch, and its first position
        if self._constant:
            size = int(self.repeats.sum())
            epoch = start // size
            first = epoch * size
        position = start
        while True:
            indices = self.epoch(epoch)
            while position < first + len(indices):
                yield epoch, Draw(int(indices[position - first]), position)
                position += step
            first += len(indices)
            epoch += 1


class TrainingBatches(Sampler[list[Draw]]):
    """Endless batches of one rank.

    Args:
        stream: equal on all ranks.
        batch_size: samples in a batch of this rank.
        rank: index of this rank.
        world_size: number of ranks.
        start_batch: number of batches of this rank to skip, because they have been trained on.
        groups: int (N,), group of each record; a batch then has records of one group (portrait or landscape), which
            saves padding. Skipping batches then takes time in proportion to their number, as grouping is replayed.
    """

    def __init__(
        self,
        stream: IndexStream,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
        groups: np.ndarray | None = None,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.start_batch = start_batch
        self.groups = groups

    def __iter__(self) -> Iterator[list[Draw]]:
        if self.groups is None:
            skipped = self.start_batch * self.batch_size * self.world_size
            draws = self.stream.draws(skipped + self.rank, self.world_size)
            while True:
                yield [next(draws) for _ in range(self.batch_size)]
        pending: dict[int, list[Draw]] = {}
        count = 0
        for draw in self.stream.draws(self.rank, self.world_size):
            batch = pending.setdefault(int(self.groups[draw.record]), [])
            batch.append(draw)
            if len(batch) == self.batch_size:
                del pending[int(self.groups[draw.record])]
                if count >= self.start_batch:
                    yield batch
                count += 1


@contextlib.contextmanager
def random_state(*seeds: int) -> Iterator[None]:
    """Seed `random`, numpy and torch (CPU) from integers >= 0, and restore the former states afterwards."""
    words = np.random.SeedSequence(seeds).generate_state(3)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    # torch.manual_seed would seed the accelerators as well.
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
