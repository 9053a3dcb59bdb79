"""`mask2former train`: fine-tune a model on training data, or run a config file as train_net.py does."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from pathlib import Path

from ..engine.commands import train_or_evaluate
from ..engine.fine_tuning import Plan, plan_resume, plan_training
from ..engine.launch import argument_parser, launch
from ..engine.output_directory import OutputDirectory
from ..engine.rank_group import torchrun_place
from ..engine.recipe import Wishes
from ..engine.training_setup import training_lock
from ..model_source import DEFAULT_MODEL
from ..utils.atomic_file import check_writable
from ..utils.file_io import short_path
from .parser import refuse_given

HELP = "train a model on your images"

DESCRIPTION = """Train a model on your own annotated images: ten are enough for a start.

  mask2former train --data cells/                        # start from the bundled model of nuclei
  mask2former train --data cells/ --model coco-instance-swin-t --output output/cells
  mask2former train --data cells/ --minutes 10           # as long as fits into ten minutes
  mask2former train --data cells/ --dry-run              # print the settings and their reasons only
  mask2former train --output output/cells --resume

--data is a directory or file of any format that `mask2former check` knows. Without a validation split a part of the
images is put aside (--val). Classes, image size, batch, length and learning rate are chosen from data and machine, and
each choice is explained; the options below, and config keys as KEY VALUE at the end, change them. The model is
evaluated before the first iteration and then up to ten times, and the best one is kept:

  mask2former predict new_images/ --model output/cells

With --config-file everything comes from a config file, as in train_net.py:

  mask2former train --config-file configs/nuclei/maskformer2_efficientnet_lite0.yaml --num-gpus 1 SEED 1
"""

# Option -> type, placeholder, help; each is a field of `Wishes`.
_CHOICES = {
    "iterations": (int, "N", "length of the training"),
    "epochs": (float, "N", "length in passes over the images"),
    "minutes": (float, "N", "length in minutes; the speed of this machine is measured first"),
    "batch": (int, "N", "images in one iteration, over all GPUs"),
    "lr": (float, "RATE", "learning rate"),
    "image-size": (int, "PIXELS", "shortest edge of images in the network"),
    "patience": (int, "N", "stop after N evaluations without improvement; 0: never"),
    "seed": (int, "N", "of the split, the order of the data and the augmentation (default: 0)"),
}


_OF_THE_DATA = frozenset({"data", "model", "format", "val", "group"})
_OF_THE_PLAN = frozenset({"dry_run", *(name.replace("-", "_") for name in _CHOICES)})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    source = parser.add_argument_group("what to train")
    source.add_argument("--data", metavar="PATH", help="training data: directory or annotation file")
    source.add_argument(
        "--model", metavar="NAME", help=f"model of the zoo, or training output directory (default: {DEFAULT_MODEL})"
    )
    source.add_argument("--output", metavar="DIR", help="output directory (default: output/ and the name of the data)")
    source.add_argument("--resume", action="store_true", help="continue the training in the output directory")
    source.add_argument("--dry-run", action="store_true", help="print the settings and their reasons, and stop")
    source.add_argument("--format", metavar="NAME", help="format of the data (default: found by itself)")
    source.add_argument(
        "--val",
        type=float,
        metavar="PART",
        help="part for validation, if there is no split (default: 0.1)",
    )
    source.add_argument(
        "--group",
        metavar="RULE",
        help="keep images of one group together in it: 'parent' for their directory, or a regular expression",
    )
    choices = parser.add_argument_group("settings; those that are not given fit the data and the machine")
    for option, (kind, placeholder, text) in _CHOICES.items():
        choices.add_argument(f"--{option}", type=kind, metavar=placeholder, help=text)
    machine = parser.add_argument_group("machine")
    machine.add_argument("--num-gpus", type=int, default=1, metavar="N", help="GPUs to use; 0: the CPU (default: 1)")
    config = parser.add_argument_group("training by config file")
    config.add_argument("--config-file", default="", metavar="FILE", help="config file, or its name below configs/")
    config.add_argument("--eval-only", action="store_true", help="evaluate only")
    config.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines that train together")
    config.add_argument("--machine-rank", type=int, default=0, metavar="N", help="number of this machine, from 0")
    config.add_argument("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of the first machine")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys and values; last")


def run(args: argparse.Namespace) -> int:
    """Train; return the exit status.

    Raises:
        FileNotFoundError, ValueError: what the user can cause, before the training starts.
    """
    option = next((word for word in args.opts if word.startswith("--")), None)
    if option is not None:
        raise ValueError(f"{option} stands behind a KEY VALUE pair: options come first, config keys last")
    if args.config_file:
        reason = "with --config-file: the config says that: set its keys, KEY VALUE, last"
        refuse_given(args, sorted(_OF_THE_DATA | _OF_THE_PLAN), reason)
        opts = [*args.opts, "OUTPUT_DIR", args.output] if args.output else args.opts
        return launch(train_or_evaluate, _launch_arguments(args, args.config_file, Plan(None), opts))
    if not args.data and not (args.resume and args.output):
        raise ValueError("what to train on? Give --data DIR (to resume, --output DIR is enough), or --config-file FILE")
    if torchrun_place() is not None or args.num_machines > 1:
        raise ValueError(
            "--data prepares a training on one machine: use --num-gpus N. For torchrun and several machines start "
            "from the config it writes (--dry-run shows its settings): --config-file OUTPUT/data/config.yaml"
        )
    if args.num_gpus <= 1:
        refuse_given(args, ("dist_url",), f"on one process, which --num-gpus {args.num_gpus} starts")
    if args.eval_only:
        raise ValueError("--eval-only needs --config-file")
    if args.resume:
        reason = "with --resume: a resumed training keeps its data and its model"
        refuse_given(args, sorted(_OF_THE_DATA - {"data"}), reason)
    output = OutputDirectory(args.output or Path("output") / _name_of(args.data))
    plan = _plan(args, output)
    if args.dry_run:
        sys.stdout.write("".join(f"{line}\n" for line in (*plan.notes, *(f"Warning: {w}" for w in plan.warnings))))
        return 0
    status = launch(train_or_evaluate, _launch_arguments(args, str(plan.config), plan, list(plan.overrides)))
    directory = shlex.quote(short_path(output.path))
    if status == 0:
        sys.stdout.write(summary(output, directory))
    elif output.has_checkpoint and status > 128:
        sys.stdout.write(f"Continue with: mask2former train --output {directory} --resume\n")
    return status


def _plan(args: argparse.Namespace, output: OutputDirectory) -> Plan:
    wishes = Wishes(
        iterations=args.iterations,
        epochs=args.epochs,
        minutes=args.minutes,
        batch=args.batch,
        learning_rate=args.lr,
        image_size=args.image_size,
        patience=args.patience,
        seed=0 if args.seed is None else args.seed,
    )
    if args.dry_run:
        return _new_or_resumed(args, output, wishes)
    if not output.path.is_file():  # which `check_new` explains
        check_writable(output.path, "--output", directory=True)
    # The plan is written into the directory, so a training that runs there is noticed before.
    with training_lock(str(output.path)) if output.path.is_dir() else contextlib.nullcontext():
        return _new_or_resumed(args, output, wishes)


def _new_or_resumed(args: argparse.Namespace, output: OutputDirectory, wishes: Wishes) -> Plan:
    if args.resume:
        return plan_resume(output, wishes, args.opts, data=args.data, write=not args.dry_run)
    if not args.dry_run:
        output.check_new()
    return plan_training(
        args.data,
        output,
        model=args.model or DEFAULT_MODEL,
        wishes=wishes,
        num_gpus=args.num_gpus,
        val=args.val,
        group=args.group,
        data_format=args.format or "auto",
        overrides=args.opts,
        write=not args.dry_run,
    )


def summary(output: OutputDirectory, directory: str) -> str:
    """Return what the training achieved and the command that uses it."""
    outcome = output.outcome()
    lines = []
    if outcome.best is not None:
        metric = (outcome.metric or "").rpartition("/")[2]
        before = f"{metric} before training {outcome.before:.1f}, " if outcome.before is not None else f"{metric} "
        lines.append(f"{before}best {outcome.best:.1f}, on the validation images.")
        if outcome.before is not None and outcome.best <= outcome.before:
            lines.append(
                "The training did not improve the model: more annotated images help most, then --epochs, --lr."
            )
    lines.append(f"Use it: mask2former predict IMAGES --model {directory}")
    return "".join(f"{line}\n" for line in lines)


def _launch_arguments(args: argparse.Namespace, config: str, plan: Plan, opts: list[str]) -> argparse.Namespace:
    """Return the arguments of train_net.py."""
    launched = argument_parser().parse_args([])
    launched.config_file, launched.opts = config, list(opts)
    for name in ("resume", "eval_only", "num_gpus", "num_machines", "machine_rank", "dist_url"):
        setattr(launched, name, getattr(args, name))
    launched.debug = launched.debug or getattr(args, "debug", False)  # of `CommandParser`
    launched.notes, launched.warnings = plan.notes, plan.warnings
    launched.recipe = None if plan.recipe is None else (config, plan.recipe)
    return launched


def _name_of(data: str) -> str:
    path = Path(data).expanduser().absolute()
    return path.name if path.is_dir() else path.stem
