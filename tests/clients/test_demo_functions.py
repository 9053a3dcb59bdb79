"""Functions and drawings that other programs import from the demos."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode

from .client_models import CONFIGS, INSTANCE

ROOT = Path(__file__).parents[2]
VIDEO = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"


def script(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = "client_" + path.replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("path", "config"), [("demo/demo.py", INSTANCE), ("demo_video/demo.py", VIDEO)])
def test_arguments_and_config(path: str, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = script(path, monkeypatch)
    opts = ["MODEL.WEIGHTS", "w.pkl", "MODEL.DEVICE", "cpu"]
    command = ["--config-file", str(CONFIGS / config), "--input", "a.jpg", "b.jpg", "--output", "out"]
    args = demo.get_parser().parse_args([*command, "--confidence-threshold", "0.3", "--opts", *opts])
    assert args.input == ["a.jpg", "b.jpg"] and args.output == "out" and args.opts == opts
    cfg = demo.setup_cfg(args)
    assert cfg.is_frozen() and cfg.MODEL.WEIGHTS == "w.pkl" and cfg.MODEL.DEVICE == "cpu"
    assert ("VideoMaskFormer" if config == VIDEO else "MaskFormer") == cfg.MODEL.META_ARCHITECTURE
    args = demo.get_parser().parse_args([*command[:2], "--weights", "other.pkl"])
    assert demo.setup_cfg(args).MODEL.WEIGHTS == "other.pkl"


def test_the_parser_of_videos_takes_values(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    parser = script("demo_video/demo.py", monkeypatch).get_parser()
    args = parser.parse_args(["--save-frames", "False", "--config-file", "c.yaml"])
    assert args.task == "video" and not args.save_frames
    monkeypatch.setattr(sys, "argv", ["demo.py", "--save-frames", "True"])
    assert parser.parse_args().save_frames
    with pytest.raises(SystemExit):
        parser.parse_args(["--save-frames=maybe"])
    assert "give True or False" in capsys.readouterr().err


def test_drawing_of_tracks(monkeypatch: pytest.MonkeyPatch) -> None:
    visualizer = script("demo_video/visualizer.py", monkeypatch).TrackVisualizer
    frame = np.zeros((40, 60, 3), dtype=np.uint8)
    tracks = Instances((40, 60), scores=torch.tensor([0.9, 0.8]), pred_classes=torch.tensor([1, 0]))
    tracks.pred_masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    tracks.pred_masks[1, 5:30, 10:40] = True
    metadata = Metadata(thing_classes=["a", "b"])

    def drawn(predictions: Instances) -> np.ndarray:
        image = visualizer(frame, metadata, instance_mode=ColorMode.IMAGE).draw_instance_predictions(predictions)
        return np.asarray(image.get_image(), dtype=int)

    assert not drawn(Instances((40, 60))).any()  # nothing was predicted
    second = drawn(tracks)
    assert second[20, 20].any() and not second[35, 50].any()
    alone = drawn(tracks[1:])
    assert (alone[20, 20] != second[20, 20]).any()  # the color is that of the track, not of its place in the frame
    tracks.pred_masks[:] = False
    assert not drawn(tracks).any()
