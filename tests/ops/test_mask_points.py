"""Points of the mask losses, and the losses there: against their definition, and on every device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.ops import draw_points, extension, mask_points, matching_terms, point_losses, takes_points, takes_terms
from mask2former.ops.mask_points import philox

IMAGE = (36, 48)
MASKS = ((36, 48), (20, 48), (1, 1), (36, 30))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not takes_points(torch.zeros(1, 1, 1, device="cuda")):
        pytest.skip(f"no compiled op for cuda: {extension.EXTENSIONS['cuda'].problem}")
    return request.param


@pytest.fixture
def cuda() -> str:
    if not torch.cuda.is_available() or not takes_points(torch.zeros(1, 1, 1, device="cuda")):
        pytest.skip(f"no compiled op for cuda: {extension.EXTENSIONS['cuda'].problem}")
    return "cuda"


# --- random numbers ---


# Test vectors of the authors (Random123, kat_vectors): counter, key, result.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_random_numbers_are_those_of_the_paper(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    seed = torch.tensor([(key[0] | key[1] << 32) - (key[1] >> 31 << 64)])  # as int64
    found = philox([torch.tensor([word]) for word in counter], seed)
    assert tuple(int(x) for x in found) == expected


# --- drawing ---


def read(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps (M, H, W) bilinearly at points (M, P, 2), zero outside; returns (M, P)."""
    return F.grid_sample(maps[:, None], 2 * points[:, :, None].to(maps) - 1, align_corners=False)[:, 0, :, 0]


def test_the_least_certain_candidates_are_chosen(kind: str) -> None:
    logits = torch.randn(3, 9, 12, generator=torch.Generator().manual_seed(0)).to(kind)
    torch.manual_seed(3)
    everything = draw_points(logits, 90, 90, 90)
    torch.manual_seed(3)
    points = draw_points(logits, 40, 90, 30)
    assert points.shape == (3, 40, 2) and points.min() >= 0 and points.max() < 1
    for map_, candidates, drawn in zip(logits, everything, points):
        certainty = read(map_[None], candidates[None])[0].abs()
        order = certainty.argsort()[:30].sort().values  # in the order in which they were drawn
        assert torch.equal(drawn[:30], candidates[order])
        outside = read(map_[None], drawn[None, 30:])[0].abs()
        assert outside.max() > certainty.sort().values[29]  # the others were not chosen


def test_points_depend_on_the_generator_only(kind: str) -> None:
    logits = torch.randn(2, 6, 7, device=kind)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(draw_points(logits, 20, 60, 15))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][0], drawn[0][1])  # each row has its own
    assert not torch.equal(drawn[0], draw_points(logits, 20, 60, 15))


def test_points_are_uniform(kind: str) -> None:
    points = draw_points(torch.zeros(1, 4, 4, device=kind), 40_000, 40_000, 20_000).cpu()[0]
    for part in (points[:20_000], points[20_000:]):
        counts = torch.histogramdd(part, bins=[10, 10], range=[0.0, 1.0, 0.0, 1.0]).hist
        assert (counts.sum(), counts.min() > 140, counts.max() < 260) == (20_000, True, True)  # 200 +- 4 deviations
    assert torch.corrcoef(points.T)[0, 1].abs() < 0.03


def test_points_inside_regions(kind: str) -> None:
    regions = torch.tensor([[0.1, 0.2, 0.15, 0.25], [0.5, 0.6, 0.9, 0.7]], device=kind)
    points = draw_points(torch.randn(2, 5, 5, device=kind), 30, 40, 10, regions, 12)
    low, high = regions[:, None].chunk(2, -1)
    assert ((points[:, 10:22] >= low) & (points[:, 10:22] <= high)).all()
    assert not ((points[:, 22:] >= low) & (points[:, 22:] <= high)).all()


def test_no_masks(kind: str) -> None:
    assert draw_points(torch.zeros(0, 5, 5, device=kind), 8, 24, 6).shape == (0, 8, 2)


@pytest.mark.parametrize("numbers", [(8, 4, 5), (8, 20, 9), (8, 20, -1)])
def test_numbers_that_do_not_fit(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot choose"):
        draw_points(torch.zeros(1, 2, 2), *numbers)
    with pytest.raises(ValueError, match="3 inside regions"):
        draw_points(torch.zeros(1, 2, 2), 8, 20, 6, torch.zeros(1, 4), 3)


def test_broken_logits_of_a_row_do_not_reach_others(kind: str) -> None:
    logits = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(0)).to(kind)
    drawn = []
    for value in (0.0, torch.nan, torch.inf):
        logits[0, 0, 0] = value
        torch.manual_seed(1)
        drawn.append(draw_points(logits, 60, 100, 60))
    assert torch.equal(drawn[0][1:], drawn[1][1:]) and torch.equal(drawn[0][1:], drawn[2][1:])
    assert not torch.equal(drawn[0][0], drawn[1][0])


MAPS = {
    "random": lambda g: torch.randn(4, 23, 31, generator=g),
    "as large as in trainings": lambda g: torch.randn(2, 256, 256, generator=g),
    "constant": lambda g: torch.full((3, 8, 8), -2.5),
    "zero": lambda g: torch.zeros(2, 8, 8),
    "two values": lambda g: (torch.rand(3, 16, 16, generator=g) > 0.5).float() * 1000 - 7,
    "not finite": lambda g: torch.where(torch.rand(3, 9, 9, generator=g) > 0.7, torch.nan, torch.rand(3, 9, 9) * 1e38),
    "not finite, from the first on": lambda g: torch.where(torch.arange(243).view(3, 9, 9) % 5 > 0, 1.0, -torch.inf),
    "tiny": lambda g: torch.randn(3, 9, 9, generator=g) * 1e-40,
    "one pixel": lambda g: torch.randn(5, 1, 1, generator=g),
}
NUMBERS = [(12544, 37632, 9408), (50, 151, 37), (7, 7, 7), (9, 30, 0), (2000, 150_000, 1500), (1, 3, 1)]


@pytest.mark.gpu
@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_the_kernel_draws_what_the_code_in_pytorch_draws(name: str, numbers: tuple[int, int, int], cuda: str) -> None:
    """Counts that fit into a block's memory, with a map or without, and that do not; equal and broken logits."""
    logits = MAPS[name](torch.Generator().manual_seed(0))
    regions = torch.tensor([[0.25, 0.1, 0.5, 0.9]]).expand(len(logits), -1)
    points, candidates, important = numbers
    arguments = (points, candidates, important, (points - important) // 2)
    seed = torch.tensor([-(2**62) - 12345])
    expected = mask_points._draw(logits.to(cuda), seed.to(cuda), regions.to(cuda), *arguments)
    found = torch.ops.mask2former.draw_points(logits.to(cuda), seed.to(cuda), regions.to(cuda), *arguments)
    assert torch.equal(found, expected)


# --- losses ---


def make(soft: bool = False, rows: int = 5) -> tuple[Tensor, ...]:
    """Return logits, points, some of them outside, and masks: data, table, index."""
    g = torch.Generator().manual_seed(0)
    masks = [torch.rand(shape, generator=g) for shape in MASKS]
    data = torch.cat([mask.flatten() if soft else (mask > 0.5).to(torch.uint8).flatten() for mask in masks])
    sizes = torch.tensor(MASKS).T
    area = sizes.prod(0)
    table = torch.stack((area.cumsum(0) - area, *sizes))
    index = torch.tensor([3, 0, 1, 2, 1])[:rows]
    points = torch.rand(rows, 200, 2, generator=g) * 1.2 - 0.1
    return 3 * torch.randn(rows, 9, 12, generator=g), points, data, table, index


def by_definition(logits: Tensor, points: Tensor, data: Tensor, table: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Compute both losses in fp64 with PyTorch's functions."""
    masks = [data[start : start + h * w].view(h, w).double() for start, h, w in table.T.tolist()]
    padded = torch.stack([F.pad(m, (0, IMAGE[1] - m.shape[1], 0, IMAGE[0] - m.shape[0])) for m in masks])
    x, t = read(logits, points), read(padded[index], points)
    p = x.sigmoid()
    dice = 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    return F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1), dice


@pytest.mark.parametrize("soft", [False, True])
def test_losses_and_gradients_are_those_of_the_definition(soft: bool, kind: str) -> None:
    logits, *rest = make(soft)
    exact = logits.double().requires_grad_()
    expected = by_definition(exact, *rest)
    scales = torch.rand(2, 5, generator=torch.Generator().manual_seed(1)).double()
    (wanted,) = torch.autograd.grad((torch.stack(expected) * scales).sum(), exact)
    given = logits.to(kind).requires_grad_()
    found = point_losses(given, *(x.to(kind) for x in rest), IMAGE)
    (grad,) = torch.autograd.grad((torch.stack(found) * scales.to(kind)).sum(), given)
    for name, one, other in zip(("cross-entropy", "dice", "gradient"), (*found, grad), (*expected, wanted)):
        torch.testing.assert_close(one.double().cpu(), other, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: name + m)


@pytest.mark.parametrize("value", [200.0, -200.0])
def test_large_logits_have_finite_losses(value: float, kind: str) -> None:
    _, *rest = make()
    logits = torch.full((5, 9, 12), value, device=kind, requires_grad=True)
    losses = point_losses(logits, *(x.to(kind) for x in rest), IMAGE)
    (grad,) = torch.autograd.grad(torch.stack(losses).sum(), logits)
    assert torch.stack(losses).isfinite().all() and grad.isfinite().all()
    expected = torch.stack(by_definition(logits.detach().cpu().double(), *rest))
    torch.testing.assert_close(torch.stack(losses).detach().cpu().double(), expected, atol=1e-5, rtol=1e-5)


def test_broken_logits_have_gradients_at_their_points_only(kind: str) -> None:
    _, _, data, table, index = (x.to(kind) for x in make())
    logits = torch.zeros(5, 9, 12, device=kind)
    logits[:, 8, 11] = torch.nan
    logits.requires_grad_()
    points = torch.full((5, 10, 2), 0.999, device=kind)  # partly outside the map
    entropy, dice = point_losses(logits, points, data, table, index, IMAGE)
    (grad,) = torch.autograd.grad((entropy + dice).sum(), logits)
    assert grad[:, 8, 11].isnan().all() and not grad[:, 0].any()


def test_no_rows(kind: str) -> None:
    arguments = [x.to(kind) for x in make(rows=0)]
    logits = arguments[0].requires_grad_()
    losses = point_losses(*arguments, IMAGE)
    (grad,) = torch.autograd.grad(torch.stack(losses).sum(), logits)
    assert losses[0].shape == losses[1].shape == (0,) and grad.shape == logits.shape


def test_memory_that_is_not_contiguous(kind: str) -> None:
    logits, points, data, table, index = (x.to(kind) for x in make())
    expected = point_losses(logits, points, data, table, index, IMAGE)
    turned = logits.transpose(1, 2).contiguous().transpose(1, 2)
    shifted = torch.cat((points.new_zeros(1), points.flatten()))[1:].view_as(points)  # not where two floats start
    found = point_losses(turned, shifted, data, table.T.contiguous().T, index, IMAGE)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))


def test_ops_in_graphs(kind: str) -> None:
    logits, *rest = (x.to(kind) for x in make())
    logits.requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    compare = torch.ops.mask2former.point_losses.default
    results = torch.library.opcheck(compare, (logits, *rest, *IMAGE), test_utils=tests)
    assert set(results.values()) == {"SUCCESS"}
    draw = torch.ops.mask2former.draw_points.default
    seed = torch.tensor([5], device=kind)
    results = torch.library.opcheck(draw, (logits.detach(), seed, None, 8, 24, 6, 0))
    assert set(results.values()) == {"SUCCESS"}


def test_there_are_no_second_derivatives(kind: str) -> None:
    arguments = [x.to(kind) for x in make()]
    logits = arguments[0].requires_grad_()
    losses = point_losses(*arguments, IMAGE)
    (grad,) = torch.autograd.grad(torch.stack(losses).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grad.sum().backward()


# --- matching ---


@pytest.mark.parametrize("points", [64, 33, 0])
def test_terms_of_matching(points: int, kind: str) -> None:
    logits = (4 * torch.randn(2, 3, points, generator=torch.Generator().manual_seed(0))).to(kind)
    terms, sums = matching_terms(logits)
    assert terms.shape == (2, 3, 2, 2 * points) and terms.dtype == torch.bfloat16 and sums.shape == (2, 3, 2)
    both = torch.stack((logits, logits.sigmoid()), 2)
    upper, lower = terms.float().split(points, 3) if points else (both, torch.zeros_like(both))
    torch.testing.assert_close(upper + lower, both, rtol=2**-16, atol=1e-7)
    torch.testing.assert_close(sums, torch.stack((F.softplus(logits).sum(2), logits.sigmoid().sum(2)), 2))
    assert set(torch.library.opcheck(torch.ops.mask2former.matching_terms.default, (logits,)).values()) == {"SUCCESS"}


@pytest.mark.gpu
def test_many_rows_and_large_maps(cuda: str) -> None:
    """As in a training on 1024 x 1024 pixels: the kernel against the code in PyTorch."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 256, 256, generator=g).to(cuda).requires_grad_()
    data = (torch.rand(3, 1024, 1024, generator=g) > 0.5).to(torch.uint8).flatten().to(cuda)
    table = torch.tensor([[0, 1024**2, 2 * 1024**2], [1024] * 3, [1024] * 3], device=cuda)
    index = torch.arange(60, device=cuda) % 3
    points = draw_points(logits, 12544, 37632, 9408)
    results = []
    for compare in (torch.ops.mask2former.point_losses, mask_points._compare):
        entropy, dice, _ = compare(logits, points, data, table, index, 1024, 1024)
        (grad,) = torch.autograd.grad((entropy + 2 * dice).sum(), logits)
        results.append((entropy, dice, grad))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.gpu
def test_work_is_queued_on_the_current_stream(cuda: str) -> None:
    arguments = [x.to(cuda) for x in make()]
    expected = torch.stack(point_losses(*arguments, IMAGE))
    late = torch.zeros_like(arguments[0])
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)  # work on another stream would see the zeros
        late.copy_(arguments[0])
        found = torch.stack(point_losses(late, *arguments[1:], IMAGE))
    torch.cuda.synchronize()
    torch.testing.assert_close(found, expected)


def step(logits: Tensor, data: Tensor, table: Tensor, index: Tensor) -> list[Tensor]:
    """Return points that are drawn, the losses there, and the gradient of their sum."""
    points = draw_points(logits.detach(), 200, 600, 150)
    losses = torch.stack(point_losses(logits, points, data, table, index, IMAGE))
    return [points, losses.detach(), *torch.autograd.grad(losses.sum(), logits)]


@pytest.mark.gpu
def test_cuda_graph(cuda: str) -> None:
    logits, _, *masks = (x.to(cuda) for x in make())
    logits.requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(logits, *masks)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(logits, *masks)
    drawn = []
    for _ in range(2):
        graph.replay()
        drawn.append(found[0].clone())
        expected = torch.stack(point_losses(logits, drawn[-1], *masks, IMAGE))
        (grad,) = torch.autograd.grad(expected.sum(), logits)
        torch.testing.assert_close(found[1:], [expected.detach(), grad])
    assert not torch.equal(*drawn)  # each replay has numbers of its own


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_gpu(cuda: str) -> None:
    assert torch.cuda.current_device() == 0
    results = []
    for device in ("cuda:0", "cuda:1"):
        torch.manual_seed(1)
        logits, _, *masks = (x.to(device) for x in make())
        results.append([x.cpu() for x in step(logits.requires_grad_(), *masks)])
    torch.testing.assert_close(*results)


@pytest.mark.gpu
def test_draws_of_two_threads(cuda: str) -> None:
    """They need memory of different sizes from blocks of the same kernel."""

    def draw(candidates: int) -> None:
        logits = torch.zeros(1, 4, 4, device=cuda)
        for _ in range(3000):
            draw_points(logits, 8, candidates, 6)
        torch.cuda.synchronize()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(draw, (8, 60_000)))


def test_who_takes_the_kernels(kind: str) -> None:
    logits = torch.zeros(1, 2, 2, device=kind)
    assert takes_points(logits) == takes_terms(logits) == (kind == "cuda")
    assert not takes_points(logits.double()) and not takes_terms(logits.double())
    torch.use_deterministic_algorithms(True)
    try:
        assert not takes_points(logits) and not takes_terms(logits)
    finally:
        torch.use_deterministic_algorithms(False)


def test_terms_of_clips_have_no_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """12,544 points in each of several frames; maps of masks are narrower."""
    monkeypatch.setattr(mask_points, "backend", lambda _: "compiled")
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: True)
    logits: Any = SimpleNamespace(is_cuda=True, dtype=torch.float32, shape=(1, 9, 5 * 12544))
    assert takes_terms(logits) and not takes_points(logits)
    logits.shape = (1, 9, 2**14)
    assert takes_points(logits)
