"""Compiled forms of a backbone and a head."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .network_call import call_head, join_parts, parts_of_clip

# Forms of a function that PyTorch may compile in inference, in a process.
_FORMS = 64


class CompiledNetwork:
    """Compiled forms of a backbone and of the parts of a head."""

    def __init__(self, backbone: nn.Module, head: nn.Module, dynamic: bool | None, compiler: Mapping[str, Any]) -> None:
        self._of = (backbone, head, dynamic)
        compiler = {"dynamic": dynamic, **compiler}
        self._backbone = torch.compile(backbone, **compiler)
        self._by_parts = bool(getattr(head, "by_frame", False))
        if self._by_parts:
            own: Any = head
            self._maps = torch.compile(own.pixel_maps, **compiler)
            self._predict = torch.compile(own.predict, **compiler)
        else:
            self._head = torch.compile(head, **compiler)

    def of(self, backbone: nn.Module, head: nn.Module, dynamic: bool | None) -> bool:
        """Return whether it is made of these modules, so."""
        return self._of == (backbone, head, dynamic)

    def __call__(self, images: Tensor, keywords: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the outputs of the head."""
        with _more_forms() if self._of[2] is False else nullcontext():
            if self._by_parts:
                parts = parts_of_clip(self._of[1], images, keywords)
                return self._predict(*join_parts([self._maps(self._backbone(part)) for part in parts]), **keywords)
            return call_head(self._head, self._backbone(images), keywords)


def _more_forms() -> AbstractContextManager[None]:
    """Let PyTorch compile more than 8 forms of a function, which all models of a process share.

    `CompiledShapes` bounds those of one; a third model with four sizes would not be compiled at all.
    """
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before PyTorch 2.7
    return config.patch({name: max(getattr(config, name), _FORMS)})  # type: ignore[no-any-return]
