#!/usr/bin/env python3
"""Check the files of Mapillary Vistas, v1.2 (65 classes) and v2.0 (124 classes), and make instance annotations.

Reads   <root>/mapillary_vistas/{training,validation}/images/*.jpg
        v1.2: <root>/mapillary_vistas/{training,validation}/{labels,panoptic}/, panoptic/panoptic_2018.json
        v2.0: <root>/mapillary_vistas/{training,validation}/v2.0/{labels,panoptic}/, panoptic/panoptic_2020.json,
              <root>/mapillary_vistas/config_v2.0.json
Writes  v1.2: <root>/mapillary_vistas/mapillary_vistas_instance_{train,val}.json
        v2.0: <root>/mapillary_vistas/mapillary_vistas_v2_instance_{train,val}.json

The archive of v2.0 holds the annotations of v1.2 too, in {training,validation}/v1.2; they are linked to where v1.2 has
them. Missing files are told by name. A second run makes only the files that are missing or incomplete.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from mask2former.data import BadRecordError
from mask2former.data.datasets.categories import class_table
from mask2former.data.datasets.coco_panoptic import Object
from mask2former.data.datasets.mapillary import read_classes
from mask2former.data.image_io import read_panoptic_png
from mask2former.data.preparation.cli import argument_parser, find_directory, run, source_files
from mask2former.data.preparation.segments import image_record, instance_document, instance_records
from mask2former.data.preparation.work import Outcome, Report, Stage, build_document
from mask2former.utils.file_io import read_json_object

FOLDERS = {"train": "training", "val": "validation"}
CONFIG = "config_v2.0.json"
SHOWN = 5


@dataclass(frozen=True)
class Version:
    """Where a version has its files; `directory` is below training and validation."""

    directory: str
    json_name: str
    prefix: str
    layout: str


VERSIONS = {
    "v1.2": Version(
        ".",
        "panoptic_2018.json",
        "mapillary_vistas_instance",
        """\
<root>/mapillary_vistas/{training,validation}/
  images/      *.jpg
  labels/      *.png             (in the archive of v2.0: v1.2/labels)
  panoptic/    *.png, panoptic_2018.json""",
    ),
    "v2.0": Version(
        "v2.0",
        "panoptic_2020.json",
        "mapillary_vistas_v2_instance",
        """\
<root>/mapillary_vistas/
  config_v2.0.json
  {training,validation}/
    images/           *.jpg
    v2.0/labels/      *.png
    v2.0/panoptic/    *.png, panoptic_2020.json""",
    ),
}


def link_old_version(directory: Path) -> None:
    """Make labels, instances and panoptic of v1.2 reachable beside images, as registered; relative links."""
    for name in ("labels", "instances", "panoptic"):
        if (directory / "v1.2" / name).is_dir() and not (directory / name).exists():
            (directory / name).symlink_to(Path("v1.2") / name, target_is_directory=True)


def check(base: Path, version: str, split: str, annotations: Sequence[dict[str, Any]]) -> Report:
    """Compare images, label maps and panoptic annotations by their names."""
    source = VERSIONS[version]
    images = base / FOLDERS[split] / "images"
    report = Report(f"{version} {split}", str(base / FOLDERS[split]))
    stems = {path.stem for path in source_files(images, "*.jpg", source.layout)}
    parts = {"label map": base / FOLDERS[split] / source.directory / "labels"}
    parts["panoptic annotation"] = base / FOLDERS[split] / source.directory / "panoptic"
    declared = {Path(annotation["file_name"]).stem for annotation in annotations}
    for kind, directory in parts.items():
        found = {path.stem for path in source_files(directory, "*.png", source.layout)}
        report.failures += _differences(directory, kind, stems, found)
        if kind == "panoptic annotation":
            report.failures += _differences(directory / source.json_name, "entry", found, declared)
    report.counts[Stage.KEPT] = len(stems)
    return report


def _differences(where: Path, kind: str, wanted: set[str], found: set[str]) -> list[str]:
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    messages = [(missing, f"images without {kind}"), (extra, f"{kind} without image")]
    return [f"{where}: {len(names)} {what}: {', '.join(names[:SHOWN])}" for names, what in messages if names]


def convert(directory: Path, json_file: Path, things: dict[int, bool], task: dict[str, Any]) -> Outcome:
    """Instances of one entry of the panoptic JSON; `things` says for each category whether it is one."""
    try:
        objects = {
            segment["id"]: Object(segment["category_id"], bool(segment.get("iscrowd", 0)))
            for segment in task["segments_info"]
            if things[segment["category_id"]]
        }
    except KeyError as error:
        raise BadRecordError(json_file, f"{error.args[0]!r} is missing or undeclared", task["file_name"]) from error
    ids = read_panoptic_png(str(directory / task["file_name"]))
    image_id = str(task["image_id"])
    entry = (
        image_record(image_id, f"{Path(task['file_name']).stem}.jpg", ids.shape),
        instance_records(image_id, ids, objects),
    )
    return Outcome(Stage.WRITTEN, entry)


def categories_of(base: Path, version: str, content: dict[str, Any], json_file: Path) -> list[dict[str, Any]]:
    """id, name and isthing of the categories of a panoptic JSON, with the names under which they are registered."""
    try:
        found = {entry["id"]: (entry["name"], int(bool(entry["isthing"]))) for entry in content["categories"]}
    except (KeyError, TypeError) as error:
        raise BadRecordError(json_file, "categories need id, name and isthing") from error
    if version == "v2.0":
        names = {entry["key"]: entry["name"] for entry in read_classes(f"Mapillary {version}", str(base / CONFIG))}
        unknown = sorted(name for name, _ in found.values() if name not in names)
        if unknown:
            raise BadRecordError(json_file, f"categories {unknown[:SHOWN]} are not in {base / CONFIG}")
        return [{"id": key, "name": names[name], "isthing": thing} for key, (name, thing) in found.items()]
    known = class_table("mapillary_vistas")
    for entry in known:
        name, thing = found.get(entry["id"], (None, entry["isthing"]))
        if thing != entry["isthing"]:
            raise BadRecordError(json_file, f"is not v1.2: category {entry['id']}, {name}, differs from it")
    return [{key: entry[key] for key in ("id", "name", "isthing")} for entry in known]


def prepare_split(base: Path, version: str, split: str, args: argparse.Namespace) -> Iterator[Report]:
    source = VERSIONS[version]
    directory = base / FOLDERS[split] / source.directory / "panoptic"
    (json_file,) = source_files(directory, source.json_name, source.layout)
    content = read_json_object(str(json_file), lists=("annotations", "categories"))
    categories = categories_of(base, version, content, json_file)
    try:
        tasks = {str(annotation["image_id"]): annotation for annotation in content["annotations"]}
        yield check(base, version, split, content["annotations"])
    except (KeyError, TypeError) as error:
        raise BadRecordError(json_file, "annotations need image_id and file_name") from error
    yield build_document(
        base / f"{source.prefix}_{split}.json",
        tasks,
        partial(convert, directory, json_file, {entry["id"]: bool(entry["isthing"]) for entry in categories}),
        partial(instance_document, [{"id": e["id"], "name": e["name"]} for e in categories if e["isthing"]]),
        workers=args.workers,
        overwrite=args.overwrite,
    )


def prepare(args: argparse.Namespace) -> Iterator[Report]:
    base = find_directory([args.root / "mapillary_vistas"], VERSIONS["v1.2"].layout)
    for split in args.splits:
        link_old_version(base / FOLDERS[split])
    present = [v for v, where in VERSIONS.items() if (base / "training" / where.directory / "panoptic").is_dir()]
    for version in args.versions or present or ["v1.2"]:
        for split in args.splits:
            yield from prepare_split(base, version, split, args)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__, splits=list(FOLDERS))
    parser.add_argument("--versions", nargs="+", choices=list(VERSIONS), help="default: those that are there")
    return run(parser, prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
