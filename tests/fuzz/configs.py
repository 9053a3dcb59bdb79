"""YAML configs: changed text, and changed values of every key, up to the first step of a training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode

from mask2former.config import load_config
from mask2former.config_validation import validate_config
from mask2former.data import register_from_config
from mask2former.engine import Trainer

from .coco import content
from .datasets import NAME, write_images
from .judgment import Case, require
from .mutation import damage_text, mutate_bytes

# Keys whose values cost time or memory, or belong to the machine; and detectron2's, of models that are none of ours.
_LEFT_OUT = (
    *(
        "MODEL.ANCHOR",
        "MODEL.FPN",
        "MODEL.KEYPOINT",
        "MODEL.LOAD_PROPOSALS",
        "MODEL.MASK_ON",
        "MODEL.PANOPTIC_FPN",
        "MODEL.PROPOSAL",
    ),
    *(
        "MODEL.RETINANET",
        "MODEL.ROI",
        "MODEL.RPN",
        "MODEL.DEVICE",
        "MODEL.SWIN",
        "MODEL.TIMM",
        "MODEL.WEIGHTS",
        "OUTPUT_DIR",
    ),
    *(
        "DATALOADER.NUM_WORKERS",
        "LOGGERS",
        "VERSION",
        "GLOBAL",
        "VIS_PERIOD",
        "CUDNN",
        "TEST.AUG",
        "TEST.PRECISE_BN",
        "TEST.KEYPOINT",
    ),
    *("DATASETS.PROPOSAL", "DATASETS.PRECOMPUTED", "TEST.EXPECTED_RESULTS", "FLOAT32", "SEED"),
)
_WRONG: dict[type, tuple[Any, ...]] = {
    bool: (None, 0, 1, "x", "yes", []),
    int: (0, -1, 1, 2, 3, 5, -100, 0.5, "x", "7", None, True, [], [1, 2], {}, math.nan),
    float: (0, -1, -0.5, 1.0, 2.0, 1e30, -1e30, math.nan, math.inf, 1e-30, "x", "1e-4", None, True, [], [0.5], {}),
    str: ("", "x", "gpu", "none", None, 5, True, [], ["x"], {}, "ä中", "a.b", "../x", "~"),
    list: (
        [],
        [0],
        [-1],
        [1],
        [1, 2],
        [1, 2, 3],
        ["x"],
        [None],
        None,
        5,
        "x",
        {},
        [[]],
        [1.5, 2.5],
        [0, 0, 0],
        [math.nan] * 3,
        [1e30] * 3,
    ),
    dict: (None, 5, "x", [], {}),
}


def prepare(root: Path) -> dict[str, Any]:
    """Write a tiny dataset and return the config of a tiny model, with all its keys."""
    write_images(root / "images", [f"{number}.png" for number in range(3)])
    (root / "instances.json").write_text(json.dumps(content()))
    tree = yaml.safe_load(load_config(None).dump())
    base = {
        "DATASETS": {
            "TRAIN": [NAME],
            "TEST": [],
            "COCO_JSON": [[NAME, str(root / "instances.json"), str(root / "images")]],
        },
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"IMAGE_SIZE": 64, "DATASET_MAPPER_NAME": "coco_instance_lsj", "FORMAT": "RGB"},
        "MODEL": {
            "META_ARCHITECTURE": "MaskFormer",
            "DEVICE": "cpu",
            "BACKBONE": {"NAME": "D2SwinTransformer"},
            "SWIN": {"EMBED_DIM": 8, "DEPTHS": [1, 1, 1, 1], "NUM_HEADS": [1, 1, 1, 1], "WINDOW_SIZE": 4},
            "SEM_SEG_HEAD": {
                "NAME": "MaskFormerHead",
                "NUM_CLASSES": 2,
                "CONVS_DIM": 32,
                "MASK_DIM": 8,
                "PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
                "TRANSFORMER_ENC_LAYERS": 1,
                "IN_FEATURES": ["res2", "res3", "res4", "res5"],
                "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
            },
            "MASK_FORMER": {
                "HIDDEN_DIM": 32,
                "DIM_FEEDFORWARD": 16,
                "DEC_LAYERS": 2,
                "NHEADS": 2,
                "NUM_OBJECT_QUERIES": 5,
                "TRAIN_NUM_POINTS": 16,
                "TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
                "TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
                "TEST": {"INSTANCE_ON": True, "SEMANTIC_ON": False},
            },
        },
        "LOGGERS": [],
        "SOLVER": {
            "IMS_PER_BATCH": 1,
            "MAX_ITER": 1,
            "BASE_LR": 1e-4,
            "WARMUP_ITERS": 0,
            "STEPS": [],
            "EMA_DECAY": 0.9,
        },
    }
    keys = [path for path in _leaves(tree) if not ".".join(path).startswith(_LEFT_OUT)]
    torch.manual_seed(0)
    return {"base": base, "tree": tree, "keys": keys, "root": root}


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def run(state: dict[str, Any], case: Case) -> None:
    """Write a changed config, load and check it, and train a step."""
    random = case.random
    file = case.directory / "config.yaml"
    case.names = (NAME,)
    if random.random() < 0.25:
        _write_text(random, file, yaml.safe_dump(state["base"]))
        overrides: list[str] = []
    else:
        base = yaml.safe_load(yaml.safe_dump(state["base"]))
        overrides = _change_value(random, base, state)
        file.write_text(yaml.safe_dump(base))
    loaded = case.attempt(load_config, file, overrides)
    if not loaded.accepted:
        return
    cfg = loaded.value
    cfg.OUTPUT_DIR = str(case.directory / "run")
    checked = case.attempt(_check, cfg)
    if checked.accepted:
        finite = case.attempt(_train, cfg)
        require(not finite.accepted or finite.value, "a step of training makes weights that are not finite")


def _check(cfg: CfgNode) -> None:
    register_from_config(cfg, cfg.DATASETS.TRAIN)
    validate_config(cfg, training=True)


def _train(cfg: CfgNode) -> bool:
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.MAX_ITER = min(cfg.SOLVER.MAX_ITER, 1)
    cfg.freeze()
    try:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    except FloatingPointError:
        return True  # a learning rate that no model survives is told so
    return all(bool(torch.isfinite(value).all()) for value in trainer.checkpointer.model.state_dict().values())


def _change_value(random: Random, base: dict[str, Any], state: dict[str, Any]) -> list[str]:
    """Change one or two values, in the file or on the command line."""
    overrides: list[str] = []
    for _ in range(random.choice((1, 1, 1, 2))):
        path = random.choice(state["keys"])
        default: Any = state["tree"]
        for key in path:
            default = default[key]
        values = _WRONG.get(type(default), _WRONG[str])
        value = random.choice(values)
        if random.random() < 0.4:
            overrides += [".".join(path), str(value)]
            continue
        node = base
        for key in path[:-1]:
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node = node[key]
        node[path[-1]] = value
    return overrides


def _write_text(random: Random, file: Path, text: str) -> None:
    """Write a config whose text is changed."""
    lines = text.splitlines()
    number = random.randrange(len(lines))
    laughs = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{f'*{chr(97 + n)}, ' * 9}]\n" for n in range(9)
    )
    choices: tuple[Any, ...] = (
        lambda: damage_text(random, text),
        lambda: damage_text(random, text),
        lambda: "\n".join([*lines[:number], *lines[number + 1 :]]),
        lambda: "\n".join([*lines[:number], lines[number], lines[number], *lines[number + 1 :]]),
        lambda: "\n".join([*lines[:number], "  " + lines[number], *lines[number + 1 :]]),
        lambda: f"_BASE_: {random.choice((file.name, '.', 'nothing.yaml', '[a, b]', '5', '/etc/passwd', '~'))}\n{text}",
        lambda: laughs + text,
        lambda: "MODEL: " + "[" * random.choice((1000, 100_000)),
        lambda: "MODEL: " + "{a: " * 100_000,
        lambda: text.replace("MODEL:", "MODEL: &m\n  WEIGHTS: ''\nMODEL: *m", 1),
        lambda: text + "!!python/object/apply:os.mkdir ['executed']\n",
        lambda: text.replace("64", '!!python/object/apply:eval [\'open("executed", "w")\']', 1),
        lambda: text.replace(
            "64", random.choice(("!!binary aGk=", "2001-01-01", "0x20", "1_000", "!!set {a}", "*x", "&x 64", "? 64")), 1
        ),
        lambda: "",
        lambda: "- a\n- b\n",
        lambda: "VERSION: " + random.choice(("1", "x", "3", "[2]", "null")) + "\n" + text,
        lambda: text + random.choice(("5: 6\n", "null: 1\n", "? [a]\n: b\n", "MODEL.X: 1\n", "? {a: b}\n: c\n")),
    )
    content = random.choice(choices)()
    data = content.encode("utf-8", "surrogatepass")
    file.write_bytes(
        random.choice(
            (data,) * 6
            + (content.encode("utf-16", "surrogatepass"), b"\xef\xbb\xbf" + data, mutate_bytes(random, data))
        )
    )
