"""When a training runs compiled code, and when CUDA graphs hold it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mask2former.config import load_config
from mask2former.engine.compilation import compile_if_worthwhile
from mask2former.engine.train_step import Precision, TrainStep
from mask2former.modeling.runtime import Runtime

LSJ = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
SHORTEST_EDGE = "nuclei/maskformer2_efficientnet_lite0.yaml"


def decided(config: str, mode: str, captured: bool, *overrides: Any) -> tuple[bool, bool]:
    cfg = load_config(config, list(overrides))
    model = nn.Module()
    model.runtime = Runtime(mode)  # type: ignore[assignment]
    compile_if_worthwhile(cfg, model, captured=captured)
    return model.runtime.compile_training, model.runtime.capture_training  # type: ignore[union-attr,return-value]


@pytest.mark.parametrize("captured", [True, False])
def test_long_trainings_of_one_size_on_cuda(captured: bool) -> None:
    assert decided(LSJ, "auto", captured, "MODEL.DEVICE", "cuda") == (True, captured)
    assert decided(LSJ, "auto", captured, "MODEL.DEVICE", "cpu") == (False, False)
    assert decided(LSJ, "auto", captured, "MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", 100) == (False, False)
    assert decided(LSJ, "off", captured, "MODEL.DEVICE", "cuda") == (False, False)
    assert decided(LSJ, "graph", captured, "MODEL.DEVICE", "cuda") == (False, False)


def test_compile_is_for_every_training_and_captured_on_cuda_only() -> None:
    short = ("SOLVER.MAX_ITER", 100)
    assert decided(SHORTEST_EDGE, "compile", True, "MODEL.DEVICE", "cuda", *short) == (True, True)
    assert decided(SHORTEST_EDGE, "compile", True, "MODEL.DEVICE", "cpu", *short) == (True, False)


def test_a_model_without_runtime_is_left_alone() -> None:
    compile_if_worthwhile(load_config(LSJ), nn.Linear(1, 1), captured=True)


def test_a_step_begins_after_the_gradients_of_the_last_one_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(nn.Linear):
        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            seen.append("forward")
            return {"loss": super().forward(torch.ones(1, 2)).sum()}

    seen: list[Any] = []
    model = Model(2, 1)
    model.runtime = Runtime("compile")  # type: ignore[assignment]
    model.runtime.capture_training = True  # type: ignore[union-attr]
    monkeypatch.setattr(
        torch.compiler, "cudagraph_mark_step_begin", lambda: seen.append([p.grad is None for p in model.parameters()])
    )
    step = TrainStep(precision=Precision("cpu", None), max_iter=2**31, accumulation_steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for iteration in range(2):
        step.run(model, optimizer, iter([[{}], [{}]]), iteration)
    assert seen == 2 * [[True, True], "forward", "forward"]


def test_only_training_is_captured() -> None:
    runtime, network = Runtime("compile"), nn.Linear(1, 1)
    runtime.compiler = {"backend": "inductor", "options": {"max_autotune": False}}
    assert runtime._compiler_of(network, network) == runtime.compiler
    runtime.capture_training = True
    options = runtime._compiler_of(network, network)["options"]
    assert options["triton.cudagraphs"] and options["max_autotune"] is False
    assert runtime._compiler_of(network.eval(), network) == runtime.compiler
