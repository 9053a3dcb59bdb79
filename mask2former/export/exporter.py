"""From a model to a checked file with its description."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import nn

from ..structures.classes import ClassTable
from ..utils.atomic_file import naming_file
from ..utils.file_io import write_json
from .check import HALF_TOLERANCE, TOLERANCE, Difference, check_file, example_inputs
from .description import describe
from .formats import FORMATS
from .network import ExportNetwork


@dataclass(frozen=True)
class ExportSettings:
    """What is exported, and how.

    Attributes:
        format: one of `FORMATS`.
        size: (H, W) of the input, multiples of the model's size divisibility.
        batch: B; 0: any number.
        post: "instance", "panoptic", "semantic" or "none".
        frames: T, for a video model.
        half: the backbone in fp16, for ONNX.
        tolerance: largest difference from PyTorch as a fraction of the largest logit; None: 1e-3, in fp16 5e-2.
    """

    format: str = "onnx"
    size: tuple[int, int] = (480, 640)
    batch: int = 1
    post: str = "instance"
    frames: int | None = None
    half: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {self.format!r}")
        if self.half and self.format != "onnx":
            raise ValueError("fp16 is for ONNX only; other formats take the precision of autocast where they are run")
        if self.batch < 0:
            raise ValueError(f"batch must be at least 0, not {self.batch}")


@dataclass(frozen=True)
class Exported:
    """The files that were written, and how far the model in them differs from PyTorch's."""

    path: Path
    description: Path
    differences: tuple[Difference, ...]


def export_model(
    model: nn.Module,
    cfg: CfgNode,
    classes: ClassTable,
    path: str | os.PathLike[str],
    settings: ExportSettings,
    name: str,
) -> Exported:
    """Write a model to `path`, and what a program must know about it to a .json file of the same name.

    The file is made under another name, compared with PyTorch, and renamed only if it agrees.

    Args:
        model: in evaluation mode; on its device the file will run, but ONNX, which is made and compared on the CPU.
        cfg, classes: its config and classes.
        path: of the file; its suffix is that of the format.
        settings: format, size and so on.
        name: of the model, for the description.

    Raises:
        ExportError: the file differs from the model.
        ValueError: settings that do not fit the model.
        ImportError: a package of the format is missing.
        OSError: the file cannot be written.
    """
    path = Path(path).expanduser()
    kind = FORMATS[settings.format]
    shape = _shape(model, settings)
    network = ExportNetwork(model, settings.post, settings.frames)
    device = torch.device("cpu")
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device.type in kind.devices:
        device = parameter.device
    network.to(device)
    inputs = example_inputs(network, shape, 0, device)
    tolerance = settings.tolerance or (HALF_TOLERANCE if settings.half else TOLERANCE)
    with naming_file(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name[:40]}.", dir=path.parent) as directory:
            unchecked = Path(directory) / f"model{kind.suffix}"
            written = network.with_half_backbone() if settings.half else network
            kind.write(written, inputs, unchecked, settings.batch == 0)
            differences = check_file(network, kind.load(unchecked, network), shape, device, tolerance)
            description = describe(
                network,
                model,
                cfg,
                classes,
                name=name,
                kind=settings.format,
                post=settings.post,
                shape=(max(settings.batch, 1), *shape[1:]),
                dynamic_batch=settings.batch == 0,
                precision="float16 backbone" if settings.half else "float32",
                differences=differences,
            )
            os.replace(unchecked, path)
    return Exported(path, write_json(path.with_suffix(".json"), description, indent=1), tuple(differences))


def _shape(model: nn.Module, settings: ExportSettings) -> tuple[int, ...]:
    """Return the shape of the example images; a batch of any size is traced with 2, because 1 would be a constant."""
    divisor = max(int(getattr(model, "size_divisibility", 1)), 1)
    if any(n < 1 or n % divisor for n in settings.size):
        proposal = " ".join(str(max(-(-n // divisor), 1) * divisor) for n in settings.size)
        raise ValueError(
            f"--size {settings.size[0]} {settings.size[1]}: this model needs multiples of {divisor}, such as {proposal}"
        )
    frames = () if settings.frames is None else (settings.frames,)
    return (settings.batch or 2, *frames, 3, *settings.size)
