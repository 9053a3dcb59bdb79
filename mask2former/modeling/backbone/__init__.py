"""Backbones in addition to those of detectron2; importing this package registers them."""

from .swin import D2SwinTransformer
from .timm import TimmBackbone

__all__ = ["D2SwinTransformer", "TimmBackbone"]
