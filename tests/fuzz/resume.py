"""Resume of a stopped training: changed entries and bytes of its checkpoint, and a changed output directory."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from random import Random
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from tests.engine.tiny_training import start, tiny_config

from .judgment import Case, require
from .mutation import mutate, mutate_bytes, places

STEPS = 3
SETTINGS: tuple[tuple[str, ...], ...] = (
    ("SOLVER.EMA_DECAY", "0.9"),
    ("SOLVER.OPTIMIZER", "SGD"),
    ("SOLVER.EMA_DECAY", "0.9", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"),
    ("TEST.EVAL_PERIOD", "2", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(2, 3)"),
)
_DTYPES = (torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64)


def prepare(root: Path) -> list[dict[str, Any]]:
    """Train a few steps with each of the settings; return the content of the checkpoints."""
    states = []
    for number, settings in enumerate(SETTINGS):
        start(_config(root / str(number), settings)).train()
        states.append(torch.load(root / str(number) / f"model_{STEPS - 1:07d}.pth", weights_only=True))
    return states


def _config(directory: Path, settings: tuple[str, ...]) -> CfgNode:
    return tiny_config(directory, "SOLVER.MAX_ITER", str(STEPS + 1), "SOLVER.CHECKPOINT_PERIOD", str(STEPS), *settings)


def run(states: list[dict[str, Any]], case: Case) -> None:
    """Change a checkpoint or its directory, resume, and train one more step."""
    random = case.random
    number = random.randrange(len(SETTINGS))
    settings = SETTINGS[number] if random.random() < 0.9 else random.choice(SETTINGS)
    output = case.directory / "run"
    output.mkdir()
    files = output / f"model_{STEPS - 1:07d}.pth"
    (output / "last_checkpoint").write_text(files.name)
    refused = ""
    if random.random() < 0.3:
        files.write_bytes(_bytes(states[number]))
        _change_directory(random, output, files, _bytes(states[(number + 1) % len(states)]))
    else:
        if random.random() < 0.5:
            content = copy.deepcopy(states[number])
            refused = _change_tensor(random, content)
        else:
            content = mutate(random, states[number])
        files.write_bytes(_bytes(content))
        if settings != SETTINGS[number] and ": ema " in refused:
            refused = ""  # EMA weights that these settings do not use
    before = {path.name for path in output.glob("*.pth")}
    resumed = case.attempt(_resume, _config(output, settings))
    if resumed.accepted:
        started, finite = resumed.value
        require(not refused, f"is resumed from, although {refused}")
        require(started > 0 or not before, "--resume starts over although there are checkpoints")
        require(finite or started > STEPS, "the resumed training has weights that are not finite")


def _resume(cfg: CfgNode) -> tuple[int, bool]:
    """Return the first iteration, and whether all weights are finite at the end."""
    trainer = start(cfg, resume=True)
    first = trainer.start_iter
    trainer.train()
    values = list(trainer.checkpointer.model.state_dict().values())
    if trainer.weight_average is not None:
        values += trainer.weight_average.state_dict()["average"].values()
    return first, all(bool(torch.isfinite(value).all()) for value in values if value.is_floating_point())


def _bytes(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _change_tensor(random: Random, content: dict[str, Any]) -> str:
    """Change shape or type of a tensor, or leave it out; return what must be noticed."""
    tensors = [
        (schema, container, key)
        for schema, (container, key) in places(content)
        if isinstance(container[key], Tensor) and "random_states" not in schema
    ]
    schema, container, key = random.choice(tensors)
    value: Tensor = container[key]
    name = " ".join(schema)
    choice = random.randrange(4)
    if choice == 0:
        del container[key]
        return f"a tensor is missing: {name}"
    if choice == 1:
        dtype = random.choice(_DTYPES)
        container[key] = value.to(dtype)
        # Another floating point type is converted, and so are the weights of the model, as everywhere.
        harmless = dtype.is_floating_point or value.numel() == 1 or schema[0] == "model"
        return "" if harmless else f"a tensor has another type: {name} is {dtype}"
    shapes = [(1,), (), (0,), (*value.shape, 1), (7,), (10**5,), tuple(value.shape)[::-1], (3, *value.shape)]
    shape = random.choice(shapes)
    container[key] = torch.zeros(shape, dtype=value.dtype)
    harmless = shape == tuple(value.shape) or value.numel() == container[key].numel() == 1
    return "" if harmless else f"a tensor has another shape: {name} {shape} instead of {tuple(value.shape)}"


def _change_directory(random: Random, output: Path, file: Path, other: bytes) -> None:
    marker = output / "last_checkpoint"
    choice = random.randrange(10)
    if choice == 0:
        marker.unlink()
    elif choice == 1:
        marker.write_bytes(
            random.choice(
                (b"", b"\n", b"nothing.pth", b"\xff\xfe\0", b".", b"..", b"/etc/passwd", b"a\0b", b"x" * 5000)
            )
        )
    elif choice == 2:
        marker.unlink()
        marker.mkdir()
    elif choice == 3:
        (output / "model_0000001.pth").write_bytes(file.read_bytes())
        file.write_bytes(mutate_bytes(random, file.read_bytes()))
    elif choice == 4:
        file.write_bytes(mutate_bytes(random, file.read_bytes()))
    elif choice == 5:
        (output / "model_0000009.pth").write_bytes(random.choice((b"", b"PK\3\4", file.read_bytes()[:3000], other)))
    elif choice == 6:
        (output / "model_best.json").write_bytes(
            random.choice((b"", b"{}", b"[1]", b'{"value": "x"}', b'{"value": NaN}', b"\xff"))
        )
        (output / "model_best.safetensors").write_bytes(b"")
    elif choice == 7:
        (output / "metrics.json").write_bytes(random.choice((b"\xff\xff", b"{", b'{"iteration": "x"}\n')))
    elif choice == 8:
        content = torch.load(file, weights_only=True)
        torch.save({"model": content["model"]}, file)
    else:
        file.unlink()
        file.mkdir()
