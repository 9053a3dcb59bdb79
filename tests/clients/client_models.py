"""What programs do that import the package: small configs, models, batches and records for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.structures import BoxMode, Instances
from PIL import Image
from torch import Tensor

from mask2former import add_maskformer2_config

CONFIGS = Path(__file__).parents[2] / "configs"
PANOPTIC = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
INSTANCE = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
ADE20K = "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 7,
    "MODEL.MASK_FORMER.DEC_LAYERS": 4,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 50,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 96,
}


def client_config(name: str = PANOPTIC, options: Sequence[Any] = ()) -> Any:
    """Read a published config as other programs do, with detectron2's functions, and make its model small."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.merge_from_list([x for pair in SMALL.items() for x in pair] + list(options))
    return cfg


def client_model(cfg: Any = None, train: bool = False) -> Any:
    """Build the seeded model of a config, by default that of `client_config`."""
    torch.manual_seed(0)
    return build_model(cfg or client_config()).train(train)


def batch(count: int = 2, size: tuple[int, int] = (64, 64)) -> list[dict[str, Any]]:
    """Return samples of training with two objects each."""
    samples = []
    for _ in range(count):
        masks = torch.zeros(2, *size, dtype=torch.bool)
        masks[0, :20, :30] = True
        masks[1, 30:, 30:] = True
        instances = Instances(size, gt_classes=torch.tensor([3, 5]), gt_masks=masks)
        image = torch.randint(256, (3, *size), dtype=torch.uint8)
        samples.append({"image": image, "instances": instances, "height": size[0], "width": size[1]})
    return samples


def decoder_outputs(images: int = 2, queries: int = 7, classes: int = 133, earlier: int = 3) -> dict[str, Any]:
    """Return outputs in the form that decoders of other projects have: tensors for every prediction."""

    def prediction() -> dict[str, Tensor]:
        logits = torch.randn(images, queries, classes + 1, requires_grad=True)
        return {"pred_logits": logits, "pred_masks": torch.randn(images, queries, 16, 16, requires_grad=True)}

    return {**prediction(), "aux_outputs": [prediction() for _ in range(earlier)]}


def targets(images: int = 2) -> list[dict[str, Tensor]]:
    """Return the ground truth of `batch` in the form that criteria get."""
    return [
        {"labels": sample["instances"].gt_classes, "masks": sample["instances"].gt_masks} for sample in batch(images)
    ]


def record(folder: Path) -> dict[str, Any]:
    """Write an image of 60 x 80 pixels and return its record with two annotations."""
    path = folder / "image.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (60, 80, 3), dtype=np.uint8)).save(path)
    boxes, polygons = (
        [[5, 5, 30, 30], [40, 20, 20, 20]],
        [[5, 5, 35, 5, 35, 35, 5, 35], [40, 20, 60, 20, 60, 40, 40, 40]],
    )
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": i + 1, "iscrowd": 0, "segmentation": [polygon]}
        for i, (box, polygon) in enumerate(zip(boxes, polygons, strict=True))
    ]
    return {"file_name": str(path), "height": 60, "width": 80, "image_id": 1, "annotations": annotations}


def shapes(value: Any) -> Any:
    """Return the shapes of tensors in nested dictionaries and lists."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {key: shapes(entry) for key, entry in value.items()}
    return [shapes(entry) for entry in value]
