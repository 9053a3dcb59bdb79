"""Products of bf16 numbers with results in fp32."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mask2former.modeling import half_products, outputs, point_sampling
from mask2former.modeling.half_products import are_halves, in_two, product, twice
from mask2former.modeling.outputs import DecoderOutputs, MaskLogits, mask_logits
from mask2former.modeling.point_sampling import Predictions
from mask2former.modeling.transformer_decoder import attention_masks
from mask2former.modeling.transformer_decoder.attention_masks import LevelMasks

from .tiny_models import clip, record, tiny

BF16 = torch.bfloat16
R18 = [*("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64), *("MODEL.RESNETS.STEM_TYPE", "basic")]
IMAGES = "configs/coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
CLIPS = "configs/youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
GROUPS = ["MODEL.MASK_FORMER.QUERY_GROUPS", 2, "MODEL.MASK_FORMER.DENOISING.QUERIES", 6]
STEPS = {
    "images": (IMAGES, [], [record(64, 96, 3, 80), record(64, 64, 0, 80, 1)]),
    "groups and denoising": (IMAGES, GROUPS, [record(64, 96, 3, 80), record(64, 64, 1, 80, 1)]),
    "selection": (
        IMAGES,
        ["MODEL.MASK_FORMER.QUERY_SELECTION", True],
        [record(64, 64, 2, 80), record(64, 64, 2, 80, 1)],
    ),
    "clips": (CLIPS, [], [clip(64, 64, 2, 2, 40), clip(64, 64, 2, 1, 40, 1)]),
}


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all bf16 tensors, not only those of a GPU."""
    for module in (half_products, outputs, point_sampling, attention_masks):
        monkeypatch.setattr(module, "are_halves", lambda *tensors: all(x.dtype == BF16 for x in tensors))


def test_bf16_on_a_cpu_is_multiplied_by_autocast_as_before() -> None:
    assert not are_halves(torch.zeros(2, dtype=BF16))


class OnGpu:
    """What `are_halves` reads of a bf16 tensor on a GPU."""

    is_cuda, dtype, device = True, BF16, torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("major", "exists", "compiles", "tracing", "expected"),
    [
        (9, True, True, "", True),
        (8, True, True, "", True),
        (7, True, True, "", False),  # bf16 is emulated
        (9, False, True, "", False),
        (9, True, True, "compiling", True),
        (9, True, False, "compiling", False),
        (9, True, False, "", True),
        (9, True, True, "exporting", False),
    ],
)
def test_where_the_product_exists(
    major: int, exists: bool, compiles: bool, tracing: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    properties = SimpleNamespace(major=major)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: asked.append(device) or properties)
    monkeypatch.setattr(half_products, "_EXISTS", exists)
    monkeypatch.setattr(half_products, "_COMPILES", compiles)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: tracing != "")
    monkeypatch.setattr(half_products, "is_exporting", lambda: tracing == "exporting")
    assert are_halves(OnGpu(), OnGpu()) == expected
    assert set(asked) <= {OnGpu.device}


def test_two_halves_have_sixteen_bits() -> None:
    x = torch.randn(3, 5, 7)
    high, low = in_two(x, 1).chunk(2, 1)
    assert high.dtype == BF16
    torch.testing.assert_close(high.double() + low.double(), x.double(), rtol=2**-16, atol=0)
    assert torch.equal(twice(x, 1), torch.cat((x, x), 1))


def test_products_are_those_of_fp32() -> None:
    a, b = torch.randn(2, 3, 8).to(BF16), torch.randn(2, 8, 5)
    torch.testing.assert_close(product(a, b.to(BF16)), a.float() @ b.to(BF16).float())
    torch.testing.assert_close(product(twice(a, 2), in_two(b, 1)), a.float() @ b, rtol=1e-4, atol=1e-4)
    out = torch.empty(3, 5)
    product(a[0], b[0].to(BF16), out)
    assert torch.equal(out, product(a[0], b[0].to(BF16)))


def test_mask_logits(everywhere: None) -> None:
    embeds, features = torch.randn(2, 3, 4).to(BF16), torch.randn(2, 2, 4, 5, 6).to(BF16)
    expected = mask_logits(embeds.float(), features.float())
    torch.testing.assert_close(mask_logits(embeds, features), expected)
    learned = mask_logits(embeds.requires_grad_(), features)
    torch.testing.assert_close(learned, expected)
    learned.sum().backward()
    assert embeds.grad is not None and embeds.grad.dtype == BF16


@pytest.mark.parametrize("frames", [1, 2])
def test_masks_of_a_level(frames: int, everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    features, embeds = torch.randn(4, 8, 8, 12).to(BF16), torch.randn(4 // frames, 3, 8).to(BF16)
    found = LevelMasks(features, (4, 6), frames).logits(embeds)
    monkeypatch.setattr(attention_masks, "are_halves", lambda *tensors: False)
    expected = LevelMasks(features, (4, 6), frames).logits(embeds)
    assert found.shape == (4 // frames, 3, frames * 24) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_level_is_held_once(everywhere: None) -> None:
    masks = LevelMasks(torch.randn(2, 8, 8, 12).to(BF16), (4, 6), 1)
    masks.logits(torch.randn(2, 3, 8).to(BF16))
    held = [x for x in vars(masks).values() if isinstance(x, torch.Tensor) and x.shape[-1] != 12]
    assert sum(x.nbytes for x in held) == 4 * 2 * 8 * 4 * 6


def test_embeddings_of_another_type_are_multiplied_with_what_the_level_was_before(everywhere: None) -> None:
    features, embeds = torch.randn(2, 8, 8, 8).to(BF16), torch.randn(2, 3, 8)
    masks = LevelMasks(features, (4, 4), 1)
    maps = torch.nn.functional.interpolate(features.float(), (4, 4), mode="bilinear")
    torch.testing.assert_close(masks.logits(embeds), embeds @ maps.flatten(2))


def predictions(frames: int) -> tuple[Predictions, torch.Tensor, torch.Tensor]:
    """Return predictions of two layers for two images, and what has gradients: embeddings and features."""
    leaves = [torch.randn(*shape).to(BF16) for shape in ((2, 2, 3, 8), (2, frames, 8, 6, 5))]
    embeds, features = (x.requires_grad_() for x in leaves)
    layers = [
        DecoderOutputs(pred_logits=torch.randn(2, 3, 4), pred_masks=MaskLogits(e, features, frames > 1)) for e in embeds
    ]
    layers[0]["aux_outputs"] = layers[1:]
    return Predictions.of(layers[0]), embeds, features


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize(
    ("position", "sizes"), [([0, 7, 3, 10], (2, 2)), ([4], (0, 1)), ([1, 8, 2], (3, 0)), ([], (0, 0))]
)
def test_matched_masks_and_their_gradients(
    position: list[int], sizes: tuple[int, int], frames: int, everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, expected = [], []
    for results, ours in ((found, True), (expected, False)):
        torch.manual_seed(0)
        if not ours:
            monkeypatch.setattr(point_sampling, "are_halves", lambda *tensors: False)
        given, embeds, features = predictions(frames)
        assert (given.halves is not None) == ours
        logits = given.matched(torch.tensor(position, dtype=torch.int64), sizes)
        weights = torch.randn(logits.shape)
        (logits * weights).sum().backward()
        results += [logits.detach(), embeds.grad, features.grad]
    torch.testing.assert_close(found[0], expected[0])
    for gradient, other in zip(found[1:], expected[1:], strict=True):
        assert gradient.dtype == BF16
        torch.testing.assert_close(gradient, other, rtol=3e-2, atol=3e-2)


def test_clips_in_fp32_are_not_copied(everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given, *_ = predictions(2)
    assert given.features is not None
    seen: list[torch.Tensor] = []
    real = point_sampling.products
    monkeypatch.setattr(point_sampling, "products", lambda *args: seen.append(args[1]) or real(*args))
    given.matched(torch.tensor([0, 7]), (1, 1))
    assert seen[0].untyped_storage().data_ptr() == given.features.untyped_storage().data_ptr()


def test_samples_for_matching(everywhere: None) -> None:
    given, *_ = predictions(1)
    points = torch.rand(2, 9, 2)
    expected = torch.cat(list(given.sample(points, 1)))
    assert expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(list(given.sample(points, 1))), expected, rtol=1e-4, atol=1e-4)


def test_groups_of_queries_keep_their_halves(everywhere: None) -> None:
    layers = [DecoderOutputs(pred_logits=torch.randn(1, 3, 4)) for _ in range(2)]
    features = torch.randn(1, 1, 8, 4, 4).to(BF16)
    embeds = [torch.randn(1, 3, 8).to(BF16) for _ in layers]
    for layer, each in zip(layers, embeds, strict=True):
        layer["pred_masks"] = MaskLogits(each, features, False)
    joined = Predictions.of_groups(layers)
    assert joined.halves is not None and torch.equal(joined.halves[0], torch.stack(embeds))
    assert torch.equal(joined.halves[1], features)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "more", "batch"), STEPS.values(), ids=STEPS.keys())
def test_a_training_step_has_the_same_losses_and_gradients(
    config: str, more: list[Any], batch: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = tiny(config, *R18, *more).train()
    found: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
    for dtype in (None, BF16):
        for module in (half_products, outputs, point_sampling, attention_masks):
            monkeypatch.setattr(module, "are_halves", lambda *xs, dtype=dtype: all(x.dtype == dtype for x in xs))
        torch.manual_seed(1)
        model.zero_grad()
        with torch.autocast("cpu", BF16):
            losses = model(batch)
        sum(losses.values()).backward()
        found.append((losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (losses, gradients), (of_halves, gradients_of_halves) = found
    torch.testing.assert_close(of_halves, losses, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == gradients_of_halves.keys()
    for name, expected in gradients.items():
        if expected.norm() > 1e-3:  # but for biases ahead of a norm, whose gradients are what rounding leaves
            difference = (gradients_of_halves[name] - expected).norm() / expected.norm()
            assert difference < 0.1, f"{name}: {difference}"


def test_autocast_leaves_products_in_fp32() -> None:
    a, b = torch.randn(2, 3, 8).to(BF16), torch.randn(2, 8, 5).to(BF16)
    with torch.autocast("cpu", BF16):
        found = product(a, b)
    assert torch.equal(found, product(a, b)) and found.dtype == torch.float32


@pytest.mark.gpu
def test_the_kernels_of_a_gpu() -> None:
    a, b = torch.randn(4, 30, 256, device="cuda").to(BF16), torch.randn(4, 256, 1000, device="cuda").to(BF16)
    if not are_halves(a, b):
        pytest.skip("this GPU or this PyTorch has no such product")
    expected = (a.double() @ b.double()).float()
    torch.testing.assert_close(product(a, b), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        product(a, b.transpose(1, 2).contiguous().transpose(1, 2)), expected, rtol=1e-4, atol=1e-3
    )
    out = torch.empty(30, 1000, device="cuda")
    product(a[1], b[1], out)
    torch.testing.assert_close(out, expected[1], rtol=1e-4, atol=1e-3)
    full = torch.randn(4, 256, 1000, device="cuda")
    split = product(twice(a, 2), in_two(full, 1))
    torch.testing.assert_close(split, (a.double() @ full.double()).float(), rtol=1e-3, atol=3e-3)
