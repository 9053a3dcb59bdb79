"""The best class of each pixel equals argmax."""

from __future__ import annotations

import math

import pytest
import torch

from mask2former.modeling import label_maps
from mask2former.modeling.label_maps import first_highest, labels_of_masks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_first_highest_is_argmax(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_maps, "_PIECE", 50)  # the image in three pieces
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 3, (7, 11, 13), generator=generator).to(dtype)  # many ties
    assert (first_highest(scores).long() == scores.argmax(0)).all()
    scores[2, 4] = math.nan
    scores[5, :, 3] = math.nan
    scores[:, 10] = -math.inf
    assert (first_highest(scores).long() == scores.argmax(0)).all()
    many = torch.rand(300, 3, 4, generator=generator).to(dtype)
    assert (first_highest(many).long() == many.argmax(0)).all()


@pytest.mark.parametrize("classes", [1, 7, 300])
def test_labels_of_masks_are_those_of_their_sums(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_maps, "_PIECE", 50)
    generator = torch.Generator().manual_seed(0)
    scores, masks = torch.rand(5, classes, generator=generator), torch.randn(5, 11, 13, generator=generator)
    sums = torch.einsum("qk,qhw->khw", scores, masks.sigmoid())
    with torch.autocast("cpu", torch.bfloat16):
        labels = labels_of_masks(scores, masks)
    assert labels.dtype == (torch.uint8 if classes < 255 else torch.int32) and labels.shape == (11, 13)
    torch.testing.assert_close(sums.gather(0, labels[None].long())[0], sums.amax(0), atol=1e-5, rtol=0)
