"""Config keys of video models and datasets."""

from ._sibling import core

add_maskformer2_video_config = core("config").add_maskformer2_video_config

__all__ = ["add_maskformer2_video_config"]
