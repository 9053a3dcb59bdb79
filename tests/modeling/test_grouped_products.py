"""Products of vectors with the maps of their images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mask2former.modeling.grouped_products import products


def one_by_one(rows: Tensor, maps: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return torch.cat([row @ image for row, image in zip(rows.split(sizes), maps, strict=True)])


@pytest.mark.parametrize("sizes", [(2, 0, 3), (2, 2, 2), (0, 0, 0), (0, 0, 4)])
def test_products_and_their_gradients(sizes: tuple[int, ...]) -> None:
    rows = torch.randn(sum(sizes), 4, dtype=torch.float64, requires_grad=True)
    maps = torch.randn(len(sizes), 4, 6, dtype=torch.float64, requires_grad=True)
    found, expected = products(rows, maps, sizes), one_by_one(rows, maps, sizes)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(found)
    for a, b in zip(*(torch.autograd.grad(out, (rows, maps), grad) for out in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_one_input_alone() -> None:
    rows, maps = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, 6, requires_grad=True)
    for wanted, given in ((rows, (rows, maps.detach())), (maps, (rows.detach(), maps))):
        grads = [torch.autograd.grad(form(*given, (1, 2)).square().sum(), wanted)[0] for form in (products, one_by_one)]
        torch.testing.assert_close(*grads)
