"""CUDA graphs of a function of tensors, one for each shape: its kernels are launched at once, without Python.

A captured graph runs the same kernels on the same memory. What it reads must therefore stay where it is: graphs hold
references to all that, and their owner says when the function has changed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import Tensor

from .shape_cache import holding

logger = logging.getLogger(__name__)

Outputs = dict[str, Tensor]
_Key = tuple[tuple[tuple[torch.Size, torch.dtype], ...], Hashable, torch.device]
_WARM_UP = 2  # runs before the capture: libraries choose their kernels in them, and compiled code is made
_CAPTURE = threading.RLock()  # of the capture that is under way in this process


class GraphMemory:
    """What graphs of a device share that run one after another: memory, and the end of the run before.

    Args:
        stream: of their captures. That of `torch.cuda.graph`, which all of a process share, lies on the device that was
            current at the first capture of the process: on any other device it captures nothing.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream
        self.done = torch.cuda.Event()
        self.renew()

    def renew(self) -> None:
        """Let later captures take other memory; that of before is free when its graphs are gone."""
        self.pool = torch.cuda.graph_pool_handle()


class CapturedFunction:
    """A CUDA graph of `function(*inputs)`.

    Args:
        function: maps tensors to a dictionary of tensors, on their device, without waiting for the device.
        inputs: an example; other ones must have its shapes and types.
        memory: of the graphs that never run at the same time as this one.
    """

    def __init__(self, function: Callable[..., Outputs], inputs: Sequence[Tensor], memory: GraphMemory) -> None:
        self._held: list[object] = [function]  # what the graph reads, besides its own memory
        self._memory = memory
        device = inputs[0].device
        current = torch.cuda.current_stream(device)
        # Tensors of inference mode cannot be written outside of it, where the next call may come from.
        with torch.cuda.device(device), torch.inference_mode(False), torch.no_grad():
            self._inputs = [torch.empty_like(x).copy_(x) for x in inputs]
            stream = torch.cuda.Stream(device)
            stream.wait_stream(current)
            stream.wait_event(memory.done)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    function(*self._inputs)
            current.wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            try:
                with holding(self._held), capturing(self._graph, memory):
                    self._outputs = function(*self._inputs)
            except Exception:
                capture_nothing(device, memory.stream)
                raise

    def __call__(self, inputs: Sequence[Tensor]) -> Outputs:
        """Return the outputs for inputs; later calls do not change them. Threads must take turns."""
        device = inputs[0].device
        stream = torch.cuda.current_stream(device)
        # Of the last run in this memory, also of another graph, which may have been on another stream.
        stream.wait_event(self._memory.done)
        with torch.cuda.device(device), torch.inference_mode(False), torch.no_grad():
            for place, x in zip(self._inputs, inputs, strict=True):
                place.copy_(x)
            self._graph.replay()
            outputs = {name: value.clone() for name, value in self._outputs.items()}
        self._memory.done.record(stream)
        return outputs


@contextlib.contextmanager
def capturing(graph: torch.cuda.CUDAGraph, memory: GraphMemory) -> Iterator[None]:
    """Capture a graph; other threads, as of data workers, may use the device meanwhile, but not capture theirs.

    A capture begins with a wait for the whole device, which CUDA does not allow during another one: a thread may
    capture a network while another thread, with the same model, captures results.

    The current stream is set again at the end: after a capture that failed, PyTorch leaves its own one behind, and what
    is done then, as restoring buffers, would not be in order with what comes before and after. The memory that was set
    aside for such a capture is given back too, and the error is what went wrong in it, such as too little memory.
    """
    with (
        _CAPTURE,
        torch.cuda.stream(torch.cuda.current_stream()),
        _ended_after_errors(memory.pool, memory.stream.device),
        torch.cuda.graph(graph, pool=memory.pool, stream=memory.stream, capture_error_mode="thread_local"),
    ):
        yield


@contextlib.contextmanager
def _ended_after_errors(pool: tuple[int, int], device: torch.device) -> Iterator[None]:
    """Tell PyTorch's allocator that a capture which failed is over, and raise the error that it failed with.

    Where CUDA refuses to end a capture, `CUDAGraph.capture_end` of PyTorch before 2.13 returns before it does so
    (pytorch/pytorch#180395). To the allocator that capture goes on for as long as the process lives: `empty_cache` does
    nothing, a program that is short of memory fails without giving back what is cached, and tensors that several
    streams used are never free again. Its own error then only says that there was one before.
    """
    try:
        yield
    except BaseException as error:
        if torch.__version__ < "2.13":  # compares versions, not letters
            names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")  # the second: before 2.8
            # An error is of a capture that has ended: its graph releases the memory.
            with contextlib.suppress(RuntimeError):
                next(getattr(torch._C, name) for name in names if hasattr(torch._C, name))(device.index, pool)
                torch._C._cuda_releasePool(device.index, pool)
        if "during capture" in str(error) and isinstance(error.__context__, Exception):
            raise error.__context__ from None
        raise


def capture_nothing(device: torch.device, stream: torch.cuda.Stream) -> None:
    """Capture a graph that works: after one that failed, PyTorch's random numbers on the device stay out of order."""
    with contextlib.suppress(RuntimeError), capturing(torch.cuda.CUDAGraph(), GraphMemory(stream)):
        torch.zeros(1, device=device)


class GraphCache:
    """CUDA graphs of the shapes that were used last.

    Args:
        entries: number of graphs; their activations share memory, their results and inputs do not.
        pixels: number of pixels of the inputs of all graphs, which bounds the memory of what they do not share. One
            graph may be larger.
        after: capture a shape when it comes for the `after`-th time, since a capture takes longer than a few calls; a
            graph gives way to another one only if that comes more often.
        often: so many calls of a shape are worth to drop the graph of another one.
        of: what the inputs are, in the log.
    """

    def __init__(
        self, entries: int = 32, after: int = 2, pixels: int = 2**26, often: int = 8, of: str = "images"
    ) -> None:
        self.entries, self.after, self.pixels, self.often, self.of = entries, after, pixels, often, of
        self.captured = 0  # number of captures so far
        self._graphs: OrderedDict[_Key, CapturedFunction] = OrderedDict()
        self._seen: OrderedDict[_Key, int] = OrderedDict()
        self._memory: dict[torch.device, GraphMemory] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}  # kept, because cuBLAS has memory for each of them
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of graphs."""
        return len(self._graphs)

    def clear(self) -> None:
        """Drop all graphs, whose function has changed."""
        with self._lock:
            self._graphs.clear()
            self._seen.clear()
            self._memory.clear()

    def __call__(
        self,
        key: Hashable,
        function: Callable[..., Outputs],
        *inputs: Tensor,
    ) -> Outputs | None:
        """Run the graph of a key, or capture it; None if it is too early for that.

        Args:
            key: equal for calls that run the same kernels, apart from shapes and types.
            function, inputs: see `CapturedFunction`; the first input is the one whose pixels are counted.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        key = (tuple((x.shape, x.dtype) for x in inputs), key, inputs[0].device)
        with self._lock:
            if key not in self._graphs:
                size = _pixels(inputs[0].shape)
                if not self._often(key, size):
                    return None
                while self._graphs and self._is_full(size):
                    dropped, _ = self._graphs.popitem(last=False)
                    self._seen.pop(dropped, None)
                self._graphs[key] = self._capture(function, inputs)
            self._graphs.move_to_end(key)
            return self._graphs[key](inputs)

    def _is_full(self, pixels: int) -> bool:
        """Return whether a graph has to go before one of so many pixels comes."""
        held = sum(_pixels(shapes[0][0]) for shapes, *_ in self._graphs)
        return len(self._graphs) >= self.entries or held + pixels > self.pixels

    def _often(self, key: _Key, pixels: int) -> bool:
        self._seen[key] = self._seen.get(key, 0) + 1
        self._seen.move_to_end(key)
        while len(self._seen) > 64 * self.entries:
            self._seen.popitem(last=False)
        full = bool(self._graphs) and self._is_full(pixels)
        return self._seen[key] >= (max(self.after, self.often) if full else self.after)

    def _capture(self, function: Callable[..., Outputs], inputs: Sequence[Tensor]) -> CapturedFunction:
        start = time.perf_counter()
        device = inputs[0].device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        if device not in self._memory:
            self._memory[device] = GraphMemory(self._streams[device])
        graph = CapturedFunction(function, inputs, self._memory[device])
        self.captured += 1
        count, *_, height, width = inputs[0].shape
        seconds = time.perf_counter() - start
        logger.info("captured a CUDA graph for %d %s of %d x %d in %.1f s", count, self.of, height, width, seconds)
        return graph


def _pixels(shape: torch.Size) -> int:
    return shape[0] * shape[-2] * shape[-1]


@contextlib.contextmanager
def uncached_autocast(device: str) -> Iterator[None]:
    """Repeat the current autocast without its cache of casted weights, which a graph must not read."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    with torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False):
        yield
