"""detectron2's predictor and visualizer, and the predictors of the demos, with models of this package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer

from mask2former import add_maskformer2_config
from mask2former.config import find_config

from .client_models import PANOPTIC, client_config

ROOT = Path(__file__).parents[2]
TASKS = [x for name in ("SEMANTIC", "INSTANCE", "PANOPTIC") for x in (f"MODEL.MASK_FORMER.TEST.{name}_ON", True)]


def image(height: int = 70, width: int = 90) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def cfg() -> Any:
    return client_config(PANOPTIC, TASKS)


@pytest.fixture(scope="module")
def output(cfg: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return DefaultPredictor(cfg)(image())


def test_a_config_without_deeplab() -> None:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(find_config("coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml")))
    assert cfg.MODEL.META_ARCHITECTURE == "MaskFormer"


def test_default_predictor(output: dict[str, Any]) -> None:
    assert sorted(output) == ["instances", "panoptic_seg", "sem_seg"]
    assert output["sem_seg"].shape == (133, 70, 90) and output["sem_seg"].dtype == torch.float32
    segments, info = output["panoptic_seg"]
    assert segments.shape == (70, 90) and segments.dtype == torch.int32
    assert all({"id", "isthing", "category_id"} <= segment.keys() for segment in info)
    instances = output["instances"]
    count = len(instances)
    assert 0 < count <= 100
    assert list(instances.get_fields()) == ["pred_masks", "pred_boxes", "scores", "pred_classes"]
    assert instances.pred_masks.shape == (count, 70, 90) and instances.pred_masks.dtype == torch.bool
    assert instances.scores.shape == (count,) and instances.pred_classes.dtype == torch.int64
    assert isinstance(instances.pred_boxes, Boxes)


def test_boxes_are_those_of_the_masks(output: dict[str, Any]) -> None:
    """The reference implementation returns zeros."""
    instances = output["instances"]
    assert instances.pred_boxes.tensor.shape == (len(instances), 4)
    for mask, box in zip(instances.pred_masks, instances.pred_boxes.tensor.tolist(), strict=True):
        ys, xs = mask.nonzero(as_tuple=True)
        assert not len(ys) or box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_drawing_with_detectron2s_visualizer(output: dict[str, Any]) -> None:
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    black = np.zeros((70, 90, 3), np.uint8)

    def visualizer() -> Visualizer:
        return Visualizer(black[:, :, ::-1], metadata, scale=1.2, instance_mode=ColorMode.IMAGE_BW)

    segments, info = output["panoptic_seg"]
    drawn = [
        visualizer().draw_panoptic_seg(segments.to("cpu"), info),
        visualizer().draw_instance_predictions(output["instances"].to("cpu")),
        visualizer().draw_sem_seg(output["sem_seg"].argmax(0).to("cpu")),
    ]
    images = [each.get_image() for each in drawn]
    assert [each.shape for each in images] == [(84, 108, 3)] * 3
    assert all(each.any() for each in images)


def test_operations_on_bool_masks(output: dict[str, Any]) -> None:
    """Masks are bool, as those of detectron2's models; in the reference implementation they are float 0 and 1."""
    masks = output["instances"].pred_masks
    assert (masks > 0.5).equal(masks) and (~masks).sum() + masks.sum() == masks.numel()
    assert (masks.numpy().astype(np.uint8) * 255).max() == 255
    assert (masks.numpy() * 0.5).max() == 0.5
    assert masks.max(0).values.shape == (70, 90)
    contours, _ = cv2.findContours(masks[0].numpy().astype(np.uint8), 1, 2)
    assert len(contours) >= 0
    numbers = masks.float()  # for all other arithmetic
    assert torch.equal(1 - numbers, (~masks).float())
    assert F.interpolate(numbers[None], (10, 10)).shape == (1, len(masks), 10, 10)
    with pytest.raises(RuntimeError, match="bool"):
        1 - masks


@pytest.mark.parametrize("folder", ["demo", "demo_video"])
def test_predictors_import_as_scripts_and_as_packages(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = list(sys.path)
    for name, directory in (("predictor", ROOT / folder), (f"{folder}.predictor", ROOT)):
        monkeypatch.setattr(sys, "path", [str(directory), *path])
        for cached in (name, folder):
            monkeypatch.delitem(sys.modules, cached, raising=False)
        module = importlib.import_module(name)
        assert module.VisualizationDemo and module.AsyncPredictor
        del sys.modules[name]


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("demo.predictor")


@pytest.fixture
def video_predictor(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("demo_video.predictor")


def undrawn(frame: Any) -> Any:
    """Return an image (H, W, 3) BGR as RGB, as it comes back from a drawing of nothing: some matplotlib resample it."""
    return VisImage(frame[:, :, ::-1]).get_image()


class Video:
    """Three frames, as `cv2.VideoCapture` gives them."""

    def __init__(self) -> None:
        self.left = 3

    def isOpened(self) -> bool:
        return True

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        return self.left >= 0, image() if self.left >= 0 else None


@pytest.mark.slow
def test_visualization_demo(cfg: Any, predictor: ModuleType, tmp_path: Path) -> None:
    demo = predictor.VisualizationDemo(cfg, instance_mode=ColorMode.IMAGE, parallel=False)
    predictions, drawn = demo.run_on_image(image())
    assert sorted(predictions) == ["instances", "panoptic_seg", "sem_seg"]
    assert drawn.get_image().shape == (70, 90, 3)
    drawn.save(str(tmp_path / "drawn.png"))
    assert (tmp_path / "drawn.png").is_file()
    instances = Instances((70, 90), pred_masks=torch.zeros(1, 70, 90, dtype=torch.bool), scores=torch.ones(1))
    instances.pred_masks[0, 10:40, 20:50] = True
    instances.pred_classes, instances.pred_boxes = torch.tensor([3]), Boxes(torch.tensor([[20.0, 10, 50, 40]]))
    for parts in (("panoptic_seg",), ("sem_seg", "instances"), ("instances",), ()):
        found = {**predictions, "instances": instances}
        demo.predictor = lambda frame, parts=parts, found=found: {part: found[part] for part in parts}
        assert (demo.run_on_image(image())[1].get_image() != undrawn(image())).any() == bool(parts)
        frames = list(demo.run_on_video(Video()))
        assert [frame.shape for frame in frames] == [(70, 90, 3)] * 3
        plain = undrawn(image())[:, :, ::-1] if parts else image()  # nothing to draw leaves the frame as it is
        assert (frames[0] != plain).any() == bool(parts)


def test_frames_that_are_predicted_ahead_stay_in_order(cfg: Any, predictor: ModuleType) -> None:
    class Ahead(list[Any]):
        default_buffer_size, most = 2, 0

        def put(self, frame: Any) -> None:
            self.append(frame)
            self.most = max(self.most, len(self))

        def get(self) -> Any:
            return {"frame": self.pop(0)}

    demo = predictor.VisualizationDemo(cfg)
    demo.parallel, demo.predictor = True, Ahead()
    frames = [np.full((2, 2), number) for number in range(6)]
    pairs = list(demo._predicted(iter(frames)))
    assert len(pairs) == 6 and all(frame is found["frame"] for frame, found in pairs)
    assert demo.predictor.most == 3


@pytest.mark.slow
def test_predicting_in_processes(cfg: Any, predictor: ModuleType) -> None:
    first, second = image(), image(40, 60)
    parallel = predictor.AsyncPredictor(cfg, num_gpus=0)
    try:
        assert parallel.default_buffer_size == 5
        parallel.put(first)
        parallel.put(second)
        parallel.put("no image")
        assert len(parallel) == 3
        sizes = [parallel.get()["instances"].image_size for _ in range(2)]
        assert sizes == [(70, 90), (40, 60)]
        with pytest.raises(TypeError):
            parallel.get()
    finally:
        parallel.shutdown()


class Clip(torch.nn.Module):
    """A model that finds the left half of each frame; the result is alone, or the only one of a list."""

    def __init__(self, listed: bool) -> None:
        super().__init__()
        self.listed = listed

    def forward(self, batch: Any) -> Any:
        ((frames, height, width),) = ((clip["image"], clip["height"], clip["width"]) for clip in batch)
        assert all(frame.dtype == torch.float32 and frame.shape[0] == 3 for frame in frames)
        mask = torch.zeros(len(frames), height, width, dtype=torch.bool)
        mask[0, :, : width // 2] = True
        result = {"image_size": (height, width), "pred_scores": [0.9, 0.1], "pred_labels": [3, 1]}
        result["pred_masks"] = [mask, mask]
        return [result] if self.listed else result


@pytest.mark.parametrize("listed", [False, True])
def test_clips(cfg: Any, video_predictor: ModuleType, monkeypatch: pytest.MonkeyPatch, listed: bool) -> None:
    monkeypatch.setattr("detectron2.engine.defaults.build_model", lambda _: Clip(listed))
    demo = video_predictor.VisualizationDemo(cfg, score_threshold=0.5)
    frames = [image(), image()]
    predictions, drawn = demo.run_on_video(frames)
    assert predictions["image_size"] == (70, 90) and predictions["pred_masks"][0].shape == (2, 70, 90)
    changed = [(each.get_image() != undrawn(frame)).any() for each, frame in zip(drawn, frames, strict=True)]
    assert changed == [True, False]  # the track is in the first frame only
    assert issubclass(video_predictor.VideoPredictor, DefaultPredictor)
