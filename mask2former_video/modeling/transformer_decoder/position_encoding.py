"""Sine position encoding of clips: that of `mask2former.modeling.transformer_decoder.position_encoding`."""

from ..._sibling import core

PositionEmbeddingSine3D = core("modeling.transformer_decoder.position_encoding").PositionEmbeddingSine3D
