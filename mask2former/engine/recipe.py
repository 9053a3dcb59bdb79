"""The recipe of a fine-tuning: from facts on data, model and device to a config, with a sentence for each choice.

Nothing is read or measured here, so that a recipe depends on its arguments alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from detectron2.config import CfgNode

from ..config import load_config, merge_overrides
from ..errors import ConfigError
from .optimizer import scaled_learning_rate

_CELL = 4  # pixels: stride of the mask features
_SMALLEST_OBJECT = 3 * _CELL  # pixels at the size of inference; a mask of fewer cells has no shape
_SCALES = (0.8, 0.87, 0.93, 1.0, 1.08, 1.16, 1.25)  # of the shortest edge in training, relative to inference
_SAME_SCALE = 1.5  # times by which tiles may be larger or smaller than what the training shows
_SMALLEST_SHARE = 0.05  # of the area of a typical object; smaller ones are no objects
_FORWARD_SHARE = 0.45  # time of an inference relative to an iteration on the same pixels
_EVALUATION_SHARE = 0.25  # of the training time
_FEW_IMAGES = 50
_CPU_VIEWS = 200  # crops of a training on two CPU cores: minutes
_CPU_POINTS = 3136  # of a mask in the loss; a quarter of the usual ones takes half of the time, and learns as well


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Facts on a dataset.

    Attributes:
        classes: names of the classes.
        images, val_images: number of images for training and validation.
        objects: number of objects in the images for training.
        most_objects: largest number of objects in an image of either.
        image_size: shortest and longest edge in pixels, medians over the images.
        object_size: square root of an object's area in pixels, median over the objects.
    """

    classes: tuple[str, ...]
    images: int
    val_images: int
    objects: int
    most_objects: int
    image_size: tuple[int, int]
    object_size: float


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """Facts on the machine.

    Attributes:
        device_type: "cuda", "cpu", ...
        memory: bytes that a rank can use.
        ranks: number of processes that share an iteration: GPUs, or 1.
        cores: CPU cores of the machine.
        speed: million pixels of crops that a rank learns from in a second; None: not measured.
    """

    device_type: str
    memory: int
    ranks: int = 1
    cores: int = 1
    speed: float | None = None


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """Settings that the user gave; None leaves the choice to the recipe.

    Attributes:
        iterations, epochs, minutes: length of the training; at most one of them. Minutes need `DeviceFacts.speed`.
        batch: images in one iteration, over all ranks.
        learning_rate: SOLVER.BASE_LR.
        image_size: shortest edge, in pixels, at which the network sees images in inference.
        patience: evaluations without improvement after which the training ends, 0 for never.
        seed: of the order of the data, augmentation and initialization.
    """

    iterations: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    batch: int | None = None
    learning_rate: float | None = None
    image_size: int | None = None
    patience: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """A config and the sentences that explain it; `warnings` are those that ask for attention."""

    cfg: CfgNode
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def make_recipe(
    base: CfgNode,
    known_classes: Sequence[str | None],
    data: DataFacts,
    device: DeviceFacts,
    wishes: Wishes,
    overrides: Sequence[str] = (),
) -> Recipe:
    """Return the config to fine-tune a model on a dataset. Datasets, MODEL.WEIGHTS and OUTPUT_DIR are left to set.

    Args:
        base: config of the model; not changed.
        known_classes: for each class of the data the name of the model's class that it starts from, None for a class
            that the model does not know.
        data, device, wishes: see there.
        overrides: KEY VALUE KEY VALUE ..., which take precedence over everything that is chosen here.

    Raises:
        ConfigError: the model cannot be trained on instances, a wish is out of range, or an override is wrong.
    """
    wishes = _with_overrides(wishes, overrides)
    _check(base, data, wishes)
    recipe = Recipe(base.clone())
    recipe.cfg.defrost()
    _set_model(recipe, known_classes, data)
    scale = _set_sizes(recipe, data, device, wishes)
    _set_objects(recipe, data, None in known_classes)
    _set_batch(recipe, data, device, wishes)
    _set_length(recipe, data, device, wishes, None in known_classes, scale)
    _set_learning_rate(recipe, data, wishes, None in known_classes)
    _set_evaluation(recipe, data, wishes, scale)
    _set_device(recipe, data, device, wishes)
    if overrides:
        _override(recipe, overrides)
    return recipe


def _check(base: CfgNode, data: DataFacts, wishes: Wishes) -> None:
    if base.MODEL.META_ARCHITECTURE != "MaskFormer":
        raise ConfigError(
            f"the model is a {base.MODEL.META_ARCHITECTURE}, which does not learn instances from images. Start from an "
            "instance or panoptic model: `--model nuclei`, `--model coco-instance-r50`."
        )
    if data.images < 1 or data.objects < 1:
        raise ConfigError(f"there is nothing to learn: {data.images} images for training with {data.objects} objects")
    for option, value, least in (
        ("--iterations", wishes.iterations, 1),
        ("--batch", wishes.batch, 1),
        ("--image-size", wishes.image_size, 32),
        ("--patience", wishes.patience, 0),
        ("--seed", wishes.seed, 0),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{option} is {value}, but must be at least {least}")
    numbers = (("--epochs", wishes.epochs), ("--minutes", wishes.minutes), ("--lr", wishes.learning_rate))
    for option, number in numbers:
        if number is not None and not (math.isfinite(number) and number > 0):
            raise ConfigError(f"{option} is {number}, but must be above 0")
    if sum(value is not None for value in (wishes.iterations, wishes.epochs, wishes.minutes)) > 1:
        raise ConfigError("--iterations, --epochs and --minutes all set the length of the training: give one of them")


def _set_model(recipe: Recipe, known_classes: Sequence[str | None], data: DataFacts) -> None:
    cfg, node = recipe.cfg, recipe.cfg.MODEL.MASK_FORMER
    count, unknown = len(data.classes), sum(name is None for name in known_classes)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = count
    names = ", ".join(data.classes[:8]) + (", ..." if count > 8 else "")
    if not unknown:
        pairs = zip(data.classes, known_classes, strict=True)
        renamed = [f"{name} starts from {known}" for name, known in pairs if name.lower() != str(known).lower()]
        start = f" ({'; '.join(renamed)})" if renamed else ""
        recipe.notes.append(f"Classes: {names}. The model knows them, so its class head is kept{start}.")
    else:
        recipe.notes.append(
            f"Classes: {names}. The model does not know {unknown} of {count}: their part of the class head starts from "
            "random values, so that AP is near 0 at first and the training is longer."
        )
    node.TEST.INSTANCE_ON, node.TEST.PANOPTIC_ON, node.TEST.SEMANTIC_ON = True, False, False
    queries = node.NUM_OBJECT_QUERIES
    if data.most_objects > queries:
        recipe.warnings.append(
            f"An image has {data.most_objects} objects, but the model only {queries} queries: it can find at most "
            f"{queries} in an image or crop. The number is kept, because another one throws the trained queries away; "
            f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES {math.ceil(data.most_objects * 1.2 / 50) * 50} at the end of the "
            "command does so, or start from a model with more (`--model nuclei` has 400)."
        )
    detections = max(cfg.TEST.DETECTIONS_PER_IMAGE, min(queries * count, math.ceil(1.25 * data.most_objects)))
    cfg.TEST.DETECTIONS_PER_IMAGE = detections


def _set_sizes(recipe: Recipe, data: DataFacts, device: DeviceFacts, wishes: Wishes) -> float:
    """Set the sizes of inference and training; return pixels of an image in inference over pixels of a crop."""
    cfg, (short, long) = recipe.cfg.INPUT, data.image_size
    before, longest = cfg.MIN_SIZE_TEST or short, cfg.MAX_SIZE_TEST or 2 * long
    edge = wishes.image_size or before
    at_test = data.object_size * _zoom(edge, max(longest, edge), data)
    if wishes.image_size is None and at_test < _SMALLEST_OBJECT:
        limit = before * (1.5 if device.device_type == "cpu" else 3)
        edge = _multiple(min(limit, before * _SMALLEST_OBJECT / max(at_test, 1e-6)))
    cfg.MIN_SIZE_TEST, cfg.MAX_SIZE_TEST = edge, max(longest, math.ceil(longest * edge / before))
    at_test = data.object_size * _zoom(edge, cfg.MAX_SIZE_TEST, data)
    text = f"Images: shortest edge {edge} pixels in the network"
    text += f" (the model was trained for {before})" if edge != before else ", as the model was trained"
    recipe.notes.append(f"{text}; a typical object has {at_test:.0f} x {at_test:.0f} pixels there.")
    if at_test < _SMALLEST_OBJECT:
        recipe.warnings.append(
            f"A typical object has only {at_test:.0f} x {at_test:.0f} pixels where the network sees it, which is less "
            f"than {_SMALLEST_OBJECT}. Cut the images into tiles before training, or raise --image-size."
        )
    largest = max(cfg.IMAGE_SIZE if cfg.DATASET_MAPPER_NAME.endswith("_lsj") else edge, 64)
    # Not less than the model was trained with, also where time is short: half the edge halved the AP of a model.
    crop = _multiple(largest)
    width, height = (_zoom(edge, cfg.MAX_SIZE_TEST, data) * side for side in (long, short))
    crop = min(crop, _multiple(max(_SCALES) * width))
    cfg.DATASET_MAPPER_NAME, cfg.IMAGE_SIZE, cfg.SIZE_DIVISIBILITY = "mask_former_instance", crop, crop
    cfg.MIN_SIZE_TRAIN, cfg.MIN_SIZE_TRAIN_SAMPLING = tuple(round(edge * scale) for scale in _SCALES), "choice"
    cfg.MAX_SIZE_TRAIN = math.ceil(cfg.MAX_SIZE_TEST * max(_SCALES))
    cfg.CROP.ENABLED, cfg.CROP.TYPE, cfg.CROP.SIZE = True, "absolute", [crop, crop]
    cfg.KEEP_EMPTY_INSTANCES = False  # objects that a crop does not show would take queries from those that it shows
    # As many points for a pixel as with the crops of the base model; a crop of a quarter has four times fewer.
    node = recipe.cfg.MODEL.MASK_FORMER
    if device.device_type == "cpu":
        node.TRAIN_NUM_POINTS = min(node.TRAIN_NUM_POINTS, _CPU_POINTS)
    node.TRAIN_NUM_POINTS = max(1, min(node.TRAIN_NUM_POINTS, round(node.TRAIN_NUM_POINTS * (crop / largest) ** 2)))
    cfg.COLOR_AUG_SSD = True
    # What the model was trained with may be for microscopes alone.
    cfg.STAIN_AUG.PROB, cfg.EMPTY_PROB = 0.0, 0.0
    cfg.INTENSITY_AUG.merge_from_other_cfg(load_config().INPUT.INTENSITY_AUG)
    turns = "rotations by 90 degrees, " if cfg.RANDOM_ROT90 else ""
    recipe.notes.append(
        f"Augmentation: random crops of {crop} x {crop} pixels at {_SCALES[0]:g} to {_SCALES[-1]:g} times that size, "
        f"flips, {turns}colors."
    )
    return width * height / crop**2


def _set_objects(recipe: Recipe, data: DataFacts, fresh: bool) -> None:
    """Fit tiles and smallest area, which are numbers of pixels of the base model's images, to these images.

    What new classes look like is not known: they may have holes or parts, so that rules of the base model go.
    """
    test, sizes = recipe.cfg.MODEL.MASK_FORMER.TEST, recipe.cfg.INPUT
    usual = {"FILL_HOLES": False, "COMPONENTS": "all", "NON_OVERLAPPING": False}
    if fresh and any(test.INSTANCES[key] != value for key, value in usual.items()):
        test.INSTANCES.update(usual)
        recipe.notes.append(
            "Objects: holes, unconnected parts and overlaps are kept, unlike in the base model, because there are new "
            "classes; MODEL.MASK_FORMER.TEST.INSTANCES changes that."
        )
    test.INSTANCES.MIN_AREA = min(test.INSTANCES.MIN_AREA, int(data.object_size**2 * _SMALLEST_SHARE))
    zoom = _zoom(sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST, data)
    enlarged = sizes.MIN_SIZE_TEST / max(test.TILES.SIZE, 1) / zoom  # tiles, relative to what the training shows
    if test.TILES.SIZE and not 1 / _SAME_SCALE <= enlarged <= _SAME_SCALE:
        test.TILES.SIZE = max(16, round(sizes.MIN_SIZE_TEST / zoom))
        recipe.notes.append(f"Tiles of large images: {test.TILES.SIZE} pixels, which have the scale of the training.")


def _many(count: int, noun: str) -> str:
    """Return "1 image", "2 images"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _zoom(edge: int, longest: int, data: DataFacts) -> float:
    """Return the factor by which inference enlarges a typical image."""
    short, long = data.image_size
    return min(edge / short, longest / long)


def _multiple(pixels: float) -> int:
    """Return the next multiple of 32 pixels, the coarsest stride of the network."""
    return max(32, math.ceil(pixels / 32) * 32)


def _set_batch(recipe: Recipe, data: DataFacts, device: DeviceFacts, wishes: Wishes) -> None:
    cfg, crop = recipe.cfg, recipe.cfg.INPUT.IMAGE_SIZE
    # Measured with ResNet-50 and width 256: about 6.5 KiB for a pixel of a crop; it grows with the width.
    each = crop**2 * 6656 * max(cfg.MODEL.MASK_FORMER.HIDDEN_DIM / 256, 0.25)
    fitting = max(1, int(0.7 * device.memory / each))
    per_rank = min(fitting, 1 if device.device_type == "cpu" else 16)
    # 16 images are the batch of the published recipes. A batch has no image twice.
    largest = max(min(16, data.images), device.ranks)
    batch = wishes.batch or max(min(per_rank * device.ranks, largest) // device.ranks, 1) * device.ranks
    if batch % device.ranks:
        raise ConfigError(f"--batch {batch} must be a multiple of the number of GPUs ({device.ranks})")
    rank_batch = batch // device.ranks
    steps = next(n for n in range(1, rank_batch + 1) if rank_batch % n == 0 and rank_batch // n <= fitting)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.REFERENCE_WORLD_SIZE = batch, steps, 0
    parts = f", {steps} micro-batches to fit into memory" if steps > 1 else ""
    ranks = f" on {device.ranks} GPUs" if device.ranks > 1 else ""
    recipe.notes.append(f"Batch: {_many(batch, 'image')}{ranks}{parts}.")


def _set_length(
    recipe: Recipe, data: DataFacts, device: DeviceFacts, wishes: Wishes, fresh: bool, scale: float
) -> None:
    """Set iterations, warm-up and the decay of the EMA weights."""
    solver = recipe.cfg.SOLVER
    batch = solver.IMS_PER_BATCH
    views, reason = _views(recipe.cfg, data, device, wishes, fresh, scale)
    iterations = wishes.iterations or max(1, math.ceil(views / batch))
    if wishes.iterations is not None:
        reason = f"{iterations * batch / data.images:.3g} epochs of {_many(data.images, 'image')}"
    solver.MAX_ITER, solver.STEPS = iterations, ()
    solver.LR_SCHEDULER_NAME, solver.WARMUP_METHOD = "WarmupPolyLR", "linear"
    solver.WARMUP_ITERS = min(iterations // 10, 200)
    solver.WARMUP_FACTOR = 0.01 if solver.WARMUP_ITERS else 1.0
    solver.EMA_DECAY = round(min(0.9998, max(0.9, 1 - 10 / iterations)), 4)
    recipe.notes.append(
        f"Length: {iterations} iterations ({reason}), of which {solver.WARMUP_ITERS} warm-up; EMA decay "
        f"{solver.EMA_DECAY:g}."
    )


def _views(
    cfg: CfgNode, data: DataFacts, device: DeviceFacts, wishes: Wishes, fresh: bool, scale: float
) -> tuple[float, str]:
    """Return how many crops the training shows, and the reason."""
    if wishes.minutes is not None:
        if device.speed is None:
            raise ValueError("minutes need DeviceFacts.speed")
        crop = cfg.INPUT.IMAGE_SIZE**2 / (1e6 * device.speed * device.ranks)  # seconds
        evaluation = data.val_images * scale * _FORWARD_SHARE * crop
        views = (60 * wishes.minutes - 2 * evaluation) / (1 + _EVALUATION_SHARE) / crop
        return max(views, 1), f"what fits into {wishes.minutes:g} minutes at {crop:.2g} s for a crop"
    longer = 1.5 if fresh else 1.0
    epochs = wishes.epochs or max(12.0, 600 / math.sqrt(data.images)) * longer
    limit = _CPU_VIEWS * longer * max(1, device.cores / 2)
    if wishes.epochs is None and device.device_type == "cpu" and epochs * data.images > limit:
        return limit, f"{limit / data.images:.3g} epochs, few because there is no GPU; --epochs or --minutes for more"
    return epochs * data.images, f"{epochs:.3g} epochs of {_many(data.images, 'image')}"


def _set_learning_rate(recipe: Recipe, data: DataFacts, wishes: Wishes, fresh: bool) -> None:
    """Set the learning rates."""
    cfg, solver = recipe.cfg, recipe.cfg.SOLVER
    few = data.images < _FEW_IMAGES
    # Measured with ten images and batches of two: 4 times that is too much for trained weights.
    rate = scaled_learning_rate(1e-4, solver.IMS_PER_BATCH, 16) * (2 if fresh else 1)
    solver.REFERENCE_BATCH = 0  # the rate is chosen for this batch
    solver.OPTIMIZER, solver.BASE_LR = "ADAMW", wishes.learning_rate or float(f"{rate:.2g}")
    solver.BACKBONE_MULTIPLIER = 0.1
    solver.CLIP_GRADIENTS.ENABLED, solver.CLIP_GRADIENTS.CLIP_TYPE = True, "full_model"
    frozen = ""
    if "TIMM" in cfg.MODEL.BACKBONE.NAME.upper() and (few or solver.IMS_PER_BATCH < 16):
        cfg.MODEL.TIMM.FREEZE_NORM = True
        frozen = "; its batch norms are frozen, because batches are small"
    recipe.notes.append(
        f"Learning rate: {solver.BASE_LR:g}, {solver.BASE_LR * solver.BACKBONE_MULTIPLIER:.2g} in the backbone{frozen}."
    )


def _set_evaluation(recipe: Recipe, data: DataFacts, wishes: Wishes, scale: float) -> None:
    cfg = recipe.cfg
    iterations, views = cfg.SOLVER.MAX_ITER, cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    cost = data.val_images * scale * _FORWARD_SHARE  # in crops of an iteration
    count = max(1 if wishes.minutes else 3, min(10, int(_EVALUATION_SHARE * views / max(cost, 1e-6))))
    count = min(count, iterations)
    period = math.ceil(iterations / count)
    cfg.TEST.EVAL_PERIOD, cfg.TEST.EVAL_AT_START, cfg.TEST.EXPECTED_RESULTS = period, True, []
    cfg.TEST.AUG.ENABLED, cfg.TEST.PRECISE_BN.ENABLED = False, False
    cfg.SOLVER.CHECKPOINT_PERIOD = period
    enough = data.val_images >= 3
    patience = wishes.patience if wishes.patience is not None else 4 if enough and count >= 8 else 0
    cfg.SOLVER.EARLY_STOP_PATIENCE = patience
    stop = f"; the training ends after {patience} without improvement" if patience else ""
    recipe.notes.append(
        f"Evaluation: on {_many(data.val_images, 'image')} before the first iteration and every {period} "
        f"iterations, the best model is kept{stop}."
    )
    if not enough:
        recipe.warnings.append(
            f"Only {_many(data.val_images, 'image')} for validation: AP is a rough guide, and which model is the best "
            "is partly chance. Annotate more images, or give a larger share with --val 0.3."
        )


def _set_device(recipe: Recipe, data: DataFacts, device: DeviceFacts, wishes: Wishes) -> None:
    cfg = recipe.cfg
    cfg.MODEL.DEVICE, cfg.SEED = device.device_type, wishes.seed
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = device.device_type == "cuda", "auto"
    spare = max(0, device.cores // device.ranks - 1)
    cfg.DATALOADER.NUM_WORKERS = min(8, spare, data.images)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    mixed = "mixed precision" if cfg.SOLVER.AMP.ENABLED else "single precision"
    recipe.notes.append(
        f"Device: {device.device_type}, {mixed}, {_many(cfg.DATALOADER.NUM_WORKERS, 'worker')} for the data."
    )


def _override(recipe: Recipe, overrides: Sequence[str]) -> None:
    merge_overrides(recipe.cfg, overrides)
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    recipe.notes.append(f"Set by the command: {', '.join(f'{key} {value}' for key, value in pairs)}.")


# Keys that other choices depend on.
_WISHES = {
    "SOLVER.MAX_ITER": ("iterations", int),
    "SOLVER.IMS_PER_BATCH": ("batch", int),
    "SOLVER.BASE_LR": ("learning_rate", float),
    "SOLVER.EARLY_STOP_PATIENCE": ("patience", int),
    "INPUT.MIN_SIZE_TEST": ("image_size", int),
}


def _with_overrides(wishes: Wishes, overrides: Sequence[str]) -> Wishes:
    """Return the wishes with those that are given as KEY VALUE, so that the other settings fit to them."""
    values: dict[str, Any] = {}
    for key, value in zip(overrides[::2], overrides[1::2], strict=False):
        if key in _WISHES:
            name, convert = _WISHES[key]
            try:
                values[name] = convert(value)
            except ValueError as error:
                raise ConfigError(f"{key} is '{value}', but must be a number") from error
    return replace(wishes, **values)
