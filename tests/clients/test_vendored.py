"""The packages inside another project, `third_party.Mask2Former.mask2former`, alone and beside the top level."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
INSIDE = "third_party.Mask2Former."

PROGRAM = """
import importlib, json, sys, warnings
warnings.simplefilter("error", UserWarning)  # PyTorch warns of kernels that are registered twice
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
torch.set_num_threads(1)
order = sys.argv[1:]
packages = [importlib.import_module(name + "mask2former") for name in order]
videos = [importlib.import_module(name + "mask2former_video") for name in order]
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM", 32, "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM", 32, "MODEL.MASK_FORMER.NHEADS", 4, "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 32,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 7, "MODEL.MASK_FORMER.DEC_LAYERS", 3,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 20]
result = {"losses": [], "classes": [], "opcheck": []}
for package, video in zip(packages, videos):
    for config in ("coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
                   "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"):
        cfg = package.load_config(config, SMALL)
        torch.manual_seed(0)
        model = build_model(cfg).train()
        frames, clip = (2, True) if "video" in config else (1, False)
        masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        masks[0, :20, :30] = masks[1, 30:, 30:] = True
        from detectron2.structures import Instances
        image = (torch.arange(3 * 64 * 64) % 251).to(torch.uint8).view(3, 64, 64)
        ground = Instances((64, 64), gt_classes=torch.tensor([3, 5]), gt_masks=masks, gt_ids=torch.tensor([0, 1]))
        record = {"image": [image] * 2, "instances": [ground] * 2} if clip else {"image": image, "instances": ground}
        losses = model([record])
        sum(losses.values()).backward()
        gradient = sum(float(p.grad.double().norm()) for p in model.parameters() if p.grad is not None)
        result["losses"].append([round(float(v.detach()), 4) for _, v in sorted(losses.items())] + [round(gradient, 2)])
        parts = (model, model.sem_seg_head, model.sem_seg_head.predictor, model.criterion)
        result["classes"].append(sorted({type(part).__module__.partition("mask2former.")[0] for part in parts}))
    op = importlib.import_module(package.__name__ + ".ops.registration")
    value = torch.rand(1, 20, 2, 8, requires_grad=True)
    where, weight = torch.rand(1, 5, 2, 2, 3, 2, requires_grad=True), torch.rand(1, 5, 2, 2, 3, requires_grad=True)
    arguments = (value, [4, 4, 2, 2], None, where, weight)
    result["opcheck"].append(sorted(set(torch.library.opcheck(op.ms_deform_attn, arguments).values())))
    ops = importlib.import_module(package.__name__ + ".ops")
    result.setdefault("loaded", []).append(ops.extension.loaded("cpu"))
result["loggers"] = [importlib.import_module(name + "mask2former.utils.console").PACKAGE for name in order]
result["video"] = [v.VideoMaskFormer.__module__ for v in videos]
result["top"] = sorted(m for m in sys.modules if m in ("mask2former", "mask2former_video"))
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a project that keeps a checkout in a package of its own."""
    directory = tmp_path_factory.mktemp("project")
    (directory / "third_party" / "Mask2Former").mkdir(parents=True)
    for name in ("mask2former", "mask2former_video", "configs"):
        (directory / "third_party" / "Mask2Former" / name).symlink_to(ROOT / name)
    return directory


def run(project: Path, *order: str) -> dict[str, Any]:
    paths = os.pathsep.join([str(project), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *order],
        capture_output=True,
        text=True,
        cwd=project,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def alone(project: Path) -> dict[str, Any]:
    return run(project, "")


@pytest.mark.slow
def test_a_vendored_copy_gives_the_same_without_anything_at_the_top_level(project: Path, alone: dict[str, Any]) -> None:
    found = run(project, INSIDE)
    assert found["top"] == [] and found["video"] == [f"{INSIDE}mask2former.video_maskformer_model"]
    assert found["classes"] == [[INSIDE]] * 2 and found["loggers"] == [f"{INSIDE}mask2former"]
    assert found["losses"] == alone["losses"] and len(found["losses"][0]) == 10
    assert found["opcheck"] == [["SUCCESS"]] and found["loaded"] == alone["loaded"]


@pytest.mark.slow
@pytest.mark.parametrize("order", [("", INSIDE), (INSIDE, "")], ids=["top level first", "vendored first"])
def test_two_copies_in_one_process(project: Path, alone: dict[str, Any], order: tuple[str, str]) -> None:
    found = run(project, *order)
    assert found["losses"] == alone["losses"] * 2
    assert found["classes"] == [[order[0]]] * 2 + [[order[1]]] * 2  # a model is of the copy that loaded its config
    assert found["opcheck"] == [["SUCCESS"]] * 2 and found["loaded"] == alone["loaded"] * 2
    assert found["video"] == [f"{name}mask2former.video_maskformer_model" for name in order]
