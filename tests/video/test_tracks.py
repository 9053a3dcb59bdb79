"""Matching of the objects of a window to tracks, and the state of tracks."""

from __future__ import annotations

import numpy as np
import pytest

from mask2former.video.tracks import TrackTable, assign, similarity


def unit(*rows: tuple[float, ...]) -> np.ndarray:
    array = np.array(rows, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def scores(*values: float) -> np.ndarray:
    return np.array([[v, 1 - v] for v in values], dtype=np.float32)


def test_similarity_uses_the_masks_where_there_are_any() -> None:
    a, b = unit((1, 0)), unit((1, 0), (0, 1))
    no_masks = np.full((1, 2), np.nan)
    assert np.allclose(similarity(a, b, no_masks), [[1, 0]])
    assert np.allclose(similarity(a, b, np.array([[0.2, np.nan]])), [[0.6, 0]])


def test_assignment_has_the_largest_sum_and_nothing_below_the_threshold() -> None:
    # Greedy matching would take 0.9 first and leave row 1 with 0.1.
    assert assign(np.array([[0.9, 0.8], [0.85, 0.1]]), 0.0) == [(0, 1), (1, 0)]
    assert assign(np.array([[0.9, 0.2], [0.3, 0.4]]), 0.5) == [(0, 0)]
    assert assign(np.array([[0.5]]), 0.5) == []
    assert assign(np.array([[0.9, 0.8]]), np.array([[0.95, 0.5]])) == [(0, 1)]
    assert assign(np.zeros((0, 3)), 0.5) == []


def test_objects_keep_their_number_in_another_order() -> None:
    table = TrackTable(0.5, 10)
    a, b, c = unit((1, 0, 0.1), (0, 1, 0), (0, 0, 1))
    assert table.update(scores(0.9, 0.8), np.stack([a, b]), (0, 6)).tolist() == [1, 2]
    assert table.update(scores(0.5, 0.9, 0.7), np.stack([c, b, a]), (4, 10)).tolist() == [3, 2, 1]
    assert table.tracks[2].first == 0 and table.tracks[2].last == 10


def test_masks_decide_between_objects_that_look_the_same() -> None:
    table = TrackTable(0.5, 10)
    same = unit((1, 0), (1, 0))
    assert table.update(scores(0.9, 0.9), same, (0, 6)).tolist() == [1, 2]
    iou = {1: np.array([0.0, 0.9]), 2: np.array([0.8, 0.0])}
    assert table.update(scores(0.9, 0.9), same, (4, 10), iou).tolist() == [2, 1]


def test_scores_are_averaged_by_frames_and_one_window_stays_exact() -> None:
    table = TrackTable(0.5, 10)
    embed = unit((1, 0))
    first = np.array([[0.1, 0.3]], dtype=np.float32)
    table.update(first, embed, (0, 24))
    assert (table.tracks[1].scores == first[0]).all()
    table.update(np.array([[0.7, 0.6]], dtype=np.float32), embed, (18, 26))
    assert np.allclose(table.tracks[1].scores, [(24 * 0.1 + 8 * 0.7) / 32, (24 * 0.3 + 8 * 0.6) / 32])


def test_a_track_ends_when_it_is_not_matched_for_too_long() -> None:
    embed, other = unit((1, 0)), unit((0, 1))
    for pause, number in ((10, 1), (11, 3)):
        table = TrackTable(0.5, 10)
        table.update(scores(0.9), embed, (0, 5))
        table.update(scores(0.9), other, (4, 5))
        assert table.update(scores(0.9), embed, (5 + pause, 30)).tolist() == [number]
        assert (1 in table.active()) == (number == 1)


def test_objects_that_are_not_used_are_ignored() -> None:
    table = TrackTable(0.5, 10)
    found = np.array([False, True])
    assert table.update(scores(0.01, 0.9), unit((1, 0), (0, 1)), (0, 5), found=found).tolist() == [0, 1]
    assert table.update(scores(0.01), unit((0, 1)), (5, 9), found=np.array([False])).tolist() == [0]
    assert table.tracks[1].last == 5


def test_a_lost_track_comes_back() -> None:
    table = TrackTable(0.5, 20)
    table.update(scores(0.9), unit((1, 0)), (0, 4))
    table.update(scores(0.9), unit((0, 1)), (4, 8))
    assert table.update(scores(0.9, 0.9), unit((1, 0.2), (0, 1)), (8, 12)).tolist() == [1, 2]


def test_the_newest_tracks_are_matched_first() -> None:
    table = TrackTable(0.5, 20, 0.5)
    table.update(scores(0.9), unit((1, 0)), (0, 4))
    table.update(scores(0.9), unit((0, 1)), (4, 8))
    # More similar to track 1, but track 2 was in the previous window.
    assert table.update(scores(0.9), unit((1, 0.9)), (8, 12)).tolist() == [2]


def test_tracks_that_must_not_last_are_not_continued() -> None:
    table = TrackTable(0.5, 20)
    embed = unit((1, 0))
    assert table.update(scores(0.9), embed, (0, 4), lasting=np.array([False])).tolist() == [1]
    assert table.active() == [] and table.update(scores(0.9), embed, (4, 8)).tolist() == [2]


def test_a_restored_table_continues_identically() -> None:
    rng = np.random.default_rng(0)
    table, copy = TrackTable(0.2, 5), TrackTable(0.2, 5)
    for window in range(6):
        p, e = rng.random((4, 3), dtype=np.float32), unit(*rng.normal(size=(4, 5)))
        copy.restore(table.as_arrays())
        assert copy.active() == table.active()
        span = (window * 4, window * 4 + 6)
        assert copy.update(p, e, span).tolist() == table.update(p, e, span).tolist()
    assert table.count > len(table.active()) > 0
    again = copy.as_arrays()
    for name, array in table.as_arrays().items():
        assert (again[name] == array).all(), name


def test_embeddings_alone_must_be_more_similar_than_with_masks() -> None:
    for cosine, iou, number in ((0.65, np.nan, 2), (0.75, np.nan, 1), (0.65, 0.5, 1), (0.75, 0.2, 2)):
        table = TrackTable(0.5, 10, 0.7)
        table.update(scores(0.9), unit((1, 0)), (0, 4))
        new = unit((cosine, float(np.sqrt(1 - cosine**2))))
        assert table.update(scores(0.9), new, (2, 6), {1: np.array([iou])}).tolist() == [number], (cosine, iou)


def test_an_empty_table_can_be_restored() -> None:
    table = TrackTable(0.5, 10)
    table.restore(TrackTable(0.5, 10).as_arrays())
    assert table.update(scores(0.9), unit((1, 0)), (0, 1)).tolist() == [1]
    with pytest.raises(KeyError):
        table.restore({})
