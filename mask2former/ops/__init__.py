"""Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021, arXiv 2010.04159), and masks to results."""

from . import extension, mask_results
from .ms_deform_attn import backend, ms_deform_attn, pytorch_backend

__all__ = ["backend", "mask_results", "ms_deform_attn", "pytorch_backend"]

extension.load_all()  # at import, so that `torch.ops.mask2former` is complete
