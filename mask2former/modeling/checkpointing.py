"""Activation checkpointing of the parts of a model: less memory in training, for a second forward pass in the backward.

It is set from outside, on a model that is built, so that it holds for backbones and decoders of other projects too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)

# Name of a part in MODEL.CHECKPOINTING -> its place in a model.
PARTS = {
    "backbone": "backbone",
    "pixel_decoder": "sem_seg_head.pixel_decoder",
    "transformer_decoder": "sem_seg_head.predictor",
}

# Attributes by which backbones (ours, timm's) checkpoint themselves.
_OWN_SWITCHES = ("use_checkpoint", "grad_checkpointing")


def checkpoint_parts(model: nn.Module, parts: Iterable[str]) -> None:
    """Let the blocks or layers of some parts compute their activations again in the backward pass, in place.

    Results and gradients stay the same; random numbers are drawn as before, and batch norms count a batch once. Names
    of weights, hooks and overridden methods stay; hooks on a block and inside it run in both passes. In evaluation, and
    where no gradients are recorded, nothing changes. A backbone that checkpoints itself (MODEL.SWIN.USE_CHECKPOINT) is
    left as it is. Can be repeated.

    Args:
        model: a meta-architecture.
        parts: of "backbone", "pixel_decoder", "transformer_decoder".

    Raises:
        ValueError: the model has no such part.
    """
    for part in parts:
        try:
            module = model.get_submodule(PARTS[part])
        except (KeyError, AttributeError) as error:
            raise ValueError(
                f"MODEL.CHECKPOINTING names {part!r}, which the model ({type(model).__name__}) does not have; it takes "
                f"{', '.join(PARTS)}"
            ) from error
        blocks = list(_blocks(module))
        if not blocks and not _checkpoints_itself(module):
            logger.warning("MODEL.CHECKPOINTING has no effect on %s: it has no list of blocks or layers", part)
        for block in blocks:
            block.__class__ = _recomputed(type(block))


def is_checkpointed(module: nn.Module) -> bool:
    """Return whether any part of a module computes its activations again."""
    recomputed = tuple(_RECOMPUTED.values())
    return _checkpoints_itself(module) or any(isinstance(each, recomputed) for each in module.modules())


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the elements of the innermost lists of modules, except those with less than two modules with parameters."""
    if _checkpoints_itself(module):
        return
    for child in module.children():
        inner = list(_blocks(child))
        if inner:
            yield from inner
        elif isinstance(module, nn.Sequential | nn.ModuleList) and _is_composed(child):
            yield child


def _checkpoints_itself(module: nn.Module) -> bool:
    return any(getattr(each, switch, False) is True for each in module.modules() for switch in _OWN_SWITCHES)


def _is_composed(module: nn.Module) -> bool:
    return sum(bool(each._parameters) for each in module.modules()) > 1


_RECOMPUTED: dict[type[nn.Module], type[nn.Module]] = {}  # class -> its checkpointed subclass


def _recomputed(base: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass whose instances are checkpointed; only `__call__`, with the hooks around it, is another one."""
    if base in _RECOMPUTED.values():
        return base
    if base in _RECOMPUTED:
        return _RECOMPUTED[base]

    class Recomputed(base):  # type: ignore[misc, valid-type]
        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            call = super().__call__
            if not (self.training and torch.is_grad_enabled()):
                return call(*arguments, **keywords)
            if torch.compiler.is_compiling():  # compiled code changes statistics once, and takes no such contexts
                return checkpoint(call, *arguments, use_reentrant=False, **keywords)
            contexts = functools.partial(_contexts, self)
            return checkpoint(call, *arguments, use_reentrant=False, context_fn=contexts, **keywords)

        def __reduce__(self) -> tuple[Any, ...]:  # pickle finds no such class by its name
            return _new, (base,), vars(self)

    Recomputed.__name__, Recomputed.__qualname__ = base.__name__, base.__qualname__
    Recomputed.__module__, Recomputed.__doc__ = base.__module__, base.__doc__
    _RECOMPUTED[base] = Recomputed
    return Recomputed


def _new(base: type[nn.Module]) -> nn.Module:
    cls = _recomputed(base)
    return cls.__new__(cls)


def _contexts(
    module: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Return the contexts of the first and of the second forward pass."""
    return contextlib.nullcontext(), _without_statistics(module)


@contextlib.contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Keep batch norms from counting a batch a second time."""
    norms: list[Any] = [m for m in module.modules() if getattr(m, "track_running_stats", False) and m.training]
    momenta = [norm.momentum for norm in norms]
    counters = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, counter in zip(norms, momenta, counters, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
