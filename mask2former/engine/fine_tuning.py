"""Fine-tuning of a model on a directory of training data: facts, files and first weights for the recipe."""

from __future__ import annotations

import os
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from ..checkpoint import load_weights
from ..checkpoint.directory import finished_iterations
from ..checkpoint.writing import save_safetensors
from ..config import load_config, merge_overrides
from ..data.formats import CocoData, load_data, split, write_coco
from ..data.inspect_training import records_of
from ..data.learnable import check_objects
from ..model_source import dataset_classes, locate_model, stored_classes
from ..utils.file_io import write_bytes
from ..utils.parallel import usable_cores
from .class_head import adapted_weights, is_unchanged, matching_classes
from .data_comparison import compare_data
from .output_directory import RECIPE, OutputDirectory
from .recipe import DataFacts, DeviceFacts, Recipe, Wishes, make_recipe
from .resume import changed_settings, check_length, settings_of
from .speed import measure_speed


@dataclass(frozen=True)
class Plan:
    """A training that is ready to start.

    Attributes:
        config: the file that holds it; None if nothing was written.
        notes: what was chosen, and why; of a training that is resumed nothing.
        warnings: what asks for attention.
        overrides: KEY VALUE KEY VALUE ..., which change the file's settings.
        recipe: new content of the file, for when the training has begun; None: it is as it should be.
    """

    config: Path | None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    recipe: bytes | None = None


@dataclass(frozen=True)
class BaseModel:
    """A model to start from: its config, weights, and class names, which may be unknown."""

    name: str
    cfg: CfgNode
    weights: str
    classes: tuple[str, ...] | None


def plan_training(
    data: str | os.PathLike[str],
    output: OutputDirectory,
    *,
    model: str = "nuclei",
    wishes: Wishes | None = None,
    num_gpus: int = 1,
    val: float | None = None,
    group: str | None = None,
    data_format: str = "auto",
    overrides: Sequence[str] = (),
    write: bool = True,
) -> Plan:
    """Read the data, choose the settings, and write what the training needs into its output directory.

    Args:
        data: directory or annotation file, in any format of `mask2former.data.formats`.
        output: gets data/train.json, data/val.json, data/config.yaml and, if the classes differ from those of the
            model, data/initial.safetensors.
        model: model of the zoo, or a training output directory.
        wishes: settings that the user gave.
        num_gpus: GPUs to use; 0 for the CPU.
        val: part of the images for validation, if the data has no split for it; None: 0.1.
        group: see `mask2former.data.formats.split`.
        data_format: "auto" or the name of a format.
        overrides: KEY VALUE KEY VALUE ...
        write: False only plans.

    Raises:
        FileNotFoundError, ValueError: data, model or settings cannot be used.
    """
    wishes = wishes or Wishes()
    parts, notes = _parts(load_data(data, data_format), val, wishes.seed, group)
    finding = check_objects(records_of(parts["train"]))
    if finding.error:
        raise ValueError(f"{data}: nothing to train on: {finding.error}")
    base = load_base_model(model)
    facts = data_facts(parts["train"], parts["val"])
    matches = matching_classes(facts.classes, base.classes)
    known = [None if match is None or base.classes is None else base.classes[match] for match in matches]
    device = device_facts(num_gpus)
    if wishes.minutes is not None:
        first = make_recipe(base.cfg, known, facts, device, replace(wishes, minutes=None), overrides)
        device = replace(device, speed=measure_speed(first.cfg, min(facts.objects // facts.images, 50)))
    recipe = make_recipe(base.cfg, known, facts, device, wishes, overrides)
    start = f"Model: {base.name}, {base.weights}."
    config = _write(recipe, base, matches, parts, output, overrides) if write else None
    warnings = (*recipe.warnings, *([f"training images: {finding.warning}."] if finding.warning else []))
    return Plan(config, (*notes, start, *recipe.notes), warnings)


def plan_resume(
    output: OutputDirectory,
    wishes: Wishes | None = None,
    overrides: Sequence[str] = (),
    *,
    data: str | os.PathLike[str] | None = None,
    write: bool = True,
) -> Plan:
    """Return the plan of a training that was started before; its length may be changed. Nothing is written.

    Args:
        output: directory of the training.
        wishes: only its length can be given.
        overrides: KEY VALUE KEY VALUE ...
        data: what the user takes for the data of the training; None: not given.
        write: False for a plan that is shown only, with a sentence on its length.

    Raises:
        ValueError: there is nothing to resume, a setting that cannot change, or `data` is of another training.
        FileNotFoundError: no such `data`.
    """
    output.check_resumable()
    given = replace(wishes or Wishes(), iterations=None)
    if given != Wishes():
        raise ValueError(
            "--resume continues with the settings of the first start: of these only --iterations can change. "
            "Set others as KEY VALUE at the end of the command, or start a new training in another --output."
        )
    cfg = load_config(output.recipe)
    before = settings_of(cfg)
    changes = [*overrides]
    if wishes is not None and wishes.iterations is not None:
        changes = ["SOLVER.MAX_ITER", str(wishes.iterations), *overrides]
    merge_overrides(cfg, changes)
    changed_settings(before, cfg, str(output.recipe))
    check_length(cfg.SOLVER.MAX_ITER, finished_iterations(output.path), str(output.path))
    notes = () if write else (f"Resume: {output.path}, up to iteration {cfg.SOLVER.MAX_ITER}.",)
    warning = "" if data is None else compare_data(data, output.path / "data")
    return Plan(output.recipe, notes, (warning,) if warning else (), tuple(changes), cfg.dump().encode())


def _parts(
    loaded: dict[str, CocoData], val: float | None, seed: int, group: str | None
) -> tuple[dict[str, CocoData], list[str]]:
    """Return "train" and "val", and sentences on where they come from."""
    source = loaded.get("train") or loaded.get("all")
    if source is None:
        raise ValueError(f"the data has no images for training, only {', '.join(loaded)}: name a directory train")
    counts = f"{len(source.content['images'])} images in the format {source.format}"
    notes = [*source.notes]
    if "val" in loaded:
        given = "--val" if val is not None else "--group" if group is not None else None
        if given:
            raise ValueError(f"{given} has no effect: the data has a validation split of its own; drop {given}")
        parts = {"train": source, "val": loaded["val"]}
        counts += f", and {len(loaded['val'].content['images'])} for validation"
    else:
        parts = split(source, {"val": 0.1 if val is None else val}, seed, group)
        counts += f", of which {len(parts['val'].content['images'])} are put aside for validation (seed {seed})"
    return parts, [f"Data: {source.image_root}, {counts}.", *notes]


def load_base_model(name: str) -> BaseModel:
    """Find a model and load its config.

    Raises:
        FileNotFoundError, ValueError: no such model, or it has no weights.
    """
    config, weights = locate_model(name, None, None)
    cfg = load_config(config)
    if weights is None:
        raise ValueError(f"model {name!r} has no weights to start from")
    table = stored_classes(Path(config), Path(str(weights))) or dataset_classes(cfg)
    fits = table is not None and len(table) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return BaseModel(name, cfg, os.path.abspath(weights), table.names if table is not None and fits else None)


def data_facts(train: CocoData, val: CocoData) -> DataFacts:
    """Measure training data; see `DataFacts`."""
    images = train.content["images"]
    objects = [entry for entry in train.content["annotations"] if not entry.get("iscrowd")]
    every = [*train.content["annotations"], *val.content["annotations"]]
    # Image ids may be the same in both.
    counts = [Counter(entry["image_id"] for entry in part.content["annotations"]) for part in (train, val)]
    edges = [sorted((image["height"], image["width"])) for image in images]
    return DataFacts(
        classes=tuple(train.names),
        images=len(images),
        val_images=len(val.content["images"]),
        objects=len(objects),
        most_objects=max((max(count.values()) for count in counts if count), default=0) if every else 0,
        image_size=(_median([short for short, _ in edges]), _median([long for _, long in edges])),
        object_size=statistics.median([max(1.0, float(entry["area"])) ** 0.5 for entry in objects] or [1.0]),
    )


def _median(values: Sequence[int]) -> int:
    return round(statistics.median(values)) if values else 1


def device_facts(num_gpus: int) -> DeviceFacts:
    """Return facts on this machine: the GPUs, or without any (or with `num_gpus` 0) the CPU."""
    cores = usable_cores()
    if num_gpus > 0 and torch.cuda.is_available():
        ranks = min(num_gpus, torch.cuda.device_count())
        memory = min(torch.cuda.mem_get_info(i)[0] for i in range(ranks))
        return DeviceFacts(device_type="cuda", memory=memory, ranks=ranks, cores=cores)
    return DeviceFacts(device_type="cpu", memory=_free_memory(), cores=cores)


def _free_memory() -> int:
    """Return the bytes of memory that this process can use; 4 GiB where the system does not tell."""
    free = 4 << 30
    try:
        match = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        free = int(match[1]) * 1024 if match else free
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        free = min(free, int(limit)) if limit.isdigit() else free
    except OSError:
        pass
    return free


def _write(
    recipe: Recipe,
    base: BaseModel,
    matches: Sequence[int | None],
    parts: dict[str, CocoData],
    output: OutputDirectory,
    overrides: Sequence[str],
) -> Path:
    """Write data, first weights and config, the config last: with it the directory is that of a training."""
    output.check_new()
    cfg, directory = recipe.cfg, output.path / "data"
    entries: list[list[Any]] = []
    for name in ("train", "val"):
        file = write_coco(parts[name], directory / f"{name}.json")
        # A hyphen, which no built-in dataset has.
        entries.append([f"{output.path.name}-{name}", str(file), str(Path(parts[name].image_root).absolute())])
    cfg.DATASETS.COCO_JSON = entries
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (entries[0][0],), (entries[1][0],)
    cfg.OUTPUT_DIR = str(output.path)
    cfg.MODEL.WEIGHTS = base.weights
    # The backbone's ImageNet weights are part of those of the model.
    cfg.MODEL.TIMM.WEIGHTS = ""
    if not is_unchanged(matches, base.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES):
        weights = adapted_weights(load_weights(base.weights), matches, cfg.SEED)
        cfg.MODEL.WEIGHTS = str(save_safetensors(weights, directory / "initial.safetensors"))
    merge_overrides(cfg, overrides)
    return write_bytes(output.path / RECIPE, cfg.dump().encode())
