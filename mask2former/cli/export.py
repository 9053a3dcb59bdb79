"""`mask2former export`: write a model as a file that runs without this package."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..export.exporter import ExportSettings, export_model
from ..export.formats import FORMATS
from ..export.network import POSTS
from ..model_loading import load_model
from ..model_source import DEFAULT_MODEL
from ..structures.task import Task
from ..utils.atomic_file import check_writable
from ..utils.device import model_device
from . import arguments
from .parser import not_negative, path, positive

HELP = "write a model as ONNX, torch.export, AOTInductor or TorchScript"
DESCRIPTION = """Write a model as a file that runs without this package, and a .json file with what a program must know.

The input has a fixed size, into which images are fitted; thresholds are inputs. The file is compared with PyTorch, and
kept only if it computes the same.

examples:
  mask2former export --output nuclei.onnx --size 512 512                      the included model
  mask2former export output/cells --output cells.onnx --size 800 1088
  mask2former export coco-panoptic-r50 --post panoptic --output coco.onnx --batch 4
  mask2former export output/cells --format aoti --output cells.aoti.pt2       compiled code, for C++ too
  mask2former predict photo.jpg --model cells.onnx                            run it with onnxruntime
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"model of the zoo, or a training output directory (default: {DEFAULT_MODEL})",
    )
    parser.add_argument("--config-file", metavar="FILE", help="config file instead of MODEL (needs weights)")
    parser.add_argument("--weights", metavar="FILE", help="weights to load; same as --opts MODEL.WEIGHTS FILE")
    parser.add_argument("--output", type=path, metavar="FILE", help="default: MODEL and the suffix of the format")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="default: onnx")
    parser.add_argument(
        "--size",
        nargs=2,
        type=positive,
        metavar=("H", "W"),
        default=(480, 640),
        help="height and width of the input (default: 480 640)",
    )
    parser.add_argument("--batch", type=not_negative, default=1, metavar="N", help="images; 0: any number (default: 1)")
    parser.add_argument("--frames", type=positive, metavar="T", help="frames of a clip, for video models (default: 2)")
    parser.add_argument(
        "--post",
        choices=POSTS,
        help="results in the file; none: logits only (default: instance, or the first task of the model)",
    )
    parser.add_argument("--fp16", action="store_true", help="the backbone in half precision, for onnx")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="E",
        help="largest difference from PyTorch, as a fraction of the largest logit (default: 1e-3; with --fp16 5e-2)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for torch_export, aoti and torchscript")
    arguments.add_opts(parser)


def run(args: argparse.Namespace) -> int:
    """Export; return 0.

    Raises:
        FileNotFoundError, ValueError: no model, settings that do not fit it, or a file that differs from it.
    """
    name = str(args.config_file or args.model or DEFAULT_MODEL)
    suffix = FORMATS[args.format].suffix
    output = args.output or Path(f"{Path(name).name.removesuffix('.yaml')}{suffix}")
    if not output.name.endswith(suffix):
        raise ValueError(f"--output {output}: the suffix of --format {args.format} is {suffix}")
    check_writable(output, "--output", directory=False)
    model, cfg, classes = load_model(
        args.model,
        args.config_file,
        args.weights,
        model_device(args.device, args.opts),
        args.opts,
    )
    clip = hasattr(model, "clip_outputs")
    if args.frames is not None and not clip:
        raise ValueError("--frames is for video models, and this is one of images")
    settings = ExportSettings(
        format=args.format,
        size=(args.size[0], args.size[1]),
        batch=args.batch,
        post=args.post or _first_task(model),
        frames=(args.frames or 2) if clip else None,
        half=args.fp16,
        tolerance=args.tolerance,
    )
    exported = export_model(model, cfg, classes, output, settings, name)
    print(f"{exported.path}: {exported.path.stat().st_size / 1e6:.1f} MB, {settings.format}, {settings.post}")
    for difference in exported.differences:
        print(f"difference from PyTorch: {difference}")
    print(f"{exported.description}: preprocessing, classes, thresholds")
    return 0


def _first_task(model: object) -> str:
    """Return the result that a model makes, the first of instance, panoptic, semantic."""
    if hasattr(model, "clip_outputs"):
        return str(Task.INSTANCE)
    on = (task for task in (Task.INSTANCE, Task.PANOPTIC, Task.SEMANTIC) if getattr(model, f"{task}_on", False))
    return str(next(on, Task.SEMANTIC))
