"""The transformer decoder of clips; `mask2former.modeling.transformer_decoder` defines it."""

from typing import Any

from ..._sibling import core

_decoder = core("modeling.transformer_decoder.mask2former_transformer_decoder")

VideoMultiScaleMaskedTransformerDecoder = _decoder.VideoMultiScaleMaskedTransformerDecoder


def __getattr__(name: str) -> Any:
    """Return a layer of the decoder of `mask2former`."""
    return getattr(_decoder, name)
