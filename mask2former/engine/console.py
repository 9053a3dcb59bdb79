"""The line of progress that people read during training."""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Mapping

import torch
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

logger = logging.getLogger(__name__)

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
        detail = (
            f" ({', '.join(f'{name} {value:.3g}' for name, value in kinds.items())})"
            if len(kinds) > 1
            else ""
        )
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
        eta = history.avg(storage.count_samples("time", 10 * self._window)) * (
            self._max_iter - storage.iter - 1
        )
        rate = self._images_per_step / seconds
        storage.put_scalar("eta_seconds", eta, smoothing_hint=False)
        storage.put_scalar("images_per_second", rate, smoothing_hint=False)
        return [f"eta {datetime.timedelta(seconds=int(eta))}", f"{rate:.3g} img/s", f"{seconds:.3g} s/it"]
