"""Evaluators and loaders of clips as other programs override and call them."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.data.datasets.ytvis_json import read_ytvis_json
from mask2former.evaluation.video_ap import VideoScores, evaluate_videos
from mask2former.evaluation.ytvis_evaluation import YTVISEvaluator
from mask2former_video.data_video import build
from mask2former_video.data_video.datasets.ytvis import register_ytvis_instances
from mask2former_video.data_video.datasets.ytvis_api.ytvos import YTVOS
from mask2former_video.data_video.ytvis_eval import _evaluate_predictions_on_coco, instances_to_coco_json_video

NAME = "clips_of_a_client"


@pytest.fixture
def file(write_videos: Callable[[], tuple[str, str]]) -> Iterator[str]:
    path, directory = write_videos()
    register_ytvis_instances(NAME, {}, path, directory)
    DatasetCatalog.get(NAME)  # which sets the classes
    yield path
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


def output() -> dict[str, Any]:
    masks = torch.zeros(6, 32, 40, dtype=torch.bool)
    masks[:, 3:12, 4:14] = True
    return {"image_size": (32, 40), "pred_scores": [0.5], "pred_labels": [1], "pred_masks": [masks]}


def results(cls: type[YTVISEvaluator], **options: Any) -> Any:
    evaluator = cls(NAME, distributed=False, **options)
    evaluator.reset()
    evaluator.process([{"video_id": 4}], output())
    return evaluator.evaluate()


class OwnMetrics(YTVISEvaluator):
    def _derive_coco_results(self, coco_eval: Any, class_names: Any = None) -> Any:
        assert isinstance(coco_eval, VideoScores) and coco_eval.stats.shape == (12,) and class_names == ["bar", "cell"]
        assert coco_eval.eval["precision"].ndim == 5 and coco_eval.params.maxDets == [1, 10, 100]
        return {**super()._derive_coco_results(coco_eval, class_names=class_names), "mine": 1.0}


class OwnFiles(YTVISEvaluator):
    def _eval_predictions(self, predictions: Any) -> None:
        assert [(p["video_id"], p["category_id"]) for p in predictions] == [(4, 1)]  # as the model numbers classes
        super()._eval_predictions(predictions)
        self._results["segm"]["tracks"] = len(predictions)


class OwnProcess(YTVISEvaluator):
    def process(self, inputs: Any, outputs: Any) -> None:
        self._predictions.extend(instances_to_coco_json_video(inputs, outputs))


def test_overridden_parts_of_the_evaluator(file: str, tmp_path: Path) -> None:
    expected = results(YTVISEvaluator)["segm"]
    assert expected["AP50"] > 0 and {"AP-bar", "AP-cell", "AR10"} <= expected.keys()
    assert str(results(OwnMetrics)["segm"]) == str({**expected, "mine": 1.0})
    assert str(results(OwnFiles)["segm"]) == str({**expected, "tracks": 1})
    assert str(results(OwnProcess, output_dir=str(tmp_path))["segm"]) == str(expected)
    (record,) = json.loads((tmp_path / "results.json").read_text())
    assert record["category_id"] == 7  # as the annotation file numbers classes


def test_a_video_counts_once(file: str, caplog: pytest.LogCaptureFixture) -> None:
    evaluator = YTVISEvaluator(NAME, distributed=False)
    for _ in range(2):
        evaluator.process([{"video_id": 4}], output())
    assert len(evaluator._predictions) == 1 and "video 4 is predicted more than once" in caplog.text
    evaluator.reset()
    assert evaluator._predictions == []
    evaluator.process([{"video_id": 4}], output())
    assert len(evaluator._predictions) == 1


def test_a_wrong_class_of_a_subclass_is_named(file: str) -> None:
    class Shifted(OwnProcess):
        def process(self, inputs: Any, outputs: Any) -> None:
            super().process(inputs, {**outputs, "pred_labels": [5]})

    with pytest.raises(ValueError, match="video 4: predicted class 5 is not one of the 2 classes"):
        results(Shifted)


def test_comparison_of_records(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{**r, "category_id": 7} for r in instances_to_coco_json_video([{"video_id": 4}], output())]
    expected = evaluate_videos(read_ytvis_json(file), records)
    scores = _evaluate_predictions_on_coco(YTVOS(file), records)
    assert scores.stats[0] == pytest.approx(expected.ap() / 100)
    assert len(capsys.readouterr().out.splitlines()) == 12
    assert _evaluate_predictions_on_coco(YTVOS(file), records, img_ids=[4]).stats[0] > scores.stats[0]


def small(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("video_id", "height", "width")}


def test_forms_of_the_loaders(file: str, video_cfg: CfgNode) -> None:
    """With a config, with its arguments, and with records alone."""
    video_cfg.DATASETS.TRAIN = (NAME,)
    records = build.get_detection_dataset_dicts(NAME)
    arguments = build._train_loader_from_config(video_cfg, small, dataset=records)
    assert arguments["mapper"] is small and arguments["dataset"] is records and arguments["total_batch_size"] == 2
    assert list(inspect.signature(build.build_detection_train_loader).parameters)[:2] == ["dataset", "mapper"]
    for loader in (
        build.build_detection_train_loader(**arguments),
        build.build_detection_train_loader(records, mapper=small, total_batch_size=2),
        build.build_detection_train_loader(video_cfg, mapper=small),
        build.build_detection_train_loader(cfg=video_cfg, mapper=small, dataset=records, total_batch_size=2),
    ):
        assert [sample["video_id"] in (2, 4, 9) for sample in next(iter(loader))] == [True, True]
    arguments = build._test_loader_from_config(video_cfg, NAME, small)
    for loader in (
        build.build_detection_test_loader(**arguments),
        build.build_detection_test_loader(arguments["dataset"], mapper=small),
        build.build_detection_test_loader(video_cfg, NAME, mapper=small),
        build.build_detection_test_loader(video_cfg, dataset=arguments["dataset"], mapper=small),
    ):
        assert sorted(sample["video_id"] for (sample,) in loader) == [2, 4, 9]


def test_loaders_for_inference_have_a_worker_for_each_core_at_most(
    file: str, video_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    video_cfg.DATALOADER.NUM_WORKERS = 5
    assert build._test_loader_from_config(video_cfg, NAME, small)["num_workers"] == 2


def test_videos_with_crowds_alone_are_left_out(file: str) -> None:
    records = build.get_detection_dataset_dicts(NAME, filter_empty=False)
    assert build.filter_images_with_only_crowd_annotations(records, [NAME]) == records
    for frame in records[0]["annotations"]:
        for entry in frame:
            entry["iscrowd"] = 1
    assert build.filter_images_with_only_crowd_annotations(records, [NAME]) == records[1:]
