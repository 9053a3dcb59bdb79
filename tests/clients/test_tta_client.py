"""Test-time augmentation as other programs call and override it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from torch import nn

from mask2former import SemanticSegmentorWithTTA

from .client_models import ADE20K, client_config, client_model, shapes

OPTIONS = ["TEST.AUG.MIN_SIZES", (32, 64), "TEST.AUG.MAX_SIZE", 96, "TEST.AUG.FLIP", True]


class Ramp(nn.Module):
    """Scores that depend on the place and on the view."""

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (x,) = inputs
        assert "transforms" not in x
        ramp = torch.linspace(0, 1, x["width"]).expand(1, x["height"], -1)
        return [{"sem_seg": ramp * x["image"].float().mean() * x["image"].shape[1]}]


def sample() -> dict[str, Any]:
    return {"image": torch.randint(256, (3, 64, 80), dtype=torch.uint8), "height": 48, "width": 60}


def wrapped(cls: type[SemanticSegmentorWithTTA] = SemanticSegmentorWithTTA, **keywords: Any) -> Any:
    return cls(client_config(ADE20K, OPTIONS), Ramp().eval(), **keywords)


def test_a_model_in_test_time_augmentation() -> None:
    cfg = client_config(ADE20K, [*OPTIONS[:1], (64,), *OPTIONS[2:4], "TEST.AUG.FLIP", False])
    model = client_model(cfg).eval()
    result = SemanticSegmentorWithTTA(cfg, model)([{**sample(), "file_name": "x.png"}])[0]
    assert shapes(result) == {"sem_seg": (150, 48, 60)}


def test_attributes(caplog: pytest.LogCaptureFixture) -> None:
    wrapper = wrapped(batch_size=1)
    assert isinstance(wrapper.tta_mapper, DatasetMapperTTA) and isinstance(wrapper.model, Ramp)
    assert wrapper.batch_size == 1 and list(wrapper.cfg.TEST.AUG.MIN_SIZES) == [32, 64]
    with caplog.at_level(logging.WARNING):
        wrapped(tta_mapper=None, batch_size=3)
    assert "batch_size 3 has no effect" in caplog.text


def test_a_mapper_gives_the_result_of_the_default() -> None:
    x = sample()
    mapper = DatasetMapperTTA(client_config(ADE20K, OPTIONS))
    expected = wrapped()([x])[0]["sem_seg"]
    torch.testing.assert_close(wrapped(tta_mapper=lambda record: mapper(record))([x])[0]["sem_seg"], expected)
    changed = wrapped()
    changed.tta_mapper.min_sizes = [32]
    only = DatasetMapperTTA(client_config(ADE20K, [*OPTIONS, "TEST.AUG.MIN_SIZES", (32,)]))
    torch.testing.assert_close(changed([x])[0], wrapped(tta_mapper=only)([x])[0])
    assert not torch.allclose(changed([x])[0]["sem_seg"], expected)


def test_overridden_methods_act() -> None:
    x = sample()

    class FirstView(SemanticSegmentorWithTTA):
        def _get_augmented_inputs(self, input):  # type: ignore[no-untyped-def]
            inputs, transforms = super()._get_augmented_inputs(input=input)
            assert len(inputs) == len(transforms) == 4
            return inputs[:1], transforms[:1]

    class Doubled(SemanticSegmentorWithTTA):
        def _inference_one_image(self, input):  # type: ignore[no-untyped-def]
            return {"sem_seg": 2 * super()._inference_one_image(input=input)["sem_seg"]}

    usual = wrapped()
    torch.testing.assert_close(wrapped(Doubled)([x])[0]["sem_seg"], 2 * usual([x])[0]["sem_seg"])
    usual.tta_mapper.min_sizes, usual.tta_mapper.flip = [32], False
    torch.testing.assert_close(wrapped(FirstView)([x])[0], usual([x])[0])
