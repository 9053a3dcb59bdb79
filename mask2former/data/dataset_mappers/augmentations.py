"""The augmentations of the published trainings: large-scale jitter, and crops after a resize of the shortest edge."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..intensity import RandomIntensity
from ..stains import RandomStains
from ..transforms import (
    IMAGE_PAD_VALUE,
    ColorAugSSD,
    PadToSquare,
    RandomRot90,
    ResizeScale,
    ResizeShortestEdge,
    flip_augmentations,
)


def large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """Flip, scale by INPUT.MIN_SCALE to MAX_SCALE, crop or pad to a square of INPUT.IMAGE_SIZE pixels.

    The crop draws one number for both axes, so it lies on the diagonal of the image; the published models were trained
    with that. INPUT.RANDOM_ROT90 and `color_augmentations` add rotations and color changes before scaling, so that the
    padding stays gray.

    Args:
        cfg: INPUT is read.

    Returns:
        The augmentations in order; masks are padded with 0.
    """
    side = cfg.INPUT.IMAGE_SIZE
    augmentations = flip_augmentations(cfg.INPUT.RANDOM_FLIP)
    if cfg.INPUT.RANDOM_ROT90:
        augmentations.append(RandomRot90())
    augmentations.extend(color_augmentations(cfg))
    augmentations.append(ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, side, side))
    augmentations.append(T.FixedSizeCrop((side, side), pad_value=IMAGE_PAD_VALUE, seg_pad_value=0))
    return augmentations


def color_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Build the changes of pixel values: INPUT.INTENSITY_AUG, INPUT.STAIN_AUG, INPUT.COLOR_AUG_SSD; off by default.

    Intensity comes first, so that inverted fluorescence is stained like tissue.
    """
    settings, augmentations = cfg.INPUT, list[T.Augmentation]()
    intensity = settings.INTENSITY_AUG
    levels, rest = (intensity.GAMMA, intensity.BRIGHTNESS), (intensity.INVERT_PROB, intensity.GRAY_PROB)
    values = *levels, *rest, intensity.BLUR, intensity.NOISE
    if values != (1, 1, 0, 0, 0, 0):
        augmentations.append(RandomIntensity(*values))
    stains = settings.STAIN_AUG
    if stains.PROB:
        augmentations.append(RandomStains(stains.PROB, stains.STRENGTH, stains.SWAP_PROB, settings.FORMAT))
    if settings.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSD(settings.FORMAT))
    return augmentations


def build_transform_gen(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Build the augmentations of the COCO mappers; the name is that of the reference implementation."""
    return large_scale_jitter(cfg) if is_train else resize_for_inference(cfg)


def shortest_edge_crop(cfg: CfgNode, crop: T.Augmentation | None = None) -> list[T.Augmentation]:
    """Resize the shortest edge, crop (INPUT.CROP), change colors (`color_augmentations`), flip.

    The shortest edge is drawn from INPUT.MIN_SIZE_TRAIN. INPUT.RANDOM_ROT90 adds rotations after the flip.

    Args:
        cfg: INPUT is read.
        crop: used if INPUT.CROP.ENABLED; None for a random crop of INPUT.CROP.SIZE.

    Returns:
        The augmentations in order.
    """
    settings = cfg.INPUT
    augmentations: list[T.Augmentation] = [
        ResizeShortestEdge(settings.MIN_SIZE_TRAIN, settings.MAX_SIZE_TRAIN, settings.MIN_SIZE_TRAIN_SAMPLING)
    ]
    if settings.CROP.ENABLED:
        augmentations.append(crop or T.RandomCrop(settings.CROP.TYPE, settings.CROP.SIZE))
    augmentations.extend(color_augmentations(cfg))
    augmentations.extend(flip_augmentations(settings.RANDOM_FLIP))
    if settings.RANDOM_ROT90:
        augmentations.append(RandomRot90())
    return augmentations


def mixed_category_crop(cfg: CfgNode, ignore_label: int) -> T.Augmentation | None:
    """Build a random crop that no single class dominates.

    Up to ten crops are tried until no class covers more than INPUT.CROP.SINGLE_CATEGORY_MAX_AREA of the labeled pixels.

    Args:
        cfg: INPUT.CROP is read.
        ignore_label: value of unlabeled pixels in the label map.

    Returns:
        The crop, which reads the label map; None if the limit is 1 or more, which every crop meets.
    """
    settings = cfg.INPUT.CROP
    if settings.SINGLE_CATEGORY_MAX_AREA >= 1:
        return None
    limits = settings.TYPE, settings.SIZE, settings.SINGLE_CATEGORY_MAX_AREA
    return T.RandomCrop_CategoryAreaConstraint(*limits, ignore_label)


def pad_to_square(size_divisibility: int, label_value: int = 0) -> list[T.Augmentation]:
    """Pad right and bottom to a square, the image with gray; larger images are not cropped.

    Args:
        size_divisibility: edge of the square in pixels (a size, despite its name); 0 or less for no padding.
        label_value: padding value of masks and label maps.

    Returns:
        The padding, or an empty list.
    """
    return [PadToSquare(size_divisibility, label_value)] if size_divisibility > 0 else []


def resize_for_inference(cfg: CfgNode) -> list[T.Augmentation]:
    """Resize to INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST, as detectron2's default mapper does."""
    return [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
