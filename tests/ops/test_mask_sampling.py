"""Reading of masks at points: by hand, against `grid_sample`, and on every device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.ops import extension, mask_sampling, pytorch_backend, sample_masks

SIZE = (9, 12)
SHAPES = ((9, 12), (4, 7), (1, 1), (8, 3))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not mask_sampling.compiled("cuda"):
        pytest.skip(f"no compiled op for cuda: {extension.EXTENSIONS['cuda'].problem}")
    return request.param


def make(soft: bool, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return masks of several sizes, and their buffer and table."""
    g = torch.Generator().manual_seed(seed)
    masks = [torch.rand(shape, generator=g) for shape in SHAPES]
    if not soft:
        masks = [(mask > 0.5).to(torch.uint8) for mask in masks]
    sizes = torch.tensor(SHAPES).T
    area = sizes.prod(0)
    return masks, torch.cat([mask.flatten() for mask in masks]), torch.stack((area.cumsum(0) - area, *sizes))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("form", ["each", "shared", "rows"])
def test_reading_is_that_of_padded_masks(form: str, soft: bool, kind: str) -> None:
    masks, data, table = make(soft)
    index = torch.tensor([3, 0, 1, 2, 1])
    rows = torch.tensor([2, 0, 1, 1, 2])
    given = {"each": torch.rand(5, 50, 2), "shared": torch.rand(1, 50, 2), "rows": torch.rand(3, 50, 2)}[form]
    arguments = [x.to(kind) for x in (data, table, index, given)]
    found = sample_masks(*arguments, SIZE, rows.to(kind) if form == "rows" else None)
    points = given[rows] if form == "rows" else given.expand(5, -1, -1)
    padded = [F.pad(mask.float(), (0, SIZE[1] - mask.shape[1], 0, SIZE[0] - mask.shape[0])) for mask in masks]
    maps = torch.stack([padded[i] for i in index])[:, None]
    expected = F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_a_value_by_hand(kind: str) -> None:
    """Halfway between four pixels, of which one belongs to the object; and outside."""
    data = torch.tensor([1, 0, 0, 0], dtype=torch.uint8, device=kind)
    table, index = torch.tensor([[0], [2], [2]], device=kind), torch.tensor([0], device=kind)
    points = torch.tensor([[[0.25, 0.25], [0.125, 0.125], [0.0, 0.0], [0.9, 0.9]]], device=kind)
    assert sample_masks(data, table, index, points, (4, 4)).tolist() == [[0.25, 1, 0.25, 0]]


def test_nothing_to_read(kind: str) -> None:
    empty = torch.zeros(0, dtype=torch.uint8, device=kind)
    table = torch.tensor([[0], [0], [5]], device=kind)
    points = torch.rand(1, 4, 2, device=kind)
    assert sample_masks(empty, table, torch.zeros(1, dtype=torch.int64, device=kind), points, (5, 5)).tolist() == [
        [0] * 4
    ]
    no_index = torch.zeros(0, dtype=torch.int64, device=kind)
    assert sample_masks(empty, table, no_index, points, (5, 5)).shape == (0, 4)


@pytest.mark.parametrize("rows", [True, False])
def test_op_in_graphs(rows: bool, kind: str) -> None:
    _, data, table = make(soft=False)
    index = torch.tensor([3, 0])
    arguments = [x.to(kind) for x in (data, table, index, torch.rand(2, 6, 2), index % 2)]
    op = torch.ops.mask2former.sample_masks.default
    results = torch.library.opcheck(op, (*arguments[:4], arguments[4] if rows else None, *SIZE))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.gpu
@pytest.mark.parametrize("soft", [False, True])
def test_numbers_of_a_gpu_are_those_of_pytorch(soft: bool) -> None:
    """Bit for bit, also at points outside."""
    if not mask_sampling.compiled("cuda"):
        pytest.skip(f"no compiled op for cuda: {extension.EXTENSIONS['cuda'].problem}")
    g = torch.Generator().manual_seed(0)
    masks = torch.rand(20, 300, 400, generator=g)
    data = (masks if soft else (masks > 0.5).to(torch.uint8)).flatten().cuda()
    table = torch.stack((torch.arange(20) * 120000, torch.full((20,), 300), torch.full((20,), 400))).cuda()
    index, points = torch.randint(20, (40,), generator=g).cuda(), (torch.rand(40, 5000, 2, generator=g) * 1.5).cuda()
    found = sample_masks(data, table, index, points, (320, 416))
    with pytorch_backend():
        assert torch.equal(found, sample_masks(data, table, index, points, (320, 416)))


@pytest.mark.gpu
def test_a_mask_of_more_values_than_32_bits_count() -> None:
    if not mask_sampling.compiled("cuda"):
        pytest.skip(f"no compiled op for cuda: {extension.EXTENSIONS['cuda'].problem}")
    edge = 46_342  # squared above 2^31
    data = torch.zeros(edge * edge, dtype=torch.uint8, device="cuda")
    data[-1] = 1
    table = torch.tensor([[0], [edge], [edge]], device="cuda")
    index = torch.tensor([0], device="cuda")
    points = torch.tensor([[[1 - 0.5 / edge, 1 - 0.5 / edge], [0.5, 0.5]]], device="cuda")
    found = sample_masks(data, table, index, points, (edge, edge))[0].tolist()
    assert found[0] > 0.9 and found[1] == 0
