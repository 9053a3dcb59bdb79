"""`mask2former convert`: weights between Hugging Face, file formats and detectron2, and packing of a training."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..conversion.backbone import convert_backbone
from ..conversion.huggingface import from_huggingface, to_huggingface
from ..conversion.packing import pack_model
from ..conversion.weights_file import convert_file
from ..structures.task import IMAGE_TASKS
from .parser import path

HELP = "convert weights: Hugging Face, safetensors, ImageNet backbones; pack a training"
DESCRIPTION = """Convert weights, or pack a finished training into a small directory.

Weights are renamed, never changed, and keep their precision by default (pack: half precision). Files are read as data
and never executed.

examples:
  mask2former convert pack output/cells models/cells               a small directory for --model, in half precision
  mask2former convert from-hf mask2former-swin-tiny-coco/ swin-t/  a directory of Hugging Face, for --model
  mask2former convert to-hf coco-panoptic-swin-t hf/               for transformers' from_pretrained
  mask2former convert file model_final.pth model.safetensors       another file format
  mask2former convert backbone resnet101-63fe2227.pth R-101.pkl    ImageNet weights for detectron2 projects

mask2former convert KIND --help explains each.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    pack = kinds.add_parser("pack", help="training output directory -> small directory for --model")
    add_pack(pack)
    pack.set_defaults(work=run_pack)

    from_hf = kinds.add_parser("from-hf", help="Hugging Face directory -> this project")
    add_from_hf(from_hf)
    from_hf.set_defaults(work=run_from_hf)

    to_hf = kinds.add_parser("to-hf", help="this project or the reference -> Hugging Face directory")
    add_to_hf(to_hf)
    to_hf.set_defaults(work=run_to_hf)

    file = kinds.add_parser("file", help="weights -> .safetensors or .pth")
    file.add_argument("input", metavar="IN", help="weights file (.safetensors, .pth, .pkl), URL, or name of a model")
    file.add_argument("output", metavar="OUT", type=path, help="file to write, .safetensors or .pth")
    add_dtype(file)
    file.set_defaults(work=_run_file)

    backbone = kinds.add_parser("backbone", help="ImageNet ResNet (torchvision) or Swin (official, timm) -> detectron2")
    backbone.add_argument("input", metavar="IN", help="weights as downloaded (.pth)")
    backbone.add_argument("output", metavar="OUT", type=path, help="file to write (.pkl)")
    backbone.set_defaults(work=_run_backbone)


def run(args: argparse.Namespace) -> int:
    """Convert; return 0.

    Raises:
        FileNotFoundError, ValueError: a file that is missing, of another kind, or damaged.
    """
    print(args.work(args))
    return 0


# ------------------------------------------------------------------ arguments
def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add --dtype."""
    choices = ["float32", "float16", "bfloat16"]
    parser.add_argument("--dtype", choices=choices, help="storage (default: as in the input)")


def add_from_hf(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of from-hf."""
    parser.add_argument("input", metavar="IN", help="directory with config.json and the weights")
    parser.add_argument("output", metavar="OUT", type=path, help="directory to write")
    parser.add_argument("--task", choices=list(map(str, IMAGE_TASKS)), help="task of the model")
    add_dtype(parser)


def add_to_hf(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of to-hf."""
    parser.add_argument("input", metavar="IN", help="weights file, or the name of a published model")
    parser.add_argument("output", metavar="OUT", type=path, help="directory to write")
    parser.add_argument("--config-file", help="config of the model (default: that of the model-zoo name)")
    parser.add_argument("--dataset", help="registered dataset for the class names (default: DATASETS.TEST[0])")
    add_dtype(parser)
    parser.add_argument("--opts", nargs="...", default=[], help="config overrides: KEY VALUE ...")


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of pack."""
    parser.add_argument("source", type=path, help="output directory of a training (config.yaml and weights)")
    parser.add_argument("target", type=path, help="directory to write")
    parser.add_argument("--weights", type=path, help="default: the best, else the final weights in SOURCE")
    parser.add_argument("--classes", nargs="+", help="class names; default: those of the training")
    parser.add_argument("--fp32", action="store_true", help="keep single precision")


# ------------------------------------------------------------------ work
def run_from_hf(args: argparse.Namespace) -> str:
    """Convert a Hugging Face directory; return a line about it."""
    return _verified(from_huggingface(args.input, args.output, args.task, _dtype(args)), args)


def run_to_hf(args: argparse.Namespace) -> str:
    """Write a Hugging Face directory; return a line about it."""
    count = to_huggingface(args.input, args.output, args.config_file, args.dataset, _dtype(args), args.opts)
    return _verified(count, args)


def run_pack(args: argparse.Namespace) -> str:
    """Pack a training; return a line about the file."""
    dtype = None if args.fp32 else torch.float16
    return pack_model(args.source, args.target, args.weights, args.classes, dtype)


def _run_file(args: argparse.Namespace) -> str:
    return f"{convert_file(args.input, args.output, _dtype(args))} weights written to {args.output}"


def _run_backbone(args: argparse.Namespace) -> str:
    done = convert_backbone(args.input, args.output)
    return f"{args.output}: {done.written} arrays of {done.family.expected}, {done.dropped} dropped as not needed"


def _verified(count: int, args: argparse.Namespace) -> str:
    return f"{count} weights converted and verified, written to {args.output}"


def _dtype(args: argparse.Namespace) -> Any:
    return getattr(torch, args.dtype) if args.dtype else None
