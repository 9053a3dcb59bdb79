"""Which number format the forward pass runs in: SOLVER.AMP.ENABLED and SOLVER.AMP.DTYPE."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """Autocast format of a device; `dtype` None means plain fp32."""

    device_type: str
    dtype: torch.dtype | None

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Context for the forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def grad_scaler(self) -> torch.amp.GradScaler | None:
        """A loss scaler where the format needs one: fp16 underflows, bf16 has the range of fp32."""
        return torch.amp.GradScaler(self.device_type) if self.dtype is torch.float16 else None


def select_precision(cfg: CfgNode) -> Precision:
    """Precision for MODEL.DEVICE.

    "auto" takes bf16 on GPUs that compute it natively and fp16 on older ones; on other devices, where mixed
    precision is rarely faster, it stays with fp32.

    Raises:
        ValueError: unknown SOLVER.AMP.DTYPE.
    """
    device_type = torch.device(cfg.MODEL.DEVICE).type
    name = cfg.SOLVER.AMP.DTYPE
    formats = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if name != "auto" and name not in formats:
        raise ValueError(f"SOLVER.AMP.DTYPE is '{name}'; use auto, bfloat16 or float16.")
    if not cfg.SOLVER.AMP.ENABLED:
        return Precision(device_type, None)
    if name != "auto":
        dtype: torch.dtype | None = formats[name]
    elif device_type != "cuda":
        dtype = None
        logger.info("SOLVER.AMP.DTYPE auto: training in fp32 on %s.", device_type)
    else:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if native else torch.float16
        logger.info("Mixed precision: %s.", dtype)
    return Precision(device_type, dtype)
