"""Bilinear enlargement as one op."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.ops import enlarge

FORMATS = [torch.contiguous_format, torch.channels_last]


def interpolated(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def compiled(maps: Tensor, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    out = enlarge(maps, size)
    monkeypatch.undo()
    return out


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", [(6, 10), (7, 8), (3, 5)])
def test_the_op_is_interpolation_in_values_gradients_and_memory_format(
    size: tuple[int, int], memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = torch.randn(2, 4, 3, 5, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    out, expected = compiled(maps, size, monkeypatch), interpolated(maps, size)
    assert "enlarge" in str(out.grad_fn) and "enlarge" not in str(enlarge(maps, size).grad_fn)
    assert torch.equal(out, expected) and out.is_contiguous(memory_format=memory_format)
    grad = torch.randn_like(expected)
    (found,), (wished,) = (torch.autograd.grad(x, maps, grad) for x in (out, expected))
    torch.testing.assert_close(found, wished)


def test_without_gradients_or_with_deterministic_ones_the_compiler_sees_interpolation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[object] = []
    monkeypatch.setattr(torch.ops.mask2former.enlarge, "default", lambda *args: called.append(args))
    maps = torch.randn(1, 1, 2, 2, requires_grad=True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    enlarge(maps.detach(), (4, 4))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    enlarge(maps, (4, 4))
    assert not called


def test_compiled_code_has_the_op() -> None:
    torch.compiler.reset()
    out = torch.compile(enlarge, backend="eager", fullgraph=True)(torch.randn(1, 2, 3, 3, requires_grad=True), (6, 6))
    assert "enlarge" in str(out.grad_fn)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="PyTorch 2.6 cannot tell")
@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_have_the_ops_of_pytorch(strict: bool) -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return enlarge(self.convolution(x), (6, 6))

    program = torch.export.export(Network(), (torch.randn(1, 2, 3, 3),), strict=strict)
    ops = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert len(ops) == 2 and all(op.startswith("aten.") for op in ops)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_registration(memory_format: torch.memory_format) -> None:
    maps = torch.randn(2, 4, 3, 5).contiguous(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(torch.ops.mask2former.enlarge.default, (maps, [6, 10]))
    grad = torch.randn(2, 4, 6, 10).contiguous(memory_format=memory_format)
    torch.library.opcheck(torch.ops.mask2former.enlarge_backward.default, (grad, list(maps.shape)))


def test_a_second_derivative_is_refused() -> None:
    maps = torch.randn(1, 2, 3, 3, requires_grad=True)
    out = torch.ops.mask2former.enlarge(maps, [6, 6]).square().sum()
    (grad,) = torch.autograd.grad(out, maps, create_graph=True)
    with pytest.raises(RuntimeError, match="MODEL.COMPILE off"):
        grad.sum().backward()
