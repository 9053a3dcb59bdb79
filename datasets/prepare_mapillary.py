#!/usr/bin/env python3
"""Check the files of Mapillary Vistas, v1.2 (65 classes) and v2.0 (124 classes), and write instance annotations.

Reads   <root>/mapillary_vistas/{training,validation}/images/*.jpg
        v1.2: <root>/mapillary_vistas/{training,validation}/{labels,panoptic}/, panoptic/panoptic_2018.json
        v2.0: <root>/mapillary_vistas/{training,validation}/v2.0/{labels,panoptic}/, panoptic/panoptic_2020.json,
              <root>/mapillary_vistas/config_v2.0.json
Writes  v1.2: <root>/mapillary_vistas/mapillary_vistas_instance_{train,val}.json
        v2.0: <root>/mapillary_vistas/mapillary_vistas_v2_instance_{train,val}.json

The archive of v2.0 contains the annotations of v1.2 too, in {training,validation}/v1.2; they are linked to the paths of
v1.2. Missing files are listed by name. A second run writes only missing or incomplete files.
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
from mask2former.data.preparation.segments import image_record, instance_annotation_file, instance_records
from mask2former.data.preparation.work import Outcome, Report, Stage, build_annotation_file
from mask2former.utils.file_io import read_json_object

SPLIT_DIRECTORIES = {"train": "training", "val": "validation"}
CONFIG = "config_v2.0.json"
SHOWN = 5


@dataclass(frozen=True)
class Version:
    """Paths of the files of a version; `directory` is below training and validation."""

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
    """Link labels, instances and panoptic of v1.2 to the paths that are registered, by relative links."""
    for name in ("labels", "instances", "panoptic"):
        if (directory / "v1.2" / name).is_dir() and not (directory / name).exists():
            (directory / name).symlink_to(Path("v1.2") / name, target_is_directory=True)


def check(base: Path, version: str, split: str, annotations: Sequence[dict[str, Any]]) -> Report:
    """Compare images, label maps and panoptic annotations by their names."""
    source = VERSIONS[version]
    images = base / SPLIT_DIRECTORIES[split] / "images"
    report = Report(f"{version} {split}", str(base / SPLIT_DIRECTORIES[split]))
    stems = {path.stem for path in source_files(images, "*.jpg", source.layout)}
    parts = {"label map": base / SPLIT_DIRECTORIES[split] / source.directory / "labels"}
    parts["panoptic annotation"] = base / SPLIT_DIRECTORIES[split] / source.directory / "panoptic"
    declared = {Path(annotation["file_name"]).stem for annotation in annotations}
    for part, directory in parts.items():
        names = {path.stem for path in source_files(directory, "*.png", source.layout)}
        report.failures += _differences(directory, part, stems, names)
        if part == "panoptic annotation":
            report.failures += _differences(directory / source.json_name, "entry", names, declared)
    report.counts[Stage.KEPT] = len(stems)
    return report


def _differences(where: Path, part: str, expected: set[str], present: set[str]) -> list[str]:
    missing, extra = sorted(expected - present), sorted(present - expected)
    messages = [(missing, f"images without {part}"), (extra, f"{part} without image")]
    return [f"{where}: {len(names)} {problem}: {', '.join(names[:SHOWN])}" for names, problem in messages if names]


def convert(directory: Path, json_file: Path, things: dict[int, bool], task: dict[str, Any]) -> Outcome:
    """Build the instance annotations of one entry of the panoptic JSON file; `things` maps categories to isthing."""
    try:
        objects = {
            segment["id"]: Object(segment["category_id"], bool(segment.get("iscrowd", 0)))
            for segment in task["segments_info"]
            if things[segment["category_id"]]
        }
    except KeyError as error:
        raise BadRecordError(
            json_file, f"{error.args[0]!r} is missing, or not declared in 'categories'", task["file_name"]
        ) from error
    ids = read_panoptic_png(str(directory / task["file_name"]))
    image_id = str(task["image_id"])
    entry = (
        image_record(image_id, f"{Path(task['file_name']).stem}.jpg", ids.shape),
        instance_records(image_id, ids, objects),
    )
    return Outcome(Stage.WRITTEN, entry)


def categories_of(base: Path, version: str, content: dict[str, Any], json_file: Path) -> list[dict[str, Any]]:
    """Return id, name and isthing of the categories of a panoptic JSON file, with the registered class names."""
    try:
        declared = {entry["id"]: (entry["name"], int(bool(entry["isthing"]))) for entry in content["categories"]}
    except (KeyError, TypeError) as error:
        raise BadRecordError(json_file, "categories need id, name and isthing") from error
    if version == "v2.0":
        names = {entry["key"]: entry["name"] for entry in read_classes(f"Mapillary {version}", str(base / CONFIG))}
        unknown = sorted(name for name, _ in declared.values() if name not in names)
        if unknown:
            raise BadRecordError(json_file, f"categories {unknown[:SHOWN]} are not in {base / CONFIG}")
        return [{"id": key, "name": names[name], "isthing": thing} for key, (name, thing) in declared.items()]
    known = class_table("mapillary_vistas")
    for entry in known:
        name, thing = declared.get(entry["id"], (None, entry["isthing"]))
        if thing != entry["isthing"]:
            raise BadRecordError(json_file, f"is not of v1.2: category {entry['id']}, {name}, differs")
    return [{key: entry[key] for key in ("id", "name", "isthing")} for entry in known]


def prepare_split(base: Path, version: str, split: str, args: argparse.Namespace) -> Iterator[Report]:
    """Check one split of a version and write its instance annotations."""
    source = VERSIONS[version]
    directory = base / SPLIT_DIRECTORIES[split] / source.directory / "panoptic"
    (json_file,) = source_files(directory, source.json_name, source.layout)
    content = read_json_object(str(json_file), lists=("annotations", "categories"))
    categories = categories_of(base, version, content, json_file)
    try:
        tasks = {str(annotation["image_id"]): annotation for annotation in content["annotations"]}
        yield check(base, version, split, content["annotations"])
    except (KeyError, TypeError) as error:
        raise BadRecordError(json_file, "annotations need image_id and file_name") from error
    yield build_annotation_file(
        base / f"{source.prefix}_{split}.json",
        tasks,
        partial(convert, directory, json_file, {entry["id"]: bool(entry["isthing"]) for entry in categories}),
        partial(instance_annotation_file, [{"id": e["id"], "name": e["name"]} for e in categories if e["isthing"]]),
        workers=args.workers,
        overwrite=args.overwrite,
    )


def prepare(args: argparse.Namespace) -> Iterator[Report]:
    base = find_directory([args.root / "mapillary_vistas"], VERSIONS["v1.2"].layout)
    for split in args.splits:
        link_old_version(base / SPLIT_DIRECTORIES[split])
    present = [v for v, where in VERSIONS.items() if (base / "training" / where.directory / "panoptic").is_dir()]
    for version in args.versions or present or ["v1.2"]:
        for split in args.splits:
            yield from prepare_split(base, version, split, args)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__, splits=list(SPLIT_DIRECTORIES))
    parser.add_argument("--versions", nargs="+", choices=list(VERSIONS), help="default: those that exist")
    return run(parser, prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
