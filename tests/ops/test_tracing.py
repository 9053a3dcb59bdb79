"""What PyTorch does with the code that runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mask2former.ops.tracing import is_exporting


class Told(nn.Module):
    """Adds 1 where it is exported, 2 otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (1 if is_exporting() else 2)


def test_code_that_runs_or_is_compiled_is_not_exported() -> None:
    torch.compiler.reset()
    x = torch.zeros(2)
    assert Told()(x).tolist() == [2, 2]
    assert torch.compile(Told(), backend="eager", fullgraph=True)(x).tolist() == [2, 2]


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="PyTorch 2.6 cannot tell")
@pytest.mark.parametrize("strict", [False, True])
def test_exported_code(strict: bool) -> None:
    program = torch.export.export(Told(), (torch.zeros(2),), strict=strict)
    assert program.module()(torch.zeros(2)).tolist() == [1, 1]
