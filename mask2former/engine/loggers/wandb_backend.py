"""Weights & Biases (pip install wandb)."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from .background import Backend, Run

logger = logging.getLogger(__name__)

_START_SECONDS = 60


class WandbBackend(Backend):
    """A run of W&B, in the project WANDB_PROJECT ("mask2former" if unset).

    Without a login, and where the server cannot be reached, the run is written below OUTPUT_DIR/wandb: it never asks.
    """

    def __init__(self) -> None:
        self._run: Any = None
        self._offline = False

    def start(self, run: Run) -> str:
        import wandb

        # An id of our own: theirs may be drawn from the random state of the training.
        run_id = run.run_id or secrets.token_hex(4)
        mode = os.environ.get("WANDB_MODE") or ("online" if self._logged_in() else "offline")
        arguments: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT") or "mask2former",
            "name": os.environ.get("WANDB_NAME") or run.name,
            "id": run_id,
            "resume": "allow",
            "dir": str(run.directory),
            "config": dict(run.settings),
            # The console is that of the training.
            "settings": wandb.Settings(console="off", silent=True, init_timeout=_START_SECONDS),
        }
        try:
            self._run = wandb.init(mode=mode, **arguments)
        except Exception as error:
            if mode != "online":
                raise
            logger.warning("W&B cannot be reached, the run is kept on disk: %s: %s", type(error).__name__, error)
            mode = "offline"
            self._run = wandb.init(mode=mode, **arguments)
        self._offline = mode == "offline"
        # Not W&B's own steps, which would refuse those before the last one when a training is resumed.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        return run_id

    @staticmethod
    def _logged_in() -> bool:
        """Return whether there is a key, which W&B would otherwise ask for on the terminal."""
        if os.environ.get("WANDB_API_KEY"):
            return True
        import wandb

        return bool(getattr(wandb.api, "api_key", None))

    @property
    def where(self) -> str:
        if self._offline:
            return f"offline, upload with: wandb sync {os.path.dirname(self._run.dir)}"
        return str(getattr(self._run, "url", "") or "")

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "iteration": iteration})

    def image(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        import wandb

        self._run.log({name: wandb.Image(pixels), "iteration": iteration})

    def finish(self, final: Mapping[str, float], completed: bool) -> None:
        self._run.summary.update({f"final/{key}": value for key, value in final.items()})
        self._run.finish(exit_code=0 if completed else 1)
