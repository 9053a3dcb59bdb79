"""The masked-attention decoder: attention masks, training outputs, frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling.outputs import MaskLogits, Row, mask_logits
from mask2former.modeling.transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    VideoMultiScaleMaskedTransformerDecoder,
)
from mask2former.modeling.transformer_decoder.mask2former_transformer_decoder import _open_empty, attention_mask

from .tiny_models import DECODER


def inputs(count: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    levels = [torch.randn(count, 16, 2 * 2**i, 3 * 2**i) for i in range(3)]
    return levels, torch.randn(count, 8, 16, 24)


def test_attention_mask_by_hand() -> None:
    features = torch.tensor([[[[[1.0, -1.0, 2.0]]]]])  # (B, T, C, H, W)
    embeds = torch.tensor([[[1.0], [-1.0], [0.0]]])
    blocked = attention_mask(embeds, features)
    assert blocked.tolist() == [[[False, True, False], [True, False, True], [False, False, False]]]
    nothing = attention_mask(torch.tensor([[[-1.0]]]), features.abs())
    assert nothing.all() and not _open_empty(nothing).any()  # a query whose mask is empty looks everywhere
    assert torch.equal(_open_empty(blocked), blocked)


def test_resized_features_give_resized_logits() -> None:
    embeds, features = torch.randn(2, 5, 8), torch.randn(2, 1, 8, 16, 24)
    small = F.interpolate(features[:, 0], (5, 7), mode="bilinear", align_corners=False)[:, None]
    expected = F.interpolate(mask_logits(embeds, features)[:, :, 0], (5, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(mask_logits(embeds, small)[:, :, 0], expected, atol=1e-5, rtol=1e-5)


def predictions(outputs: dict[str, Any]) -> list[dict[str, Any]]:
    return [outputs, *outputs["aux_outputs"]]


@pytest.mark.parametrize("frames", [None, 1, 3])
def test_training_outputs_are_the_inference_outputs(frames: int | None) -> None:
    cls = MultiScaleMaskedTransformerDecoder if frames is None else VideoMultiScaleMaskedTransformerDecoder
    decoder = cls(16, **DECODER)
    levels, mask_features = inputs(2 * (frames or 1))
    training = decoder.train()(levels, mask_features, frames=frames)
    final = decoder.eval()(levels, mask_features, frames=frames)
    assert list(training) == ["pred_logits", "pred_masks", "aux_outputs"]
    assert list(final) == [*training, *(["query_embeds"] if frames else [])]
    assert len(training["aux_outputs"]) == DECODER["dec_layers"]
    shape = (2, 5, 16, 24) if frames is None else (2, 5, frames, 16, 24)
    for ours, theirs in zip(predictions(training), predictions(final), strict=True):
        assert ours["pred_masks"].shape == shape and ours["pred_logits"].shape == (2, 5, 4)
        torch.testing.assert_close(ours["pred_logits"], theirs["pred_logits"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours["pred_masks"], theirs["pred_masks"], atol=1e-4, rtol=1e-4)


def test_nothing_is_computed_that_is_not_read() -> None:
    decoder = MultiScaleMaskedTransformerDecoder(16, **DECODER)
    training = decoder.train()(*inputs(2))
    for prediction in predictions(training):
        assert isinstance(prediction.unread("pred_masks"), MaskLogits)
        assert isinstance(prediction.unread("pred_logits"), Row)
    final = decoder.eval()(*inputs(2))
    assert final.unread("pred_masks") is None  # every use of inference reads the last ones
    assert all(isinstance(prediction.unread("pred_masks"), MaskLogits) for prediction in final["aux_outputs"])


def test_earlier_classes_are_those_of_the_weights_that_were_there() -> None:
    decoder = MultiScaleMaskedTransformerDecoder(16, **DECODER).eval()
    given = inputs(1)
    with torch.no_grad():
        expected, found = decoder(*given), decoder(*given)
        before = [prediction["pred_logits"].clone() for prediction in predictions(expected)]
        decoder.class_embed.weight.zero_()
        assert all(torch.equal(a, p["pred_logits"]) for a, p in zip(before, predictions(found), strict=True))


def test_functions_on_nested_containers_know_the_outputs() -> None:
    outputs = MultiScaleMaskedTransformerDecoder(16, **DECODER)(*inputs(1))
    detached = torch.utils._pytree.tree_map(torch.Tensor.detach, outputs)
    assert [sorted(p) for p in [detached, *detached["aux_outputs"]]] == [
        ["aux_outputs", "pred_logits", "pred_masks"],
        *[["pred_logits", "pred_masks"]] * 4,
    ]
    assert not detached["aux_outputs"][0]["pred_masks"].requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_predictions_that_are_read_later_need_no_gradients(mode: Any) -> None:
    decoder = MultiScaleMaskedTransformerDecoder(16, **DECODER).eval()
    with mode():
        outputs = decoder(*inputs(1))
    earlier = outputs["aux_outputs"][0]
    assert not any(tensor.requires_grad for tensor in (*earlier.values(), outputs["pred_masks"]))


@pytest.mark.parametrize("frames", [None, 3])
def test_overridden_prediction_heads_give_the_same_outputs(frames: int | None) -> None:
    """The form that subclasses call and replace is the same computation, layer by layer."""
    base = MultiScaleMaskedTransformerDecoder if frames is None else VideoMultiScaleMaskedTransformerDecoder
    calls = []

    class Overridden(base):  # type: ignore[misc, valid-type]
        def forward_prediction_heads(self, output, mask_features, attn_mask_target_size):
            calls.append((tuple(output.shape), mask_features.dim(), tuple(attn_mask_target_size)))
            return super().forward_prediction_heads(output, mask_features, attn_mask_target_size)

    plain, mine = base(16, **DECODER), Overridden(16, **DECODER)
    mine.load_state_dict(plain.state_dict())
    levels, mask_features = inputs(2 * (frames or 1))
    expected = plain(levels, mask_features, frames=frames)
    found = mine(levels, mask_features, frames=frames)
    assert calls == [((5, 2, 16), 5 if frames else 4, (2 * 2 ** (i % 3), 3 * 2 ** (i % 3))) for i in range(5)]
    for ours, theirs in zip(predictions(found), predictions(expected), strict=True):
        torch.testing.assert_close(ours["pred_logits"], theirs["pred_logits"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours["pred_masks"], theirs["pred_masks"], atol=1e-4, rtol=1e-4)


def test_a_method_that_is_assigned_to_the_decoder_is_called() -> None:
    decoder = MultiScaleMaskedTransformerDecoder(16, **DECODER)
    original, calls = decoder.forward_prediction_heads, []
    decoder.forward_prediction_heads = lambda *a, **k: calls.append(1) or original(*a, **k)  # type: ignore[method-assign]
    decoder(*inputs(1))
    assert len(calls) == DECODER["dec_layers"] + 1


def test_hooks_on_layers_see_and_change_queries() -> None:
    decoder = MultiScaleMaskedTransformerDecoder(16, **DECODER).eval()
    given = inputs(2)
    before = decoder(*given)["pred_masks"]
    shapes = []

    def zero(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(output.shape))
        return torch.zeros_like(output)

    for layer in decoder.transformer_cross_attention_layers:
        layer.register_forward_hook(zero)
    assert not torch.allclose(decoder(*given)["pred_masks"], before)
    assert shapes == [(5, 2, 16)] * 4


def test_a_video_decoder_knows_its_number_of_frames() -> None:
    decoder = VideoMultiScaleMaskedTransformerDecoder(16, **DECODER, num_frames=3)
    given = inputs(6)
    assert decoder.train()(*given)["pred_masks"].shape == (2, 5, 3, 16, 24)
    assert decoder.eval()(*given)["pred_masks"].shape == (1, 5, 6, 16, 24)


def test_input_projection_exists_only_where_needed() -> None:
    plain = MultiScaleMaskedTransformerDecoder(16, **DECODER)
    forced = MultiScaleMaskedTransformerDecoder(16, **{**DECODER, "enforce_input_project": True})
    assert not any("input_proj" in n for n, _ in plain.named_parameters())
    assert sum("input_proj" in n for n, _ in forced.named_parameters()) == 6


def test_frames_of_a_clip_are_read_together() -> None:
    decoder = VideoMultiScaleMaskedTransformerDecoder(16, **DECODER).eval()
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
    decoder = MultiScaleMaskedTransformerDecoder(16, **DECODER).eval()
    levels, mask_features = inputs(3)
    with torch.no_grad():
        forward = decoder(levels, mask_features, frames=3)["pred_masks"]
        backward = decoder([x.flip(0) for x in levels], mask_features.flip(0), frames=3)["pred_masks"].flip(2)
    torch.testing.assert_close(forward, backward, atol=1e-4, rtol=1e-4)
