#!/usr/bin/env python
r"""Put a trained model into the package: its files, its row of the model zoo, and the numbers of its model card.

    python tools/bundle_model.py output/shapes shapes --scores output/shapes-scores/inference/metrics.json \
        --card card.md --backbone EfficientNet-Lite0 --schedule "12,000 steps of 16" --license "CC0 1.0"
    python tools/bundle_model.py output/clips shapes-video --dataset shapes --scores output/scores/metrics.json ...
    python tools/bundle_model.py output/nuclei nuclei --scores output/scores/inference/metrics.json  # new weights

SOURCE is the output directory of a training, or a directory that pack_model.py wrote. Written are
mask2former/bundled/NAME (config.yaml, model.safetensors, classes.json, README.md), the row of NAME in
mask2former/zoo.json with digest and metrics, MODEL_ZOO.md, and the navigation of mkdocs.yml. --scores is what
`mask2former eval` writes. In the card, what stands between <!-- scores --> and <!-- end of scores --> is replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from safetensors import safe_open  # noqa: E402

from mask2former.cli.parser import path  # noqa: E402
from mask2former.config import load_config  # noqa: E402
from mask2former.conversion.packing import pack_model  # noqa: E402
from mask2former.utils.failures import run_program  # noqa: E402
from mask2former.utils.file_io import parse_json, write_bytes  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
import make_model_zoo  # noqa: E402

FILES = ("config.yaml", "model.safetensors", "classes.json")
LARGEST = 16 * 2**20  # bytes of weights that a package should carry
_SCORES = re.compile(r"(<!-- scores -->\n).*?(<!-- end of scores -->)", re.DOTALL)
# Of `mask2former eval`: task and metric, and its title in the card. The first three that a model has are in the zoo.
_METRICS = (
    (("panoptic_seg", "PQ"), "PQ"),
    (("panoptic_seg", "PQ_th"), "PQ of things"),
    (("panoptic_seg", "PQ_st"), "PQ of stuff"),
    (("segm", "AP"), "AP"),
    (("segm", "AP50"), "AP50"),
    (("sem_seg", "mIoU"), "mIoU"),
)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms: stored, but no parameters
_VIDEO = "video instance"
_OF_TASK = {"panoptic": ("PQ", "AP", "mIoU"), "instance": ("AP", "AP50"), "semantic": ("mIoU",), _VIDEO: ("AP", "AP50")}


def bundle(
    source: Path, name: str, root: Path, card: Path | None, scores: Path | None, given: Mapping[str, str]
) -> str:
    """Write the files of a model below `root`, a checkout; return the digest of its weights.

    Args:
        source: output directory of a training, or a packed model.
        name: name of the model and of its directory.
        root: checkout.
        card: file that becomes the model card; None: the card that is there.
        scores: metrics.json of an evaluation; None: the numbers that are there.
        given: fields of a new row of the zoo: backbone, schedule, license, dataset; they replace those of an old one.

    Raises:
        FileNotFoundError, ValueError: a file or a field is missing (nothing is written), or the weights are too large.
    """
    directory, table = root / "mask2former" / "bundled" / name, root / "mask2former" / "zoo.json"
    zoo = json.loads(table.read_text(encoding="utf-8"))
    old = next((row for row in zoo["models"] if row["name"] == name), None)
    missing = [field for field in ("backbone", "schedule", "license") if old is None and not given.get(field)]
    if missing:
        raise ValueError(f"{name} is not in {table.name} yet: give {', '.join(f'--{field}' for field in missing)}")
    if scores is None and old is None:
        raise ValueError(f"{name} is not in {table.name} yet: give --scores, metrics.json of `mask2former eval`")
    if old is not None and "://" in old["weights"]:
        raise ValueError(f"{name} is the name of a published model; choose another one")
    text = (card or directory / "README.md").read_text(encoding="utf-8")
    numbers = None if scores is None else read_scores(scores)
    if numbers is not None and card is not None and not _SCORES.search(text):
        raise ValueError(
            f"{card} has no place for numbers: <!-- scores --> and <!-- end of scores --> in lines of their own"
        )
    directory.mkdir(parents=True, exist_ok=True)
    _place(source, directory)
    weights = directory / "model.safetensors"
    if weights.stat().st_size > LARGEST:
        raise ValueError(f"{weights} has {weights.stat().st_size:,} bytes; a package carries at most {LARGEST:,}")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    row = _row(old, name, directory, given) | {"sha256": digest}
    if numbers is not None:
        known = _OF_TASK[row["task"]]
        row["metrics"] = {title: round(numbers[title], 1) for title in known if title in numbers}
        text = _SCORES.sub(lambda found: found[1] + card_table(numbers, weights) + found[2], text)
    zoo["models"] = [row if each["name"] == name else each for each in zoo["models"]] + ([row] if old is None else [])
    write_bytes(directory / "README.md", text.encode())
    write_bytes(table, zoo_text(zoo).encode())
    return digest


def _place(source: Path, directory: Path) -> None:
    """Pack a training into the directory, or copy what is packed already."""
    if not (source / FILES[1]).is_file():
        print(pack_model(source, directory))
    elif source.resolve() != directory.resolve():
        for file in FILES:
            shutil.copyfile(source / file, directory / file)


def _row(old: Mapping[str, Any] | None, name: str, directory: Path, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the row of a model in the zoo, without its digest and new metrics."""
    cfg = load_config(directory / "config.yaml")
    head, switches = cfg.MODEL.MASK_FORMER, cfg.MODEL.MASK_FORMER.TEST
    clips = cfg.MODEL.META_ARCHITECTURE == "VideoMaskFormer"
    task = _VIDEO if clips else next(task for task in _OF_TASK if switches[f"{task.upper()}_ON"])
    row: dict[str, Any] = dict(old or {"name": name, "dataset": name})
    row |= {"task": task, "backbone": row.get("backbone"), "queries": int(head.NUM_OBJECT_QUERIES)}
    row |= {"schedule": row.get("schedule"), "config": f"bundled/{name}/config.yaml"}
    row |= {"weights": f"bundled/{name}/model.safetensors", "md5_prefix": None, "sha256": None}
    row |= {"metrics": row.get("metrics", {}), "model_id": "", "license": row.get("license")}
    return row | {field: value for field, value in given.items() if value}


def read_scores(file: Path) -> dict[str, float]:
    """Return the metrics, in percent, of the one dataset in a metrics.json of `mask2former eval`.

    Raises:
        ValueError: no such file, several datasets, or none of the metrics.
    """
    content = parse_json(str(file))
    if not isinstance(content, dict) or len(content) != 1:
        raise ValueError(f"{file}: needs the results of one dataset, as `mask2former eval` writes them")
    (tasks,) = content.values()
    numbers = {title: tasks.get(task, {}).get(metric) for (task, metric), title in _METRICS}
    known = {title: float(value) for title, value in numbers.items() if value is not None and math.isfinite(value)}
    if not known:
        raise ValueError(f"{file}: has none of {', '.join(title for _, title in _METRICS)}")
    return known


def card_table(numbers: Mapping[str, float], weights: Path) -> str:
    """Return the part of the card that is made of numbers: scores, and the size of the model."""
    lines = [list(numbers), ["---"] * len(numbers), [f"{value:.1f}" for value in numbers.values()]]
    rows = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    with safe_open(weights, "pt") as file:
        names = [key for key in file.keys() if not key.endswith(_STATISTICS)]  # noqa: SIM118 - no mapping
        count = sum(math.prod(file.get_slice(key).get_shape()) for key in names)
    size = weights.stat().st_size / 1e6
    return f"{rows}\n{count / 1e6:.1f} million parameters, {size:.0f} MB in half precision.\n"


def zoo_text(zoo: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the text of zoo.json: one row a line."""
    parts = []
    for key, rows in zoo.items():
        lines = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in rows)
        parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def with_page(navigation: str, name: str) -> str:
    """Return the text of mkdocs.yml with the card of a model, behind those of the other bundled models."""
    lines = navigation.splitlines(keepends=True)
    target = f"mask2former/bundled/{name}/README.md"
    if any(line.rstrip().endswith(target) for line in lines):
        return navigation
    last = max(number for number, line in enumerate(lines) if "mask2former/bundled/" in line)
    indent = lines[last][: len(lines[last]) - len(lines[last].lstrip())]
    lines.insert(last + 1, f"{indent}- {name.capitalize()}, a bundled model: {target}\n")
    return "".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=path, help="output directory of a training, or a packed model")
    parser.add_argument("name", help="name of the model")
    parser.add_argument("--scores", type=path, help="metrics.json of `mask2former eval` (default: numbers stay)")
    parser.add_argument("--card", type=path, help="file that becomes the model card (default: the card stays)")
    for field in ("backbone", "schedule", "license"):
        parser.add_argument(f"--{field}", help=f"{field} in the model zoo; needed for a new model")
    parser.add_argument("--dataset", help="dataset in the model zoo (default: NAME)")
    return run_program(parser, _bundle, argv)


def _bundle(args: argparse.Namespace) -> int:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", args.name):
        raise ValueError(f"{args.name!r} is no name: use lower-case letters, digits and -")
    given = {field: getattr(args, field) for field in ("dataset", "backbone", "schedule", "license")}
    digest = bundle(args.source, args.name, ROOT, args.card, args.scores, given)
    print(f"mask2former/bundled/{args.name}: sha256 {digest}")
    navigation = ROOT / "mkdocs.yml"
    write_bytes(navigation, with_page(navigation.read_text(encoding="utf-8"), args.name).encode())
    return make_model_zoo.main([])


if __name__ == "__main__":
    sys.exit(main())
