"""Cityscapes metrics against the official scripts, as detectron2 calls them, on a dataset in the original layout."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2 import evaluation as host
from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Instances
from PIL import Image

from mask2former.config import add_maskformer2_config
from mask2former.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator, build_evaluator
from mask2former.evaluation.cityscapes_evaluation import truth_file
from mask2former.evaluation.cityscapes_scripts import load_script

pytest.importorskip("cityscapesscripts")

HEIGHT, WIDTH = 48, 96
# train id -> label id, as cityscapesscripts.helpers.labels has it
LABELS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
THINGS = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
NAMES = ["aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313", "bochum_000000_000600"]


def instance_ids(rng: np.random.Generator) -> np.ndarray:
    """Draw (h, w): road and sky, cars and persons in front, a group of cars, a caravan (ignored), unlabeled pixels."""
    ids = np.full((HEIGHT, WIDTH), 7)
    ids[: HEIGHT // 3] = 23
    for value in (26000, 26001, 24000, 24001, 26002, 29000, 26, 0):
        y, x = rng.integers(0, HEIGHT - 14), rng.integers(0, WIDTH - 20)
        ids[y : y + rng.integers(6, 14), x : x + rng.integers(12, 20)] = value
    return ids


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    to_train = np.full(256, 255, np.uint8)
    to_train[LABELS] = np.arange(19)
    for name in NAMES:
        city = name.split("_")[0]
        images, annotations = tmp_path / "leftImg8bit/val" / city, tmp_path / "gtFine/val" / city
        for directory in (images, annotations):
            directory.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(images / f"{name}_leftImg8bit.png")
        ids = instance_ids(rng)
        labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
        Image.fromarray(ids.astype(np.uint16)).save(annotations / f"{name}_gtFine_instanceIds.png")
        Image.fromarray(labels).save(annotations / f"{name}_gtFine_labelIds.png")
        Image.fromarray(to_train[labels]).save(annotations / f"{name}_gtFine_labelTrainIds.png")
    return tmp_path


def records(root: Path, *keys: str) -> list[dict[str, Any]]:
    result = []
    for name in NAMES:
        city = name.split("_")[0]
        record = {
            "file_name": str(root / f"leftImg8bit/val/{city}/{name}_leftImg8bit.png"),
            "image_id": name,
            "sem_seg_file_name": str(root / f"gtFine/val/{city}/{name}_gtFine_labelTrainIds.png"),
        }
        result.append({key: record[key] for key in ("file_name", "image_id", *keys)})
    return result


def truth(root: Path, record: dict[str, Any]) -> np.ndarray:
    return np.array(Image.open(truth_file(record, str(root / "gtFine/val"), "instanceIds"))).astype(np.int64)


@pytest.fixture
def semantic(root: Path, register: Callable[..., str]) -> str:
    return register(
        "test_cityscapes_sem_seg",
        records(root, "sem_seg_file_name"),
        evaluator_type="cityscapes_sem_seg",
        gt_dir=str(root / "gtFine/val"),
        ignore_label=255,
    )


@pytest.fixture
def instance(root: Path, register: Callable[..., str]) -> str:
    return register(
        "test_cityscapes_instance",
        records(root),
        evaluator_type="cityscapes_instance",
        gt_dir=str(root / "gtFine/val") + "/",
        thing_classes=THINGS,
    )


def scores_like(ids: np.ndarray, seed: int) -> torch.Tensor:
    """Return (19, h, w) scores that agree with the labels in most places."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(19, *ids.shape, generator=generator)
    labels = np.where(ids >= 1000, ids // 1000, ids)
    for train_id, label in enumerate(LABELS):
        scores[train_id] += 0.9 * torch.from_numpy(labels == label)
    return scores


def instances_like(ids: np.ndarray, seed: int, offset: int = 0) -> Instances:
    """Return every object of the ground truth moved by a pixel or two, some classes wrong, and rectangles at random."""
    rng = np.random.default_rng(seed)
    masks, classes = [], []
    for value in np.unique(ids[ids >= 24]).tolist():
        label = value // 1000 if value >= 1000 else value
        for _ in range(int(rng.integers(1, 3))):
            masks.append(np.roll(ids == value, rng.integers(-2, 3, 2), (0, 1)))
            right = LABELS.index(label) - 11 if label in LABELS else 2
            classes.append(right if rng.random() < 0.8 else int(rng.integers(8)))
    for _ in range(3):
        mask = np.zeros_like(ids, dtype=bool)
        y, x = rng.integers(0, HEIGHT - 8), rng.integers(0, WIDTH - 8)
        mask[y : y + 12, x : x + 15] = rng.random() < 0.9  # sometimes empty
        masks.append(mask)
        classes.append(int(rng.integers(8)))
    found = Instances(ids.shape)
    found.pred_masks = torch.from_numpy(np.stack(masks))
    found.pred_classes = torch.tensor(classes) + offset
    found.scores = torch.from_numpy(rng.random(len(masks)).astype(np.float32))
    return found


class Guess(torch.nn.Module):
    """Return predictions by image."""

    def __init__(self, outputs: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.outputs[image["file_name"]] for image in inputs]


def guesses(root: Path, offset: int = 0) -> dict[str, dict[str, Any]]:
    result = {}
    for seed, record in enumerate(records(root)):
        ids = truth(root, record)
        result[record["file_name"]] = {
            "sem_seg": scores_like(ids, seed),
            "instances": instances_like(ids, seed, offset),
        }
    return result


def run(evaluator: Any, root: Path, outputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        return inference_on_dataset(Guess(outputs), [[r] for r in records(root)], evaluator)


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.OUTPUT_DIR = ""
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    return cfg


def test_semantic_equals_the_official_script(semantic: str, root: Path, cfg: CfgNode, monkeypatch: Any) -> None:
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = True
    outputs = guesses(root)
    evaluator = build_evaluator(cfg, semantic)
    assert type(evaluator) is CityscapesSemSegEvaluator
    mine = run(evaluator, root, outputs)["sem_seg"]
    load_script("evalPixelLevelSemanticLabeling")  # NumPy's lost names, which detectron2 does not give
    monkeypatch.chdir(root)
    theirs = run(host.CityscapesSemSegEvaluator(semantic), root, outputs)["sem_seg"]
    assert {key: mine[key] for key in theirs} == theirs
    classes = {name: x | {"sem_seg": x["sem_seg"].argmax(0).to(torch.uint8)} for name, x in outputs.items()}
    np.testing.assert_equal(run(build_evaluator(cfg, semantic), root, classes)["sem_seg"], mine)
    assert 10 < mine["IoU"] < 99
    assert mine["mIoU"] == mine["IoU"]
    assert mine["IoU-car"] > 20
    assert {"IoU-road", "iIoU-car"} < set(mine)
    assert "iIoU-road" not in mine


def test_instances_equal_the_official_script(instance: str, root: Path, cfg: CfgNode, monkeypatch: Any) -> None:
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    outputs = guesses(root)
    evaluator = build_evaluator(cfg, instance)
    assert type(evaluator) is CityscapesInstanceEvaluator
    (root / "elsewhere").mkdir()
    monkeypatch.chdir(root / "elsewhere")  # the script writes matches.json into the working directory
    mine = run(evaluator, root, outputs)["segm"]
    assert not list((root / "elsewhere").iterdir())
    # Which fails with NumPy 2.4, whose counts are not Python's integers.
    monkeypatch.setattr(load_script("evalInstanceLevelSemanticLabeling"), "writeDict2JSON", lambda *_: None)
    theirs = run(host.CityscapesInstanceEvaluator(instance), root, outputs)["segm"]
    assert {key: mine[key] for key in theirs} == theirs
    assert 5 < mine["AP"] < 99
    assert mine["AP-car"] > 0
    assert math.isnan(mine["AP-train"])


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_processes_do_not_change_the_result(kind: str, root: Path, request: pytest.FixtureRequest) -> None:
    name = request.getfixturevalue(kind)
    outputs = guesses(root)
    cls = CityscapesSemSegEvaluator if kind == "semantic" else CityscapesInstanceEvaluator
    whole = run(cls(name), root, outputs)
    parts = []
    for chosen in ([3, 1], [], [0, 2, 1]):
        evaluator = cls(name)
        evaluator.process([records(root)[i] for i in chosen], [outputs[records(root)[i]["file_name"]] for i in chosen])
        part = {n: evaluator._compare(p, evaluator._truth_files[n]) for n, p in evaluator._predictions.items()}
        parts.append(pickle.loads(pickle.dumps(part)))  # as it travels to the main process
    assert list(cls(name)._merged(parts)) == [r["file_name"] for r in records(root)]
    merged = cls(name).evaluate_parts(parts)
    (task,) = whole
    assert merged[task] == pytest.approx(whole[task], abs=0, rel=0, nan_ok=True)


def test_results_are_kept_on_request(instance: str, root: Path, tmp_path: Path) -> None:
    outputs = guesses(root)
    run(CityscapesInstanceEvaluator(instance, str(tmp_path / "kept")), root, outputs)
    directory = tmp_path / "kept/process_0"
    lines = (directory / f"{NAMES[0]}_pred.txt").read_text().splitlines()
    first = outputs[records(root)[0]["file_name"]]["instances"]
    assert len(lines) == len(first)
    file, label, score = lines[0].split(" ")
    assert float(score) == first.scores[0].item()
    assert int(label) == LABELS[11 + int(first.pred_classes[0])]
    assert (np.array(Image.open(directory / file)) > 0).tolist() == first.pred_masks[0].tolist()


def test_nothing_predicted(semantic: str, instance: str, root: Path) -> None:
    empty = Instances((HEIGHT, WIDTH))
    empty.pred_masks, empty.scores = torch.zeros(0, HEIGHT, WIDTH, dtype=torch.bool), torch.zeros(0)
    empty.pred_classes = torch.zeros(0, dtype=torch.long)
    segm = run(
        CityscapesInstanceEvaluator(instance), root, {r["file_name"]: {"instances": empty} for r in records(root)}
    )
    assert (segm["segm"]["AP"], segm["segm"]["AP-car"]) == (0, 0)
    for evaluator in (CityscapesSemSegEvaluator(semantic), CityscapesInstanceEvaluator(instance)):
        ((_, metrics),) = evaluator.evaluate().items()
        assert all(math.isnan(value) for value in metrics.values())


def panoptic_dataset(root: Path, register: Callable[..., str]) -> str:
    """Panoptic files as createPanopticImgs makes them; classes are label ids in the JSON."""
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

    with contextlib.redirect_stdout(io.StringIO()):
        convert2panoptic(str(root / "gtFine"), setNames=["val"])
    mapping = {label: i for i, label in enumerate(LABELS)}
    content = json.loads((root / "gtFine/cityscapes_panoptic_val.json").read_text())
    categories = {c["id"]: c["name"] for c in content["categories"]}
    return register(
        "test_cityscapes_panoptic",
        records(root, "sem_seg_file_name"),
        evaluator_type="cityscapes_panoptic_seg",
        panoptic_json=str(root / "gtFine/cityscapes_panoptic_val.json"),
        panoptic_root=str(root / "gtFine/cityscapes_panoptic_val"),
        gt_dir=str(root / "gtFine/val"),
        ignore_label=255,
        label_divisor=1000,
        thing_classes=[categories[label] for label in LABELS],
        stuff_classes=[categories[label] for label in LABELS],
        thing_dataset_id_to_contiguous_id={k: v for k, v in mapping.items() if k >= 24},
        stuff_dataset_id_to_contiguous_id={k: v for k, v in mapping.items() if k < 24},
    )


def test_panoptic_with_all_three(root: Path, register: Callable[..., str], cfg: CfgNode) -> None:
    pytest.importorskip("panopticapi", reason="detectron2's evaluator needs it")
    name = panoptic_dataset(root, register)
    test = cfg.MODEL.MASK_FORMER.TEST
    test.SEMANTIC_ON = test.INSTANCE_ON = test.PANOPTIC_ON = True
    outputs = guesses(root, offset=11)
    for record in records(root):
        ids = np.roll(truth(root, record), 1, axis=1)
        present = [i for i in np.unique(ids).tolist() if (i >= 1000 and i // 1000 in LABELS) or i in (7, 23)]
        panoptic = np.zeros_like(ids)
        segments = []
        for number, value in enumerate(present, start=1):
            panoptic[ids == value] = number
            label = value // 1000 if value >= 1000 else value
            segments.append({"id": number, "category_id": LABELS.index(label), "isthing": value >= 1000})
        outputs[record["file_name"]]["panoptic_seg"] = (torch.from_numpy(panoptic).int(), segments)
    results = run(build_evaluator(cfg, name), root, outputs)
    assert set(results) == {"panoptic_seg", "segm", "sem_seg"}
    theirs = run(host.COCOPanopticEvaluator(name), root, outputs)["panoptic_seg"]
    assert results["panoptic_seg"] == pytest.approx(theirs, rel=1e-13)
    assert results["panoptic_seg"]["RQ"] > 50
    alone = CityscapesInstanceEvaluator(name)
    assert results["segm"] == pytest.approx(run(alone, root, outputs)["segm"], nan_ok=True)


def test_user_errors(semantic: str, instance: str, root: Path, register: Callable[..., str], monkeypatch: Any) -> None:
    (first, *_), outputs = records(root), guesses(root)
    wrong = Instances((HEIGHT, WIDTH), **outputs[first["file_name"]]["instances"].get_fields())
    wrong.pred_classes = wrong.pred_classes + 8
    sem, ins = CityscapesSemSegEvaluator(semantic), CityscapesInstanceEvaluator(instance)
    for evaluator, output, message in (
        (sem, {}, "SEMANTIC_ON"),
        (ins, {}, "INSTANCE_ON"),
        (sem, {"sem_seg": torch.zeros(3, HEIGHT, WIDTH)}, "NUM_CLASSES"),
        (sem, {"sem_seg": torch.full((HEIGHT, WIDTH), 19, dtype=torch.uint8)}, "predicts class 19.*NUM_CLASSES"),
        (sem, {"sem_seg": torch.zeros(19, HEIGHT, 5)}, r"labelIds.png: prediction is .*\(48, 5\)"),
        (ins, {"instances": Instances((5, WIDTH))}, "instanceIds.png: prediction is"),
        (ins, {"instances": wrong}, "NUM_CLASSES"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator.process([first], [output])
    with pytest.raises(ValueError, match="not an image of dataset"):
        sem.process([{"file_name": "x.png"}], [outputs[first["file_name"]]])
    path = truth_file(first, str(root / "gtFine/val"), "instanceIds")
    Path(path).write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"instanceIds\.png: is not a label map, or damaged"):
        ins.process([first], [outputs[first["file_name"]]])
    Path(path).unlink()
    with pytest.raises(FileNotFoundError, match="instanceIds"):
        ins.process([first], [outputs[first["file_name"]]])
    with pytest.raises(ValueError, match="gt_dir"):
        CityscapesInstanceEvaluator(register("test_no_gt_dir", records(root), thing_classes=THINGS))
    with pytest.raises(ValueError, match=r"not labels of Cityscapes: \['cow'\]"):
        CityscapesInstanceEvaluator(register("test_cows", [], thing_classes=["cow"]))
    for module in [m for m in sys.modules if m.startswith("cityscapesscripts")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "cityscapesscripts", None)
    with pytest.raises(ValueError, match="pip install cityscapesscripts"):
        CityscapesSemSegEvaluator(semantic)
