"""A packed model loads from its directory, has half the size, and gives the same predictions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pack_model
import pytest
import torch
from detectron2.modeling import build_model

from mask2former import Segmenter, load_config
from mask2former.checkpoint.writing import save_safetensors
from mask2former.model_source import store_classes
from mask2former.objects import ObjectRules
from mask2former.structures.classes import ClassTable

TOOL = Path(__file__).parents[2] / "tools" / "pack_model.py"
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "resnet18", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
    *("MODEL.SEM_SEG_HEAD.MASK_DIM", 16, "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", 32, "MODEL.MASK_FORMER.DEC_LAYERS", 2, "INPUT.MIN_SIZE_TEST", 64),
]


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """Write a training output directory of train_net.py, with random weights."""
    directory = tmp_path / "training"
    cfg = load_config("nuclei/maskformer2_efficientnet_lite0.yaml", TINY)
    save_safetensors(build_model(cfg), directory / "model_final.safetensors")
    cfg.MODEL.TIMM.WEIGHTS = "/home/somebody/backbone.pth"
    (directory / "config.yaml").write_text(cfg.dump())
    return directory


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the script as users do; once, because importing everything takes most of the time."""
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_packed_model_predicts_the_same(training: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    done = run(training, target, "--classes", "cell")
    assert done.returncode == 0, done.stderr
    content = (target / "config.yaml").read_text()
    assert "somebody" not in content and "DEVICE:" not in content  # both belong to the machine of the training
    big, small = (training / "model_final.safetensors").stat().st_size, (target / "model.safetensors").stat().st_size
    assert small < 0.55 * big
    segment = Segmenter.load(str(target), device="cpu", rules=ObjectRules(score_threshold=0.0))
    assert list(segment.classes.names) == ["cell"]
    cfg = load_config(target / "config.yaml", ["MODEL.DEVICE", "cpu"])
    original = build_model(cfg).eval()
    from mask2former.checkpoint import load_into

    assert load_into(original, training / "model_final.safetensors").complete
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = original([{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}])[0]["instances"]
    instances = segment(image).instances
    assert np.allclose(np.sort(instances.scores), np.sort(expected.scores.numpy()), atol=5e-3)


def test_classes_that_the_training_stored(training: Path, tmp_path: Path) -> None:
    table = ClassTable(("cell",), (True,), ((10, 20, 30),), (7,))
    store_classes(table, training)
    assert pack_model.main([str(training), str(tmp_path / "packed")]) == 0
    assert Segmenter.load(str(tmp_path / "packed"), device="cpu").classes == table


def test_no_weights_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(load_config("nuclei/maskformer2_R50.yaml").dump())
    status = pack_model.main([str(tmp_path), str(tmp_path / "out"), "--classes", "cell"])
    told = capsys.readouterr().err
    assert status != 0 and "model_best.safetensors" in told
    assert "Traceback" not in told
