from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.evaluation.joint_runs import count_pairs, joint_runs


@settings(max_examples=80)
@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(0, 9), st.integers(1, 9)), block=st.integers(1, 4))
def test_counts_every_pixel_once(seed: int, size: tuple[int, int], block: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 3, size).astype(np.uint8).repeat(block, axis=1)
    second = np.roll(rng.integers(0, 4, size).repeat(block, axis=1), 1, axis=1)
    counts = count_pairs(*joint_runs(first, second), (3, 4))
    assert counts.dtype == np.int64
    assert counts.tolist() == [[int(((first == i) & (second == j)).sum()) for j in range(4)] for i in range(3)]


@pytest.mark.parametrize("transposed", [False, True])
def test_one_run_where_nothing_changes(transposed: bool) -> None:
    first = np.full((4, 6), 2)
    values, others, lengths = joint_runs(
        first.T if transposed else first, np.zeros_like(first.T if transposed else first)
    )
    assert (values.tolist(), others.tolist(), lengths.tolist()) == ([2], [0], [24])
