"""build_evaluator end to end on a dataset of two images, with numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.structures import Boxes, Instances
from PIL import Image

from mask2former.config import add_maskformer2_config, load_config
from mask2former.evaluation import (
    EvaluatorRequest,
    InstanceSegEvaluator,
    PanopticEvaluator,
    SemanticEvaluator,
    build_evaluator,
    builder,
    register_evaluator,
)
from mask2former.structures.task import Task

HEIGHT, WIDTH = 8, 12


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    return cfg


def switch(cfg: CfgNode, semantic: bool = False, instance: bool = False, panoptic: bool = False) -> None:
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON, test.INSTANCE_ON, test.PANOPTIC_ON = semantic, instance, panoptic


@pytest.fixture
def coco(tmp_path: Path, register: Callable[..., str]) -> str:
    """Left half of each image is grass (id 40, class 1); its right half a cow (id 20, class 0)."""
    ids = np.full((HEIGHT, WIDTH), 5)
    ids[:, WIDTH // 2 :] = 300
    rgb = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=-1).astype(np.uint8)
    half = HEIGHT * WIDTH // 2
    segments = [
        {"id": 5, "category_id": 40, "area": half, "iscrowd": 0},
        {"id": 300, "category_id": 20, "area": half, "iscrowd": 0},
    ]
    categories = [{"id": 20, "name": "cow", "isthing": 1}, {"id": 40, "name": "grass", "isthing": 0}]
    images, panoptic, instances, records = [], [], [], []
    for i in range(2):
        Image.fromarray(rgb).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH})
        panoptic.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
        polygon = [[6, 0, 12, 0, 12, 8, 6, 8]]
        cow = {"image_id": i, "category_id": 20, "segmentation": polygon, "area": half, "iscrowd": 0}
        instances.append({"id": i + 1, **cow})
        records.append({"file_name": f"{i}.jpg", "image_id": i, "height": HEIGHT, "width": WIDTH})
    for name, content in (
        ("panoptic.json", {"annotations": panoptic, "categories": categories}),
        ("instances.json", {"annotations": instances, "categories": categories[:1]}),
    ):
        (tmp_path / name).write_text(json.dumps({"images": images, **content}))
    return register(
        "test_coco",
        records,
        evaluator_type="coco_panoptic_seg",
        panoptic_json=str(tmp_path / "panoptic.json"),
        panoptic_root=str(tmp_path),
        json_file=str(tmp_path / "instances.json"),
        thing_classes=["cow"],
        stuff_classes=["cow", "grass"],
        thing_dataset_id_to_contiguous_id={20: 0},
        stuff_dataset_id_to_contiguous_id={20: 0, 40: 1},
        ignore_label=255,
    )


class Guess(torch.nn.Module):
    """Return a model that draws the border between grass and cow `shift` columns too far left in image 1."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs = []
        for image in inputs:
            border = WIDTH // 2 - self.shift * image["image_id"]
            cow = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
            cow[:, border:] = True
            found = Instances((HEIGHT, WIDTH))
            found.pred_masks, found.pred_boxes = cow[None], Boxes(torch.zeros(1, 4))
            found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
            segments = [
                {"id": 1, "isthing": True, "category_id": 0},
                {"id": 2, "isthing": False, "category_id": 1},
            ]
            outputs.append(
                {
                    "instances": found,
                    "panoptic_seg": (torch.where(cow, 1, 2).int(), segments),
                    "sem_seg": torch.stack([cow, ~cow]).float(),
                }
            )
        return outputs


def evaluate(evaluator: DatasetEvaluator, shift: int) -> dict[str, Any]:
    loader = [[{"image_id": i, "file_name": f"{i}.jpg"}] for i in range(2)]
    return inference_on_dataset(Guess(shift), loader, evaluator)


def test_all_three_tasks(cfg: CfgNode, coco: str, tmp_path: Path) -> None:
    switch(cfg, semantic=True, instance=True, panoptic=True)
    results = evaluate(build_evaluator(cfg, coco), shift=2)
    assert set(results) == {"sem_seg", "segm", "panoptic_seg"}
    # second image: the cow is 8 columns instead of 6 (IoU 6/8), the grass 4 instead of 6 (IoU 4/6)
    panoptic = results["panoptic_seg"]
    assert panoptic["PQ_th"] == panoptic["SQ_th"] == pytest.approx(100 * (1 + 6 / 8) / 2)
    assert panoptic["PQ_st"] == pytest.approx(100 * (1 + 4 / 6) / 2)
    assert panoptic["RQ"] == 100
    # columns of both images together: cow 12 of 14, grass 10 of 12
    assert results["sem_seg"]["IoU-cow"] == pytest.approx(100 * 12 / 14)
    assert results["sem_seg"]["IoU-grass"] == pytest.approx(100 * 10 / 12)
    assert results["sem_seg"]["pACC"] == pytest.approx(100 * 22 / 24)
    # IoU 0.75 counts at thresholds 0.5 ... 0.75, six of ten; above, half is found (51 of 101 points)
    both, half = 1.0, 51 / 101
    assert results["segm"]["AP"] == pytest.approx(100 * (6 * both + 4 * half) / 10)
    assert results["segm"]["AP75"] == pytest.approx(100)
    written = {p.name for p in (tmp_path / "out/inference").iterdir()}
    tables = {"instances_predictions.pth", "sem_seg_evaluation.pth"}
    assert written == tables | {"coco_instances_results.json", "sem_seg_predictions.json", "predictions.json"}


def test_perfect(cfg: CfgNode, coco: str) -> None:
    switch(cfg, semantic=True, instance=True, panoptic=True)
    results = evaluate(build_evaluator(cfg, coco), shift=0)
    assert results["panoptic_seg"]["PQ"] == results["sem_seg"]["mIoU"] == 100
    assert results["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("on", "kind"),
    [("semantic", SemanticEvaluator), ("instance", InstanceSegEvaluator), ("panoptic", PanopticEvaluator)],
)
def test_one_task_alone(cfg: CfgNode, coco: str, on: str, kind: type) -> None:
    switch(cfg, **{on: True})
    assert type(build_evaluator(cfg, coco)) is kind


def test_several_tasks(cfg: CfgNode, coco: str) -> None:
    switch(cfg, semantic=True, panoptic=True)
    evaluator = build_evaluator(cfg, coco)
    assert isinstance(evaluator, DatasetEvaluators)
    assert [type(e) for e in evaluator._evaluators] == [SemanticEvaluator, PanopticEvaluator]


def test_plain_types(cfg: CfgNode, register: Callable[..., str], tmp_path: Path, coco: str) -> None:
    name = register("test_plain_coco", evaluator_type="coco", json_file=str(tmp_path / "instances.json"))
    switch(cfg, instance=True, semantic=True)
    assert type(build_evaluator(cfg, name)) is InstanceSegEvaluator
    record = {"file_name": "a.jpg", "sem_seg_file_name": "a.png"}
    name = register("test_plain_sem_seg", [record], evaluator_type="sem_seg", stuff_classes=["a", "b"])
    assert type(build_evaluator(cfg, name)) is SemanticEvaluator


def test_the_table_of_the_reference() -> None:
    """evaluator_type x what the model predicts."""
    everything = {
        Task.SEMANTIC: builder.semantic_iou,
        Task.INSTANCE: builder.instance_ap,
        Task.PANOPTIC: builder.panoptic_quality,
    }
    cityscapes = {Task.SEMANTIC: builder.cityscapes_iou, Task.INSTANCE: builder.cityscapes_ap}
    expected = {
        "sem_seg": {Task.SEMANTIC: builder.semantic_iou},
        "coco": {Task.INSTANCE: builder.instance_ap},
        "lvis": {Task.INSTANCE: builder.lvis_ap},
        "coco_panoptic_seg": everything,
        "ade20k_panoptic_seg": everything,
        "mapillary_vistas_panoptic_seg": everything,
        "cityscapes_sem_seg": {Task.SEMANTIC: builder.cityscapes_iou},
        "cityscapes_instance": {Task.INSTANCE: builder.cityscapes_ap},
        "cityscapes_panoptic_seg": {**cityscapes, Task.PANOPTIC: builder.panoptic_quality},
        "ytvis": {Task.INSTANCE: builder.video_ap},
    }
    registered = builder._FACTORIES
    assert registered == expected


def test_options_of_the_semantic_evaluation(cfg: CfgNode, coco: str) -> None:
    switch(cfg, semantic=True)
    plain = evaluate(build_evaluator(cfg, coco), shift=0)["sem_seg"]
    assert not {"mBIoU", "PQ"} & set(plain)
    cfg.TEST.BOUNDARY_IOU = cfg.TEST.SEMANTIC_PQ = True
    metrics = evaluate(build_evaluator(cfg, coco), shift=0)["sem_seg"]
    assert (metrics["mBIoU"], metrics["PQ"]) == (100, 100)
    assert {"BIoU-cow", "PQ-grass"} < set(metrics)
    # moved by one column: the grass of the second image is 5 of 6 columns
    assert evaluate(build_evaluator(cfg, coco), shift=1)["sem_seg"]["PQ-grass"] == pytest.approx(100 * (1 + 5 / 6) / 2)


@pytest.mark.parametrize(("per_image", "key"), [(10, "AR@100"), (100, "AR@100"), (500, "AR@500")])
def test_detections_per_image(cfg: CfgNode, coco: str, per_image: int, key: str) -> None:
    switch(cfg, instance=True)
    cfg.TEST.DETECTIONS_PER_IMAGE = per_image
    assert key in evaluate(build_evaluator(cfg, coco), shift=0)["segm"]


def test_output_folders(cfg: CfgNode, coco: str, tmp_path: Path) -> None:
    switch(cfg, instance=True)
    name = "coco_instances_results.json"
    evaluate(build_evaluator(cfg, coco, str(tmp_path / "mine")), shift=0)
    assert (tmp_path / "mine" / name).is_file()
    cfg.DATASETS.TEST = (coco, "another")
    evaluate(build_evaluator(cfg, coco), shift=0)
    assert (tmp_path / "out/inference" / coco / name).is_file()


def test_unknown_type_names_the_known_ones(cfg: CfgNode, register: Callable[..., str]) -> None:
    name = register("test_unknown", evaluator_type="nonsense")
    with pytest.raises(ValueError, match=r"'test_unknown' .*'nonsense'.*coco, coco_panoptic_seg.*sem_seg"):
        build_evaluator(cfg, name)
    with pytest.raises(ValueError, match="no evaluator_type"):
        build_evaluator(cfg, register("test_typeless"))


def test_nothing_to_evaluate(cfg: CfgNode, register: Callable[..., str]) -> None:
    switch(cfg, semantic=True)
    name = register("test_switched_off", evaluator_type="coco", json_file="unused.json")
    with pytest.raises(ValueError, match="INSTANCE_ON True"):
        build_evaluator(cfg, name)


def test_a_new_type(cfg: CfgNode, register: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "_FACTORIES", dict(builder._FACTORIES))
    requests: list[EvaluatorRequest] = []

    class Nothing(DatasetEvaluator):
        pass

    def make(request: EvaluatorRequest) -> DatasetEvaluator:
        requests.append(request)
        return Nothing()

    register_evaluator("new", "PANOPTIC_ON", make)
    switch(cfg, panoptic=True)
    name = register("test_new", evaluator_type="new")
    assert isinstance(build_evaluator(cfg, name), Nothing)
    assert requests[0].dataset_name == name
    with pytest.raises(ValueError, match="SEMANTIC_ON"):
        register_evaluator("new", "OTHER_ON", make)
    assert builder._FACTORIES["new"] == {Task.PANOPTIC: make}
    register_evaluator("new", Task.SEMANTIC, make)
    assert set(builder._FACTORIES["new"]) == {Task.PANOPTIC, Task.SEMANTIC}


def test_label_maps_of_a_model_with_other_classes_are_refused() -> None:
    keys = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "100", "OUTPUT_DIR", "", "TEST.SEMANTIC_SCORES", "False"]
    cfg = load_config("ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml", keys)
    with pytest.raises(ValueError, match="has 150 classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 100"):
        build_evaluator(cfg, "ade20k_sem_seg_val")
