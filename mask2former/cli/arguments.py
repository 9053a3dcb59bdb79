"""Arguments that several commands share, and the model and settings that they select."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..data.image_io import IMAGE_SUFFIXES
from ..export.onnx_segmenter import OnnxSegmenter
from ..model_source import DEFAULT_MODEL
from ..modeling.runtime import MODES
from ..segmenter import Segmenter
from ..structures.task import IMAGE_TASKS, Task
from ..utils.device import AMP_MODES
from ..utils.hints import did_you_mean
from .parser import fraction, not_negative, positive, refuse_given, scale

LABELS = {"auto": None, "yes": True, "no": False}  # of --labels, as `Result.draw` takes them

# Groups of arguments, for the commands in which they would have no effect.
RULES = ("nms", "non_overlapping", "components", "fill_holes", "min_area")
TRACKING = ("online", "window", "overlap", "top_k")
DRAWING = ("labels", "scale")
NOTHING_DRAWN = "because no overlay is written"

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})  # of inputs
_LIKE_A_FILE = re.compile(r"\.[a-z]{2,5}")  # a suffix that no directory is likely to have, unlike .v2 and .2024


def add_model(group: argparse._ArgumentGroup, tasks: tuple[str, ...] = IMAGE_TASKS) -> None:
    """Add the arguments that select and run a model: --model or --config-file and --weights, --device, --task, ..."""
    group.add_argument(
        "--model", metavar="NAME", help=f"model of the zoo, or a training output directory (default: {DEFAULT_MODEL})"
    )
    group.add_argument("--config-file", metavar="FILE", help="config file instead of --model (needs weights)")
    group.add_argument("--weights", metavar="FILE", help="weights to load; same as --opts MODEL.WEIGHTS FILE")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    if tasks:
        group.add_argument(
            "--task",
            default="auto",
            choices=["auto", *map(str, tasks)],
            help="what to predict (default: auto, what the model was trained for)"
            + ("; video: track objects through a video" if Task.VIDEO in tasks else ""),
        )
    add_run_modes(group)
    group.add_argument(
        "--min-size",
        type=positive,
        metavar="N",
        help="shortest edge of images in the network; larger values find smaller objects "
        "(default: INPUT.MIN_SIZE_TEST)",
    )


def add_run_modes(group: argparse._ActionsContainer, precision: str = "off") -> None:
    """Add --amp, a value of `AMP_MODES`, and --compile, one of `MODES`; both are None where they are not given.

    Args:
        precision: what counts without --amp, for the help.
    """
    group.add_argument(
        "--amp",
        nargs="?",
        const="auto",
        choices=AMP_MODES,
        metavar="MODE",
        help="lower precision: bfloat16, float16, or auto (bfloat16 where the device computes it natively, else "
        f"float16 on a GPU and fp32 on a CPU); off is fp32 (without MODE: auto; default: {precision})",
    )
    group.add_argument(
        "--compile",
        choices=MODES,
        help="how the network is run: off, graph (CUDA graphs), compile (minutes to start, then fastest on a GPU) "
        "(default: MODEL.COMPILE, which is auto: graphs of shapes that come again)",
    )


def add_part(group: argparse._ArgumentGroup) -> None:
    """Add the arguments that select a part of a video."""
    group.add_argument(
        "--start", metavar="TIME", help="where a video begins: seconds, a time such as 1:30, or a frame such as 120f"
    )
    group.add_argument("--end", metavar="TIME", help="where it ends, as --start (default: the end)")
    group.add_argument("--every", type=positive, metavar="N", help="take every n-th frame only (default: 1)")


def add_opts(parser: argparse.ArgumentParser) -> None:
    """Add --opts, which takes the rest of the command line."""
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config overrides; must come last",
    )


def add_rules(group: argparse._ArgumentGroup, threshold: str = "--score-threshold") -> None:
    """Add the arguments that say how instances become objects; what is not given is what the model's config says."""
    add_threshold(group, threshold)
    group.add_argument(
        "--nms", type=fraction, metavar="IOU", help="drop objects that overlap a better one of their class by more"
    )
    add_non_overlapping(group)
    group.add_argument(
        "--components",
        choices=["all", "largest", "split"],
        help="objects of several parts: keep all parts, the largest, or make each part an object",
    )
    group.add_argument(
        "--fill-holes", action=argparse.BooleanOptionalAction, help="fill the holes inside objects", default=None
    )
    group.add_argument("--min-area", type=not_negative, metavar="N", help="drop objects of fewer pixels")


def add_threshold(group: argparse._ArgumentGroup, name: str = "--score-threshold") -> None:
    """Add the smallest score of objects."""
    group.add_argument(
        name,
        dest="score_threshold",
        type=fraction,
        metavar="S",
        help="drop objects and segments with a lower score (default: what the model's config says, else 0.5)",
    )


def add_non_overlapping(group: argparse._ArgumentGroup) -> None:
    """Add --non-overlapping and --no-non-overlapping."""
    group.add_argument(
        "--non-overlapping",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="assign each pixel to at most one object and remove near-duplicates",
    )


def add_drawing(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of overlays."""
    group.add_argument(
        "--labels", choices=list(LABELS), default="auto", help="draw class names (default: auto, where they fit)"
    )
    group.add_argument(
        "--scale",
        type=scale,
        metavar="X",
        help="size of overlays relative to the image (default: small images are enlarged)",
    )


# ------------------------------------------------------------------ what they select
def model_name(args: argparse.Namespace) -> str:
    """Return the name of the model, for messages."""
    return str(args.config_file or args.model or DEFAULT_MODEL)


def load_segmenter(args: argparse.Namespace) -> Segmenter:
    """Load the model of `add_model`, and print one line about it.

    Raises:
        FileNotFoundError, ValueError: as `Segmenter.load`, or config keys in --opts that --amp or --compile stand for.
    """
    opts = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    if "MODEL.COMPILE" in opts:
        refuse_given(args, ("compile",), "with MODEL.COMPILE in --opts; give one of them", auto=True)
    if "TEST.AMP" in opts:
        raise ValueError(f"TEST.AMP in --opts is for evaluations; give --amp {opts['TEST.AMP']}")
    options: dict[str, Any] = {} if args.score_threshold is None else {"score_threshold": args.score_threshold}
    segment = Segmenter.load(
        args.model,
        config=args.config_file,
        weights=args.weights,
        device=args.device,
        overrides=args.opts,
        task=args.task,
        amp=args.amp or "off",
        compile=args.compile,
        **options,
    )
    print(f"model: {model_name(args)}, {segment}")
    if args.compile == "compile":
        print("the first image waits until the network is compiled, which takes minutes", flush=True)
    return segment


def is_exported(args: argparse.Namespace) -> bool:
    """Return whether --model is an ONNX file, which onnxruntime runs."""
    return str(args.model or "").lower().endswith(".onnx")


def load_exported(args: argparse.Namespace) -> OnnxSegmenter:
    """Load the ONNX file of --model, and print one line about it.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `OnnxSegmenter`, or arguments that have no effect on it.
    """
    names = ("config_file", "weights", "task", "compile", "min_size", "tile", "tile_overlap", "opts")
    reason = f"on {args.model}: these are fixed in an exported file"
    refuse_given(args, names, reason)
    refuse_given(args, ("amp",), reason, auto=True)
    segment = OnnxSegmenter(args.model, args.device, args.score_threshold)
    print(f"model: {segment}")
    return segment


def rules_of(segment: Segmenter | OnnxSegmenter, args: argparse.Namespace) -> dict[str, Any]:
    """Return {"rules": ...} with the rules of the model as the arguments change them; {} if they change nothing."""
    given = {"nms_iou" if name == "nms" else name: getattr(args, name, None) for name in RULES}
    given = {rule: value for rule, value in given.items() if value is not None}
    return {"rules": segment.rules.changed(**given)} if given else {}


def is_video_model(segment: Segmenter) -> bool:
    """Return whether the model takes clips."""
    return hasattr(segment.model, "clip_outputs")


def output_target(args: argparse.Namespace, suffixes: Collection[str]) -> tuple[Path, bool]:
    """Return --output, or the default of the command, and whether it is one file; else it is a directory.

    A new name whose suffix looks like that of a file is no directory, unless it ends with a slash: it is a slip.

    Args:
        args: `output` and `default_output`.
        suffixes: those of files that can be written, in lower case.

    Raises:
        ValueError: a file of another type.
    """
    if not args.output:
        return Path(args.default_output), False
    target = Path(args.output).expanduser()
    suffix = target.suffix.lower()
    if target.is_dir() or str(args.output).endswith(("/", os.sep)):
        return target, False
    if suffix in suffixes:
        return target, True
    known = f"{', '.join(sorted(suffixes))}, or a directory"
    if target.exists():
        raise ValueError(f"--output {target} is a file of unknown type; give {known}")
    if _LIKE_A_FILE.fullmatch(suffix) or suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
        hint = did_you_mean(suffix, suffixes) or f" To make a directory of this name, write {args.output}/"
        raise ValueError(f"--output {target}: a file cannot end with {suffix}; give {known}.{hint}")
    return target, False
