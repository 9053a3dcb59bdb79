"""The benchmark of mappers, on a few small images."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator

import benchmark_data
import pytest


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [None, "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"], ids=["instances", "panoptic"]
)
def test_figures_of_a_mapper(config: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(config_file=config, size=(60, 80), images=2, repeats=1)
    figures = benchmark_data.run(args, "this machine")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "this machine" and figures["mapper"] > 0 and figures["worker"] >= 0
    assert min(figures[name] for name in ("worker, plain", "receiver", "receiver, plain")) >= 0
    assert ("masks, plain" in figures) == (config is None)
