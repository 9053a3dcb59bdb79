"""`mask2former benchmark`: time a model on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..benchmark import inference, training
from ..benchmark.options import add_inference, add_model, add_output, add_training
from ..model_source import DEFAULT_MODEL, locate_model
from ..utils.device import model_device
from .parser import positive, refuse_given

HELP = "time a model on this machine"
DESCRIPTION = """Time a model on this machine: medians with their quartiles, memory, versions and hardware.

Inference is measured three times: the network; with all results on the host; and through `Segmenter`, from array to
result. A step of the training (--train) is measured alone and as one of ten in a row, without a wait between them, as a
training takes them. On CUDA the kernels and the host's waits of a step are counted, and the share of the time in which
the GPU is busy. The floor is what the FLOPs and bytes of the network take at the peak of the device.

Weights are random and nothing is downloaded: times do not depend on the weights, except where a result holds fewer
objects (--dense). The image is noise of --size pixels, as the network sees it.

examples:
  mask2former benchmark                                         the included model
  mask2former benchmark --model coco-panoptic-swin-t --size 800 1216
  mask2former benchmark --device cuda --bf16 --batch 8 --json times.json
  mask2former benchmark --train --batch 4 --size 512 512        a step of the training
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--model", metavar="NAME", help=f"model of the zoo or directory (default: {DEFAULT_MODEL})")
    parser.add_argument("--config-file", metavar="FILE", help="config file instead of --model")
    parser.add_argument("--train", action="store_true", help="time a training step (default: inference)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument(
        "--size", type=positive, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="(default: 480 640)"
    )
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images at a time (default: 1)")
    parser.add_argument("--objects", type=positive, metavar="N", help="per image of --train (default: 20)")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="timed runs (default: 5)")
    add_model(parser)
    add_inference(parser)
    add_training(parser)
    add_output(parser)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides; must come last"
    )


def run(args: argparse.Namespace) -> int:
    """Time the model and print the figures; return 0.

    Raises:
        FileNotFoundError, ValueError: no such model, config, device or key.
    """
    args.device = str(model_device(args.device, args.opts))
    if args.train:
        refuse_given(args, ("source", "dense"), "with --train")
    else:
        refuse_given(args, ("objects", "uneven"), "without --train")
    if args.config_file:
        refuse_given(args, ("model",), "with --config-file")
    args.objects = args.objects or 20
    measure = training.run if args.train else inference.run
    measure(args, str(args.config_file or _config_of(args.model))).publish(args.json, args.label)
    return 0


def _config_of(name: str | None) -> Path:
    """Return the config of a model, without its weights."""
    return locate_model(name or DEFAULT_MODEL, None, "random")[0]
