"""`mask2former models`: list the published models, or show one."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from .. import zoo
from ..model_source import DEFAULT_MODEL
from .parser import refuse_given
from .text import plural, table

HELP = "list the published models"
DESCRIPTION = """List the models that commands take by name (--model), or show one.

'here' says whether the weights are on this machine; others are downloaded when they are used first. Models trained on
COCO, Cityscapes, ADE20K, Mapillary and YouTube-VIS are published for non-commercial use (CC BY-NC 4.0).

examples:
  mask2former models                                  all of them
  mask2former models --task panoptic --dataset coco   some of them
  mask2former models --filter swin --here             those on this machine whose name contains swin
  mask2former models coco-panoptic-swin-t             one, with its files, metrics and license
  mask2former models --json                           for programs
"""
_METRICS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this model (default: list all)")
    parser.add_argument("--task", help="panoptic, instance, semantic or 'video instance' (default: all)")
    parser.add_argument("--dataset", help="coco, cityscapes, ade20k, mapillary, ytvis2019, ... (default: all)")
    parser.add_argument("--filter", metavar="TEXT", default="", help="only names that contain this text")
    parser.add_argument("--here", action="store_true", help="only models whose weights are on this machine")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list or the model; return 0.

    Raises:
        ValueError: no such model, task or dataset; the message has the known ones.
    """
    if args.name is not None:
        refuse_given(args, ("task", "dataset", "filter", "here"), "with the name of a model; it is for the list")
        _show(zoo.lookup(args.name), args.json)
        return 0
    task = "video instance" if args.task == "video" else args.task
    entries = [zoo.lookup(name) for name in zoo.list_models(task, args.dataset) if args.filter.lower() in name]
    if args.here:
        entries = [entry for entry in entries if zoo.local_weights(entry) is not None]
    if args.json:
        print(json.dumps([_facts(entry) for entry in entries], indent=2))
        return 0
    rows = [
        [
            entry.name,
            entry.task,
            entry.dataset,
            entry.backbone,
            _metrics(entry),
            "yes" if zoo.local_weights(entry) is not None else "-",
        ]
        for entry in entries
    ]
    if rows:
        print(table(["name", "task", "dataset", "backbone", "metrics", "here"], rows) + "\n")
    others = [f"'{name}'" for name in zoo.list_bundled() if name != DEFAULT_MODEL]
    print(f"{plural(len(rows), 'model')}; '{DEFAULT_MODEL}' comes with the package and is the default.")
    if others:
        print(f"Comes with the package, too: {', '.join(others)}.")
    return 0


def _metrics(entry: zoo.ModelEntry) -> str:
    """Format the metrics of a model in percent, the first ones of many."""
    return ", ".join(f"{name} {value:g}" for name, value in list(entry.metrics.items())[:_METRICS])


def _facts(entry: zoo.ModelEntry) -> dict[str, Any]:
    file = zoo.local_weights(entry)
    return {**asdict(entry), "config_file": entry.config_file, "file": None if file is None else str(file)}


def _place(entry: zoo.ModelEntry) -> str:
    return "a window of a video" if entry.task.startswith("video") else "an image or tile"


def _show(entry: zoo.ModelEntry, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_facts(entry), indent=2))
        return
    file = zoo.local_weights(entry)
    facts = {
        "task": entry.task,
        "dataset": entry.dataset,
        "backbone": entry.backbone,
        "queries": f"{entry.queries}, the largest number of objects in {_place(entry)}",
        "schedule": entry.schedule,
        "metrics": ", ".join(f"{name} {value:g}" for name, value in entry.metrics.items()),
        "config": entry.config_file,
        "weights": "in the package" if entry.bundled else entry.weights,
        "here": str(file) if file is not None else "no, downloaded when it is used first",
        "license": entry.license,
        "note": entry.note,
    }
    print(entry.name)
    for key, value in facts.items():
        if value:
            print(f"  {key:9} {value}")
    command = "track clip.mp4" if entry.task.startswith("video") else "predict photo.jpg"
    print(f"\nmask2former {command} --model {entry.name}")
