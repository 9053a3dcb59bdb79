"""MLflow (pip install mlflow)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from .background import Backend, Run

_AT_ONCE = 100  # parameters of one call, the service's limit
_LENGTH = 500  # characters of a parameter; older servers take no more
_UNKNOWN = re.compile(r"[^\w\-. /]")  # characters that names may not have


class MlflowBackend(Backend):
    """A run of the experiment MLFLOW_EXPERIMENT_NAME ("mask2former" if unset) at MLFLOW_TRACKING_URI.

    Through MLflow's client: no "active run", which a program around the training may have.
    """

    def __init__(self) -> None:
        import mlflow

        self._client: Any = mlflow.MlflowClient()
        self._run_id = ""
        self._experiment = ""

    def start(self, run: Run) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "mask2former"
        found = self._client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
        if run.run_id:
            self._client.update_run(run.run_id, status="RUNNING")
            self._run_id = run.run_id
        else:
            started = self._client.create_run(self._experiment, run_name=os.environ.get("MLFLOW_RUN_NAME") or run.name)
            self._run_id = started.info.run_id
            self._parameters(run.settings)  # they cannot be changed: a resumed run keeps those of its start
        self._client.log_text(self._run_id, run.yaml, "config.yaml")
        return self._run_id

    def _parameters(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        rows = [Param(_UNKNOWN.sub("_", key), str(value)[:_LENGTH]) for key, value in settings.items()]
        for begin in range(0, len(rows), _AT_ONCE):
            self._client.log_batch(self._run_id, params=rows[begin : begin + _AT_ONCE])

    @property
    def where(self) -> str:
        return f"experiment {self._experiment}, run {self._run_id} at {self._client.tracking_uri}"

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        rows = [Metric(_UNKNOWN.sub("_", key), value, now, iteration) for key, value in values.items()]
        self._client.log_batch(self._run_id, metrics=rows)

    def image(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        self._client.log_image(self._run_id, pixels, artifact_file=f"{_UNKNOWN.sub('_', name)}/{iteration + 1:07d}.png")

    def finish(self, final: Mapping[str, float], completed: bool) -> None:
        for key, value in final.items():
            self._client.set_tag(self._run_id, f"final.{_UNKNOWN.sub('_', key)}", f"{value:.4f}")
        self._client.set_terminated(self._run_id, "FINISHED" if completed else "KILLED")
