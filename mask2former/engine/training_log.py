"""Logging of a training: losses, which stay on the device until they are fetched, and the console line."""

from __future__ import annotations

import datetime
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from torch import Tensor

from ..errors import CorruptCheckpointError
from ..utils.console import FILE_ONLY, bars_enabled

logger = logging.getLogger(__name__)


_GRADIENT = "grad_norm"


@dataclass
class _Window:
    """Means of one rank since the last fetch; `bad`: {iteration: the non-finite values}."""

    means: dict[str, float] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    data_time: float = 0.0


def checked_pending(
    state: Any, where: str = "pending_losses"
) -> tuple[tuple[str, ...], Tensor, list[tuple[int, list[str]]], float]:
    """Check what `LossLog.pending` returned; return names, rows (steps, names + 1), steps and seconds.

    Raises:
        CorruptCheckpointError: it is something else.
    """
    try:
        names, rows = tuple(map(str, state["names"])), state["rows"].float()
        steps = [(int(iteration), [str(file) for file in files]) for iteration, files in state["steps"]]
        seconds = float(state["seconds"])
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError, RuntimeError) as error:
        raise CorruptCheckpointError(f"{where} of the checkpoint are invalid: {error!r}") from error
    if not isinstance(rows, Tensor) or tuple(rows.shape) != (len(steps), len(names) + 1):
        raise CorruptCheckpointError(f"{where} of the checkpoint are not one row of {len(names)} losses for each step")
    return names, rows, steps, seconds


class LossLog:
    """Collects one row of losses per iteration, reports their means, and counts non-finite steps.

    Args:
        max_bad_steps: `flush` raises once that many steps were skipped, those before a resume included.
        gradients_may_overflow: under fp16 loss scaling an overflow of the gradients alone is normal and not counted.
    """

    def __init__(self, max_bad_steps: int, gradients_may_overflow: bool = False) -> None:
        self._max_bad_steps = max_bad_steps
        self._count_gradients = not gradients_may_overflow
        self.bad_steps = 0
        self._clear()

    def _clear(self) -> None:
        self._names: tuple[str, ...] = ()
        self._rows: list[Tensor] = []
        self._steps: list[tuple[int, list[str]]] = []
        self._data_seconds = 0.0
        self._restored = 0  # number of rows that come from a checkpoint

    def pending(self) -> dict[str, Any]:
        """Return what was added since the last `flush`, as plain data; {} if that is nothing. Waits for the device."""
        if not self._rows:
            return {}
        rows = torch.stack(self._rows).cpu()
        return {"names": list(self._names), "rows": rows, "steps": list(self._steps), "seconds": self._data_seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `pending` returned.

        Raises:
            CorruptCheckpointError: it is something else.
        """
        names, rows, steps, seconds = checked_pending(state)
        self._names, self._rows, self._steps, self._data_seconds = names, list(rows), steps, seconds
        self._restored = len(steps)

    def add(
        self,
        iteration: int,
        names: tuple[str, ...],
        losses: Tensor,
        grad_norm: Tensor,
        files: list[str],
        seconds: float,
    ) -> None:
        """Add the losses of one iteration.

        Args:
            names: names of the loss terms.
            losses: (len(names),) values of the terms, on any device.
            grad_norm: scalar, norm of all gradients before clipping.
            files: image files of this iteration on this rank, for messages.
            seconds: time spent waiting for data.

        Raises:
            RuntimeError: the names are not those of the iterations before.
        """
        if self._names and names != self._names and len(self._steps) == self._restored:
            self._clear()  # those before a resume, of a config with other losses
        if self._names and names != self._names:
            changed = sorted(set(names) ^ set(self._names))
            raise RuntimeError(f"The model must return the same losses in each iteration; changed: {changed}")
        self._names = names
        row = torch.cat([losses.float(), grad_norm.float().reshape(1)])
        if self._restored and self._rows[0].device != row.device:
            self._rows = [restored.to(row.device) for restored in self._rows]
        self._rows.append(row)
        self._steps.append((iteration, files))
        self._data_seconds += seconds

    def newest(self) -> dict[str, float]:
        """Fetch the losses of the last iteration of this rank; empty right after `flush`. Waits for the device."""
        return dict(zip(self._names, self._rows[-1].tolist(), strict=False)) if self._rows else {}

    def flush(self, iteration: int) -> None:
        """Fetch all rows and write their means to the event storage of rank 0.

        This waits for the device. All ranks must call it in the same iteration.

        Raises:
            FloatingPointError: as many non-finite steps as allowed; names the loss terms and the images.
        """
        if not self._rows:
            return
        local = self._summarize(torch.stack(self._rows).tolist())
        self._clear()
        windows: list[_Window] = comm.all_gather(local)
        self._write_means(iteration, windows)
        bad: dict[int, str] = {}
        for window in windows:
            for step, line in window.bad.items():
                bad[step] = f"{bad[step]}; {line}" if step in bad else line
        if not bad:
            return
        self.bad_steps += len(bad)
        lines = "\n".join(f"  iteration {step}: {line}" for step, line in sorted(bad.items()))
        message = f"{len(bad)} step(s) were skipped because the loss or gradient was not finite:\n{lines}"
        if self.bad_steps >= max(1, self._max_bad_steps):
            raise FloatingPointError(
                f"{message}\nThat makes {self.bad_steps}, the limit is SOLVER.MAX_NONFINITE_STEPS "
                f"{self._max_bad_steps}. Look at the images named above, lower SOLVER.BASE_LR, or set "
                "SOLVER.AMP.DTYPE bfloat16 or SOLVER.AMP.ENABLED False."
            )
        if comm.is_main_process():
            logger.warning("%s", message)

    def _summarize(self, rows: list[list[float]]) -> _Window:
        window = _Window(data_time=self._data_seconds / len(rows))
        good_rows = []
        for row, (step, files) in zip(rows, self._steps, strict=True):
            nonfinite = [f"{n} = {v}" for n, v in zip(self._names, row[:-1], strict=True) if not math.isfinite(v)]
            if not nonfinite and self._count_gradients and not math.isfinite(row[-1]):
                nonfinite = [f"{_GRADIENT} = {row[-1]}"]
            if nonfinite:
                images = f" for the images {', '.join(files)}" if files else ""
                window.bad[step] = f"{', '.join(nonfinite)}{images}"
            elif math.isfinite(row[-1]):
                good_rows.append(row)
        for i, name in enumerate((*self._names, _GRADIENT)):
            if good_rows:
                window.means[name] = sum(row[i] for row in good_rows) / len(good_rows)
        return window

    @staticmethod
    def _write_means(iteration: int, windows: list[_Window]) -> None:
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", max(w.data_time for w in windows), cur_iter=iteration)
        filled = [w.means for w in windows if w.means]
        if not filled:
            return
        means = {name: sum(m[name] for m in filled) / len(filled) for name in filled[0]}
        storage.put_scalar(_GRADIENT, means.pop(_GRADIENT), cur_iter=iteration)
        storage.put_scalar("total_loss", sum(means.values()), cur_iter=iteration)
        if len(means) > 1 or "total_loss" not in means:
            storage.put_scalars(cur_iter=iteration, **means)


_LEVEL_SUFFIX = re.compile(r"_\d+$")  # loss_ce_3 is loss_ce of the fourth decoder layer


def condense_losses(losses: Mapping[str, float]) -> dict[str, float]:
    """Sum each type of loss over the decoder layers: {"loss_ce": a, "loss_ce_0": b} -> {"ce": a + b}."""
    sums: dict[str, float] = {}
    for name, value in losses.items():
        loss_type = _LEVEL_SUFFIX.sub("", name).removeprefix("loss_")
        sums[loss_type] = sums.get(loss_type, 0.0) + value
    return sums


def _loss_text(total: float, losses: Mapping[str, float]) -> str:
    sums = condense_losses(losses)
    detail = f" ({', '.join(f'{name} {value:.3g}' for name, value in sums.items())})" if len(sums) > 1 else ""
    return f"loss {total:.4g}{detail}"


class ConsoleWriter(EventWriter):
    """Logs iteration, ETA, speed, losses, learning rate, waiting for data and memory in one line.

    Where a progress bar shows the progress, the lines go to log.txt only, but for the first.

    Args:
        max_iter: number of iterations of the training.
        images_per_step: number of images in one optimizer step, over all ranks.
        window: number of recent iterations over which the speed is averaged.
    """

    def __init__(self, max_iter: int, images_per_step: int, window: int = 20) -> None:
        self._max_iter = max_iter
        self._images_per_step = images_per_step
        self._window = window

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter >= self._max_iter or "total_loss" not in storage.latest():
            return
        logger.info("%s", self.line(storage), extra=FILE_ONLY if bars_enabled() else None)

    def write_first(self, losses: Mapping[str, float], seconds: float) -> None:
        """Log the first iteration, to the console in any case: its losses on this rank, and how long it took."""
        storage = get_event_storage()
        parts = [f"iter {storage.iter + 1}/{self._max_iter}", f"{seconds:.3g} s for the first step"]
        parts.append(_loss_text(sum(losses.values()), losses))
        if "lr" in storage.latest():
            parts.append(f"lr {storage.latest()['lr'][0]:.3g}")
        logger.info("%s", " | ".join(parts))

    def line(self, storage: EventStorage) -> str:
        """Return the line for the current iteration of `storage`; put "images_per_second" and "eta_seconds" into it."""
        latest = {name: value for name, (value, _) in storage.latest().items()}
        parts = [f"iter {storage.iter + 1}/{self._max_iter}"]
        parts += self._speed(storage)
        parts.append(_loss_text(latest["total_loss"], {k: v for k, v in latest.items() if k.startswith("loss_")}))
        if "lr" in latest:
            parts.append(f"lr {latest['lr']:.3g}")
        if "grad_norm" in latest:
            parts.append(f"grad {latest['grad_norm']:.3g}")
        if "data_time" in latest:
            parts.append(f"data {latest['data_time']:.3f} s")
        if torch.cuda.is_available():
            parts.append(f"mem {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        return " | ".join(parts)

    def _speed(self, storage: EventStorage) -> list[str]:
        if "time" not in storage.latest():  # not in the first iterations
            return []
        history = storage.history("time")
        count = storage.count_samples("time", self._window)
        if count == 0:
            return []
        # Means, not medians: iterations are queued on the GPU without waiting, and the one that fetches the losses
        # waits for all of them.
        seconds = history.avg(count)
        eta = history.avg(storage.count_samples("time", 10 * self._window)) * (self._max_iter - storage.iter - 1)
        rate = self._images_per_step / seconds
        storage.put_scalar("eta_seconds", eta, smoothing_hint=False)
        storage.put_scalar("images_per_second", rate, smoothing_hint=False)
        return [f"eta {datetime.timedelta(seconds=int(eta))}", f"{rate:.3g} img/s", f"{seconds:.3g} s/it"]
