"""Segmentation tasks, as config, post-processing, results and evaluation name them."""

from __future__ import annotations

from enum import Enum

from detectron2.config import CfgNode


class Task(str, Enum):
    """A segmentation task. Members equal their names as strings: `Task.INSTANCE == "instance"`."""

    SEMANTIC = "semantic"
    INSTANCE = "instance"
    PANOPTIC = "panoptic"
    VIDEO = "video"  # instances tracked through a video; in a config the switch of instances enables it

    def __str__(self) -> str:
        return self.value

    @property
    def switch(self) -> str:
        """Return the key below MODEL.MASK_FORMER.TEST that enables this image task."""
        return f"{self.name}_ON"

    @property
    def output(self) -> str:
        """Return the key of this image task in the output of a detectron2 model."""
        return {Task.SEMANTIC: "sem_seg", Task.INSTANCE: "instances", Task.PANOPTIC: "panoptic_seg"}[self]


IMAGE_TASKS = (Task.SEMANTIC, Task.INSTANCE, Task.PANOPTIC)
"""The image tasks, each with a switch in the config."""


def tasks_of(cfg: CfgNode) -> frozenset[Task]:
    """Return the tasks that MODEL.MASK_FORMER.TEST enables."""
    return frozenset(task for task in IMAGE_TASKS if cfg.MODEL.MASK_FORMER.TEST[task.switch])
