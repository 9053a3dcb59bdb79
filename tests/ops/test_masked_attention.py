"""Masked attention and its mask: the default kernels on the CPU, the compiled ones on a GPU, against plain float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mask2former.modeling.transformer_decoder.layers import Attention
from mask2former.ops import blocked_keys, masked_attention, pytorch_backend
from mask2former.ops.masked_attention import has_kernel, open_empty

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
TOLERANCE = {BF16: 1.6e-2, F16: 2e-3, F32: 1e-5, F64: 1e-12}
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def formula(query: Tensor, key: Tensor, value: Tensor, blocked: Tensor) -> Tensor:
    """Masked attention in float64, one query after another."""
    query, key, value = query.double(), key.double(), value.double()
    mask = blocked.reshape(len(query), 1, query.shape[2], -1)
    mask = mask.masked_fill(mask.all(-1, keepdim=True), False)
    logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
    weights = logits.masked_fill(mask, -math.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def make(
    batch: int,
    queries: int,
    keys: int,
    dtype: torch.dtype = F32,
    heads: int = 8,
    channels: int = 32,
    density: float = 0.3,
    layout: str = "BSC",
    device: str = "cpu",
    seed: int = 0,
) -> Inputs:
    """Views of projections stored as (B, S, C) or (S, B, C), and a mask with some rows without open keys."""
    rng = torch.Generator(device).manual_seed(seed)

    def heads_of(rows: int, spread: float) -> Tensor:
        shape = (batch, rows) if layout == "BSC" else (rows, batch)
        x = (torch.randn(*shape, heads * channels, generator=rng, device=device) * spread).to(dtype)
        x = x.unflatten(-1, (heads, channels))
        return x.transpose(1, 2) if layout == "BSC" else x.permute(1, 2, 0, 3)

    query, key, value = heads_of(queries, 2.0), heads_of(keys, 2.0), heads_of(keys, 1.0)
    blocked = torch.rand(batch, queries, keys, generator=rng, device=device) >= density
    blocked |= torch.rand(batch, queries, 1, generator=rng, device=device) < 0.2
    return query, key, value, blocked


def check(inputs: Inputs) -> Tensor:
    query = inputs[0]
    out = masked_attention(*inputs)
    assert out.shape == (query.shape[0], query.shape[2], query.shape[1] * query.shape[3])
    assert out.is_contiguous() and out.dtype == query.dtype
    expected = formula(*inputs)
    scale = float(expected.abs().max())
    assert float((out.double() - expected).abs().max()) <= TOLERANCE[query.dtype] * max(scale, 1.0)
    return out


# --- default kernels ---


@pytest.mark.parametrize("layout", ["BSC", "SBC"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
def test_default_kernel(dtype: torch.dtype, layout: str) -> None:
    check(make(2, 5, 70, dtype, heads=3, layout=layout))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 40), st.integers(1, 3), st.integers(1, 9), st.floats(0, 1),
    st.integers(0, 99),
)  # fmt: skip
def test_any_sizes(batch: int, queries: int, keys: int, heads: int, channels: int, density: float, seed: int) -> None:
    check(make(batch, queries, keys, F64, heads, channels, density, seed=seed))


def test_query_without_open_keys_attends_everywhere() -> None:
    query, key, value, blocked = make(1, 3, 20, F64, heads=2)
    blocked[0, 1] = True
    blocked[0, 2] = False
    out = masked_attention(query, key, value, blocked)
    query[:, :, 2] = query[:, :, 1]
    same = masked_attention(query, key, value, blocked)
    torch.testing.assert_close(same[0, 2], out[0, 1])
    one_for_all_heads = masked_attention(query, key, value, blocked[:, None])
    assert torch.equal(one_for_all_heads, same)


def test_gradients_where_they_are_asked_for() -> None:
    *leaves, blocked = make(1, 2, 5, F64, heads=1, channels=3)
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(lambda q, k, v: masked_attention(q, k, v, blocked), leaves)
    with pytest.raises(RuntimeError, match="has no gradients"):
        torch.ops.mask2former.masked_attention(*leaves, blocked).sum().backward()


def test_registration() -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.mask2former.masked_attention.default, make(2, 3, 7, heads=2), test_utils=tests)
    torch.library.opcheck(torch.ops.mask2former.blocked_keys.default, (torch.randn(2, 3, 7),), test_utils=tests)


def test_mask() -> None:
    logits = torch.randn(2, 3, 50)
    logits[0, 1] = -1.0  # an empty mask
    logits[1, 2, :4] = torch.tensor([-1e-9, 0.0, -0.0, -1e-6])  # the sigmoid of the first three is 0.5
    blocked = blocked_keys(logits)
    assert torch.equal(blocked, open_empty(logits.sigmoid() < 0.5))
    assert not blocked[0, 1].any() and blocked[1, 2, :4].tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("name", "index", "change"),
    [
        ("query", 0, lambda x: x[0]),
        ("key", 1, lambda x: x[..., :31]),
        ("key", 1, lambda x: x[:, :, :0]),
        ("value", 2, lambda x: x[:, :, :4]),
        ("value", 2, lambda x: x.double()),
        ("blocked", 3, lambda x: x.float()),
        ("blocked", 3, lambda x: x[:, :2]),
        ("blocked", 3, lambda x: x[:, None].expand(-1, 2, -1, -1)),
    ],
)
def test_error_names_the_argument(name: str, index: int, change: object) -> None:
    inputs = list(make(2, 3, 7, heads=2))
    inputs[index] = change(inputs[index])  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"^{name} (must|is)"):
        masked_attention(*inputs)


# --- CUDA ---


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("queries", [1, 16, 100, 200, 300])
@pytest.mark.parametrize("keys", [1, 7, 63, 64, 1050, 4200, 16800])
def test_kernel(keys: int, queries: int, dtype: torch.dtype, cuda: str) -> None:
    for batch in (1, 3):
        for density, layout in ((0.5, "BSC"), (0.02, "SBC"), (0.001, "BSC"), (1.0, "SBC")):
            inputs = make(batch, queries, keys, dtype, density=density, layout=layout, device=cuda)
            assert has_kernel(*inputs[:3])
            check(inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("keys", [65, 1050, 2048])
def test_kernel_takes_any_strides(keys: int, cuda: str) -> None:
    inputs = make(2, 20, keys, BF16, device=cuda)
    expected = masked_attention(*inputs)
    query, key, value, blocked = inputs

    def moved(x: Tensor, by: int) -> Tensor:
        """The same numbers, rows one element or more apart and not where 16 bytes start."""
        wide = x.new_zeros(*x.shape[:-1], x.shape[-1] + by + 1)
        wide[..., by:-1] = x
        return wide[..., by:-1]

    for by in (1, 3, 8, 15, 16):
        assert torch.equal(masked_attention(query, key, value, moved(blocked, by)), expected), by
    assert torch.equal(masked_attention(moved(query, 1), moved(key, 3), moved(value, 7), blocked[:, None]), expected)
    across = value.transpose(2, 3).contiguous().transpose(2, 3), blocked.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(masked_attention(query, key, *across), expected)
    same = blocked[:1].expand(2, -1, -1)
    assert torch.equal(masked_attention(query, key, value, same), masked_attention(query, key, value, same.clone()))


@pytest.mark.gpu
def test_open_keys_in_one_place_only(cuda: str) -> None:
    """The first open key comes late, alone, and has the smallest logit: nothing of the keys before it may remain."""
    query, key, value, blocked = make(1, 100, 16800, BF16, device=cuda)
    blocked[:] = True
    for n in range(100):
        blocked[0, n, (n * 168 + 77) % 16800] = False
    key[0, :, :64] *= 8.0
    check((query, key, value, blocked))
    blocked[0, 3::7] = True
    check((query, key, value, blocked))


@pytest.mark.gpu
@pytest.mark.parametrize("keys", [1050, 16800])
def test_kernel_is_deterministic_and_runs_in_a_graph(keys: int, cuda: str) -> None:
    static = make(2, 100, keys, BF16, device=cuda)
    first = masked_attention(*static)
    assert all(torch.equal(masked_attention(*static), first) for _ in range(10))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = masked_attention(*static)
        for _ in range(3):  # kernels of several calls behind one another
            out = masked_attention(*static)
    for seed in (1, 2):
        fresh = make(2, 100, keys, BF16, device=cuda, seed=seed)
        for to, new in zip(static, fresh, strict=True):
            to.copy_(new)
        graph.replay()
        assert torch.equal(out, masked_attention(*fresh))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 100, 16800), (3, 5, 1050), (2, 3, 7), (1, 1, 1), (2, 100, 4200)])
def test_mask_kernel(shape: tuple[int, ...], cuda: str) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(cuda)
    logits[:, ::3] = -logits[:, ::3].abs() - 1e-3  # empty masks
    logits.view(-1)[::5] *= 1e-8
    assert torch.equal(blocked_keys(logits), open_empty(logits.sigmoid() < 0.5))
    assert torch.equal(blocked_keys(logits[..., 1:]), open_empty(logits[..., 1:].sigmoid() < 0.5))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_attention_module(dtype: torch.dtype, cuda: str) -> None:
    """The module gives what it gives without the kernel, in the same layout."""
    torch.manual_seed(0)
    attention = Attention(256, 8).to(cuda, dtype).eval()
    query, memory = (torch.randn(n, 2, 256, device=cuda).to(dtype) for n in (100, 1050))
    memory_first = memory.transpose(0, 1).contiguous().transpose(0, 1)  # stored as (B, S, C)
    blocked = open_empty(torch.rand(2, 1, 100, 1050, device=cuda) < 0.7)
    with torch.inference_mode():
        for keys in (memory, memory_first):
            out, _ = attention(query, keys, keys, attn_mask=blocked)
            with pytorch_backend():
                expected, _ = attention(query, keys, keys, attn_mask=blocked)
            torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    attention(query, memory, memory, attn_mask=blocked)[0].sum().backward()  # with gradients: another way
    assert attention.in_proj_weight.grad is not None
