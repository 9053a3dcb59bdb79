"""INPUT.DATASET_MAPPER_NAME "mask_former_panoptic": ADE20K, Cityscapes, Mapillary and custom datasets."""

from __future__ import annotations

from detectron2.data import transforms as T

from .augmentations import pad_to_square
from .mask_former_semantic_dataset_mapper import MaskFormerSemanticDatasetMapper
from .targets import PanopticTargets, Targets


class MaskFormerPanopticDatasetMapper(MaskFormerSemanticDatasetMapper):
    """The arguments and augmentations of the semantic mapper, and a mask for each segment, things and stuff.

    Reads "pan_seg_file_name" and "segments_info" of a record. Segments outside the crop stay as empty masks, as
    in the training of the published models; crowd segments are dropped. Label maps are read only if the crop needs
    them, and samples have no "sem_seg".
    """

    def make_targets(self) -> Targets:
        """Build `PanopticTargets` of `num_classes` and `ignore_label`."""
        return PanopticTargets(self.num_classes, self.ignore_label)

    def padding(self) -> list[T.Augmentation]:
        """Build the padding to a square of `size_divisibility` pixels, which belongs to no segment."""
        return pad_to_square(self.size_divisibility)
