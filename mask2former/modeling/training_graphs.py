"""CUDA graphs of a network in training: one of its forward pass, one of its backward pass.

A step then launches two graphs instead of thousands of kernels. Everything around the network, as matching, losses, the
reduction of gradients over ranks and the optimizer, stays as it is: to autograd the network is one function of its
parameters.
"""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from ..utils.host_random import HostRandom
from .checkpointing import is_checkpointed
from .cuda_graphs import GraphMemory, capture_nothing, capturing
from .outputs import split
from .prepared import is_hooked
from .shape_cache import holding

logger = logging.getLogger(__name__)

Network = Callable[[Sequence[Tensor]], Any]
_WARM_UP = 2  # runs before the capture: libraries choose their kernels in them, and compiled code is made
_OTHER = 20  # calls in a row that are worth to drop the graphs of other inputs
_WORTH = 50  # runs after which dropping graphs, and making them again, costs little


class TrainingGraphs:
    """The graphs of the inputs that a training has: those of one shape, and the last one if the shape changes.

    Args:
        after: make graphs when inputs come for the `after`-th time in a row; trainings on images of many sizes, where
            that is rare, go without.
    """

    def __init__(self, after: int = 3) -> None:
        self.after = after
        self.captured = 0  # number of captures so far
        self._of: tuple[object, CapturedTraining] | None = None
        self._last: object = None
        self._in_a_row = 0
        self._memory: dict[torch.device, GraphMemory] = {}

    def clear(self) -> None:
        """Drop the graphs."""
        self._of = None
        for memory in self._memory.values():
            memory.renew()

    def make_room(self) -> None:
        """Drop the graphs if they have run often enough that making them again costs little."""
        if self._of is not None and self._of[1].runs >= _WORTH:
            self.clear()

    def __call__(self, key: object, network: Network, modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Any:
        """Return the outputs of a network, by graphs; None if there are none for this call.

        Args:
            key: equal for calls that run the same kernels on the same parameters and buffers, apart from the inputs'
                shapes and types.
            network: computes the outputs of inputs: tensors that `split` takes apart. It does not wait for the device.
            modules: whose parameters get gradients.
            inputs: tensors without gradients; the first one has images (B, 3, H, W).

        Raises:
            RuntimeError, TypeError: the network cannot be captured. Modules and random numbers are as before.
        """
        key = (key, *((x.shape, x.dtype, x.device, x.stride()) for x in inputs))
        if self._of is not None and self._of[0] == key:
            return None if self._of[1].is_busy else self._of[1](inputs)
        self._in_a_row = self._in_a_row + 1 if key == self._last else 1
        self._last = key
        if self._in_a_row < (self.after if self._of is None else max(self.after, _OTHER)):
            return None
        self.clear()
        captured = self._capture(network, modules, inputs)
        self._of = key, captured
        return captured(inputs)

    def _capture(self, network: Network, modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> CapturedTraining:
        start = time.perf_counter()
        device = inputs[0].device
        if device not in self._memory:
            self._memory[device] = GraphMemory(torch.cuda.Stream(device))
        captured = CapturedTraining(network, modules, inputs, self._memory[device])
        self.captured += 1
        count, _, height, width = inputs[0].shape
        seconds = time.perf_counter() - start
        logger.info("captured CUDA graphs of training for %d x %d x %d in %.1f s", count, height, width, seconds)
        return captured


def may_capture(images: Tensor) -> bool:
    """Return whether a forward pass on these images is a plain one on CUDA, which nobody watches."""
    return (
        images.device.type == "cuda"
        and torch.is_grad_enabled()
        and not images.requires_grad
        and not torch.is_anomaly_enabled()
        and not torch._C._len_torch_dispatch_stack()
        and not _is_transformed()
        and not _has_any_global_hook()
        and not torch.cuda.is_current_stream_capturing()
    )


def _is_transformed() -> bool:
    """Return whether gradients are those of `torch.func`, or of forward-mode differentiation."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_hooked_in_training(module: nn.Module) -> bool:
    """Return whether a step calls more than the class of a module says: see `is_hooked`, and hooks of gradients."""
    return is_hooked(module) or bool(module._backward_hooks or module._backward_pre_hooks)


def is_uncapturable(modules: Sequence[nn.Module]) -> bool:
    """Return whether modules talk to other ranks, or compute activations again, for which they read random states."""
    for root in modules:
        if is_checkpointed(root):
            return True
        for module in root.modules():
            if isinstance(module, nn.SyncBatchNorm | NaiveSyncBatchNorm) and comm.get_world_size() > 1:
                return True
    return False


class CapturedTraining:
    """CUDA graphs of the forward and the backward pass of `network(inputs)`.

    The graphs read and write parameters where they are, and change buffers (as running means) as the modules do.

    Args:
        network, modules, inputs: see `TrainingGraphs`.
        memory: of the graphs.

    Attributes:
        runs: number of forward passes.
    """

    def __init__(
        self, network: Network, modules: Sequence[nn.Module], inputs: Sequence[Tensor], memory: GraphMemory
    ) -> None:
        device = inputs[0].device
        current = torch.cuda.current_stream(device)
        self.runs = 0
        self._pass: weakref.ref[_Pass] | None = None
        self._held: list[object] = [network, *modules, *(x.untyped_storage() for x in _tensors(modules))]
        self._inputs = [torch.empty_like(x).copy_(x) for x in inputs]
        with torch.cuda.device(device), _unchanged(modules, device):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(current)
            try:
                with torch.cuda.stream(stream), _as_leaves(modules) as leaves:
                    start = HostRandom()
                    for _ in range(_WARM_UP):
                        random, tensors = HostRandom(), list(map(id, _tensors(modules)))
                        outputs, _ = split(network(self._inputs))
                        _check_leaves(outputs, leaves)
                        _gradients(outputs, leaves, [torch.zeros_like(x) for x in outputs if x.requires_grad])
                        del outputs
                    # In the last run: in the first one a compiler may draw, and modules may make buffers.
                    if random.was_drawn():
                        start.restore()
                        raise RuntimeError("the network draws random numbers on the CPU")
                    if tensors != list(map(id, _tensors(modules))):
                        raise RuntimeError("the network exchanges buffers")
            finally:
                torch.clear_autocast_cache()  # casts of the weights are part of the graph
                current.wait_stream(stream)  # also after an error: buffers are restored then
            try:
                with _as_leaves(modules) as leaves:
                    self._capture(network, leaves, memory)
            except Exception:
                capture_nothing(device, memory.stream)
                raise
            finally:
                torch.clear_autocast_cache()

    def _capture(self, network: Network, leaves: dict[Tensor, Tensor], memory: GraphMemory) -> None:
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with holding(self._held), capturing(self._forward, memory):
            outputs, self._build = split(network(self._inputs))
        self._with_gradient = [x.requires_grad for x in outputs]
        if not any(self._with_gradient):
            raise RuntimeError("no output of the network has gradients")
        self._output_gradients = [torch.zeros_like(x) for x in outputs if x.requires_grad]
        reached = [_leaves_of(x) for x in outputs if x.requires_grad]
        with holding(self._held), capturing(self._backward, memory):
            gradients = _gradients(outputs, leaves, self._output_gradients)
            of = {p: g for p, g in zip(leaves, gradients, strict=True) if g is not None}
            # Together, so that one copy gives them away; those that would shift others off their alignment come last.
            self.parameters: list[Tensor] = sorted(of, key=lambda p: p.numel() % 4 != 0)
            if len({p.dtype for p in self.parameters}) != 1:
                raise TypeError("parameters have several types")
            self._gradients = torch.cat([of[p].reshape(-1) for p in self.parameters])
        self._outputs = [x.detach() for x in outputs]
        self._reached = [[leaves[p] in each for p in self.parameters] for each in reached]

    @property
    def is_busy(self) -> bool:
        """Return whether the backward pass of the last forward pass may still come: it needs what that left."""
        return self._pass is not None and self._pass() is not None

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """Return the outputs, which later calls do not change. It must not be busy."""
        self.runs += 1
        return self._build(_Network.apply(self, inputs, *self.parameters))  # type: ignore[no-untyped-call]

    def forward(self, inputs: Sequence[Tensor]) -> tuple[_Pass, list[Tensor]]:
        """Run the forward pass; return what its backward pass takes, and the outputs."""
        for place, x in zip(self._inputs, inputs, strict=True):
            place.copy_(x)
        self._forward.replay()
        passed = _Pass()
        self._pass = weakref.ref(passed)
        outputs = [torch.empty_like(x) for x in self._outputs]
        torch._foreach_copy_(outputs, self._outputs)  # who keeps some of them, as a memory of queries, has them
        return passed, outputs

    def by_gradient(self, outputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs with, and those without gradients."""
        pairs = list(zip(outputs, self._with_gradient, strict=True))
        return [x for x, has in pairs if has], [x for x, has in pairs if not has]

    def backward(self, passed: _Pass, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Run the backward pass; return the gradients of `parameters`.

        Args:
            passed: of the forward pass.
            gradients: of the outputs; None for those that no loss depends on. Parameters that only these depend on
                have no gradient, as without graphs: an optimizer leaves them alone, without decay of weights.

        Raises:
            RuntimeError: it was run already; activations are kept for one pass.
        """
        if passed.is_over:
            raise RuntimeError(
                "a second backward pass through the network, whose activations are gone; with MODEL.COMPILE off "
                "backward(retain_graph=True) keeps them"
            )
        passed.is_over, self._pass = True, None
        of_outputs = [g for g, has in zip(gradients, self._with_gradient, strict=True) if has]
        pairs = list(zip(self._output_gradients, of_outputs, strict=True))
        if missing := [place for place, g in pairs if g is None]:
            torch._foreach_zero_(missing)
        if given := [(place, g) for place, g in pairs if g is not None]:
            torch._foreach_copy_([place for place, _ in given], [g for _, g in given])
        self._backward.replay()
        # A copy, which the next pass does not change.
        found: list[Tensor | None] = [*torch._C._nn.unflatten_dense_tensors(self._gradients.clone(), self.parameters)]
        if not missing:
            return found
        reached = [any(each) for each in zip(*(r for r, g in zip(self._reached, of_outputs) if g is not None))]
        return [g if has else None for g, has in zip(found, reached or [False] * len(found), strict=True)]


class _Pass:
    """Lives as long as a backward pass may come; outputs that nobody uses any more take it with them."""

    def __init__(self) -> None:
        self.is_over = False


class _Network(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: CapturedTraining, inputs: Sequence[Tensor], *parameters: Tensor) -> Any:
        ctx.captured = captured
        ctx.set_materialize_grads(False)
        ctx.passed, outputs = captured.forward(inputs)
        ctx.mark_non_differentiable(*captured.by_gradient(outputs)[1])
        return tuple(outputs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        return None, None, *ctx.captured.backward(ctx.passed, gradients)


def _tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Return all parameters and buffers."""
    return [
        tensor
        for root in modules
        for module in root.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    ]


def _gradients(
    outputs: Sequence[Tensor], leaves: Mapping[Tensor, Tensor], of_outputs: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    with_gradient = [x for x in outputs if x.requires_grad]
    # A training leaves autocast before the backward pass, which would round products that are computed in fp32.
    with torch.autocast(of_outputs[0].device.type if of_outputs else "cuda", enabled=False):
        return torch.autograd.grad(with_gradient, list(leaves.values()), list(of_outputs), allow_unused=True)


def _check_leaves(outputs: Sequence[Tensor], leaves: Mapping[Tensor, Tensor]) -> None:
    """Check that what gets gradients is a parameter of the modules that was taken from where it is registered.

    Raises:
        RuntimeError: something else has them too, as what `nn.LSTM` keeps in a list: it would not learn.
    """
    if not set().union(*map(_leaves_of, outputs)) <= set(leaves.values()):
        raise RuntimeError("the network has parameters that it does not read from where they are registered")


def _leaves_of(output: Tensor) -> set[Tensor]:
    """Return the tensors that get gradients from an output."""
    if output.grad_fn is None:
        return {output} if output.requires_grad else set()
    found, seen, todo = set(), {output.grad_fn}, [output.grad_fn]
    while todo:
        node: Any = todo.pop()
        if type(node).__name__ == "AccumulateGrad":
            found.add(node.variable)
        for each, _ in node.next_functions:
            if each is not None and each not in seen:
                seen.add(each)
                todo.append(each)
    return found


@contextlib.contextmanager
def _as_leaves(modules: Sequence[nn.Module]) -> Iterator[dict[Tensor, Tensor]]:
    """Replace the parameters with gradients by others on the same memory; return both.

    The gradients of the originals are summed on the streams on which autograd met them first, and reducers of ranks
    hang on them: a graph that is captured must not touch that.
    """
    registered = [
        (module, name, parameter)
        for root in modules
        for module in root.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.requires_grad
    ]
    leaves = {parameter: nn.Parameter(parameter.detach()) for _, _, parameter in registered}
    for module, name, parameter in registered:
        module._parameters[name] = leaves[parameter]
    try:
        yield dict(leaves.items())
    finally:
        for module, name, parameter in registered:
            module._parameters[name] = parameter


@contextlib.contextmanager
def _unchanged(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Restore buffers and random numbers of the device at the end, which runs before a capture change."""
    buffers = [(each, dict(each._buffers)) for root in modules for each in root.modules() if each._buffers]
    values = {x: x.clone() for _, own in buffers for x in own.values() if x is not None}
    random = torch.cuda.get_rng_state(device)
    try:
        yield
    finally:
        torch.cuda.set_rng_state(random, device)
        for module, own in buffers:
            module._buffers.update(own)
        with torch.no_grad():
            for buffer, value in values.items():
                buffer.copy_(value)
