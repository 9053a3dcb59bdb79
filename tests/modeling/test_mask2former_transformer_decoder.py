"""The masked-attention decoder: attention masks, training outputs, frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mask2former.modeling.transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    VideoMultiScaleMaskedTransformerDecoder,
)
from mask2former.modeling.transformer_decoder.mask2former_transformer_decoder import attention_mask, mask_logits

SETTINGS = {
    "num_classes": 3,
    "hidden_dim": 16,
    "num_queries": 5,
    "nheads": 2,
    "dim_feedforward": 32,
    "dec_layers": 4,
    "pre_norm": False,
    "mask_dim": 8,
    "enforce_input_project": False,
}


def inputs(count: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    levels = [torch.randn(count, 16, 2 * 2**i, 3 * 2**i) for i in range(3)]
    return levels, torch.randn(count, 8, 16, 24)


def test_attention_mask_by_hand() -> None:
    features = torch.tensor([[[[[1.0, -1.0, 2.0]]]]])  # (B, T, C, H, W)
    embeds = torch.tensor([[[1.0], [-1.0], [0.0]]])
    allowed = attention_mask(embeds, features)
    assert allowed.tolist() == [[[[True, False, True], [False, True, False], [True, True, True]]]]
    nothing = attention_mask(torch.tensor([[[-1.0]]]), features.abs())
    assert nothing.all()  # a query whose mask is empty looks everywhere


def test_resized_features_give_resized_logits() -> None:
    embeds, features = torch.randn(2, 5, 8), torch.randn(2, 1, 8, 16, 24)
    small = F.interpolate(features[:, 0], (5, 7), mode="bilinear", align_corners=False)[:, None]
    expected = F.interpolate(mask_logits(embeds, features)[:, :, 0], (5, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(mask_logits(embeds, small)[:, :, 0], expected, atol=1e-5, rtol=1e-5)


def test_training_outputs_are_the_inference_outputs() -> None:
    decoder = MultiScaleMaskedTransformerDecoder(16, **SETTINGS)
    levels, mask_features = inputs(2)
    training = decoder.train()(levels, mask_features)
    final = decoder.eval()(levels, mask_features)
    assert len(training["aux_outputs"]) == SETTINGS["dec_layers"]
    torch.testing.assert_close(training["pred_logits"], final["pred_logits"], atol=1e-5, rtol=1e-4)
    masks = mask_logits(training["pred_embeds"], training["mask_features"])
    torch.testing.assert_close(masks, final["pred_masks"], atol=1e-4, rtol=1e-4)


def test_input_projection_exists_only_where_needed() -> None:
    plain = MultiScaleMaskedTransformerDecoder(16, **SETTINGS)
    forced = MultiScaleMaskedTransformerDecoder(16, **{**SETTINGS, "enforce_input_project": True})
    assert not any("input_proj" in n for n, _ in plain.named_parameters())
    assert sum("input_proj" in n for n, _ in forced.named_parameters()) == 6


def test_frames_of_a_clip_are_read_together() -> None:
    decoder = VideoMultiScaleMaskedTransformerDecoder(16, **SETTINGS).eval()
    levels, mask_features = inputs(6)
    with torch.no_grad():
        out = decoder(levels, mask_features, frames=3)
        alone = decoder([x[:3] for x in levels], mask_features[:3], frames=3)
    assert out["pred_masks"].shape == (2, 5, 3, 16, 24)
    torch.testing.assert_close(out["pred_masks"][:1], alone["pred_masks"], atol=1e-4, rtol=1e-4)
    reversed_levels = [x[:3].flip(0) for x in levels]
    with torch.no_grad():
        other = decoder(reversed_levels, mask_features[:3].flip(0), frames=3)["pred_masks"].flip(2)
    assert not torch.allclose(other, alone["pred_masks"], atol=1e-3)  # the encoding tells the order of frames


def test_image_decoder_has_no_sense_of_time() -> None:
    decoder = MultiScaleMaskedTransformerDecoder(16, **SETTINGS).eval()
    levels, mask_features = inputs(3)
    with torch.no_grad():
        forward = decoder(levels, mask_features, frames=3)["pred_masks"]
        backward = decoder([x.flip(0) for x in levels], mask_features.flip(0), frames=3)["pred_masks"].flip(2)
    torch.testing.assert_close(forward, backward, atol=1e-4, rtol=1e-4)
