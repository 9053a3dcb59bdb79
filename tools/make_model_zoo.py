#!/usr/bin/env python
"""Write MODEL_ZOO.md from the table mask2former/zoo.json.

    python tools/make_model_zoo.py            # after a change of the table or of configs/
    python tools/make_model_zoo.py --check    # exit with status 1 if the page is out of date

Needs only the standard library. The page is reproducible byte for byte.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mask2former.utils.failures import run_program  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from generated_page import write_page  # noqa: E402

TABLE = ROOT / "mask2former" / "zoo.json"
PAGE = ROOT / "MODEL_ZOO.md"

TITLES = {
    "coco": "COCO",
    "cityscapes": "Cityscapes",
    "ade20k": "ADE20K",
    "mapillary": "Mapillary Vistas",
    "ytvis2019": "YouTube-VIS 2019",
    "ytvis2021": "YouTube-VIS 2021",
}

HEAD = """\
# Model zoo

<!-- Made by tools/make_model_zoo.py from mask2former/zoo.json. Change those, not this page. -->

Every name below works wherever a model is chosen by name:

```bash
python demo/demo.py --model coco-panoptic-swin-t --input photo.jpg
```

```python
from mask2former import Segmenter
from mask2former.zoo import list_models, lookup, resolve_weights

segment = Segmenter.load("coco-panoptic-swin-t")
print(list_models())  # all names
print(list_models(task="semantic", dataset="ade20k"))  # some of them
print(lookup("coco-panoptic-swin-t").weights)  # the URL
print(resolve_weights("coco-panoptic-swin-t"))  # the file, downloaded if it is not there yet
```

In a config, `MODEL.WEIGHTS` takes the URL or just the file name, for example `model_final_9fd0ae.pkl`. A file lying in
the working directory goes first, then the directory that the environment variable `MASK2FORMER_WEIGHTS` names, then
the cache of downloads (`$MASK2FORMER_CACHE`, default `~/.cache/mask2former`). Without a connection the error says the
URL and where to put the file. A file in the working directory is taken as it is; the others are checked at every use
against the first six digits of their MD5 sum, which are in the file name, and those in the cache also against the
SHA-256 of their first download.

Numbers are in percent, on the validation sets, as the authors of Mask2Former published them; "ms+flip" is with
test-time augmentation. They are the reference's numbers, not measurements of this code. The tests compare this code
with the reference on recorded inputs and outputs of the network.

The published weights are under **CC BY-NC 4.0** (no commercial use); the code of this repository is under MIT. The
models of this repository have their own, see below.

Video models (YouTube-VIS) follow objects through clips: `Segmenter.load("ytvis2019-r50").track("clip.mp4")`.
"""

PLANNED = """\
Models whose configuration is marked *planned* have names, URLs and checksums already, but their configuration is not
in this repository yet, so they cannot be loaded by name.
"""

BACKBONES = """\
## Backbones

Training from scratch starts from ImageNet weights. The configurations name them in `MODEL.WEIGHTS`:

{used}
A file of that name in the working directory goes first. Else the file of the last column is looked for in the working
directory, in the directory that `MASK2FORMER_WEIGHTS` names and in the cache of downloads, and is downloaded if it is
nowhere. A `.pth` file of torchvision or of Swin Transformer works as it is: its names are translated. Other detectron2
projects want the converted file, which `tools/convert-torchvision-to-d2.py` and
`tools/convert-pretrained-swin-model-to-d2.py` make ([tools/README.md](tools/README.md)).

These are published, too; no configuration uses them:

{unused}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="do not write, only compare")
    return run_program(parser, _write_page, argv)


def _write_page(args: argparse.Namespace) -> int:
    return write_page(PAGE, page(json.loads(TABLE.read_text(encoding="utf-8"))), "make_model_zoo.py", args.check)


def page(table: dict[str, Any]) -> str:
    """Build the complete page from the table."""
    rows = table["models"]
    bundled = [row for row in rows if "://" not in row["weights"]]
    published = [row for row in rows if "://" in row["weights"]]
    notes: list[str] = []
    parts = [HEAD, *([] if all(map(_has_config, published)) else [PLANNED]), _bundled(bundled)]
    for dataset in dict.fromkeys(row["dataset"] for row in published):
        parts.append(f"## {TITLES.get(dataset, dataset)}\n")
        of_dataset = [row for row in published if row["dataset"] == dataset]
        for task in dict.fromkeys(row["task"] for row in of_dataset):
            parts.append(f"### {task.capitalize()} segmentation\n")
            parts.append(_models([row for row in of_dataset if row["task"] == task], notes))
    used, unused = (
        _backbones([row for row in table["backbones"] if row["used"] == is_used]) for is_used in (True, False)
    )
    parts.append(BACKBONES.format(used=used, unused=unused))
    if notes:
        parts.append("## Notes\n")
        parts.append("".join(f"{i}. {note}\n" for i, note in enumerate(notes, start=1)))
    return "\n".join(parts)


def _bundled(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["## In this repository\n"]
    for row in rows:
        numbers = ", ".join(f"{name} {_number(value)}" for name, value in (row["metrics"] or {}).items())
        directory = f"mask2former/{Path(row['config']).parent}"
        lines.append(
            f"**`{row['name']}`**: {row['task']} segmentation of {row['dataset']}, {row['backbone']}, "
            f"{row['queries']} queries. Validation: {numbers or 'not measured yet'}. "
            f"License of the weights: {row['license']}.\n"
            f"[Configuration](mask2former/{row['config']}), [weights](mask2former/{row['weights']}), "
            f"[model card]({directory}/README.md).\n"
        )
    return "\n".join(lines)


def _models(rows: Sequence[dict[str, Any]], notes: list[str]) -> str:
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    head = ["name", "backbone", "queries", "schedule", *metrics, "configuration", "weights", "run"]
    lines = []
    for row in rows:
        values = [_number(row["metrics"].get(name)) for name in metrics]
        cells = [f"`{row['name']}`{_mark(row, notes)}", row["backbone"], str(row["queries"]), row["schedule"]]
        lines.append([*cells, *values, _config(row), _weights(row), row["model_id"]])
    return _table(head, lines, right={"queries", *metrics})


def _backbones(rows: Sequence[dict[str, Any]]) -> str:
    head = ["backbone", "in the configurations", "trained by, on", "license", "published file"]
    return _table(
        head,
        [[row["backbone"], f"`{row['config_name']}`", row["source"], row["license"], _weights(row)] for row in rows],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> str:
    rule = ["---:" if name in right else "---" for name in head]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _mark(row: dict[str, Any], notes: list[str]) -> str:
    if not row.get("note"):
        return ""
    notes.append(row["note"])
    return f" <sup>{len(notes)}</sup>"


def _has_config(row: dict[str, Any]) -> bool:
    return (ROOT / "configs" / row["config"]).is_file()


def _config(row: dict[str, Any]) -> str:
    if _has_config(row):
        return f"[{Path(row['config']).stem}](configs/{row['config']})"
    return f"{row['config']} (*planned*)"


def _weights(row: dict[str, Any]) -> str:
    sums = {"sha256": (row["sha256"] or "")[:12], "md5": row["md5_prefix"]}
    known = next((f", {kind} {digits}" for kind, digits in sums.items() if digits), "")
    return f"[{row['weights'].rsplit('/', 1)[-1]}]({row['weights']}){known}"


if __name__ == "__main__":
    sys.exit(main())
