"""`mask2former eval`: what is evaluated on what; the evaluation itself is train_net.py's."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mask2former.cli import eval as command
from mask2former.cli import main
from mask2former.config import load_config


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[argparse.Namespace]:
    """Work in an empty directory; return the list of what would be evaluated."""
    asked: list[argparse.Namespace] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "launch", lambda work, args: asked.append(args) or 0)
    return asked


def config(args: argparse.Namespace) -> Any:
    return load_config(args.config_file, args.opts)


def test_a_model_by_its_name(launched: list[argparse.Namespace]) -> None:
    assert main(["eval", "--model", "nuclei", "--opts", "TEST.DETECTIONS_PER_IMAGE", "7"]) == 0
    (args,) = launched
    cfg = config(args)
    assert args.eval_only and args.num_gpus == 1 and cfg.OUTPUT_DIR == "output/eval"
    assert cfg.MODEL.WEIGHTS.endswith("nuclei/model.safetensors") and cfg.TEST.DETECTIONS_PER_IMAGE == 7


def test_a_config_with_weights_and_a_registered_dataset(launched: list[argparse.Namespace]) -> None:
    name = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
    data = "coco_2017_val_panoptic_with_sem_seg"
    assert main(["eval", "--config-file", name, "--weights", "w.pkl", "--data", data, "--num-gpus", "0"]) == 0
    cfg = config(launched[0])
    assert (data,) == cfg.DATASETS.TEST and cfg.MODEL.WEIGHTS == "w.pkl" and launched[0].num_gpus == 0


@pytest.mark.parametrize("gpus", ["0", "1", "2"])
def test_precision_and_compiled_code(launched: list[argparse.Namespace], gpus: str) -> None:
    """Both are keys of the config, which each rank gets; what is not given is left to the config of the model."""
    Path("trained").mkdir()
    Path("trained/config.yaml").write_text("TEST: {AMP: float16}\nMODEL: {COMPILE: graph}\n")
    Path("trained/model.safetensors").touch()
    for arguments, expected in [
        (["nuclei"], ("off", "auto")),
        (["nuclei", "--amp", "bfloat16", "--compile", "compile"], ("bfloat16", "compile")),
        (["nuclei", "--amp"], ("auto", "auto")),
        (["nuclei", "--amp", "--compile", "off"], ("auto", "off")),
        (["trained"], ("float16", "graph")),
        (["trained", "--amp", "off", "--compile", "auto"], ("off", "auto")),
    ]:
        assert main(["eval", "--num-gpus", gpus, "--model", *arguments]) == 0, arguments
        cfg = config(launched[-1])
        assert expected == (cfg.TEST.AMP, cfg.MODEL.COMPILE), arguments
        assert launched[-1].num_gpus == int(gpus)


@pytest.mark.parametrize("gpus", [0, 2])
def test_the_device_is_not_that_of_the_config(
    launched: list[argparse.Namespace], monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    """A config file names the device of the machine that wrote it: it has no say on this one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    Path("packed").mkdir()
    Path("packed/config.yaml").write_text("MODEL: {DEVICE: cpu}\n")
    Path("packed/model.safetensors").touch()
    here = "cuda" if gpus else "cpu"
    for more, device in [
        ([], here),
        (["--device", "cpu"], "cpu"),
        (["--num-gpus", "0"], "cpu"),
        (["--num-gpus", "2"], here),
        (["--opts", "MODEL.DEVICE", "cpu"], "cpu"),
        (["--opts", "MODEL.DEVICE", "cuda:1"], "cuda:1"),
    ]:
        assert main(["eval", "--model", "packed", *more]) == 0, more
        assert device == config(launched[-1]).MODEL.DEVICE, more


def formats(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[str]]) -> None:
    """Put a reader in place of `mask2former.data.formats`: parts with an object of each class."""

    def load_data(path: Path, *_: Any) -> dict[str, Any]:
        def content(names: list[str]) -> dict[str, Any]:
            categories = [{"id": 10 * i, "name": name} for i, name in enumerate(names, start=1)]
            annotations = [{"id": c["id"], "image_id": 1, "category_id": c["id"]} for c in categories]
            return {"images": [{"id": 1}], "annotations": annotations, "categories": categories}

        return {k: SimpleNamespace(image_root=path, content=content(v), format="coco") for k, v in splits.items()}

    module = ModuleType("mask2former.data.formats")
    module.load_data = load_data  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mask2former.data.formats", module)


def test_a_directory_of_data(launched: list[argparse.Namespace], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its validation part, with the classes in the order of the model."""
    formats(monkeypatch, {"train": ["nucleus"], "val": ["nucleus"]})
    Path("cells").mkdir()
    assert main(["eval", "--model", "nuclei", "--data", "cells", "--output", "out"]) == 0
    cfg = config(launched[0])
    ((name, file, root),) = cfg.DATASETS.COCO_JSON
    assert (name,) == cfg.DATASETS.TEST and Path(root) == Path("cells").resolve()
    assert Path(file) == Path("out/data/val.json").resolve()
    content = json.loads(Path(file).read_text())
    assert content["categories"] == [{"id": 1, "name": "nucleus"}] and content["annotations"][0]["category_id"] == 1


def test_classes_get_the_order_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["a", "b", "c"]')
    categories = [{"id": 5, "name": "c"}, {"id": 9, "name": "a"}]
    content = {"images": [], "annotations": [{"category_id": 5}, {"category_id": 9}], "categories": categories}
    result = command._in_order(content, tmp_path / "config.yaml", tmp_path / "w.pth", tmp_path)
    assert [c["name"] for c in result["categories"]] == ["a", "b", "c"]
    assert [a["category_id"] for a in result["annotations"]] == [3, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nuclei", "--config-file", "c.yaml"], "not both"),
        (["--model", "nucleii"], "Did you mean 'nuclei'"),
        (["--config-file", "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"], "give --weights FILE"),
        (["--model", "nuclei", "--split", "val"], "give --data DIR"),
        (["--model", "nuclei", "--device", "gpu"], "unknown device 'gpu'"),
        (["--model", "nuclei", "--device", "cpu", "--num-gpus", "2"], "--device has no effect with --num-gpus 2"),
        (["--model", "nuclei", "--device", "cpu", "--opts", "MODEL.DEVICE", "cpu"], "--device has no effect with"),
        (
            ["--model", "nuclei", "--amp", "auto", "--opts", "TEST.AMP", "off"],
            "--amp has no effect with TEST.AMP in --opts",
        ),
        (["--model", "nuclei", "--compile", "auto", "--opts", "MODEL.COMPILE", "off"], "--compile has no effect"),
        (["--model", "nuclei", "--amp", "bf16"], "invalid choice: 'bf16'"),
        (["--model", "nuclei", "--data", "coco_2017_val_panoptik"], "no dataset of this name. Did you mean"),
        (["--model", "nuclei", "--data", "cells", "--split", "val"], "has the parts train, test; choose one"),
        (["--model", "nuclei", "--data", "cells"], "does not know: mitosis; its classes are nucleus"),
    ],
)
def test_mistakes_are_explained(
    launched: list[argparse.Namespace],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    formats(monkeypatch, {"train": ["nucleus"], "test": ["nucleus", "mitosis"]})
    Path("cells").mkdir()
    assert main(["eval", *arguments]) == 2 and not launched
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
