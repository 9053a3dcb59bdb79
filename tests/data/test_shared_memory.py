from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mask2former.data.shared_memory import shared_zeros


class Masks(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[torch.Tensor, bool]:
        masks = shared_zeros((2, 3, 5), torch.bool)
        masks.numpy()[index, 1:, index] = True
        return masks, masks.is_shared()


def test_a_worker_takes_shared_memory() -> None:
    for workers in (0, 1):
        for index, (masks, shared) in enumerate(DataLoader(Masks(), None, num_workers=workers)):
            expected = np.zeros((2, 3, 5), bool)
            expected[index, 1:, index] = True
            np.testing.assert_array_equal(masks.numpy(), expected)
            assert masks.is_contiguous() and shared == bool(workers)


def test_nothing_to_hold() -> None:
    empty = shared_zeros((0, 3, 5), torch.bool)
    assert empty.shape == (0, 3, 5) and empty.dtype == torch.bool
    assert shared_zeros((3, 2), torch.uint8).tolist() == [[0, 0]] * 3
