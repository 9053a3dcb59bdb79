"""The devices that the tests of the op run on. A test skips where the compiled kernels for its device are missing."""

from __future__ import annotations

import pytest

from mask2former.ops import backend, extension


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Return the CPU, and a GPU where there is one."""
    return compiled(request.param)


@pytest.fixture(scope="session")
def cpu() -> str:
    return compiled("cpu")


@pytest.fixture(scope="session")
def cuda() -> str:
    return compiled("cuda")


def compiled(kind: str) -> str:
    if not extension.loaded(kind):
        pytest.skip(f"no compiled op for {kind}: {extension.EXTENSIONS[kind].problem}; `make ops` builds it")
    if backend(kind) != "compiled":
        pytest.skip("MASK2FORMER_OPS_BACKEND switches the compiled op off")
    return kind
