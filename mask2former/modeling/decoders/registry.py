"""Registry of transformer decoders, under the name that configs of the reference expect."""

from detectron2.utils.registry import Registry

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")
TRANSFORMER_DECODER_REGISTRY.__doc__ = "Transformer decoders: called as cls(cfg, in_channels, mask_classification)."
