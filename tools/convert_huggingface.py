#!/usr/bin/env python
"""Convert Mask2Former weights from and to Hugging Face transformers (Swin backbones).

    python tools/convert_huggingface.py from-hf IN OUT [--task panoptic] [--dtype float16]
    python tools/convert_huggingface.py to-hf IN OUT --config-file configs/coco/....yaml [--dataset NAME]

from-hf reads a directory with config.json and model.safetensors (or pytorch_model.bin, or shards) and writes a
directory with model.safetensors, config.yaml and classes.json:

    python demo/demo.py --config-file OUT/config.yaml --input image.jpg --opts MODEL.WEIGHTS OUT

to-hf reads any weights of this project or of the reference implementation (.pkl, .pth, .safetensors, a
model-zoo name such as coco-panoptic-swin-t) and writes a directory for
`Mask2FormerForUniversalSegmentation.from_pretrained(OUT)`.

Weights are only renamed and regrouped, never changed. Each conversion is verified: it is reversed, and the result must
equal the input bit for bit, with no weight left over on either side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "mask2former").is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import yaml  # noqa: E402
from torch import Tensor  # noqa: E402

from mask2former import load_config, zoo  # noqa: E402
from mask2former.checkpoint import (  # noqa: E402
    CheckpointError,
    huggingface,
    load_weights,
    save_safetensors,
)
from mask2former.checkpoint.huggingface_config import (  # noqa: E402
    class_names_from_huggingface,
    config_from_huggingface,
    config_to_huggingface,
    preprocessor_to_huggingface,
)
from mask2former.checkpoint.reading import read_checkpoint  # noqa: E402
from mask2former.structures.task import IMAGE_TASKS  # noqa: E402
from mask2former.utils.file_io import atomic_write, write_json  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = _parser().parse_args(argv)
    try:
        count = _from_hf(args) if args.command == "from-hf" else _to_hf(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} weights converted and verified, written to {args.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{from-hf,to-hf}")
    dtype: dict[str, Any] = {
        "choices": ["float32", "float16", "bfloat16"],
        "help": "storage (default: as in the input)",
    }

    to_ours = commands.add_parser("from-hf", help="Hugging Face directory -> this project")
    to_ours.add_argument("input", metavar="IN", help="directory with config.json and the weights")
    to_ours.add_argument("output", metavar="OUT", type=Path, help="directory to write")
    to_ours.add_argument("--task", choices=list(map(str, IMAGE_TASKS)), help="task of the model")
    to_ours.add_argument("--dtype", **dtype)

    to_theirs = commands.add_parser("to-hf", help="this project or the reference -> Hugging Face directory")
    to_theirs.add_argument("input", metavar="IN", help="weights file, or the name of a published model")
    to_theirs.add_argument("output", metavar="OUT", type=Path, help="directory to write")
    to_theirs.add_argument("--config-file", help="config of the model (default: that of the model-zoo name)")
    to_theirs.add_argument("--dataset", help="registered dataset for the class names (default: DATASETS.TEST[0])")
    to_theirs.add_argument("--dtype", **dtype)
    to_theirs.add_argument("--opts", nargs="...", default=[], help="config overrides: KEY VALUE ...")
    return parser


def _from_hf(args: argparse.Namespace) -> int:
    settings = config_from_huggingface(args.input, args.task)
    theirs = read_checkpoint(args.input)["model"]
    if not huggingface.is_huggingface(theirs):
        raise CheckpointError(f"{args.input} does not hold the weights of a Mask2Former of Hugging Face transformers")
    ours = huggingface.from_huggingface(theirs)
    unknown = [key for key in ours if not key.startswith(("backbone.", "sem_seg_head.", "criterion."))]
    if unknown:
        raise CheckpointError(f"{args.input}: {len(unknown)} unknown weights: {', '.join(unknown[:5])}")
    restored = huggingface.from_huggingface(huggingface.to_huggingface(ours))
    _check_equal(ours, restored)
    _check_coverage(theirs, ours)
    save_safetensors(ours, args.output / "model.safetensors", _dtype(args), {"source": args.input})
    with atomic_write(args.output / "config.yaml") as file:
        file.write(yaml.safe_dump(_nested(settings), sort_keys=False).encode())
    write_json(args.output / "classes.json", class_names_from_huggingface(args.input), indent=2)
    return len(ours)


def _to_hf(args: argparse.Namespace) -> int:
    source, config_file = args.input, args.config_file
    if source in zoo.list_models():
        entry = zoo.lookup(source)
        source, config_file = str(zoo.resolve_weights(entry)), config_file or entry.config_file
    if config_file is None:
        raise ValueError("to-hf needs --config-file, because a weights file does not describe the model")
    cfg = load_config(config_file, args.opts)
    ours = load_weights(source)
    settings = config_to_huggingface(cfg, _class_names(cfg, args.dataset))
    theirs = huggingface.to_huggingface(ours)
    _check_equal(ours, huggingface.from_huggingface(theirs))
    save_safetensors(theirs, args.output / "model.safetensors", _dtype(args))
    write_json(args.output / "config.json", settings, indent=2)
    write_json(args.output / "preprocessor_config.json", preprocessor_to_huggingface(cfg), indent=2)
    return len(theirs)


def _check_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    skipped = ("relative_position_index", "pixel_mean", "pixel_std")  # computed from the config
    first = {key: value for key, value in first.items() if not key.endswith(skipped)}
    second = {key: value for key, value in second.items() if not key.endswith(skipped)}
    if first.keys() != second.keys():
        raise CheckpointError(f"conversion lost or added weights: {sorted(first.keys() ^ second.keys())[:5]}")
    for key, value in first.items():
        if not torch.equal(value, second[key]):
            raise CheckpointError(f"conversion changed {key}")


def _check_coverage(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Check that both sides have the same number of values; a wrong merge would lose some."""
    unused = (".relative_position_index", ".layernorm.weight", ".layernorm.bias")
    encoder = "pixel_level_module.encoder."
    before = sum(v.numel() for k, v in theirs.items() if not (encoder in k and k.endswith(unused)))
    after = sum(v.numel() for k, v in ours.items() if not k.endswith(unused[0]))
    if before != after:
        raise CheckpointError(f"conversion changed the number of values from {before} to {after}")


def _class_names(cfg: Any, dataset: str | None) -> list[str] | None:
    """Return the class names of the dataset, in the order of the model's classes, or None if it has none."""
    from detectron2.data import MetadataCatalog

    import mask2former.data  # noqa: F401  (registers the names)

    name = dataset or (cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else None)
    if name is None:
        return None
    metadata = MetadataCatalog.get(name)
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for key in ("stuff_classes", "thing_classes"):
        names = metadata.get(key)
        if names is not None and len(names) == count:
            return list(names)
    if dataset is not None:
        raise ValueError(
            f"dataset {dataset!r} has no list of {count} class names (NUM_CLASSES); choose another --dataset"
        )
    return None


def _dtype(args: argparse.Namespace) -> torch.dtype | None:
    return getattr(torch, args.dtype) if args.dtype else None


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        node = out
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return out


if __name__ == "__main__":
    sys.exit(main())
