"""`mask2former eval`: measure a model on a dataset."""

from __future__ import annotations

import argparse
import contextlib
import logging
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog

from ..config import find_config, load_config
from ..data import register_from_config
from ..engine import Trainer, argument_parser, launch, setup
from ..engine.evaluation_precision import describe_run
from ..model_source import locate_model, stored_classes
from ..utils.device import model_device
from ..utils.file_io import write_json
from ..utils.hints import did_you_mean
from ..video_registration import register_named_datasets
from .arguments import add_run_modes
from .parser import not_negative, refuse_given

logger = logging.getLogger(__name__)

HELP = "measure a model on a dataset"
DESCRIPTION = """Measure a model on a dataset: AP of instances, PQ of panoptic, mIoU of semantic segmentation.

Tables are printed, and results are written to the output directory. It is what train_net.py --eval-only does.

examples:
  mask2former eval --model coco-panoptic-swin-t                      the dataset of its config
  mask2former eval --model output/cells --data cells/                your images and annotations, in any known format
  mask2former eval --model output/cells --data cells/ --split test
  mask2former eval --config-file coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml --weights W.pkl
  mask2former eval --model nuclei --amp bfloat16 --compile compile   compare with --amp off --compile off
  mask2former eval --model nuclei --data cells/ --opts TEST.DETECTIONS_PER_IMAGE 300
"""
_NAME = "mask2former_eval"  # of a dataset that is given by its path
_RUN_MODES = (("amp", "TEST.AMP"), ("compile", "MODEL.COMPILE"))  # options of `add_run_modes` and their keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--model", metavar="NAME", help="model of the zoo, or a training output directory")
    parser.add_argument("--config-file", metavar="FILE", help="config file instead of --model (needs weights)")
    parser.add_argument("--weights", metavar="FILE", help="weights to load (default: those of --model)")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="name of a registered dataset, or a directory or file with images and annotations "
        "(default: DATASETS.TEST of the config)",
    )
    parser.add_argument("--split", help="part of a directory: val, test, train (default: val, else test, else all)")
    parser.add_argument("--output", metavar="DIR", help="directory (default: output/eval)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--num-gpus", type=not_negative, default=1, metavar="N", help="0: the CPU (default: 1 if any)")
    add_run_modes(parser, "TEST.AMP of the config, which is off")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides; must come last"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate; return the exit status.

    Raises:
        FileNotFoundError, ValueError: no model, no weights, no dataset, no such device, or classes that differ.
    """
    if args.model is None and args.config_file is None:
        raise ValueError("give --model NAME ('mask2former models' lists them), or --config-file FILE --weights FILE")
    if args.model is not None and args.config_file is not None:
        raise ValueError("give --model or --config-file, not both")
    if args.split is not None and (args.data is None or not Path(args.data).exists()):
        raise ValueError("--split is a part of a directory: give --data DIR")
    opts = dict(zip(args.opts[::2], args.opts[1::2]))
    for option, key in (
        ("weights", "MODEL.WEIGHTS"),
        ("output", "OUTPUT_DIR"),
        ("device", "MODEL.DEVICE"),
        *_RUN_MODES,
    ):
        if key in opts:
            reason = f"with {key} in --opts; give one of them"
            refuse_given(args, (option,), reason, auto=(option, key) in _RUN_MODES)
    if args.num_gpus != 1:
        refuse_given(args, ("device",), f"with --num-gpus {args.num_gpus}: 0 is the CPU, more are that many GPUs")
    weights = args.weights or opts.get("MODEL.WEIGHTS")
    args.output = args.output or opts.get("OUTPUT_DIR") or "output/eval"
    config, weights = locate_model(args.model, args.config_file, weights)
    if not weights:
        raise ValueError(f"no weights for {config}: give --weights FILE")
    overrides = ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", args.output]
    for option, key in _RUN_MODES:
        value = getattr(args, option)
        overrides += [] if value is None else [key, value]
    if "MODEL.DEVICE" not in opts:
        overrides += ["MODEL.DEVICE", str(model_device("cpu" if args.num_gpus == 0 else args.device, ()))]
    if args.data is not None:
        overrides += _dataset(args, config, Path(str(weights)))
    command = ["--config-file", str(config), "--eval-only", "--num-gpus", str(args.num_gpus)]
    command += ["--debug"] * getattr(args, "debug", False)  # of `CommandParser`
    return launch(evaluate, argument_parser().parse_args([*command, *overrides, *args.opts]))


def evaluate(args: argparse.Namespace) -> Any:
    """Evaluate on one rank; return the results.

    Args:
        args: of `engine.argument_parser`.
    """
    cfg = setup(args)
    logger.info("Evaluating %s on %s, %s.", cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, describe_run(cfg))
    model = Trainer.load_for_test(cfg)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        Trainer.test_with_TTA(cfg, model)
    return results


def _dataset(args: argparse.Namespace, config: Path, weights: Path) -> list[str]:
    """Return the config overrides that select --data."""
    path = Path(args.data).expanduser()
    if path.exists():
        return _from_files(args, path, config, weights)
    cfg = load_config(find_config(config), args.opts)
    with contextlib.suppress(OSError, ValueError):  # the custom datasets of the training may be on another machine
        register_from_config(cfg, cfg.DATASETS.TEST)
    register_named_datasets([args.data])
    if args.data not in DatasetCatalog:
        hint = did_you_mean(args.data, DatasetCatalog.keys(), 3)
        raise ValueError(f"--data {args.data}: no such file or directory, and no dataset of this name.{hint}")
    return ["DATASETS.TEST", repr((args.data,))]


def _from_files(args: argparse.Namespace, path: Path, config: Path, weights: Path) -> list[str]:
    """Read annotations of any known format, and write them as COCO beside the results."""
    from ..data.formats import load_data

    splits = load_data(path)
    names = (args.split,) if args.split else ("val", "test", "all", *(splits if len(splits) == 1 else ()))
    name = next((name for name in names if name in splits), None)
    if name is None:
        raise ValueError(f"--data {path} has the parts {', '.join(splits)}; choose one with --split")
    data = splits[name]
    content = _in_order(data.content, config, weights, path)
    file = write_json(Path(args.output) / "data" / f"{name}.json", content)
    listed = [[_NAME, str(file.resolve()), str(Path(data.image_root).resolve())]]
    return ["DATASETS.COCO_JSON", repr(listed), "DATASETS.TEST", repr((_NAME,))]


def _in_order(content: dict[str, Any], config: Path, weights: Path, path: Path) -> dict[str, Any]:
    """Return a COCO dictionary whose categories are the classes of the model, in its order.

    Raises:
        ValueError: the names differ.
    """
    table = stored_classes(config, weights)
    if table is None:
        return content
    by_name = {category["name"]: category["id"] for category in content["categories"]}
    unknown = [name for name in by_name if name not in table.names]
    if unknown:
        raise ValueError(
            f"--data {path} has classes that the model does not know: {', '.join(unknown[:5])}; its classes are "
            f"{', '.join(table.names[:20])}. Rename them in the annotations, or train on them."
        )
    categories = [{"id": number, "name": name} for number, name in enumerate(table.names, start=1)]
    new_ids = {by_name[c["name"]]: c["id"] for c in categories if c["name"] in by_name}
    annotations = [{**row, "category_id": new_ids[row["category_id"]]} for row in content["annotations"]]
    return {**content, "categories": categories, "annotations": annotations}
