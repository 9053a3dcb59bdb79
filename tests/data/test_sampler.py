from __future__ import annotations

import random
from itertools import islice

import numpy as np
import pytest
import torch

from mask2former.data.sampler import Draw, IndexStream, TrainingBatches, random_state

REPEATS = [np.ones(7), np.array([0.0, 2, 1, 1]), np.array([0.3, 1.6, 2.5, 0.1, 1.0])]


def _take(batches: TrainingBatches, count: int) -> list[list[Draw]]:
    return list(islice(batches, count))


@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("grouped", [False, True])
def test_starting_late_continues(repeats: np.ndarray, grouped: bool) -> None:
    groups = np.arange(len(repeats)) % 2 if grouped else None
    stream = IndexStream(repeats, 5)
    complete = _take(TrainingBatches(stream, 3, rank=1, world_size=2, groups=groups), 60)
    for start in (0, 1, 17, 43):
        late = TrainingBatches(stream, 3, rank=1, world_size=2, start_batch=start, groups=groups)
        assert _take(late, 10) == complete[start : start + 10]
    if grouped:
        assert all(len({draw.record % 2 for draw in batch}) == 1 for batch in complete)


def test_processes_share_each_step_without_overlap() -> None:
    stream = IndexStream(np.ones(11), 0)
    alone = [draw for batch in _take(TrainingBatches(stream, 8), 20) for draw in batch]
    ranks = [_take(TrainingBatches(stream, 2, rank=rank, world_size=4), 20) for rank in range(4)]
    for step in range(20):
        shared = sorted((draw for rank in ranks for draw in rank[step]), key=lambda draw: draw.position)
        assert shared == alone[8 * step : 8 * step + 8]


def test_every_epoch_is_another_permutation() -> None:
    stream = IndexStream(np.ones(50), 1)
    draws = list(islice(stream.draws(0, 1), 150))
    epochs = [[draw.record for draw in draws[start : start + 50]] for start in (0, 50, 100)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [draw.position for draw in draws] == list(range(150))
    assert [draw.record for draw in islice(IndexStream(np.ones(50), 2).draws(0, 1), 50)] != epochs[0]


def test_fractions_hold_on_average() -> None:
    stream = IndexStream(np.array([0.25, 1.5, 1.0]), 0)
    counts = np.mean([np.bincount(stream.epoch(number), minlength=3) for number in range(2000)], axis=0)
    np.testing.assert_allclose(counts, [0.25, 1.5, 1.0], atol=0.05)


@pytest.mark.parametrize("repeats", [[], [0.0, 0.0]])
def test_nothing_to_sample(repeats: list[float]) -> None:
    with pytest.raises(ValueError, match="no record"):
        IndexStream(np.array(repeats), 0)


def test_random_state_is_repeatable_and_leaves_no_trace() -> None:
    def numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with random_state(3, 4):
        first = numbers()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = numbers()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with pytest.raises(KeyError), random_state(3, 4):
        assert numbers() == first
        raise KeyError
    assert numbers() == expected
    with random_state(3, 5):
        assert numbers() != first
