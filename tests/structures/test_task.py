"""Tests of the tasks and of their switches in a config."""

from __future__ import annotations

import pytest
import torch

from mask2former.config import load_config
from mask2former.modeling.postprocess import Settings, postprocess
from mask2former.structures.task import IMAGE_TASKS, Task, tasks_of


def test_members_are_their_names() -> None:
    assert list(Task) == ["semantic", "instance", "panoptic", "video"]
    assert f"{Task.VIDEO}" == str(Task.VIDEO) == "video" and {"video": 1}[Task.VIDEO] == 1
    with pytest.raises(ValueError, match="boxes"):
        Task("boxes")


def test_switches_of_a_config() -> None:
    assert tasks_of(load_config()) == {Task.SEMANTIC}
    test = "MODEL.MASK_FORMER.TEST."
    keys = [f"{test}SEMANTIC_ON", False, f"{test}INSTANCE_ON", True, f"{test}PANOPTIC_ON", True]
    assert tasks_of(load_config(None, keys)) == {Task.INSTANCE, Task.PANOPTIC}


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_each_task_of_an_image_has_its_output(task: Task) -> None:
    scores, masks = torch.tensor([[0.7, 0.3]]), torch.ones(1, 2, 2)
    result = postprocess(scores, scores, masks, (8, 8), (8, 8), (8, 8), Settings(frozenset({task})))
    assert list(result) == [task.output]
