from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest

from mask2former.data.balancing import BalancedBatches, object_counts
from mask2former.data.sampler import Draw, IndexStream, TrainingBatches

RANKS = 4
REPEATS = {
    "plain": np.ones(211),
    "repeat factors": np.random.default_rng(2).uniform(0.4, 2.5, 190),
    "one epoch is less than a batch": np.ones(5),
}


def counts_of(number: int) -> np.ndarray:
    """Numbers of objects as in images of cells: most have few, some hundreds."""
    return np.random.default_rng(number).lognormal(3, 1, number).astype(np.int64)


def batches_of(kind: Any, repeats: np.ndarray, batch: int, count: int, **settings: Any) -> list[list[list[Draw]]]:
    """The first `count` batches of all ranks, [rank][batch]."""
    more = (counts_of(len(repeats)),) if kind is BalancedBatches else ()
    loaders = (
        kind(IndexStream(repeats, 5), *more, batch, rank=rank, world_size=RANKS, **settings) for rank in range(RANKS)
    )
    return [list(islice(loader, count)) for loader in loaders]


@pytest.mark.parametrize("repeats", REPEATS.values(), ids=REPEATS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_draws_are_those_of_the_stream_and_each_rank_gets_as_many(repeats: np.ndarray, batch: int) -> None:
    steps = 240  # a multiple of all windows
    ranks = batches_of(BalancedBatches, repeats, batch, steps)
    assert all(len(batches) == steps and all(len(each) == batch for each in batches) for batches in ranks)
    draws = sorted((draw for rank in ranks for each in rank for draw in each), key=lambda draw: draw.position)
    assert draws == list(islice(IndexStream(repeats, 5).draws(0, 1), steps * batch * RANKS))


@pytest.mark.parametrize("repeats", list(REPEATS.values())[:2], ids=list(REPEATS)[:2])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_epoch_has_the_records_that_it_has_without(repeats: np.ndarray, batch: int) -> None:
    """At each batch in which an epoch ends, the records before it are the same as without."""
    steps = int(4 * repeats.sum() / (batch * RANKS))
    balanced, plain = (batches_of(kind, repeats, batch, steps) for kind in (BalancedBatches, TrainingBatches))
    lengths = np.cumsum([len(IndexStream(repeats, 5).epoch(number)) for number in range(3)])
    for end in lengths // (batch * RANKS):
        seen = [
            Counter(draw.record for rank in ranks for each in rank[:end] for draw in each)
            for ranks in (balanced, plain)
        ]
        assert seen[0] == seen[1]


@pytest.mark.parametrize("repeats", list(REPEATS.values())[:2], ids=list(REPEATS)[:2])
@pytest.mark.parametrize(("batch", "ratio"), [(1, 0.5), (2, 0.4), (5, 0.3)])
def test_ranks_differ_less_in_objects(repeats: np.ndarray, batch: int, ratio: float) -> None:
    objects = counts_of(len(repeats))

    def spread(kind: Any) -> float:
        """Mean of largest minus smallest number of objects of the ranks in a step."""
        ranks = batches_of(kind, repeats, batch, 200)
        sums = np.array([[sum(objects[draw.record] for draw in each) for each in rank] for rank in ranks])
        return float((sums.max(axis=0) - sums.min(axis=0)).mean())

    assert spread(BalancedBatches) < ratio * spread(TrainingBatches)


@pytest.mark.parametrize("repeats", REPEATS.values(), ids=REPEATS)
@pytest.mark.parametrize("grouped", [False, True])
def test_starting_late_continues(repeats: np.ndarray, grouped: bool) -> None:
    settings = {"groups": np.arange(len(repeats)) % 2} if grouped else {}
    complete = batches_of(BalancedBatches, repeats, 2, 90, **settings)
    for start in (0, 1, 17, 63):
        late = batches_of(BalancedBatches, repeats, 2, 12, start_batch=start, **settings)
        assert late == [rank[start : start + 12] for rank in complete]


def test_the_batches_of_all_ranks_have_one_group() -> None:
    groups = np.arange(211) % 2
    ranks = batches_of(BalancedBatches, np.ones(211), 2, 60, groups=groups)
    for step in range(60):
        assert len({groups[draw.record] for rank in ranks for draw in rank[step]}) == 1
    draws = [draw for rank in ranks for each in rank for draw in each]
    assert len(set(draws)) == len(draws) == 60 * 2 * RANKS


def test_seeds_give_other_batches() -> None:
    def first(seed: int) -> list[Draw]:
        stream = IndexStream(np.ones(300), seed)
        return next(iter(BalancedBatches(stream, counts_of(300), 4, rank=0, world_size=2)))

    assert first(0) == first(0) != first(1)


def test_counting_of_objects() -> None:
    crowd = {"category_id": 0, "iscrowd": 1}
    images = [{"annotations": [{"category_id": 0}, crowd]}, {"annotations": []}]
    np.testing.assert_array_equal(object_counts(images), [1, 0])
    panoptic = [{"segments_info": [{"id": 1, "iscrowd": 0}, {"id": 2, "iscrowd": 0}]}]
    np.testing.assert_array_equal(object_counts(panoptic), [2])
    clips = [{"file_names": ["a", "b"], "annotations": [{"segmentations": [[], None]}]}]
    np.testing.assert_array_equal(object_counts(clips), [1])
    assert object_counts([{"file_name": "a.png", "sem_seg_file_name": "b.png"}]) is None
