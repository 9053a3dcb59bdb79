"""The per-pixel baselines: their loss, their scores, whole models with detectron2's SemanticSegmentor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import nn

from mask2former.checkpoint import load_into
from mask2former.modeling import BasePixelDecoder, PerPixelBaselineHead

from .tiny_models import NoHostReads, record, tiny, without_gradient

SHAPES = {f"res{i}": ShapeSpec(channels=4, stride=2**i) for i in range(2, 6)}
CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
CLASSES = 7
SEMANTIC = [
    *("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES),
    *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "TransformerEncoderPixelDecoder"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", CLASSES, "MODEL.MASK_FORMER.DEC_LAYERS", 3),
    *("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "transformer_encoder"),
]
PLAIN = [*SEMANTIC, "MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead"]
PLUS = [*SEMANTIC, "MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselinePlusHead"]
EARLIER = {"loss_sem_seg_0", "loss_sem_seg_1"}


def make(**changes: Any) -> PerPixelBaselineHead:
    decoder = BasePixelDecoder(SHAPES, conv_dim=32, mask_dim=8)
    settings = {"num_classes": 3, "pixel_decoder": decoder, "mask_dim": 8, "ignore_value": 255}
    return PerPixelBaselineHead(SHAPES, **{**settings, **changes})


def loss_of(head: PerPixelBaselineHead, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return head.losses(scores, labels)["loss_sem_seg"]


def maps(head: nn.Module) -> dict[str, torch.Tensor]:
    """Return maps of a ResNet-50 for an image of 64 x 64."""
    return {name: torch.randn(1, 2**i * 256, 16 // 2**i, 16 // 2**i) for i, name in enumerate(head.in_features)}


def test_loss_is_the_mean_over_labeled_pixels() -> None:
    head = make(loss_weight=0.5)
    scores, labels = torch.randn(2, 3, 4, 6), torch.randint(0, 3, (2, 16, 24))
    labels[0, :5] = 255
    enlarged = F.interpolate(scores, scale_factor=4, mode="bilinear", align_corners=False)
    expected = 0.5 * F.cross_entropy(enlarged, labels, ignore_index=255)
    torch.testing.assert_close(loss_of(head, scores, labels), expected)


def test_loss_by_hand() -> None:
    """Two classes, one constant score map: log(1 + exp(-2)) for class 0, two more for class 1."""
    scores = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    labels = torch.full((1, 8, 8), 255)
    labels[0, 0, :3], labels[0, 1, 0] = 0, 1
    low = torch.log1p(torch.exp(torch.tensor(-2.0)))
    torch.testing.assert_close(loss_of(make(), scores, labels), (4 * low + 2) / 4)


def test_without_labeled_pixels_the_loss_is_zero_and_stays_in_the_graph() -> None:
    scores = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = loss_of(make(), scores, torch.full((1, 8, 8), 255))
    loss.backward()
    assert loss == 0 and scores.grad is not None and not scores.grad.any()


def test_labels_whose_size_is_no_multiple_of_the_stride() -> None:
    """The upsampled scores are larger than the image there; they are cropped, not resized."""
    scores, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 13, 14))
    padded = F.pad(labels, (0, 2, 0, 3), value=255)
    torch.testing.assert_close(loss_of(make(), scores, labels), loss_of(make(), scores, padded))


def test_a_wrong_stride_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"COMMON_STRIDE 4.*16 x 16.*IN_FEATURES"):
        loss_of(make(), torch.randn(1, 3, 2, 2), torch.zeros(1, 16, 16, dtype=torch.int64))


def test_scores_are_a_convolution_of_the_mask_features() -> None:
    head = make().eval()
    features = {k: torch.randn(1, 4, 64 // s.stride, 96 // s.stride) for k, s in SHAPES.items()}
    with torch.no_grad():
        scores, losses = head(features)
        weight = head.predictor.weight[:, :, 0, 0]
        by_hand = torch.einsum("kc,bchw->bkhw", weight, head.pixel_decoder(features)[0])
    by_hand = by_hand + head.predictor.bias[:, None, None]
    assert losses == {} and scores.shape == (1, 3, 64, 96)
    expected = F.interpolate(by_hand, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("options", "names"), [(PLAIN, set()), (PLUS, EARLIER)], ids=["plain", "plus"])
def test_step_and_prediction(options: list[Any], names: set[str]) -> None:
    model = tiny(CONFIG, *options)
    batch = [record(64, 96, 0, CLASSES), record(50, 70, 0, CLASSES)]
    losses = model.train()(batch)
    assert set(losses) == names | {"loss_sem_seg"} and all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    with torch.no_grad():
        results = model.eval()(batch)
    assert [set(r) for r in results] == [{"sem_seg"}] * 2
    assert results[1]["sem_seg"].shape == (CLASSES, 55, 67)


@pytest.mark.slow
@pytest.mark.parametrize("options", [PLAIN, PLUS], ids=["plain", "plus"])
def test_training_lowers_the_loss(options: list[Any]) -> None:
    model = tiny(CONFIG, *options).train()
    sample = record(64, 64, 0, CLASSES)
    sample["sem_seg"] = (torch.arange(64)[:, None] // 32).expand(64, 64).contiguous()
    optimizer = torch.optim.AdamW(model.sem_seg_head.parameters(), 3e-3)
    history: list[float] = []
    for _ in range(10):
        loss = sum(model([sample]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


def test_query_k_of_the_plus_head_is_class_k() -> None:
    model = tiny(CONFIG, *PLUS).eval()
    head = model.sem_seg_head
    assert not any("class_embed" in name for name, _ in head.named_parameters())
    with torch.no_grad():
        features = model.backbone(torch.randn(1, 3, 64, 64))
        scores = head(features)[0]
        mask_features, encoded, _ = head.pixel_decoder(features)
        masks = head.predictor(encoded, mask_features)["pred_masks"]
    expected = F.interpolate(masks, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(scores, expected)


def test_training_and_inference_score_alike() -> None:
    head = tiny(CONFIG, *PLUS).sem_seg_head
    features = maps(head)
    training, earlier = head.train().layers(features)
    assert [prediction["pred_masks"].shape for prediction in earlier] == [training.shape] * 2
    torch.testing.assert_close(training, head.eval().layers(features)[0], atol=1e-4, rtol=1e-4)


def test_without_deep_supervision() -> None:
    model = tiny(CONFIG, *PLUS, "MODEL.MASK_FORMER.DEEP_SUPERVISION", False).train()
    assert set(model([record(64, 64, 0, CLASSES)])) == {"loss_sem_seg"}


def test_number_of_queries_must_be_that_of_classes() -> None:
    with pytest.raises(ValueError, match=r"NUM_OBJECT_QUERIES is 12.*NUM_CLASSES, 7"):
        tiny(CONFIG, *PLUS, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 12)


def test_training_without_labels_names_the_mapper() -> None:
    sample = record(64, 64, 0)
    del sample["sem_seg"]
    with pytest.raises(ValueError, match="DATASET_MAPPER_NAME"):
        tiny(CONFIG, *PLAIN).train()([sample])


@pytest.mark.parametrize("options", [PLAIN, PLUS], ids=["plain", "plus"])
def test_first_form_of_checkpoints(options: list[Any]) -> None:
    model, other = tiny(CONFIG, *options), tiny(CONFIG, *options)
    old = {k.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): v for k, v in model.state_dict().items()}
    assert old.keys() != other.state_dict().keys()
    load_into(other, old, strict=True)
    for key, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_names_of_weights() -> None:
    """As in published checkpoints: the predictor is a convolution, or a decoder without classes."""
    plain = {n.removeprefix("sem_seg_head.") for n in tiny(CONFIG, *PLAIN).state_dict()}
    plus = {n.removeprefix("sem_seg_head.") for n in tiny(CONFIG, *PLUS).state_dict()}
    assert {n for n in plain if n.startswith("predictor.")} == {"predictor.weight", "predictor.bias"}
    wanted = {"predictor.query_embed.weight", "predictor.transformer.decoder.norm.weight", "predictor.input_proj.bias"}
    assert wanted - plus == {"predictor.input_proj.bias"}  # the encoded map has the decoder's channels
    assert {n for n in plus if n.startswith("pixel_decoder.")} == {n for n in plain if n.startswith("pixel_decoder.")}


@pytest.mark.parametrize("options", [PLAIN, PLUS], ids=["plain", "plus"])
def test_loss_is_fp32_under_bf16(options: list[Any]) -> None:
    model, batch = tiny(CONFIG, *options).train(), [record(64, 64, 0, CLASSES)]
    exact = model(batch)["loss_sem_seg"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch)["loss_sem_seg"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("options", [PLAIN, PLUS], ids=["plain", "plus"])
def test_step_reads_no_value_from_the_device(options: list[Any]) -> None:
    head = tiny(CONFIG, *options).sem_seg_head
    features, labels = maps(head), torch.randint(0, CLASSES, (1, 64, 64))
    with NoHostReads():
        losses = head.train()(features, labels)[1]
        sum(losses.values()).backward()
        head.eval()(features)
    with pytest.raises(AssertionError, match="waits for the device"), NoHostReads():
        float(losses["loss_sem_seg"].detach())


def test_any_pixel_decoder_will_do() -> None:
    """One that only keeps the contract of ADVANCED_USAGE.md: no attribute tells its channels."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(4, 8, 1)

        def forward_features(self, features: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None, list[torch.Tensor]]:
            return self.convolution(features["res2"]), None, []

    scores, _ = make(pixel_decoder=Plain()).eval()({"res2": torch.randn(1, 4, 8, 8)})
    assert scores.shape == (1, 3, 32, 32)
