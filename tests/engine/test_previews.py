"""Sample predictions beside their ground truth, for each task, and that they change nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import TinyTrainer, start, tiny_config, weights
from torch import nn

from mask2former.config import load_config
from mask2former.engine.best_model import evaluate_datasets, format_results
from mask2former.engine.distributed import get_random_state
from mask2former.engine.previews import Previews, open_previews
from mask2former.structures.classes import ClassTable
from mask2former.structures.panoptic_ids import id_to_rgb

CLASSES = ClassTable(("cell", "vessel"), colors=((255, 0, 0), (0, 0, 255)))
SIZE = (40, 60)


def sample(name: str = "a.png") -> dict[str, Any]:
    """A gray image at half the size of its results."""
    image = torch.full((3, 20, 30), 90, dtype=torch.uint8)
    return {"image": image, "height": SIZE[0], "width": SIZE[1], "file_name": name, "image_id": 1}


def mask(top: int, left: int) -> np.ndarray:
    out = np.zeros(SIZE, bool)
    out[top : top + 20, left : left + 20] = True
    return out


def instances(*scores: float) -> dict[str, Any]:
    found = Instances(SIZE)
    found.pred_masks = torch.from_numpy(np.stack([mask(2 + 10 * (i % 2), 2 + 18 * i) for i in range(len(scores))]))
    found.scores, found.pred_classes = torch.tensor(scores), torch.arange(len(scores)) % 2
    return {"instances": found}


RECTANGLE = [[2, 2, 22, 2, 22, 22, 2, 22]]
OBJECT = {"category_id": 0, "segmentation": RECTANGLE, "iscrowd": 0}


def red(pixels: np.ndarray) -> np.ndarray:
    """Where an object of the first class is drawn."""
    return pixels[..., 0].astype(int) - pixels[..., 2] > 40


def panels(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Both images, at the size of the results; a small image is enlarged to 320 pixels."""
    width, height = 320, round(320 * SIZE[0] / SIZE[1])
    both = [image.crop((left, 0, left + width, height)) for left in (0, image.width - width)]
    left, right = (np.asarray(part.resize((SIZE[1], SIZE[0]), Image.Resampling.BOX)) for part in both)
    return left, right


def test_instances_beside_their_ground_truth() -> None:
    records = [{"file_name": "other.png"}, {"file_name": "a.png", "annotations": [OBJECT]}]
    drawn = Previews("cells", records, CLASSES, 4, "RGB").draw(sample(), instances(0.9, 0.3))
    left, right = panels(drawn)
    assert red(left)[4:20, 4:20].mean() > 0.6 and not red(left)[:, 24:].any()  # 0.3 is not drawn
    assert red(right)[4:20, 4:20].mean() > 0.6 and not red(right)[:, 24:].any()
    assert 640 < drawn.width < 660


def test_panoptic_and_semantic_ground_truth(tmp_path: Path) -> None:
    ids = np.where(mask(2, 2), 7, 0).astype(np.int32)
    Image.fromarray(id_to_rgb(ids)).save(tmp_path / "pan.png")
    Image.fromarray(np.where(mask(2, 2), 0, 255).astype(np.uint8)).save(tmp_path / "sem.png")
    segments = [{"id": 7, "category_id": 0, "isthing": True}]
    record = {"file_name": "a.png", "sem_seg_file_name": str(tmp_path / "sem.png")}
    panoptic = {"pan_seg_file_name": str(tmp_path / "pan.png"), "segments_info": segments}
    scores = torch.from_numpy(np.stack([mask(2, 2), ~mask(2, 2)])).float()
    for output in ({"panoptic_seg": (torch.from_numpy(ids), segments)}, {"sem_seg": scores}):
        for known in (record, record | panoptic):
            left, right = panels(Previews("cells", [known], CLASSES, 4, "RGB").draw(sample(), output))
            for panel in (left, right):
                assert red(panel)[4:20, 4:20].mean() > 0.6 and not red(panel)[:, 24:].any()


def test_bgr_and_no_ground_truth() -> None:
    entry = sample()
    entry["image"][2] = 250  # red, in BGR
    drawn = np.asarray(Previews("cells", [], CLASSES, 4, "BGR").draw(entry, instances(0.1)))
    assert drawn.shape[1] == 320
    assert tuple(drawn[5, 5]) == (250, 90, 90)


def test_a_large_image_is_reduced() -> None:
    entry = {**sample(), "height": 500, "width": 700}
    output = {"sem_seg": torch.zeros(2, 500, 700)}
    assert Previews("cells", [], CLASSES, 4, "RGB").draw(entry, output).width == 640


def test_a_failure_is_told_once_and_ends_the_drawing(caplog: pytest.LogCaptureFixture) -> None:
    previews = Previews("cells", [{"file_name": "a.png", "annotations": [{"category_id": 0}]}], CLASSES, 4, "RGB")
    with EventStorage() as storage:
        for _ in range(3):
            previews.add([sample()], [instances(0.9)])
        assert storage._vis_data == []
    assert len([r for r in caplog.records if "TEST.PREVIEW_IMAGES" in r.getMessage()]) == 1


class Guess(nn.Module):
    """Finds one object in each image."""

    def __init__(self, output: dict[str, Any]) -> None:
        super().__init__()
        self.output = output

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.output for _ in batch]


class Counter(DatasetEvaluator):
    """Counts images; logs a table of its own."""

    def reset(self) -> None:
        self.count = 0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.count += len(inputs)

    def evaluate(self) -> dict[str, Any]:
        logging.getLogger("mask2former.evaluation.x").info("own table")
        return {"segm": {"AP": float(self.count), "AP-cell": 1.0}}


class Builders:
    def build_test_loader(self, cfg: CfgNode, dataset_name: str) -> Any:
        return [[sample(f"{i}.png")] for i in range(6)]

    def build_evaluator(self, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return Counter()


@pytest.fixture
def cfg(tmp_path: Path) -> Iterator[CfgNode]:
    name = f"cells_{tmp_path.name}"
    MetadataCatalog.get(name).set(thing_classes=["cell", "vessel"])
    keys = ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", (name,), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2]
    yield load_config(None, [*keys, "INPUT.FORMAT", "RGB"])
    MetadataCatalog.remove(name)


def test_an_evaluation_draws_its_first_images_and_results_stay(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    name = cfg.DATASETS.TEST[0]
    model = Guess(instances(0.9))
    plain = evaluate_datasets(Builders(), cfg, model)  # not in a training
    before = get_random_state()
    caplog.clear()
    with EventStorage(7) as storage, caplog.at_level(logging.INFO):
        drawn = evaluate_datasets(Builders(), cfg, model, previews=True, suffix="_TTA")
        assert [image[0] for image in storage._vis_data] == [f"preview/{name}/{i}" for i in range(4)]
        assert all(image[1].dtype == torch.uint8 and image[2] == 7 for image in storage._vis_data)
    after = get_random_state()
    assert torch.equal(before["torch"], after["torch"]) and torch.equal(before["python"][1], after["python"][1])
    assert plain == {name: {"segm": {"AP": 6.0, "AP-cell": 1.0}}}
    assert drawn == {name: {"segm_TTA": {"AP": 6.0, "AP-cell": 1.0}}}
    tables = [r.getMessage() for r in caplog.records if r.name == "mask2former.engine.best_model"]
    assert len(tables) == 1 and tables[0].count("6.000") == 1 and "AP of cell 1.0" in tables[0]


def test_where_there_are_none(cfg: CfgNode) -> None:
    name = cfg.DATASETS.TEST[0]
    assert open_previews(cfg, name, []) is None  # not in a training
    with EventStorage():
        assert open_previews(cfg, name, []) is not None
        for keys in (["TEST.PREVIEW_IMAGES", 0], ["LOGGERS", []], ["MODEL.META_ARCHITECTURE", "VideoMaskFormer"]):
            changed = cfg.clone()
            changed.merge_from_list(keys)
            assert open_previews(changed, name, []) is None


class PreviewTrainer(TinyTrainer):
    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        return evaluate_datasets(Builders(), cfg, Guess(instances(0.9)), previews=True)[cfg.DATASETS.TEST[0]]


def test_training_shows_them_in_tensorboard_and_trains_the_same(tmp_path: Path) -> None:
    states = {}
    for count in ("4", "0"):
        keys = ("TEST.EVAL_PERIOD", "2", "TEST.PREVIEW_IMAGES", count, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2")
        trainer = start(tiny_config(tmp_path / count, *keys), trainer_class=PreviewTrainer)
        trainer.train()
        states[count] = weights(trainer)
        events = EventAccumulator(str(tmp_path / count), size_guidance={"images": 0})
        events.Reload()
        shown = {tag: [entry.step for entry in events.Images(tag)] for tag in events.Tags()["images"]}
        steps = [1, 3, 6]
        assert shown == ({f"preview/tiny_val/{i}": steps for i in range(4)} if count == "4" else {})
    for name, value in states["4"].items():
        assert torch.equal(value, states["0"][name])
    keys_of = [(tmp_path / count / "metrics.json").read_text().count("preview") for count in states]
    assert keys_of == [0, 0]


def test_table_with_many_classes_and_missing_sizes() -> None:
    few = {"segm": {"AP": 1.0, "APs": float("nan"), **{f"AP-c{i}": float(i) for i in range(20)}}}
    text = format_results({"cells": few})
    assert "c19 19.0" in text and "nan: no ground truth" in text
    assert max(len(line) for line in text.splitlines()) <= 120
    few["segm"]["AP-c20"] = 1.0
    assert "c19" not in format_results({"cells": few})
