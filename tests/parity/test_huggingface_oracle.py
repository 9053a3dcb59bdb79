"""An independent judge: Hugging Face's Mask2Former, another implementation, gives the same logits.

Random weights travel through the converter in both directions. Both networks get the same normalized pixels:
the networks are compared, not the preprocessing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor

from mask2former.checkpoint import huggingface, load_into, save_safetensors
from mask2former.checkpoint.huggingface_config import config_from_huggingface, config_to_huggingface
from mask2former.config import load_config

transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-4  # relative to the largest logit

VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "input projections": {"enforce_input_projection": True},
    "wide mask features": {"mask_feature_size": 64, "num_queries": 11},
}


def theirs(**changes: Any) -> Any:
    swin = transformers.SwinConfig(
        image_size=64,
        embed_dim=12,
        depths=[2, 1, 2, 1],
        num_heads=[1, 2, 3, 6],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    settings: dict[str, Any] = {
        "feature_size": 64,
        "mask_feature_size": 64,
        "hidden_dim": 64,
        "encoder_feedforward_dim": 80,
        "dim_feedforward": 96,
        "encoder_layers": 2,
        "decoder_layers": 5,
        "num_attention_heads": 4,
        "num_queries": 9,
        "num_labels": 5,
    }
    config = transformers.Mask2FormerConfig(backbone_config=swin, **{**settings, **changes})
    return transformers.Mask2FormerForUniversalSegmentation(config).eval()


def randomize(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return new values that keep activations of order one and let every weight matter."""
    out = {}
    for key, value in state.items():
        if not value.is_floating_point() or "empty_weight" in key:
            out[key] = value
        elif value.dim() == 1 and key.endswith("weight"):  # norms
            out[key] = 1 + 0.2 * torch.randn_like(value)
        elif value.dim() == 1 or "level_embed" in key or "bias_table" in key:
            out[key] = 0.2 * torch.randn_like(value)
        elif "quer" in key:
            out[key] = torch.randn_like(value)
        else:
            out[key] = torch.randn_like(value) / value[0].numel() ** 0.5
    return out


def ours_like(model: Any) -> torch.nn.Module:
    """Build this project's model from the settings of theirs."""
    keys = config_from_huggingface(model.config.to_dict())
    cfg = load_config(None, [*(item for pair in keys.items() for item in pair), "MODEL.DEVICE", "cpu"])
    return build_model(cfg).eval()


def assert_same_logits(hf: Any, model: Any, pixels: Tensor) -> None:
    with torch.no_grad():
        expected = hf(pixels)
        found = model.sem_seg_head(model.backbone(pixels))
    masks = found["pred_masks"]
    masks = masks[:, :, 0] if masks.dim() == 5 else masks
    for name, a, b in (
        ("classes", found["pred_logits"], expected.class_queries_logits),
        ("masks", masks, expected.masks_queries_logits),
    ):
        assert a.shape == b.shape, name
        assert b.std() > 0.05, f"{name} hardly vary: the comparison would prove nothing"
        assert (a - b).abs().max() <= TOLERANCE * b.abs().max(), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(64, 64), (96, 160)], ids=str)
def test_their_weights_in_our_model(variant: str, size: tuple[int, int]) -> None:
    hf = theirs(**VARIANTS[variant])
    # transformers up to 5.20 keeps its input projections in a plain list, so that its state dict lacks them.
    if variant == "input projections" and not any("transformer_module.input_proj" in key for key in hf.state_dict()):
        pytest.skip(f"transformers {transformers.__version__} does not store these weights")
    hf.load_state_dict(randomize(hf.state_dict()))
    model = ours_like(hf)
    report = load_into(model, hf.state_dict(), strict=True)
    assert report.converted
    assert_same_logits(hf, model, torch.randn(2, 3, *size))


def test_our_weights_in_their_model(tmp_path: Path) -> None:
    model = ours_like(theirs())
    model.load_state_dict(randomize(model.state_dict()))
    keys = config_from_huggingface(theirs().config.to_dict())
    cfg = load_config(None, [item for pair in keys.items() for item in pair])
    save_safetensors(huggingface.to_huggingface(model.state_dict()), tmp_path / "model.safetensors")
    transformers.Mask2FormerConfig.from_dict(config_to_huggingface(cfg)).save_pretrained(tmp_path)
    hf = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).eval()
    assert_same_logits(hf, model, torch.randn(2, 3, 96, 64))


def test_the_judge_notices_one_wrong_weight() -> None:
    hf = theirs()
    hf.load_state_dict(randomize(hf.state_dict()))
    model = ours_like(hf)
    load_into(model, hf.state_dict())
    with torch.no_grad():
        table = model.backbone.layers[2].blocks[1].attn.relative_position_bias_table
        table.copy_(table.flip(0))
    with pytest.raises(AssertionError, match="classes|masks"):
        assert_same_logits(hf, model, torch.randn(1, 3, 64, 64))
