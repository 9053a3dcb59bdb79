"""Views, their average, and the merging of queries, on a head that finds rectangles by their brightness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from PIL import Image
from torch import Tensor, nn

import mask2former
from mask2former import MaskFormerWithTTA, SemanticSegmentorWithTTA
from mask2former.config import load_config
from mask2former.maskformer_model import MaskFormer
from mask2former.test_time_augmentation import plan_views, with_tta
from mask2former.tta_merging import MergedQueries, match, to_image

BRIGHTNESS = (40, 90, 150, 220)  # of the objects; their classes are 0 1 2 2, and class 0 is stuff
CLASSES = (0, 1, 2, 2)
QUERIES = 7


class BrightnessHead(nn.Module):
    """Query k masks the pixels that are as bright as object k; the other queries find nothing.

    Moves with the image, so horizontally flipped views give horizontally flipped masks. `noise` disturbs masks and
    classes anew in every call, `shuffle` puts the queries into another order in every call, `blind` hides an object in
    some calls.
    """

    def __init__(self, noise: float = 0.0, shuffle: bool = False, blind: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__()
        self.noise, self.shuffle, self.blind = noise, shuffle, set(blind)
        self.generator = torch.Generator().manual_seed(0)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        level = F.avg_pool2d(images.mean(1, keepdim=True), 4)
        masks = torch.cat([8 - (level - bright).abs() for bright in BRIGHTNESS], dim=1).clamp(-8, 8)
        masks = F.pad(masks, (0, 0, 0, 0, 0, QUERIES - len(BRIGHTNESS)), value=-8.0)
        logits = torch.full((1, QUERIES, 4), -1.0)
        logits[:, :, 3] = 3.0
        for query, label in enumerate(CLASSES):
            if (len(self.calls), query) in self.blind:
                masks[:, query] = -8.0
            else:
                logits[:, query, 3], logits[:, query, label] = -1.0, 3.0
        self.calls.append(tuple(images.shape))
        if self.noise:
            masks = masks + self.noise * 6 * torch.randn(masks.shape, generator=self.generator)
            logits = logits + self.noise * torch.randn(logits.shape, generator=self.generator)
        if self.shuffle:
            order = torch.randperm(QUERIES, generator=self.generator)
            masks, logits = masks[:, order], logits[:, order]
        return {"pred_logits": logits.to(images), "pred_masks": masks}


def model(head: nn.Module, **settings: Any) -> MaskFormer:
    chosen: dict[str, Any] = {"semantic_on": True, "panoptic_on": True, "instance_on": True, "size_divisibility": 32}
    chosen |= {"object_mask_threshold": 0.5, "overlap_threshold": 0.6, "test_topk_per_image": 4}
    things = SimpleNamespace(thing_dataset_id_to_contiguous_id={1: 1, 2: 2})
    return MaskFormer(
        backbone=nn.Identity(),
        sem_seg_head=head,
        criterion=nn.Identity(),
        num_queries=QUERIES,
        metadata=things,
        sem_seg_postprocess_before_inference=False,
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
        **(chosen | settings),
    ).eval()


def config(sizes: Sequence[int], flip: bool = False, max_size: int = 1000) -> CfgNode:
    values = ["TEST.AUG.MIN_SIZES", list(sizes), "TEST.AUG.FLIP", flip, "TEST.AUG.MAX_SIZE", max_size]
    return load_config(None, [*values, "INPUT.FORMAT", "RGB"])


def object_map(height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """Number of the object, or 0 for the background, of every pixel: one object in each quarter."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((height, width), np.int64)
    for k in range(4):
        y, x = k // 2 * height // 2 + 4 * rng.integers(0, 3), k % 2 * width // 2 + 4 * rng.integers(0, 4)
        ids[y : y + 20, x : x + 28] = k + 1
    return ids


def record(ids: np.ndarray, scale: int = 1) -> dict[str, Any]:
    gray = torch.from_numpy(np.array([0, *BRIGHTNESS], np.uint8)[ids])
    height, width = ids.shape
    return {"image": gray.expand(3, -1, -1).clone(), "height": height * scale, "width": width * scale, "image_id": 5}


def test_views_run_as_the_model_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    network, ran = model(BrightnessHead()), []
    run = network.runtime
    monkeypatch.setattr(network, "runtime", lambda *args: (ran.append(tuple(args[2].shape)), run(*args))[1])
    MaskFormerWithTTA(config([64, 96]), network)([record(object_map())])
    assert ran == [(1, 3, 64, 96), (1, 3, 96, 160)]


def test_views_are_detectron2s() -> None:
    cfg = config([32, 64, 100], flip=True, max_size=120)
    sample = record(object_map(48, 80))
    sample["image"] = torch.randint(0, 256, (3, 48, 80), dtype=torch.uint8)
    theirs = DatasetMapperTTA(cfg)(sample)
    views = plan_views((48, 80), [32, 64, 100], 120, True)
    assert [view.size for view in views][::2] == [(32, 53), (64, 107), (72, 120)]
    for view, expected in zip(views, theirs, strict=True):
        assert torch.equal(view.of(sample)["image"], expected["image"])
        assert view.of(sample)["image_id"] == 5
    assert plan_views((1, 1000), [20], 100, False)[0].size == (1, 100)


class Ramp(nn.Module):
    """Scores that depend on the place and on the image's mean, so mirroring and size matter."""

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (x,) = inputs
        ramp = torch.linspace(0, 1, x["width"]).expand(x["height"], -1)
        scores = torch.stack((ramp, ramp * x["image"].shape[2], ramp * x["image"].float().mean()))
        return [{"sem_seg": scores}]


def test_semantic_scores_are_averaged() -> None:
    cfg = config([32, 64], flip=True)
    sample = record(object_map(), scale=2)
    expected = torch.zeros(3, 128, 192)
    for view, flipped in zip(DatasetMapperTTA(cfg)(sample), (False, True, False, True), strict=True):
        scores = Ramp()([view])[0]["sem_seg"]
        expected += scores.flip(2) if flipped else scores
    ours = SemanticSegmentorWithTTA(cfg, Ramp().eval())([sample])[0]
    assert list(ours) == ["sem_seg"]
    torch.testing.assert_close(ours["sem_seg"], expected / 4)
    assert not torch.allclose(ours["sem_seg"], Ramp()([sample])[0]["sem_seg"])
    mapped = SemanticSegmentorWithTTA(config([999]), Ramp().eval(), tta_mapper=DatasetMapperTTA(cfg))([sample])[0]
    torch.testing.assert_close(mapped["sem_seg"], ours["sem_seg"])


def test_a_file_is_read_where_there_is_no_image(tmp_path: Path) -> None:
    sample = record(object_map())
    Image.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    wrapped = SemanticSegmentorWithTTA(config([64], flip=True), Ramp().eval())
    expected = wrapped([sample])[0]["sem_seg"]
    assert torch.equal(wrapped([{"file_name": str(tmp_path / "a.png")}])[0]["sem_seg"], expected)
    assert wrapped([{"image": sample["image"]}])[0]["sem_seg"].shape == (3, 64, 96)
    with pytest.raises(ValueError, match=r"absent\.png"):
        wrapped([{"file_name": "absent.png"}])


def test_one_identity_view_is_plain_inference() -> None:
    sample = record(object_map(60, 90), scale=2)  # padded to 64 x 96
    plain = model(BrightnessHead(noise=0.3))([sample])[0]
    merged = MaskFormerWithTTA(config([60]), model(BrightnessHead(noise=0.3)))([sample])[0]
    assert torch.equal(plain["sem_seg"], merged["sem_seg"])
    assert torch.equal(plain["panoptic_seg"][0], merged["panoptic_seg"][0])
    assert plain["panoptic_seg"][1] == merged["panoptic_seg"][1] and plain["panoptic_seg"][1]
    for name, value in plain["instances"].get_fields().items():
        other = merged["instances"].get(name)
        assert torch.equal(getattr(value, "tensor", value), getattr(other, "tensor", other)), name


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("scale", [1, 2])
def test_mirrored_views_of_an_equivariant_model_change_nothing(shuffle: bool, scale: int) -> None:
    """Although the queries come in another order, which a plain average would mix up."""
    sample = record(object_map(), scale)
    plain = model(BrightnessHead())([sample])[0]
    merged = MaskFormerWithTTA(config([64], flip=True), model(BrightnessHead(shuffle=shuffle)))([sample])[0]
    torch.testing.assert_close(merged["sem_seg"], plain["sem_seg"])
    ids, segments = merged["panoptic_seg"]
    expected, expected_segments = plain["panoptic_seg"]
    assert len(segments) == 4
    for segment in expected_segments:
        inside = ids[expected == segment["id"]]
        assert (inside == inside[0]).all() and (ids == inside[0]).sum() == segment["area"]
        other = segments[int(inside[0]) - 1]
        assert other["category_id"] == segment["category_id"] and other["isthing"] == segment["isthing"]
        assert other["score"] == pytest.approx(segment["score"])
    ours, theirs = merged["instances"], plain["instances"]
    by_place = {mask.numpy().tobytes(): i for i, mask in enumerate(ours.pred_masks)}
    assert len(ours) == len(theirs) == 3  # the fourth is stuff
    for i, mask in enumerate(theirs.pred_masks):
        k = by_place[mask.numpy().tobytes()]
        assert ours.pred_classes[k] == theirs.pred_classes[i]
        # Plain inference resizes twice on the way to another size, which smoothes the edges a little more.
        assert ours.scores[k].item() == pytest.approx(theirs.scores[i].item(), abs=1e-5 if scale == 1 else 1e-3)
        assert torch.equal(ours.pred_boxes.tensor[k], theirs.pred_boxes.tensor[i])


def _quality(result: dict[str, Any], ids: np.ndarray) -> tuple[float, float]:
    """Mean over the objects of the best IoU with a segment, and with an instance, of the object's class."""
    panoptic, segments = result["panoptic_seg"]
    instances, overlaps = result["instances"], []
    for k, label in enumerate(CLASSES):
        mask = torch.from_numpy(ids == k + 1)

        def best(candidates: list[Tensor], mask: Tensor = mask) -> float:
            return max((float((c & mask).sum() / (c | mask).sum()) for c in candidates), default=0.0)

        found = [panoptic == s["id"] for s in segments if s["category_id"] == label]
        same = [m for m, c in zip(instances.pred_masks, instances.pred_classes, strict=True) if c == label]
        overlaps.append((best(found), best(same) if label else 1.0))
    return tuple(np.mean(overlaps, axis=0))


def test_merging_removes_noise() -> None:
    plain, merged = [], []
    for seed in range(6):
        ids = object_map(seed=seed)
        sample = record(ids)
        head = BrightnessHead(noise=1.0, shuffle=True)
        head.generator.manual_seed(seed)
        plain.append(_quality(model(head)([sample])[0], ids))
        wrapped = MaskFormerWithTTA(config([48, 64, 96], flip=True), model(head))
        merged.append(_quality(wrapped([sample])[0], ids))
        assert {call[0] for call in head.calls} == {1}, "one view at a time"
    before, after = np.mean(plain, axis=0), np.mean(merged, axis=0)
    assert (after > before + 0.05).all(), (before, after)


@pytest.mark.parametrize(
    ("blind_calls", "found"),
    [
        ([], True),
        ([1, 2, 3], True),  # the first view's objects stay
        ([0], True),  # three of four views have it
        ([0, 1], False),  # a half is not enough
        ([0, 1, 2, 3], False),
    ],
)
def test_objects_that_some_views_miss(blind_calls: list[int], found: bool) -> None:
    head = BrightnessHead(shuffle=True, blind=[(call, 2) for call in blind_calls])
    result = MaskFormerWithTTA(config([64, 64], flip=True), model(head))([record(object_map())])[0]
    ids = object_map()
    panoptic, _ = result["panoptic_seg"]
    assert len(head.calls) == 4
    assert (len(set(panoptic[torch.from_numpy(ids == 3)].tolist()) - {0}) > 0) == found
    for other in (1, 2, 4):
        assert (panoptic[torch.from_numpy(ids == other)] > 0).float().mean() > 0.8


def test_only_the_requested_results() -> None:
    sample = record(object_map())
    for requested in ("semantic_on", "panoptic_on", "instance_on"):
        switches = {name: name == requested for name in ("semantic_on", "panoptic_on", "instance_on")}
        result = MaskFormerWithTTA(config([64], flip=True), model(BrightnessHead(), **switches))([sample])[0]
        names = {"semantic_on": "sem_seg", "panoptic_on": "panoptic_seg", "instance_on": "instances"}
        assert list(result) == [names[requested]]
    semantic = model(BrightnessHead(), panoptic_on=False, instance_on=False)
    ours = MaskFormerWithTTA(config([48, 64], flip=True), semantic)([sample])[0]["sem_seg"]
    plain = SemanticSegmentorWithTTA(config([48, 64], flip=True), semantic)([sample])[0]["sem_seg"]
    torch.testing.assert_close(ours, plain)


def test_the_first_view_is_most_like_the_image() -> None:
    head = BrightnessHead()
    MaskFormerWithTTA(config([32, 128, 64], flip=True), model(head))([record(object_map())])
    assert [call[2:] for call in head.calls] == [(64, 96), *2 * [(32, 64)], *2 * [(128, 192)], (64, 96)]


def test_mirroring_padding_and_size_of_masks() -> None:
    """A linear ramp over the image, in a padded view, is a linear ramp over the result."""
    ramp = torch.arange(16.0).expand(2, 12, 16)  # cell centers of a view of 16 x 12 cells, 12 x 9 of them image
    flat = to_image(ramp, (18, 24), (9 / 12, 12 / 16), False)
    expected = (torch.arange(24.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(flat[0, 7, 1:], expected[1:])
    assert flat.shape == (2, 18, 24) and flat[0, 0, 0] == 0  # the border is repeated
    torch.testing.assert_close(to_image(ramp, (18, 24), (9 / 12, 12 / 16), True), flat.flip(2))
    rows = to_image(ramp.transpose(1, 2), (24, 18), (12 / 16, 9 / 12), False)
    torch.testing.assert_close(rows, flat.transpose(1, 2))


def test_matching_needs_class_and_place() -> None:
    overlap = np.array([[0.9, 0.8, 0.0], [0.8, 0.9, 0.0], [0.1, 0.3, 0.4]])
    agreement = np.array([[0.0, 0.9, 0.9], [0.9, 0.0, 0.9], [0.9, 0.9, 0.9]])
    old, new, fresh = match(agreement, overlap, np.array([True, True, True]))
    assert list(zip(old, new, strict=True)) == [(0, 1), (1, 0)]
    assert fresh.tolist() == [2]
    assert match(agreement, overlap, np.array([True, True, False]))[2].size == 0


def test_the_comparison_of_views_does_not_depend_on_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlaps are counts of pixels, which numbers of 16 bits would round."""
    tables: list[tuple[np.ndarray, np.ndarray]] = []
    monkeypatch.setattr(
        mask2former.tta_merging, "match", lambda *args: (tables.append((args[0], args[1])), match(*args))[1]
    )
    generator = torch.Generator().manual_seed(0)
    views = [(torch.rand(5, 4, generator=generator), torch.randn(5, 37, 41, generator=generator)) for _ in range(2)]
    for enabled in (False, True):
        merged = MergedQueries((37, 41))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for scores, masks in views:
                merged.add(scores.softmax(-1), masks, (1.0, 1.0), False)
    (plain, plain_iou), (mixed, mixed_iou) = tables
    assert np.array_equal(plain, mixed) and np.array_equal(plain_iou, mixed_iou)


def test_a_view_that_sees_no_object_speaks_against_it() -> None:
    merged = MergedQueries((4, 4))
    masks = torch.full((1, 4, 4), 9.0)
    for scores in ([[0.9, 0.1]], [[0.2, 0.8]], [[0.7, 0.3]]):
        merged.add(torch.tensor(scores), masks, (1.0, 1.0), False)
    merged.add(torch.tensor([[0.0, 1.0]]), -masks, (1.0, 1.0), False)  # abstains
    torch.testing.assert_close(merged.finish()[0], torch.tensor([[0.6, 0.4]]))


def test_quality_is_the_mean_of_the_views_that_have_the_query() -> None:
    """The second view finds the first object, not the second one, and a third one, which the last view confirms."""
    masks = torch.full((3, 8, 8), -8.0)
    for i in range(3):
        masks[i, 2 * i : 2 * i + 2] = 8.0
    nothing = torch.full((8, 8), -8.0)
    scores = torch.tensor([[0.9, 0.1]] * 3)
    views = [
        (torch.stack((masks[0], masks[1], nothing)), [0.2, 0.4, 0.6]),
        (torch.stack((masks[2], masks[0], nothing)), [0.5, 0.8, 0.0]),
        (torch.stack((masks[0], masks[2], nothing)), [0.5, 0.7, 0.0]),
    ]
    merged = MergedQueries((8, 8))
    for logits, quality in views:
        merged.add(scores, logits, (1.0, 1.0), False, torch.tensor(quality))
    found = merged.quality()
    assert found is not None and len(merged.finish()[0]) == len(found)
    torch.testing.assert_close(found[[0, 1, 3]], torch.tensor([0.5, 0.4, 0.6]))
    merged = MergedQueries((8, 8))
    merged.add(scores, masks, (1.0, 1.0), False)
    assert merged.quality() is None


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_instances_of_views_are_scored_by_quality(power: float) -> None:
    """A network that says of the k-th object how good its mask is, in every view and with queries in any order."""
    qualities = torch.tensor([0.9, 0.3, 0.5, 0.7])

    class WithQuality(BrightnessHead):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            outputs = super().forward(images)
            masks = outputs["pred_masks"]
            level = F.avg_pool2d(images.mean(1, keepdim=True), 4)
            inside = (masks > 0).float()
            bright = (level * inside).flatten(2).sum(2) / inside.flatten(2).sum(2).clamp(min=1)
            nearest = (bright[..., None] - torch.tensor(BRIGHTNESS)).abs().argmin(-1)
            return {**outputs, "pred_quality": torch.logit(qualities[nearest])}

    cfg, sample = config([64, 128], flip=True), record(object_map())
    plain = MaskFormerWithTTA(cfg, model(BrightnessHead()))([sample])[0]
    found = MaskFormerWithTTA(cfg, model(WithQuality(shuffle=True), quality_power=power))([sample])[0]
    assert torch.equal(found["panoptic_seg"][0] > 0, plain["panoptic_seg"][0] > 0)
    gray = sample["image"][0]
    for instances, factor in ((plain["instances"], 0.0), (found["instances"], power)):
        assert len(instances) == len(plain["instances"]) >= 2
        for mask, score in zip(instances.pred_masks, instances.scores, strict=True):
            which = min(range(4), key=lambda k: abs(float(gray[mask].float().mean()) - BRIGHTNESS[k]))
            expected = max(
                float(other)
                for own, other in zip(plain["instances"].pred_masks, plain["instances"].scores, strict=True)
                if (own & mask).sum() > 0.9 * (own | mask).sum()
            )
            assert float(score) == pytest.approx(expected * float(qualities[which]) ** factor, abs=0.02)


def test_no_more_than_twice_the_queries() -> None:
    merged = MergedQueries((8, 8))
    for view in range(5):
        scores = torch.tensor([[0.9, 0.1]]).expand(2, 2)
        logits = torch.full((2, 8, 8), -9.0)
        logits[0, view, :4], logits[1, view, 4:] = 9, 9
        merged.add(scores, logits, (1.0, 1.0), False)
    assert len(merged._masks) == 4
    scores, masks = merged.finish()
    assert scores.shape == (2, 2) and (masks[0, 0, :4] > 8).all() and (masks[0, 1:] < -8).all()


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    sample, cfg = record(object_map()), config([48, 64], flip=True)
    expected = MaskFormerWithTTA(cfg, model(BrightnessHead()))([sample])[0]
    found = MaskFormerWithTTA(cfg, model(BrightnessHead()).cuda())([sample])[0]
    torch.testing.assert_close(found["sem_seg"].cpu(), expected["sem_seg"], rtol=1e-4, atol=1e-4)
    assert torch.equal(found["panoptic_seg"][0].cpu(), expected["panoptic_seg"][0])
    # Objects of equal class scores may change places.
    scores = [result["instances"].scores.cpu().sort().values for result in (found, expected)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_wrapped() -> None:
    cfg = config([64])
    assert type(with_tta(cfg, model(BrightnessHead()))) is MaskFormerWithTTA
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    assert type(with_tta(cfg, Ramp())) is SemanticSegmentorWithTTA
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(ValueError, match="no test-time augmentation for a Ramp"):
        with_tta(cfg, Ramp())
    cfg.MODEL.META_ARCHITECTURE = "VideoMaskFormer"
    with pytest.raises(ValueError, match="for videos"):
        with_tta(cfg, Ramp())
    with pytest.raises(ValueError, match="MIN_SIZES is empty"):
        SemanticSegmentorWithTTA(config([]), Ramp())
    with pytest.raises(ValueError, match="eval"):
        SemanticSegmentorWithTTA(cfg, Ramp().train())([record(object_map())])
    assert mask2former.SemanticSegmentorWithTTA is SemanticSegmentorWithTTA
