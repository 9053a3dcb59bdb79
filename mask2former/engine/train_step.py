"""One optimizer step: micro-batches, mixed precision, gradient clipping, and skipping of non-finite steps."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint.training_state import check_scaler_state, whole_number
from ..modeling.matcher import HungarianMatcher
from ..utils.device import AMP_DTYPES, amp_dtype
from ..utils.overrides import extensible
from .optimizer import clip_gradients
from .training_log import LossLog

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """Autocast format of a device; `dtype` None means plain fp32."""

    device_type: str
    dtype: torch.dtype | None

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context manager for the forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def grad_scaler(self) -> torch.amp.GradScaler | None:
        """Return a gradient scaler for fp16, which underflows, else None: bf16 has the range of fp32."""
        return torch.amp.GradScaler(self.device_type) if self.dtype is torch.float16 else None


def select_precision(cfg: CfgNode) -> Precision:
    """Return the precision that SOLVER.AMP selects for MODEL.DEVICE.

    "auto" means bf16 on GPUs that compute it natively and fp16 on older ones; on other devices, where mixed
    precision is rarely faster, it means fp32.

    Raises:
        ValueError: unknown SOLVER.AMP.DTYPE.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    name = cfg.SOLVER.AMP.DTYPE
    if name != "auto" and name not in AMP_DTYPES:
        raise ValueError(f"SOLVER.AMP.DTYPE is '{name}'; use auto, {' or '.join(AMP_DTYPES)}.")
    if not cfg.SOLVER.AMP.ENABLED:
        return Precision(device.type, None)
    if name == "auto" and device.type != "cuda":
        logger.info("SOLVER.AMP.DTYPE auto: training in fp32 on %s.", device.type)
        return Precision(device.type, None)
    dtype = amp_dtype(name, device)
    logger.info("Mixed precision: %s.", dtype)
    return Precision(device.type, dtype)


_SMALLEST_SCALE = 2.0**-20  # GradScaler starts at 2**16 and halves at each overflow


@extensible
class TrainStep:
    """One optimizer step with gradient accumulation, AMP and skipping of non-finite steps, without waiting for the GPU.

    The backward pass of a non-finite loss starts from NaN. The gradients carry it to all ranks in the reduction of
    DistributedDataParallel, so every rank sees the same gradient norm, and the fused optimizer skips the step by a
    flag on the device. Weights, moments and step counts do not change.

    Args:
        accumulation_steps: micro-batches in one optimizer step; gradients are averaged over them.
        precision: format of the forward pass.
        clip_norm: maximum norm of all gradients together, None for no limit.
        max_bad_steps: see `LossLog`.
        log_period: losses are fetched every `log_period` iterations, and after the last of `max_iter` iterations.
    """

    def __init__(
        self,
        *,
        precision: Precision,
        max_iter: int,
        accumulation_steps: int = 1,
        clip_norm: float | None = None,
        norm_type: float = 2.0,
        max_bad_steps: int = 10,
        log_period: int = 20,
    ) -> None:
        self.max_iter = max_iter
        self.precision = precision
        self.grad_scaler = precision.grad_scaler()
        self.log = LossLog(max_bad_steps, gradients_may_overflow=self.grad_scaler is not None)
        self._accumulation_steps = accumulation_steps
        self._clip_norm, self._norm_type = clip_norm, norm_type
        self._log_period = log_period

    def run(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterator[list[dict[str, Any]]],
        iteration: int,
        after_backward: Callable[[], None] = lambda: None,
    ) -> None:
        """Take one optimizer step.

        Args:
            model: maps a list of samples to a dict of losses, already weighted.
            batches: micro-batches of this rank; `accumulation_steps` of them are taken.
            iteration: number of this iteration, from 0.
            after_backward: called when all gradients are computed, before they are clipped.

        Raises:
            RuntimeError: the model is in evaluation mode.
            FloatingPointError: too many non-finite steps, or fp16 overflows at every scale.
        """
        if not model.training:
            raise RuntimeError(
                "The model is in evaluation mode; a hook that calls model.eval() must call model.train() at its end."
            )
        optimizer.zero_grad()
        losses: list[Tensor] = []
        names: tuple[str, ...] = ()
        files: list[str] = []
        waited = 0.0
        for micro_step in range(self._accumulation_steps):
            start = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - start
            files += _file_names(batch)
            with _gradient_sync(model, last=micro_step == self._accumulation_steps - 1):
                names, terms = self._forward_backward(model, batch)
            losses.append(terms)
        after_backward()
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        grad_norm = clip_gradients(parameters, self._clip_norm, self._norm_type)
        self._optimizer_step(optimizer, grad_norm)
        self.log.add(iteration, names, torch.stack(losses).mean(0), grad_norm, files, waited)
        if (iteration + 1) % self._log_period == 0 or iteration == self.max_iter - 1:
            self.log.flush(iteration)
            self._check_scale()
            for module in model.modules():
                if isinstance(module, HungarianMatcher):
                    module.check_earlier_costs(wait=True)  # the step has been waited for already

    def _forward_backward(self, model: nn.Module, batch: list[dict[str, Any]]) -> tuple[tuple[str, ...], Tensor]:
        """Add the gradients of one micro-batch; return the names and detached values (terms,) of its losses."""
        with self.precision.autocast():
            losses = model(batch)
        if isinstance(losses, Tensor):
            losses = {"total_loss": losses}
        terms = torch.stack([value.float() for value in losses.values()])
        total = terms.sum() / self._accumulation_steps
        # 1, or NaN where the loss is not finite: backward then marks the gradients (see the class docstring).
        mark = torch.where(torch.isfinite(total.detach()), 1.0, float("nan"))
        if self.grad_scaler is not None:
            total = self.grad_scaler.scale(total)
        total.backward(gradient=mark.to(total.dtype))
        return tuple(losses), terms.detach()

    def _optimizer_step(self, optimizer: torch.optim.Optimizer, grad_norm: Tensor) -> None:
        if self.grad_scaler is not None:
            self.grad_scaler.step(optimizer)
            self.grad_scaler.update()
            return
        if not all(group.get("fused") for group in optimizer.param_groups):
            # A custom optimizer cannot be told on the device; this waits for it, once in each step.
            if bool(torch.isfinite(grad_norm)):
                optimizer.step()
            return
        # The fused optimizers read this attribute, as GradScaler sets it: 1 means "change nothing".
        optimizer.found_inf = (~torch.isfinite(grad_norm)).float()  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]

    def _check_scale(self) -> None:
        """Raise FloatingPointError when fp16 gradients overflow at the smallest loss scale."""
        if self.grad_scaler is None:
            return
        scale = self.grad_scaler.get_scale()
        get_event_storage().put_scalar("grad_scale", scale, smoothing_hint=False)
        if scale < _SMALLEST_SCALE:
            raise FloatingPointError(
                f"The gradients overflow in float16 at every scale (now {scale:.1e}), so the weights no longer "
                "change. Set SOLVER.AMP.DTYPE bfloat16 or SOLVER.AMP.ENABLED False, or lower SOLVER.BASE_LR."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the number of skipped steps and the state of the loss scaler, if there is one."""
        state: dict[str, Any] = {"nonfinite_steps": self.log.bad_steps}
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def check_state_dict(self, state: Mapping[str, Any], where: str = "step") -> None:
        """Check what `load_state_dict` will load.

        Raises:
            CorruptCheckpointError: an entry is damaged.
        """
        whole_number(state.get("nonfinite_steps", 0), f"{where}['nonfinite_steps']")
        if self.grad_scaler is not None and "grad_scaler" in state:
            check_scaler_state(state["grad_scaler"], f"{where}['grad_scaler']")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; other entries are ignored.

        Raises:
            CorruptCheckpointError: see `check_state_dict`; nothing is changed then.
        """
        self.check_state_dict(state)
        self.log.bad_steps = int(state.get("nonfinite_steps", 0))
        if self.grad_scaler is None:
            return
        if "grad_scaler" in state:
            self.grad_scaler.load_state_dict(state["grad_scaler"])
        else:
            logger.warning("The checkpoint has no state of a loss scaler: the scale starts from its initial value.")


def _gradient_sync(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context that reduces gradients over the ranks in the last micro-batch only."""
    if not last and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def _file_names(batch: Any) -> list[str]:
    """Return the image files of a batch, of those samples that have a "file_name"."""
    samples = batch if isinstance(batch, list) else []
    return [str(sample["file_name"]) for sample in samples if isinstance(sample, Mapping) and "file_name" in sample]
