"""The cache of tensors that depend on a shape."""

from __future__ import annotations

import copy

import torch

from mask2former.modeling.shape_cache import ShapeCache


def test_keeps_the_last_used() -> None:
    cache: ShapeCache[torch.Tensor] = ShapeCache(entries=2)
    made: list[int] = []

    def get(key: int) -> torch.Tensor:
        return cache(key, lambda: made.append(key) or torch.tensor(key))  # type: ignore[func-returns-value]

    for key in (1, 2, 1, 3, 1, 2):
        assert int(get(key)) == key
    assert made == [1, 2, 3, 2]  # 3 pushed 2 out, because 1 had been used since


def test_copies_start_empty() -> None:
    cache: ShapeCache[int] = ShapeCache(entries=3)
    cache("a", lambda: 1)
    for other in (copy.deepcopy(cache), copy.copy(cache)):
        assert other.entries == 3 and other("a", lambda: 2) == 2


def test_made_in_inference_mode_serves_training() -> None:
    cache: ShapeCache[torch.Tensor] = ShapeCache()
    with torch.inference_mode():
        cache("a", lambda: torch.ones(2))
    weight = torch.ones(2, requires_grad=True)
    (weight * cache("a", lambda: torch.zeros(2))).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [1, 1]
