from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mask2former.evaluation import encode_label_map, encode_masks
from mask2former.structures import rle


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_equal_to_encoding_one_by_one(dtype: torch.dtype) -> None:
    masks = torch.rand(7, 13, 9) > 0.5
    masks[3] = False
    masks[4] = True
    encoded = encode_masks(masks.to(dtype))
    for mask, result in zip(masks, encoded, strict=True):
        single = mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        assert result == {"size": [13, 9], "counts": single["counts"].decode()}


def test_non_contiguous_masks() -> None:
    masks = (torch.rand(9, 4, 12) > 0.5).permute(1, 2, 0)
    decoded = mask_util.decode(encode_masks(masks))
    assert (torch.as_tensor(decoded).permute(2, 0, 1).bool() == masks).all()


def test_no_masks() -> None:
    assert encode_masks(torch.zeros(0, 5, 6, dtype=torch.bool)) == []


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.rand(10, 8, 8) > 0.5
    labels = masks.long().sum(0).numpy()
    whole, whole_labels = encode_masks(masks), encode_label_map(labels)
    monkeypatch.setattr(rle, "_CHUNK_PIXELS", 130)
    assert encode_masks(masks) == whole
    assert encode_label_map(labels) == whole_labels


def test_wrong_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="N, h, w"):
        encode_masks(torch.zeros(5, 6))


def test_label_map() -> None:
    labels = np.array([[3, 3, 0], [3, 7, 7]])
    encoded = encode_label_map(labels)
    assert list(encoded) == [0, 3, 7]
    for label, result in encoded.items():
        assert (mask_util.decode(result) == (labels == label)).all()


def one_by_one(masks: torch.Tensor) -> list[dict]:
    encoded = [mask_util.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in masks]
    return [{"size": list(masks.shape[1:]), "counts": e["counts"].decode()} for e in encoded]


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
    share=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]),
)
def test_any_mask_equals_pycocotools(seed: int, shape: tuple[int, int, int], share: float) -> None:
    masks = torch.from_numpy(np.random.default_rng(seed).random(shape) < share)
    assert encode_masks(masks) == one_by_one(masks)
    # the way for GPUs, which works on any device
    count, pixels = len(masks), shape[1] * shape[2]
    runs = rle._sorted_runs(*rle._changes_on_device(masks), count, pixels)
    assert rle._compress(*runs, shape[1:]) == one_by_one(masks)


def test_runs_of_every_length() -> None:
    """Lengths up to seven digits, growing and shrinking: each number of characters of the code, of either sign."""
    rng = np.random.default_rng(0)
    size = (2000, 3000)
    borders = np.cumsum(2 ** rng.integers(0, 23, 40) + rng.integers(0, 7, 40))
    columns = np.searchsorted(borders, np.arange(size[0] * size[1]), side="right") % 2 == 1
    masks = torch.from_numpy(columns.reshape(size[1], size[0]).T.copy())[None]
    assert encode_masks(masks) == one_by_one(masks)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(1, 12), st.integers(1, 12)), labels=st.integers(1, 9))
def test_any_label_map_equals_pycocotools(seed: int, size: tuple[int, int], labels: int) -> None:
    label_map = np.random.default_rng(seed).integers(-1, labels, size)
    expected = {int(n): one_by_one(torch.from_numpy(label_map == n)[None])[0] for n in np.unique(label_map)}
    assert encode_label_map(label_map) == expected


def test_nothing_to_encode() -> None:
    assert encode_label_map(np.zeros((0, 5), np.int64)) == {}
    assert [r["size"] for r in encode_masks(torch.zeros(2, 0, 5, dtype=torch.bool))] == [[0, 5]] * 2
