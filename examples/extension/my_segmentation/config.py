"""Config keys of this project, and where its recipe lies."""

from pathlib import Path

from detectron2.config import CfgNode
from mask2former.config import register_config_keys

RECIPE = Path(__file__).with_name("recipe.yaml")


@register_config_keys
def add_keys(cfg: CfgNode) -> None:
    """Add MODEL.MINE to `cfg`; every config that `mask2former.load_config` loads has it."""
    cfg.MODEL.MINE = CfgNode(
        {
            "SCALE": 10.0,  # of the cosines of the classifier
            "AREA_WEIGHT": 1.0,  # of the loss term
        }
    )
