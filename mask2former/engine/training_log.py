"""What a training reports: losses that stay on the device until they are fetched, and the line of progress."""

from __future__ import annotations

import datetime
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from torch import Tensor

logger = logging.getLogger(__name__)


_GRADIENT = "grad_norm"


@dataclass
class _Window:
    """What one rank saw since the last fetch; `bad`: iteration -> what was not finite."""

    means: dict[str, float] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    data_time: float = 0.0


class LossLog:
    """Collects one row of losses per step and reports means, and counts steps whose loss was not finite.

    Args:
        max_bad_steps: `flush` raises once so many steps were skipped in the whole run.
        gradients_may_overflow: under fp16 loss scaling an overflow of gradients alone is normal and not
            counted.
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

    def add(
        self,
        iteration: int,
        names: tuple[str, ...],
        losses: Tensor,
        grad_norm: Tensor,
        files: list[str],
        seconds: float,
    ) -> None:
        """Remember one step.

        Args:
            names: names of the loss terms.
            losses: (len(names),) their values, on any device.
            grad_norm: scalar, norm of all gradients before clipping.
            files: images of this step on this rank, for messages.
            seconds: time spent waiting for data.
        """
        if self._names and names != self._names:
            raise RuntimeError(f"The model returned other losses than before: {sorted(set(names) ^ set(self._names))}")
        self._names = names
        self._rows.append(torch.cat([losses.float(), grad_norm.float().reshape(1)]))
        self._steps.append((iteration, files))
        self._data_seconds += seconds

    def flush(self, iteration: int) -> None:
        """Fetch all rows (the one wait of this window), write the means to the event storage of rank 0.

        Every rank calls this in the same step.

        Raises:
            FloatingPointError: more non-finite steps than allowed; names the loss terms and the images.
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
            wrong = [f"{n} = {v}" for n, v in zip(self._names, row[:-1], strict=True) if not math.isfinite(v)]
            if not wrong and self._count_gradients and not math.isfinite(row[-1]):
                wrong = [f"{_GRADIENT} = {row[-1]}"]
            if wrong:
                images = f" for the images {', '.join(files)}" if files else ""
                window.bad[step] = f"{', '.join(wrong)}{images}"
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
    """Sum each kind of loss over the decoder layers: {"loss_ce": a, "loss_ce_0": b} -> {"ce": a + b}."""
    kinds: dict[str, float] = {}
    for name, value in losses.items():
        kind = _LEVEL_SUFFIX.sub("", name).removeprefix("loss_")
        kinds[kind] = kinds.get(kind, 0.0) + value
    return kinds


class ConsoleWriter(EventWriter):
    """Logs iteration, ETA, speed, losses, learning rate, waiting for data and memory in one line.

    Args:
        max_iter: length of the training.
        images_per_step: images in one optimizer step, of all ranks together.
        window: recent steps to average the speed over.
    """

    def __init__(self, max_iter: int, images_per_step: int, window: int = 20) -> None:
        self._max_iter = max_iter
        self._images_per_step = images_per_step
        self._window = window

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter >= self._max_iter or "total_loss" not in storage.latest():
            return
        logger.info("%s", self.line(storage))

    def line(self, storage: EventStorage) -> str:
        """The text for the present state of `storage`; also stores "images_per_second" and "eta_seconds"."""
        latest = {name: value for name, (value, _) in storage.latest().items()}
        parts = [f"iter {storage.iter + 1}/{self._max_iter}"]
        parts += self._speed(storage)
        kinds = condense_losses({k: v for k, v in latest.items() if k.startswith("loss_")})
        detail = f" ({', '.join(f'{name} {value:.3g}' for name, value in kinds.items())})" if len(kinds) > 1 else ""
        parts.append(f"loss {latest['total_loss']:.4g}{detail}")
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
        if "time" not in storage.latest():  # not in the first steps
            return []
        history = storage.history("time")
        count = storage.count_samples("time", self._window)
        if count == 0:
            return []
        # Means, not medians: steps are queued on the GPU without waiting, and the step that fetches the
        # losses waits for all of them.
        seconds = history.avg(count)
        eta = history.avg(storage.count_samples("time", 10 * self._window)) * (self._max_iter - storage.iter - 1)
        rate = self._images_per_step / seconds
        storage.put_scalar("eta_seconds", eta, smoothing_hint=False)
        storage.put_scalar("images_per_second", rate, smoothing_hint=False)
        return [f"eta {datetime.timedelta(seconds=int(eta))}", f"{rate:.3g} img/s", f"{seconds:.3g} s/it"]
