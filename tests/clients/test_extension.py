"""What a project on top needs: config keys, recipes, a criterion; and the example of such a project with its tests."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor

from mask2former import MaskFormer, load_config
from mask2former import config as config_module
from mask2former.config import register_config_keys
from mask2former.errors import ConfigError
from mask2former.modeling.criterion import SetCriterion

from .client_models import INSTANCE, batch, client_config

ROOT = Path(__file__).resolve().parents[2]


def test_keys_of_a_project_are_in_all_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "_MORE_KEYS", [])

    @register_config_keys
    def add_keys(cfg: CfgNode) -> None:
        assert "MASK_FORMER" in cfg.MODEL
        cfg.MODEL.CLIENT = CfgNode({"SCALE": 1.0})

    register_config_keys(add_keys)
    assert [add_keys] == config_module._MORE_KEYS
    file = tmp_path / "client.yaml"
    file.write_text("MODEL: {CLIENT: {SCALE: 2.0}}")
    assert load_config().MODEL.CLIENT.SCALE == 1.0
    assert load_config(file).MODEL.CLIENT.SCALE == 2.0
    assert load_config(file, ["MODEL.CLIENT.SCALE", 3.0]).MODEL.CLIENT.SCALE == 3.0
    with pytest.raises(ConfigError, match=r"MODEL\.CLIENT\.SIZE"):
        load_config(file, ["MODEL.CLIENT.SIZE", 3.0])
    config_module._MORE_KEYS.clear()
    for content, key in ("MODEL: {CLIENT: {SCALE: 2.0}}", "MODEL.CLIENT.SCALE"), ("CLIENT_SCALE: 2.0", "CLIENT_SCALE"):
        file.write_text(content)
        with pytest.raises(ConfigError, match=rf"'{key}'.*Import first what gives it to register_config_keys"):
            load_config(file)
    with pytest.raises(ConfigError, match=r"Did you mean 'MODEL\.WEIGHTS'\?$"):
        load_config(None, ["MODEL.WEIGHT", ""])


def test_a_loss_without_a_weight_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Own(SetCriterion):
        def get_loss(self, loss: str, *arguments: Any) -> dict[str, Tensor]:
            return {"loss_own": torch.ones(())} if loss == "own" else super().get_loss(loss, *arguments)

    class Model(MaskFormer):
        criterion_type = Own

    model = Model(client_config(INSTANCE)).train()
    model.criterion.losses.append("own")
    del model.criterion.weight_dict["loss_dice_0"]  # an earlier prediction alone may have no weight
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not {"loss_own", "loss_dice_0"} & model(batch()).keys()
    assert [entry.getMessage().split(":")[0] for entry in caplog.records] == [
        "'loss_own' has no weight in weight_dict of the criterion"
    ]


@pytest.mark.parametrize("name", [INSTANCE, f"configs/{INSTANCE}", INSTANCE.removesuffix(".yaml")])
def test_recipes_are_bases_of_files_elsewhere(name: str, tmp_path: Path) -> None:
    file = tmp_path / "client.yaml"
    file.write_text(f"_BASE_: {name}\nMODEL: {{MASK_FORMER: {{NUM_OBJECT_QUERIES: 7}}}}")
    expected = load_config(INSTANCE, ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 7])
    assert load_config(file) == expected


def test_a_file_beside_the_config_is_its_base_before_a_recipe(tmp_path: Path) -> None:
    (tmp_path / INSTANCE).parent.mkdir(parents=True)
    (tmp_path / INSTANCE).write_text("SEED: 5")
    file = tmp_path / "client.yaml"
    file.write_text(f"_BASE_: {INSTANCE}")
    assert load_config(file).SEED == 5
    file.write_text(f"_BASE_: ../configs/{INSTANCE}")
    with pytest.raises(ConfigError, match="_BASE_"):
        load_config(file)


def test_a_model_names_the_class_of_its_criterion() -> None:
    class Criterion(SetCriterion):
        def loss_labels(self, *arguments):
            return {name: 2 * value for name, value in super().loss_labels(*arguments).items()}

    class Model(MaskFormer):
        criterion_type = Criterion

    model = Model(client_config())
    assert type(model.criterion) is Criterion and type(MaskFormer(client_config()).criterion) is SetCriterion
    assert set(model.train()(batch())) == set(model.criterion.weight_dict)


@pytest.mark.slow
def test_example_works_where_it_is_copied(tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    left_over = shutil.ignore_patterns("__pycache__", "output", "data")
    shutil.copytree(ROOT / "examples" / "extension", copy, ignore=left_over)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "3 passed" in run.stdout, run.stdout + run.stderr
