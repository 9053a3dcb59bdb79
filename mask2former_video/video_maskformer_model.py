"""The meta-architecture for clips; `mask2former.video_maskformer_model` defines it."""

from ._sibling import core

VideoMaskFormer = core("video_maskformer_model").VideoMaskFormer

__all__ = ["VideoMaskFormer"]
