"""Repeating of what ran out of GPU memory; detectron2 has it."""

from detectron2.utils.memory import retry_if_cuda_oom

__all__ = ["retry_if_cuda_oom"]
