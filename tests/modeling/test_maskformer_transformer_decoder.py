"""The decoder of MaskFormer v1: outputs in training and inference, what it reads, whole models with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mask2former.modeling.transformer_decoder import StandardTransformerDecoder

from .tiny_models import NoHostReads, record, tiny, without_gradient

SETTINGS: dict[str, Any] = {
    "num_classes": 3,
    "hidden_dim": 16,
    "num_queries": 5,
    "nheads": 2,
    "dropout": 0.0,
    "dim_feedforward": 32,
    "enc_layers": 1,
    "dec_layers": 3,
    "pre_norm": False,
    "deep_supervision": True,
    "mask_dim": 8,
    "enforce_input_project": False,
}
CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
STANDARD = [
    *("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"),
    *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "TransformerEncoderPixelDecoder"),
]


def make(**changes: Any) -> StandardTransformerDecoder:
    return StandardTransformerDecoder(16, **{**SETTINGS, **changes})


def inputs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 16, 3, 4), torch.randn(count, 8, 12, 16)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_training_outputs_are_the_inference_outputs(pre_norm: bool) -> None:
    decoder = make(pre_norm=pre_norm)
    x, mask_features = inputs(2)
    training, final = decoder.train()(x, mask_features), decoder.eval()(x, mask_features)
    assert training["pred_logits"].shape == (2, 5, 4) and final["pred_masks"].shape == (2, 5, 12, 16)
    torch.testing.assert_close(training["pred_logits"], final["pred_logits"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(training["pred_masks"], final["pred_masks"], atol=1e-4, rtol=1e-4)


def test_each_layer_is_supervised_where_that_is_wanted() -> None:
    x, mask_features = inputs(1)
    outputs = make().train()(x, mask_features)
    assert [set(step) for step in outputs["aux_outputs"]] == [{"pred_logits", "pred_masks"}] * 2
    assert not torch.equal(outputs["aux_outputs"][0]["pred_masks"], outputs["pred_masks"])
    assert make(deep_supervision=False).train()(x, mask_features)["aux_outputs"] == []


def test_an_earlier_prediction_is_that_of_a_shorter_decoder() -> None:
    x, mask_features = inputs(1)
    decoder, shorter = make().train(), make(dec_layers=2).train()
    shorter.load_state_dict({k: v for k, v in decoder.state_dict().items() if "decoder.layers.2" not in k})
    expected = decoder(x, mask_features)["aux_outputs"][1]
    found = shorter(x, mask_features)
    for key in ("pred_logits", "pred_masks"):
        torch.testing.assert_close(found[key], expected[key])


def test_without_classes() -> None:
    decoder = make(mask_classification=False)
    assert not any("class_embed" in name for name, _ in decoder.named_parameters())
    x, mask_features = inputs(1)
    for mode in (True, False):
        assert set(decoder.train(mode)(x, mask_features)) == {"pred_masks", "aux_outputs"}


def test_input_projection_exists_only_where_needed() -> None:
    assert not any("input_proj" in n for n, _ in make().named_parameters())
    forced = make(enforce_input_project=True)
    assert [n for n, _ in forced.named_parameters() if "input_proj" in n] == ["input_proj.weight", "input_proj.bias"]
    other = StandardTransformerDecoder(24, **SETTINGS)
    assert other.input_proj.weight.shape == (16, 24, 1, 1)


def test_several_maps_are_one_memory() -> None:
    decoder = make().eval()
    x, mask_features = inputs(1)
    finer = torch.randn(1, 16, 6, 8)
    with torch.no_grad():
        one = decoder(x, mask_features)["pred_masks"]
        torch.testing.assert_close(decoder([x], mask_features)["pred_masks"], one)
        both = decoder([x, finer], mask_features)["pred_masks"]
        swapped = decoder([finer, x], mask_features)["pred_masks"]
    assert (both - one).abs().max() > 1e-3
    torch.testing.assert_close(both, swapped, atol=1e-5, rtol=1e-4)  # attention knows no order of maps


@pytest.mark.parametrize("enc_layers", [0, 1])
def test_queries_know_where_they_look(enc_layers: int) -> None:
    decoder = make(enc_layers=enc_layers).eval()
    x, mask_features = inputs(1)
    with torch.no_grad():
        here, flipped = (decoder(y, mask_features)["pred_masks"] for y in (x, x.flip(-1)))
    assert (here - flipped).abs().max() > 1e-3


def test_frames_of_a_clip_are_read_together() -> None:
    decoder = make().eval()
    x, mask_features = inputs(6)
    with torch.no_grad():
        out = decoder(x, mask_features, frames=3)
        alone = decoder(x[3:].flip(0), mask_features[3:].flip(0), frames=3)
    assert out["pred_masks"].shape == (2, 5, 3, 12, 16)
    torch.testing.assert_close(out["pred_masks"][1:], alone["pred_masks"].flip(2), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", ["res5", "res4", "transformer_encoder", "pixel_embedding", "multi_scale_pixel_decoder"]
)
def test_whole_model_for_each_source(source: str) -> None:
    model = tiny(
        CONFIG,
        *STANDARD,
        *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", source, "MODEL.MASK_FORMER.ENC_LAYERS", 1),
        *("MODEL.MASK_FORMER.DEC_LAYERS", 2),
    )
    batch = [record(64, 96, 2, 133), record(50, 70, 0, 133)]
    losses = model.train()(batch)
    assert len(losses) == 2 * 3 and all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    with torch.no_grad():
        result = model.eval()(batch)[1]
    assert result["panoptic_seg"][0].shape == (55, 67) and result["sem_seg"].shape == (133, 55, 67)


def test_head_reads_no_value_from_the_device() -> None:
    model = tiny(CONFIG, *STANDARD, "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "transformer_encoder")
    features, head = model.backbone(torch.randn(1, 3, 64, 64)), model.sem_seg_head
    with NoHostReads():
        outputs = head.train()(features)
        sum(step["pred_masks"].sum() for step in (outputs, *outputs["aux_outputs"])).backward()
        head.eval()(features)


def test_without_deep_supervision_only_the_last_layer_has_losses() -> None:
    model = tiny(
        CONFIG,
        *STANDARD,
        *("MODEL.MASK_FORMER.DEEP_SUPERVISION", False, "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5"),
    )
    losses = model.train()([record(64, 64, 1, 133)])
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}


def test_a_pixel_decoder_without_encoder_cannot_give_its_map() -> None:
    model = tiny(
        CONFIG,
        *STANDARD,
        *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder"),
        *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "transformer_encoder"),
    )
    with pytest.raises(ValueError, match=r"TRANSFORMER_IN_FEATURE.*PIXEL_DECODER_NAME 'BasePixelDecoder'"):
        model.eval()([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])


def test_first_form_of_checkpoints() -> None:
    """Weights of MaskFormer v1 lie directly under the head."""
    from mask2former.checkpoint import load_into

    options = [*STANDARD, "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "transformer_encoder"]
    model = tiny(CONFIG, *options)
    old = {k.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): v for k, v in model.state_dict().items()}
    assert "sem_seg_head.layer_1.weight" in old and "sem_seg_head.transformer.encoder.layers.0.norm1.bias" in old
    other = tiny(CONFIG, *options)
    load_into(other, old, strict=True)
    for key, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
