"""ClearML (pip install clearml)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .background import Backend, Run


class ClearmlBackend(Backend):
    """A task of ClearML, in the project CLEARML_PROJECT ("mask2former" if unset)."""

    def __init__(self) -> None:
        self._task: Any = None

    def start(self, run: Run) -> str:
        from clearml import Task

        self._task = Task.init(
            project_name=os.environ.get("CLEARML_PROJECT") or "mask2former",
            task_name=os.environ.get("CLEARML_TASK") or run.name,
            # The id of the task to continue, or never one that ClearML finds by itself.
            continue_last_task=run.run_id or False,
            reuse_last_task_id=False,
            # Its hooks into PyTorch, TensorBoard and argparse would log everything twice.
            auto_connect_frameworks=False,
            auto_connect_arg_parser=False,
            auto_connect_streams=False,
            auto_resource_monitoring=False,
        )
        if run.run_id:
            self._task.set_initial_iteration(0)  # ours count on: no offset
        self._task.set_parameters(dict(run.settings))
        self._task.set_configuration_object("config.yaml", config_text=run.yaml)
        return str(self._task.id)

    @property
    def where(self) -> str:
        return str(self._task.get_output_log_web_page() or "")

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            title, _, series = key.rpartition("/")
            self._task.get_logger().report_scalar(title or key, series, value, iteration)

    def image(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        title, _, series = name.rpartition("/")
        self._task.get_logger().report_image(title or name, series, iteration, image=pixels)

    def finish(self, final: Mapping[str, float], completed: bool) -> None:
        for key, value in final.items():
            self._task.get_logger().report_single_value(key, value)
        if completed:
            self._task.close()
        else:
            self._task.mark_stopped(force=True)
