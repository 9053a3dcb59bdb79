"""A loss term for the areas of masks, and the model that is trained with it."""

from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from mask2former import MaskFormer
from mask2former.modeling.criterion import SetCriterion
from torch import Tensor


class AreaCriterion(SetCriterion):
    """Adds "loss_area": the difference of the areas of mask and object, as a part of the image."""

    def add_area(self, weight: float) -> None:
        """Supervise the area wherever masks are supervised."""
        self.losses.append("area")
        names = [name for name in self.weight_dict if name.startswith("loss_mask")]
        self.weight_dict |= {name.replace("mask", "area"): weight for name in names}

    def get_loss(self, loss: str, outputs: Any, targets: Any, indices: Any, num_masks: float) -> dict[str, Tensor]:
        if loss != "area":
            return super().get_loss(loss, outputs, targets, indices, num_masks)
        matched = outputs["pred_masks"][self._get_src_permutation_idx(indices)]  # (M, H / 4, W / 4) logits
        expected = torch.cat([target["masks"][i] for target, (_, i) in zip(targets, indices)])  # (M, H, W) bool
        difference = matched.sigmoid().mean((-2, -1)) - expected.float().mean((-2, -1))
        return {"loss_area": difference.abs().sum() / num_masks}


@META_ARCH_REGISTRY.register()
class AreaMaskFormer(MaskFormer):
    """For MODEL.META_ARCHITECTURE."""

    criterion_type = AreaCriterion

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        arguments["criterion"].add_area(cfg.MODEL.MINE.AREA_WEIGHT)
        return arguments
