"""Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021, arXiv 2010.04159)."""

from .ms_deform_attn import backend, ms_deform_attn

__all__ = ["backend", "ms_deform_attn"]
