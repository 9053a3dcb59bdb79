"""When a training runs compiled code."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from mask2former.config import load_config
from mask2former.engine.compilation import compile_if_worthwhile
from mask2former.modeling.runtime import Runtime

LSJ = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
CROPS = "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"
SHORTEST_EDGE = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
CUDA = ("MODEL.DEVICE", "cuda")


def compiles(config: str, mode: str, *overrides: Any) -> bool:
    model = nn.Module()
    model.runtime = Runtime(mode)  # type: ignore[assignment]
    compile_if_worthwhile(load_config(config, list(overrides)), model)
    return bool(model.runtime.compile_training)


@pytest.mark.parametrize("config", [LSJ, CROPS])
def test_long_trainings_of_one_size_on_cuda(config: str) -> None:
    assert compiles(config, "auto", *CUDA)
    assert not compiles(config, "auto", "MODEL.DEVICE", "cpu")
    assert not compiles(config, "auto", *CUDA, "SOLVER.MAX_ITER", 100)
    assert not compiles(config, "off", *CUDA) and not compiles(config, "graph", *CUDA)


def test_images_of_all_sizes_are_not_worth_it() -> None:
    resized = ("INPUT.DATASET_MAPPER_NAME", "mask_former_instance", "INPUT.CROP.ENABLED", False)
    assert not compiles(SHORTEST_EDGE, "auto", *CUDA, *resized)


def test_compile_is_for_every_training() -> None:
    assert compiles(SHORTEST_EDGE, "compile", "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 100)


def test_a_model_without_runtime_is_left_alone() -> None:
    compile_if_worthwhile(load_config(LSJ), nn.Linear(1, 1))
