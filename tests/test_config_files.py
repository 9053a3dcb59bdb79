"""The files in configs/: plain YAML, nothing written twice, and every recipe passes the checks before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from mask2former.config import load_config
from mask2former.config_validation import validate_config

ROOT = Path(__file__).parents[1] / "configs"
FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.yaml"))}
RECIPES = [name for name in FILES if not name.startswith("common/") and not Path(name).name.startswith("Base-")]
# Datasets whose classes are in files that are not part of the repository.
CLASSES_FROM_FILES = ("nuclei/", "mapillary-vistas-v2/", "own-videos/", "camvid/", "davis/", "coco128/")
# One recipe at least for each component of MaskFormer and Mask2Former that a config can name.
COMPONENTS = {
    "MODEL.META_ARCHITECTURE": {"MaskFormer", "VideoMaskFormer", "SemanticSegmentor"},
    "MODEL.SEM_SEG_HEAD.NAME": {"MaskFormerHead", "PerPixelBaselineHead", "PerPixelBaselinePlusHead"},
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": {
        *("MSDeformAttnPixelDecoder", "BasePixelDecoder", "TransformerEncoderPixelDecoder"),
    },
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": {
        *("MultiScaleMaskedTransformerDecoder", "VideoMultiScaleMaskedTransformerDecoder"),
        "StandardTransformerDecoder",
    },
    "INPUT.DATASET_MAPPER_NAME": {
        *("mask_former_semantic", "mask_former_instance", "mask_former_panoptic"),
        *("coco_instance_lsj", "coco_panoptic_lsj"),
    },
}


def own_values(path: Path) -> dict[str, Any]:
    """What a file says itself; also proves that it is plain YAML, without tags that run code."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def inherited(path: Path) -> dict[str, Any]:
    """Values that the bases of a file give, without defaults."""
    bases = own_values(path).get("_BASE_", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged |= dict(leaves(CfgNode.load_yaml_with_base(str(path.parent / base))))
    return merged


@pytest.mark.parametrize("name", [name for name in RECIPES if "efficientnet" in name])
def test_timm_backbones_do_not_start_from_a_resnet(name: str) -> None:
    cfg = load_config(name)
    assert cfg.MODEL.BACKBONE.NAME == "TimmBackbone" and cfg.MODEL.WEIGHTS == ""


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 59 + 12


@pytest.mark.parametrize("name", FILES)
def test_plain_yaml_without_repetition(name: str) -> None:
    own = {key: value for key, value in leaves(own_values(FILES[name])) if key != "_BASE_"}
    before = inherited(FILES[name])
    repeated = sorted(key for key, value in own.items() if key in before and before[key] == value)
    assert not repeated, f"configs/{name} repeats what its bases say: {repeated}"


def test_no_block_of_six_lines_stands_twice() -> None:
    seen: dict[tuple[str, ...], str] = {}
    twice = []
    for name, path in FILES.items():
        lines = [line.split("  #")[0].rstrip() for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [line for line in lines if line and not line.lstrip().startswith("#")]
        for start in range(len(lines) - 5):
            block = tuple(lines[start : start + 6])
            if seen.setdefault(block, name) != name:
                twice.append((seen[block], name, block))
    assert not twice, twice[:3]


def test_every_base_is_used() -> None:
    used = set()
    for path in FILES.values():
        bases = own_values(path).get("_BASE_", [])
        used |= {(path.parent / base).resolve() for base in ([bases] if isinstance(bases, str) else bases)}
    bases = {name for name in FILES if name not in RECIPES}
    assert sorted(name for name in bases if FILES[name].resolve() not in used) == []


@pytest.mark.parametrize("key", COMPONENTS)
def test_every_component_has_a_recipe(key: str) -> None:
    files = [name for name in RECIPES if "/swin/" not in name]
    found = {dict(leaves(CfgNode.load_yaml_with_base(str(FILES[name])))).get(key) for name in files}
    assert found >= COMPONENTS[key]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid(name: str) -> None:
    """Components, mapper and datasets are registered, and the number of classes is that of the datasets."""
    cfg = load_config(name)
    if name.startswith(CLASSES_FROM_FILES):
        keys = ("COCO_JSON", "COCO_PANOPTIC", "SEMANTIC_FOLDER", "YTVIS_JSON")
        own = {entry[0] for key in keys for entry in cfg.DATASETS[key]}
        assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= own | set(DatasetCatalog)
        known, classes = "coco_2017_train", 80
        if cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer":
            known, classes = "ytvis_2019_train", 40
        elif "panoptic" in cfg.INPUT.DATASET_MAPPER_NAME:
            known, classes = "coco_2017_train_panoptic", 133
        elif "semantic" in cfg.INPUT.DATASET_MAPPER_NAME:
            known, classes = "ade20k_sem_seg_train", 150
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = (known,), (), classes
    validate_config(cfg, training=True)
    assert cfg.INPUT.FORMAT == "RGB" and cfg.SOLVER.OPTIMIZER == "ADAMW" and cfg.VERSION == 2
