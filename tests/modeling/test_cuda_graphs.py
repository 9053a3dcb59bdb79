"""How graphs of several shapes, streams and devices get along, on a CPU that plays a GPU."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from mask2former.modeling import training_graphs
from mask2former.modeling.cuda_graphs import GraphCache, Outputs


class Event:
    recorded_on: Stream | None = None

    def record(self, stream: Stream) -> None:
        self.recorded_on = stream


class Stream:
    def __init__(self, device: Any = "the current one") -> None:
        self.device = device
        self.waited_for: list[Stream | None] = []

    def wait_event(self, event: Event) -> None:
        self.waited_for.append(event.recorded_on)

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


class Gpu:
    """The functions of `torch.cuda` that captures use."""

    def __init__(self) -> None:
        self.current = Stream(torch.device("cpu"))
        self.captures: list[tuple[Any, Any, Any]] = []  # pool, stream, current device
        self.on: Any = None
        self.ends_with: Exception | None = None  # the error of PyTorch where it ends a capture that failed

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.on = self.on, device
        yield
        self.on = before

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph: Any, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
        self.captures.append((pool, stream, self.on))
        before, self.current = self.current, stream
        try:
            yield
        except Exception:
            if self.ends_with is not None:
                raise self.ends_with  # noqa: B904 - as PyTorch does
            raise
        self.current = before  # PyTorch, too, does not get here when a capture fails


class Graph:
    def replay(self) -> None:
        pass

    def pool(self) -> object:
        return "pool of its own"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: gpu.current)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *_: None, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *_: None, raising=False)
    return gpu


def double(images: Tensor) -> Outputs:
    return {"x": 2 * images}


SMALL, LARGE = torch.ones(1, 3, 4, 4), torch.ones(1, 3, 8, 8)


def test_captures_are_on_the_device_of_the_images_and_share_memory(gpu: Gpu) -> None:
    cache = GraphCache(after=1)
    for images in (SMALL, LARGE):
        cache("key", double, images)
    (pool, stream, device), second = gpu.captures
    assert second == (pool, stream, device) and pool is not None  # activations of one stream only share memory
    assert stream.device == device == SMALL.device
    cache.clear()
    cache("key", double, SMALL)
    assert gpu.captures[2][0] is not pool and gpu.captures[2][1] is stream
    GraphCache(after=1)("key", double, SMALL)
    assert gpu.captures[3][0] is not pool and gpu.captures[3][1] is not stream


def test_a_graph_waits_for_the_one_before_in_the_same_memory(gpu: Gpu) -> None:
    cache = GraphCache(after=1)
    for images in (SMALL, LARGE):
        cache("key", double, images)
    streams = [Stream(), Stream()]
    for stream, images in zip(streams, (SMALL, LARGE), strict=True):
        with gpu.stream(stream):
            cache("key", double, images)
    assert streams[1].waited_for == [streams[0]]


def test_a_failed_capture_leaves_the_current_stream(gpu: Gpu) -> None:
    def wait(images: Tensor) -> Outputs:
        if gpu.captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        return double(images)

    before = gpu.current
    with pytest.raises(RuntimeError, match="not permitted"):
        GraphCache(after=1)("key", wait, SMALL)
    assert gpu.current is before


@pytest.mark.parametrize("cause", [RuntimeError("not permitted"), torch.OutOfMemoryError("out of memory")])
def test_the_error_of_a_capture_is_what_went_wrong_in_it(cause: Exception, gpu: Gpu) -> None:
    def fail(images: Tensor) -> Outputs:
        if gpu.captures:
            raise cause
        return double(images)

    gpu.ends_with = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    with pytest.raises(type(cause)) as raised:
        GraphCache(after=1)("key", fail, SMALL)
    assert raised.value is cause


@pytest.mark.parametrize(
    ("version", "name", "ended", "expected"),
    [
        ("2.11.0", "_cuda_endAllocateToPool", False, ["end", "release"]),
        ("2.6.0", "_cuda_endAllocateCurrentStreamToPool", False, ["end", "release"]),
        ("2.11.0", "_cuda_endAllocateToPool", True, []),
        ("2.13.0", "_cuda_endAllocateToPool", False, []),  # PyTorch ends and releases it
    ],
)
def test_a_failed_capture_is_over_for_the_allocator(
    version: str, name: str, ended: bool, expected: list[str], gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, Any]] = []

    def end(device: int | None, pool: Any) -> None:
        if ended:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        assert len(gpu.captures) == 1  # before the next one begins
        done.append(("end", pool))

    def fail(images: Tensor) -> Outputs:
        if gpu.captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        return double(images)

    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    monkeypatch.setattr(torch._C, name, end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda _, pool: done.append(("release", pool)))
    GraphCache(after=1)("key", double, SMALL)
    assert not done
    gpu.captures.clear()
    with pytest.raises(RuntimeError, match="not permitted"):
        GraphCache(after=1)("key", fail, SMALL)
    assert done == [(what, gpu.captures[0][0]) for what in expected]


@pytest.mark.gpu
def test_cached_memory_is_given_back_after_a_failed_capture() -> None:
    with pytest.raises(RuntimeError):
        GraphCache(after=1)("key", lambda x: {"x": x * float(x.sum())}, SMALL.cuda())
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    reserved = torch.cuda.memory_reserved()
    del held
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved - 2**28
    doubled = GraphCache(after=1)("key", double, SMALL.cuda())
    assert doubled is not None and torch.equal(doubled["x"].cpu(), 2 * SMALL)


def test_buffers_are_restored_on_the_stream_of_the_training(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stream of a capture that failed, the next step would not wait for them, and reuse the memory of copies."""
    module = torch.nn.Conv2d(3, 1, 1)
    streams: list[Stream] = []

    @contextlib.contextmanager
    def unchanged(*_: Any) -> Iterator[None]:
        try:
            yield
        finally:
            streams.append(gpu.current)

    def network(inputs: Sequence[Tensor]) -> Outputs:
        if gpu.captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        return {"x": module(inputs[0])}

    monkeypatch.setattr(training_graphs, "_unchanged", unchanged)
    before = gpu.current
    with pytest.raises(RuntimeError, match="not permitted"):
        training_graphs.TrainingGraphs(after=1)("key", network, [module], [SMALL])
    assert streams == [before] and gpu.current is before


def test_threads_capture_one_after_another(gpu: Gpu) -> None:
    """As with the graphs of a network and of results, which are different caches of one model."""
    other = GraphCache(after=1)
    begun = threading.Event()
    capturing: list[str] = []

    def first(images: Tensor) -> Outputs:
        if gpu.captures:  # not in the runs before
            thread.start()
            assert begun.wait(10)
            thread.join(0.2)
            assert capturing == []
        return double(images)

    def second(images: Tensor) -> Outputs:
        begun.set()
        if len(gpu.captures) > 1:
            capturing.append("second")
        return double(images)

    thread = threading.Thread(target=lambda: other("key", second, SMALL))
    GraphCache(after=1)("key", first, SMALL)
    thread.join(10)
    assert capturing == ["second"]
