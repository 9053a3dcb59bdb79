"""Attention layers as other programs call and override them: `forward_post` and `forward_pre`, by name or position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling.transformer_decoder import mask2former_transformer_decoder
from mask2former.modeling.transformer_decoder.mask2former_transformer_decoder import (
    CrossAttentionLayer,
    FFNLayer,
    SelfAttentionLayer,
)
from mask2former.modeling.transformer_decoder.maskformer_transformer_decoder import StandardTransformerDecoder
from mask2former.modeling.transformer_decoder.transformer import (
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    _get_activation_fn,
)
from mask2former_video.modeling.transformer_decoder import video_mask2former_transformer_decoder

C = 16


def sequence(length: int, seed: int = 0) -> Tensor:
    return torch.randn(length, 2, C, generator=torch.Generator().manual_seed(seed))


QUERIES, MEMORY = sequence(5), sequence(9, 1)
BLOCKED = torch.eye(5, dtype=torch.bool)
PADDED = torch.tensor([[False] * 4 + [True], [False] * 5])
FAR = torch.arange(9)[None] > torch.arange(5)[:, None] + 3
END = torch.arange(9)[None].expand(2, -1) > 6
QUERY_POS, POS = sequence(5, 2), sequence(9, 3)
MASKS = {"tgt_mask": BLOCKED, "tgt_key_padding_mask": PADDED}
OF_MEMORY = {"memory_mask": FAR, "memory_key_padding_mask": END, "pos": POS}
# layer, its arguments by position, and by name in the order of `forward`
CASES: list[tuple[Callable[[bool], nn.Module], list[Tensor], dict[str, Tensor]]] = [
    (
        lambda pre: SelfAttentionLayer(C, 4, normalize_before=pre),
        [QUERIES],
        {**MASKS, "query_pos": QUERY_POS},
    ),
    (
        lambda pre: CrossAttentionLayer(C, 4, normalize_before=pre),
        [QUERIES],
        {"memory": MEMORY, **OF_MEMORY, "query_pos": QUERY_POS},
    ),
    (lambda pre: FFNLayer(C, 8, normalize_before=pre), [QUERIES], {}),
    (
        lambda pre: TransformerEncoderLayer(C, 4, 8, 0.0, normalize_before=pre),
        [QUERIES],
        {"src_mask": BLOCKED, "src_key_padding_mask": PADDED, "pos": QUERY_POS},
    ),
    (
        lambda pre: TransformerDecoderLayer(C, 4, 8, 0.0, normalize_before=pre),
        [QUERIES],
        {
            "memory": MEMORY,
            "tgt_mask": BLOCKED,
            "memory_mask": FAR,
            "tgt_key_padding_mask": PADDED,
            "memory_key_padding_mask": END,
            "pos": POS,
            "query_pos": QUERY_POS,
        },
    ),
]
NAMES = ["self", "cross", "ffn", "encoder", "decoder"]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_forms_are_called_by_name_and_by_position(case: Any) -> None:
    build, places, keywords = case
    torch.manual_seed(0)
    post, pre = build(False), build(True)
    pre.load_state_dict(post.state_dict())
    for layer, form in ((post, "forward_post"), (pre, "forward_pre")):
        expected = layer(*places, **keywords)
        for other in (post, pre):  # which form runs is not a matter of normalize_before
            call = getattr(other, form)
            assert torch.equal(call(*places, **keywords), expected)
            assert torch.equal(call(*places, *keywords.values()), expected)
            first = "src" if "src_mask" in keywords else "tgt"
            assert torch.equal(call(**{first: places[0]}, **keywords), expected)
    assert not torch.allclose(post(*places, **keywords), pre(*places, **keywords))


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_an_override_is_what_forward_calls(case: Any, pre: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    build, places, keywords = case
    layer, form = build(pre), "forward_pre" if pre else "forward_post"
    before, expected = getattr(type(layer), form), layer(*places, **keywords)
    seen: list[list[Tensor]] = []

    def mine(self: Any, first: Tensor, *rest: Tensor) -> Tensor:
        seen.append([first, *rest])
        return 2 * before(self, first, *rest)

    monkeypatch.setattr(type(layer), form, mine)
    assert torch.equal(layer(*places, **keywords), 2 * expected)
    assert [x is y for x, y in zip(seen[0], [*places, *keywords.values()], strict=True)] == [True] * len(seen[0])


def test_activation_functions() -> None:
    for module in (mask2former_transformer_decoder, video_mask2former_transformer_decoder):
        assert module._get_activation_fn is _get_activation_fn
    assert torch.equal(_get_activation_fn(activation="relu")(QUERIES), QUERIES.clamp(min=0))
    with pytest.raises(ValueError, match="'tanh'"):
        _get_activation_fn("tanh")


class Halved(StandardTransformerDecoder):
    """Keeps the earlier predictions, at half their size."""

    def _set_aux_loss(self, outputs_class: Any, outputs_seg_masks: Any) -> list[Any]:
        self.given = None if outputs_class is None else tuple(outputs_class.shape), tuple(outputs_seg_masks.shape)
        entries = super()._set_aux_loss(outputs_class, outputs_seg_masks)
        return [{key: value / 2 for key, value in entry.items()} for entry in entries]


@pytest.mark.parametrize("classes", [True, False])
def test_auxiliary_outputs_of_the_standard_decoder(classes: bool) -> None:
    settings = {"num_classes": 4, "hidden_dim": C, "num_queries": 5, "nheads": 4, "dropout": 0.0, "enc_layers": 0}
    settings |= {"dim_feedforward": 8, "dec_layers": 3, "pre_norm": False, "deep_supervision": True, "mask_dim": 6}
    torch.manual_seed(0)
    plain = StandardTransformerDecoder(8, classes, **settings, enforce_input_project=False)
    mine = Halved(8, classes, **settings, enforce_input_project=False)
    mine.load_state_dict(plain.state_dict())
    x, features = torch.randn(2, 8, 3, 4), torch.randn(2, 6, 12, 16)
    expected, outputs = plain(x, features), mine(x, features)
    assert mine.given == ((3, 2, 5, 5) if classes else None, (3, 2, 5, 12, 16))
    assert len(outputs["aux_outputs"]) == len(expected["aux_outputs"]) == 2
    for key in ("pred_logits", "pred_masks") if classes else ("pred_masks",):
        assert torch.equal(outputs[key], expected[key])
        for entry, other in zip(outputs["aux_outputs"], expected["aux_outputs"], strict=True):
            torch.testing.assert_close(entry[key] * 2, other[key])
