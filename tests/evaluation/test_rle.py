from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from mask2former.evaluation import encode_label_map, encode_masks, rle


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
