"""`mask2former_video`: the names of the reference implementation, and that they do what video projects expect."""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, Instances

import mask2former
import mask2former_video as video
from mask2former.data import build_train_loader
from mask2former.data.datasets import unregister
from mask2former.data.datasets.ytvis_json import read_ytvis_json
from mask2former.evaluation.video_ap import evaluate_videos
from mask2former.evaluation.ytvis_evaluation import YTVISEvaluator
from mask2former_video.data_video.augmentation import RandomFlip, ResizeShortestEdge, build_augmentation
from mask2former_video.data_video.dataset_mapper import build_pseudo_augs, filter_empty_instances
from mask2former_video.data_video.datasets.ytvis import load_ytvis_json, register_ytvis_instances
from mask2former_video.data_video.datasets.ytvis_api.ytvos import YTVOS
from mask2former_video.data_video.datasets.ytvis_api.ytvoseval import YTVOSeval
from mask2former_video.data_video.ytvis_eval import instances_to_coco_json_video
from tests.clients.client_models import shapes

PACKAGE = Path(video.__file__).parent
NAME = "clips_of_the_video_package"
Write = Callable[[], tuple[str, str]]

# The classes of images are about to take these forms; remove the mark with it.

MODULES = {
    "": [
        "modeling",
        "add_maskformer2_video_config",
        "VideoMaskFormer",
        "YTVISDatasetMapper",
        "YTVISEvaluator",
        "build_detection_train_loader",
        "build_detection_test_loader",
        "get_detection_dataset_dicts",
    ],
    "config": ["add_maskformer2_video_config"],
    "video_maskformer_model": ["VideoMaskFormer"],
    "data_video": ["YTVISDatasetMapper", "CocoClipDatasetMapper", "YTVISEvaluator", "get_detection_dataset_dicts"],
    "data_video.augmentation": ["build_augmentation", "ResizeShortestEdge", "RandomFlip"],
    "data_video.build": ["build_detection_train_loader", "build_detection_test_loader", "get_detection_dataset_dicts"],
    "data_video.dataset_mapper": ["YTVISDatasetMapper", "CocoClipDatasetMapper", "filter_empty_instances"],
    "data_video.ytvis_eval": ["YTVISEvaluator", "instances_to_coco_json_video", "_evaluate_predictions_on_coco"],
    "data_video.datasets.builtin": [
        "register_all_ytvis_2019",
        "register_all_ytvis_2021",
        "_PREDEFINED_SPLITS_YTVIS_2019",
    ],
    "data_video.datasets.ytvis": [
        "register_ytvis_instances",
        "load_ytvis_json",
        "YTVIS_CATEGORIES_2019",
        "YTVIS_CATEGORIES_2021",
        "_get_ytvis_2019_instances_meta",
        "_get_ytvis_2021_instances_meta",
    ],
    "data_video.datasets.ytvis_api.ytvos": ["YTVOS"],
    "data_video.datasets.ytvis_api.ytvoseval": ["YTVOSeval", "Params"],
    "modeling": ["VideoMultiScaleMaskedTransformerDecoder"],
    "modeling.criterion": ["VideoSetCriterion"],
    "modeling.matcher": ["VideoHungarianMatcher"],
    "modeling.transformer_decoder.position_encoding": ["PositionEmbeddingSine3D"],
    "modeling.transformer_decoder.video_mask2former_transformer_decoder": ["VideoMultiScaleMaskedTransformerDecoder"],
    "utils.memory": ["retry_if_cuda_oom"],
}


@pytest.fixture
def registered(write_videos: Write) -> Iterator[tuple[str, str]]:
    """Register the videos of the fixtures as a project does; yield JSON file and directory of the frames."""
    path, directory = write_videos()
    register_ytvis_instances(NAME, {"note": "of a project"}, path, directory)
    yield path, directory
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


# ------------------------------------------------------------------ names
@pytest.mark.parametrize("module", MODULES)
def test_names(module: str) -> None:
    found = importlib.import_module(f"mask2former_video.{module}".rstrip("."))
    assert not [name for name in MODULES[module] if not hasattr(found, name)]


def test_the_package_never_names_its_sibling_absolutely() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in names if name.split(".")[0].startswith("mask2former")], file


def test_classes_are_our_own() -> None:
    from mask2former.modeling import criterion, matcher
    from mask2former_video.modeling import criterion as video_criterion
    from mask2former_video.modeling import matcher as video_matcher

    assert video.VideoMaskFormer is mask2former.VideoMaskFormer and video.YTVISEvaluator is mask2former.YTVISEvaluator
    assert issubclass(video_criterion.VideoSetCriterion, criterion.SetCriterion)
    assert issubclass(video_matcher.VideoHungarianMatcher, matcher.HungarianMatcher)
    assert video_criterion.LOSSES is criterion.LOSSES  # everything else of the module too
    with pytest.raises(AttributeError, match="nonsense"):
        _ = video_criterion.nonsense


def test_config_of_a_video_project() -> None:
    cfg = get_cfg()
    mask2former.add_maskformer2_config(cfg)
    video.add_maskformer2_video_config(cfg)
    cfg.merge_from_file("configs/youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml")
    assert cfg.INPUT.SAMPLING_FRAME_NUM == 2


def test_retry_if_cuda_oom() -> None:
    from mask2former_video.utils.memory import retry_if_cuda_oom

    assert retry_if_cuda_oom(lambda x: x + 1)(1) == 2


def test_criterion_takes_clips() -> None:
    from mask2former_video.modeling.criterion import VideoSetCriterion
    from mask2former_video.modeling.matcher import VideoHungarianMatcher

    matcher = VideoHungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=50)
    weights = {"loss_ce": 2.0}
    criterion = VideoSetCriterion(133, matcher, weights, 0.1, ["labels", "masks"], 50, 3.0, 0.75)

    def outputs() -> dict[str, Any]:
        return {"pred_logits": torch.randn(1, 7, 134), "pred_masks": torch.randn(1, 7, 2, 16, 16)}

    target = {"labels": torch.tensor([3, 5]), "masks": torch.rand(2, 2, 64, 64) > 0.5, "ids": torch.zeros(2, 2)}
    losses = criterion({**outputs(), "aux_outputs": [outputs()]}, [target])
    assert sorted(losses) == ["loss_ce", "loss_ce_0", "loss_dice", "loss_dice_0", "loss_mask", "loss_mask_0"]


def test_matcher_takes_clips() -> None:
    from mask2former_video.modeling.matcher import VideoHungarianMatcher

    matcher = VideoHungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=50)
    outputs = {"pred_logits": torch.randn(1, 7, 134), "pred_masks": torch.randn(1, 7, 2, 16, 16)}
    pairs = matcher(outputs, [{"labels": torch.tensor([3, 5]), "masks": torch.rand(2, 2, 64, 64) > 0.5}])
    assert [[len(side) for side in pair] for pair in pairs] == [[2, 2]]
    assert all(side.dtype == torch.int64 for side in pairs[0])


def test_decoder_takes_the_number_of_frames() -> None:
    from mask2former_video.modeling.transformer_decoder.video_mask2former_transformer_decoder import (
        VideoMultiScaleMaskedTransformerDecoder,
    )

    decoder = VideoMultiScaleMaskedTransformerDecoder(
        in_channels=32,
        mask_classification=True,
        num_classes=5,
        hidden_dim=32,
        num_queries=7,
        nheads=4,
        dim_feedforward=32,
        dec_layers=3,
        pre_norm=False,
        mask_dim=32,
        enforce_input_project=False,
        num_frames=2,
    )
    outputs = decoder([torch.rand(2, 32, side, side) for side in (2, 4, 8)], torch.rand(2, 32, 16, 16))
    one = {"pred_logits": (1, 7, 6), "pred_masks": (1, 7, 2, 16, 16)}
    assert shapes(dict(outputs)) == {**one, "aux_outputs": [one] * 3}


def test_position_encoding_of_clips() -> None:
    from mask2former_video.modeling.transformer_decoder.position_encoding import PositionEmbeddingSine3D

    x = torch.rand(2, 3, 32, 4, 5)
    encoding = PositionEmbeddingSine3D(16, normalize=True)(x)
    assert encoding.shape == (2, 3, 32, 4, 5)
    ours = (
        PositionEmbeddingSine3D(16, normalize=True)
        .tokens(3, 4, 5, torch.device("cpu"))
        .view(3, 4, 5, 32)
        .permute(0, 3, 1, 2)
    )
    assert torch.allclose(encoding, ours.expand_as(encoding), atol=1e-6)
    nothing_hidden = torch.zeros(2, 3, 4, 5, dtype=torch.bool)
    assert torch.allclose(PositionEmbeddingSine3D(16, normalize=True)(x, nothing_hidden), encoding, atol=1e-6)
    hidden = nothing_hidden.clone()
    hidden[:, 0] = True  # the second frame is then the first that counts
    plain = PositionEmbeddingSine3D(16)
    assert torch.allclose(plain(x, hidden)[:, 1:], plain(x[:, 1:]), atol=1e-6)
    with pytest.raises(ValueError, match="5 dimensions"):
        PositionEmbeddingSine3D(16)(x[0])


# ------------------------------------------------------------------ datasets
def test_classes_of_youtube_vis() -> None:
    from mask2former_video.data_video.datasets import builtin, ytvis

    meta = ytvis._get_ytvis_2019_instances_meta()
    assert sorted(meta) == ["thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id"]
    assert len(meta["thing_classes"]) == len(ytvis._get_ytvis_2021_instances_meta()["thing_classes"]) == 40
    assert ytvis.YTVIS_CATEGORIES_2019[0] == {"id": 1, "name": "person", "color": [220, 20, 60], "isthing": 1}
    assert len(ytvis.YTVIS_CATEGORIES_2021) == 40 and all(c["isthing"] == 1 for c in ytvis.YTVIS_CATEGORIES_2021)
    assert builtin._PREDEFINED_SPLITS_YTVIS_2021["ytvis_2021_val"] == (
        "ytvis_2021/valid/JPEGImages",
        "ytvis_2021/valid.json",
    )


def test_records_list_annotations_by_frame(registered: tuple[str, str]) -> None:
    records = DatasetCatalog.get(NAME)
    metadata = MetadataCatalog.get(NAME)
    assert metadata.thing_classes == ["bar", "cell"] and metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert (metadata.evaluator_type, metadata.json_file, metadata.note) == ("ytvis", registered[0], "of a project")
    assert [(r["video_id"], r["length"], len(r["annotations"])) for r in records] == [(2, 3, 3), (4, 6, 6), (9, 1, 1)]
    assert [[a["id"] for a in frame] for frame in records[1]["annotations"]] == [[1], [1], [1, 2], [1, 2], [2], [2]]
    first = records[1]["annotations"][0][0]
    assert sorted(first) == ["bbox", "bbox_mode", "category_id", "id", "iscrowd", "segmentation"]
    assert (first["category_id"], first["bbox"], first["bbox_mode"]) == (1, [4.0, 3.0, 10.0, 9.0], BoxMode.XYWH_ABS)


def test_annotated_boxes_and_further_keys_are_kept(write_videos: Write, video_content: dict[str, Any]) -> None:
    for entry in video_content["annotations"]:
        entry["bboxes"] = [None if s is None else [1, 2, 3, 4] for s in entry["segmentations"]]
        entry["motion"] = f"of {entry['id']}"
    records = load_ytvis_json(*write_videos(), extra_annotation_keys=["motion"])
    (entry,) = records[2]["annotations"][0]
    assert entry["bbox"] == [1, 2, 3, 4] and entry["motion"] == "of 3"
    video_content["annotations"] = None  # as in the files of val and test
    assert [r["annotations"] for r in load_ytvis_json(*write_videos())] == [[[]] * 3, [[]] * 6, [[]]]


def test_our_pipeline_reads_both_forms(registered: tuple[str, str], video_cfg: CfgNode) -> None:
    video_cfg.DATASETS.TRAIN = (NAME,)
    ours = next(iter(build_train_loader(video_cfg)))
    DatasetCatalog.pop(NAME)
    mask2former.register_ytvis_json(NAME, *registered)
    try:
        other = next(iter(build_train_loader(video_cfg)))
    finally:
        unregister(NAME)
    assert [s["video_id"] for s in ours] == [s["video_id"] for s in other]
    for a, b in zip(ours, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a["image"], b["image"], strict=True))
        assert all(
            torch.equal(x.gt_masks.tensor, y.gt_masks.tensor)
            for x, y in zip(a["instances"], b["instances"], strict=True)
        )


# ------------------------------------------------------------------ mappers
def test_mapper(registered: tuple[str, str], video_cfg: CfgNode) -> None:
    record = DatasetCatalog.get(NAME)[1]
    before = json.dumps(record)
    mapper = video.YTVISDatasetMapper(video_cfg, is_train=True)
    np.random.seed(0)
    sample = mapper(record)
    assert json.dumps(record) == before
    assert len(sample["image"]) == len(sample["instances"]) == len(sample["file_names"]) == 2
    sizes = {tuple(image.shape[-2:]) for image in sample["image"]}
    assert len(sizes) == 1
    for frame in sample["instances"]:
        assert isinstance(frame.gt_masks, BitMasks) and frame.gt_masks.tensor.shape[1:] == sizes.copy().pop()
        assert len(frame.gt_ids) == len(frame.gt_classes) == len(sample["instances"][0])
    mapped = video.YTVISDatasetMapper(video_cfg, is_train=False)(record)
    assert len(mapped["image"]) == 6 and "instances" not in mapped


def test_mapper_of_a_project_with_explicit_keywords(registered: tuple[str, str], video_cfg: CfgNode) -> None:
    class Mine(video.YTVISDatasetMapper):
        @configurable
        def __init__(
            self,
            is_train: bool,
            *,
            augmentations: Any,
            image_format: str,
            use_instance_mask: bool = False,
            sampling_frame_num: int = 2,
            sampling_frame_range: int = 5,
            sampling_frame_shuffle: bool = False,
            num_classes: int = 40,
            mine: int = 0,
        ) -> None:
            super().__init__(
                is_train,
                augmentations=augmentations,
                image_format=image_format,
                use_instance_mask=use_instance_mask,
                sampling_frame_num=sampling_frame_num,
                sampling_frame_range=sampling_frame_range,
                sampling_frame_shuffle=sampling_frame_shuffle,
                num_classes=num_classes,
            )
            self.mine = mine

        @classmethod
        def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
            return super().from_config(cfg, is_train) | {"mine": 7}

        def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
            image = T.AugInput(np.zeros((32, 40, 3), np.uint8))
            transforms = self.augmentations(image)
            return {**super().__call__(dataset_dict), "size": image.image.shape, "transforms": transforms}

    mapper = Mine(video_cfg, True)
    sample = mapper(DatasetCatalog.get(NAME)[1])
    assert (mapper.mine, mapper.num_classes, mapper.use_instance_mask) == (7, 2, True)
    assert min(sample["size"][:2]) in (24, 32, 48) and isinstance(sample["transforms"], T.TransformList)


def test_clips_of_images(tmp_path: Path, video_cfg: CfgNode) -> None:
    from tests.clients.client_models import record

    sample = video.CocoClipDatasetMapper(video_cfg, True)(record(tmp_path))
    assert len(sample["image"]) == 2 and isinstance(sample["instances"][0].gt_masks, BitMasks)
    assert sample["instances"][0].gt_ids.tolist() == [0, 1]
    assert build_pseudo_augs(video_cfg, True)


def test_augmentations_count_the_frames_of_a_clip(video_cfg: CfgNode) -> None:
    resize = ResizeShortestEdge((10, 400), sample_style="range_by_clip", clip_frame_cnt=3)
    image = np.zeros((20, 30, 3), np.uint8)
    np.random.seed(1)
    heights = [resize.get_transform(image).new_h for _ in range(12)]
    assert len(set(heights)) == 4 and all(len(set(heights[i : i + 3])) == 1 for i in range(0, 12, 3))
    single = ResizeShortestEdge((10, 400), sample_style="range")
    assert len({single.get_transform(image).new_h for _ in range(12)}) > 8
    flip = RandomFlip(clip_frame_cnt=2)
    kinds = [type(flip.get_transform(image)).__name__ for _ in range(40)]
    assert kinds[::2] == kinds[1::2] and len(set(kinds)) == 2
    with pytest.raises(ValueError, match="sample_style"):
        ResizeShortestEdge(10, sample_style="any")
    augmentations = T.AugmentationList(build_augmentation(video_cfg, True))
    shapes = []
    for _ in range(40):
        frame = T.AugInput(image.copy())
        augmentations(frame)
        shapes.append(frame.image.shape)
    assert shapes[::2] == shapes[1::2] and len(set(shapes)) == 3  # a mapper that does not say where a clip starts


def test_filter_empty_instances_marks_and_keeps_rows() -> None:
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, 2:4, 2:4] = masks[2, 5:7, 5:7] = True
    frame = Instances((8, 8), gt_ids=torch.tensor([4, 5, 6]), gt_masks=BitMasks(masks))
    frame.gt_boxes = frame.gt_masks.get_bounding_boxes()
    assert filter_empty_instances(frame).gt_ids.tolist() == [4, -1, 6] and len(frame) == 3


# ------------------------------------------------------------------ loaders
def test_loaders(registered: tuple[str, str], video_cfg: CfgNode) -> None:
    video_cfg.DATASETS.TRAIN = (NAME,)
    mapper = video.YTVISDatasetMapper(video_cfg, True)
    records = video.get_detection_dataset_dicts(NAME, filter_empty=True)
    assert len(records) == 3
    batch = next(iter(video.build_detection_train_loader(video_cfg, mapper=mapper, dataset=records)))
    assert len(batch) == 2 and all(len(sample["image"]) == 2 for sample in batch)
    assert len(next(iter(video.build_detection_train_loader(video_cfg)))) == 2

    def theirs(record: dict[str, Any]) -> list[list[int]]:  # reads annotations by frame
        return [[a["id"] for a in frame] for frame in record["annotations"]]

    assert [[1], [1], [1, 2], [1, 2], [2], [2]] in [
        x for batch in video.build_detection_test_loader(video_cfg, NAME, mapper=theirs) for x in batch
    ]
    (first, *_) = video.build_detection_test_loader(video_cfg, NAME)
    assert len(first) == 1 and len(first[0]["image"]) == 3
    with pytest.raises(ValueError, match="proposal_files"):
        video.get_detection_dataset_dicts(NAME, proposal_files=["x"])


def test_videos_without_objects_are_left_out_in_both_forms(write_videos: Write, video_content: dict[str, Any]) -> None:
    video_content["annotations"] = [a for a in video_content["annotations"] if a["id"] in (1, 2, 5)]  # 5 is crowd
    path, directory = write_videos()
    register_ytvis_instances(NAME, {}, path, directory)
    try:
        kept = video.get_detection_dataset_dicts([NAME], filter_empty=True)
        assert [r["video_id"] for r in kept] == [4]
        assert len(video.get_detection_dataset_dicts([NAME], filter_empty=False)) == 3
    finally:
        DatasetCatalog.pop(NAME)
        MetadataCatalog.pop(NAME)


# ------------------------------------------------------------------ evaluation
def _result(video_id: int, category: int, score: float, segmentations: list[Any]) -> dict[str, Any]:
    return {"video_id": video_id, "category_id": category, "score": score, "segmentations": segmentations}


@pytest.fixture
def truth(write_videos: Write) -> YTVOS:
    return YTVOS(write_videos()[0])


def test_index_of_annotations(truth: YTVOS, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(truth.getVidIds()) == [2, 4, 9] and truth.getVidIds(catIds=[3]) == [4, 9]
    assert sorted(truth.getCatIds()) == [3, 7] and truth.getCatIds(catNms=["cell"]) == [7]
    assert truth.getAnnIds(vidIds=[4]) == [1, 2] and truth.getAnnIds(vidIds=2, iscrowd=True) == [5]
    assert truth.getAnnIds(catIds=[3]) == [2, 3] and truth.getAnnIds(areaRng=[0, 91]) == [1, 5]
    assert [entry["id"] for entry in truth.loadAnns([1, 3])] == [1, 3] and truth.loadAnns(2)[0]["id"] == 2
    assert truth.loadCats([3])[0]["name"] == "bar" and truth.loadVids([9])[0]["length"] == 1
    entry = truth.loadAnns([1])[0]
    assert truth.annToMask(entry, 0).sum() == 90 and truth.annToMask(entry, 5).sum() == 0
    assert truth.annToMask(entry, 0).shape == (32, 40) and truth.annToRLE(entry, 5) is None
    truth.dataset["info"] = {"year": 2019}
    truth.info()
    assert capsys.readouterr().out == "year: 2019\n"


def test_results_get_what_annotations_have(truth: YTVOS, tmp_path: Path) -> None:
    records = [_result(9, 3, 0.5, truth.loadAnns(3)[0]["segmentations"])]
    (tmp_path / "results.json").write_text(json.dumps(records))
    for given in (records, str(tmp_path / "results.json")):
        found = truth.loadRes(given)
        (entry,) = found.loadAnns(found.getAnnIds())
        assert entry["areas"] == [360] and entry["bboxes"] == [[6.0, 6.0, 20.0, 18.0]] and entry["avg_area"] == 360
        assert sorted(records[0]) == ["category_id", "score", "segmentations", "video_id"]
    with pytest.raises(ValueError, match="video 77"):
        truth.loadRes([_result(77, 3, 0.5, [None])])
    with pytest.raises(ValueError, match="list of records"):
        truth.loadRes([3])  # type: ignore[list-item]


def test_evaluation_is_that_of_our_metric(
    truth: YTVOS, write_videos: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        _result(9, 3, 0.9, truth.loadAnns(3)[0]["segmentations"]),
        _result(4, 7, 0.8, truth.loadAnns(1)[0]["segmentations"]),
        _result(4, 3, 0.7, truth.loadAnns(1)[0]["segmentations"]),
        _result(2, 7, 0.6, [None, None, truth.loadAnns(4)[0]["segmentations"][1]]),
    ]
    evaluation = YTVOSeval(truth, truth.loadRes(found), "segm")
    assert evaluation.params.vidIds == [2, 4, 9] and evaluation.params.catIds == [3, 7]
    assert evaluation.params.maxDets == [1, 10, 100]
    with pytest.raises(ValueError, match="evaluate"):
        evaluation.accumulate()
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = evaluate_videos(read_ytvis_json(write_videos()[0]), found)
    table = expected.summary()
    assert evaluation.stats.shape == (12,)
    order = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10")
    wanted = [-1 if np.isnan(table[key]) else table[key] / 100 for key in order]
    assert evaluation.stats[:8].tolist() == wanted and 0 < evaluation.stats[0] < 1
    assert evaluation.eval["precision"].shape == tuple(evaluation.eval["counts"]) == (10, 101, 2, 4, 3)
    assert np.array_equal(evaluation.eval["recall"], expected.recall)
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_parameters_of_the_evaluation_act(truth: YTVOS) -> None:
    found = [_result(9, 3, 0.9, truth.loadAnns(3)[0]["segmentations"])]
    evaluation = YTVOSeval(truth, truth.loadRes(found), "segm")
    evaluation.params.vidIds, evaluation.params.catIds = [9], [3]
    evaluation.params.iouThrs, evaluation.params.maxDets = np.array([0.5]), [5]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"]
    assert precision.shape == (1, 101, 1, 4, 1) and precision[..., 0, 0].min() == pytest.approx(1)
    evaluation.params.useCats = 0
    with pytest.raises(ValueError, match="useCats"):
        evaluation.evaluate()
    with pytest.raises(ValueError, match="iouType"):
        YTVOSeval(truth, truth.loadRes(found), "bbox")


def test_evaluator_takes_one_clip_as_a_dict_and_several_as_a_list(registered: tuple[str, str], tmp_path: Path) -> None:
    DatasetCatalog.get(NAME)  # which sets the classes
    masks = torch.zeros(6, 32, 40, dtype=torch.bool)
    masks[:, 3:12, 4:14] = True
    output = {"image_size": (32, 40), "pred_scores": [0.5], "pred_labels": [1], "pred_masks": [masks]}
    results = []
    for outputs in (output, [output]):
        evaluator = YTVISEvaluator(NAME, distributed=False, output_dir=str(tmp_path))
        evaluator.process([{"video_id": 4}], outputs)
        results.append(evaluator.evaluate())
    assert str(results[0]) == str(results[1]) and results[0]["segm"]["AP50"] > 0
    (record,) = instances_to_coco_json_video([{"video_id": 4}], output)
    assert (record["video_id"], record["category_id"], record["score"], len(record["segmentations"])) == (4, 1, 0.5, 6)
