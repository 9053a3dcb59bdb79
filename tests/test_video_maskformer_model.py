"""The model of clips: what it is trained on, what it gives, and that a clip of one frame is an image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances

from mask2former import VideoMaskFormer
from mask2former.checkpoint import load_into
from mask2former.modeling import network_call
from mask2former.structures.mask_bits import MaskBits
from mask2former.video_maskformer_model import clip_objects

from .modeling.tiny_models import clip, record, step_and_predict_without_syncs, tiny

R50 = "youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml"
SWIN_T = "youtubevis_2019/swin/video_maskformer2_swin_tiny_bs16_8ep.yaml"
COCO = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return tiny(R50).eval()


def frame(ids: list[int], classes: list[int], masks: Any) -> Instances:
    """Instances of a frame of 2 x 3 pixels; `masks` holds for each row the number of its first pixels that are set."""
    found = Instances((2, 3))
    found.gt_ids = torch.tensor(ids, dtype=torch.int64)
    found.gt_classes = torch.tensor(classes, dtype=torch.int64)
    found.gt_masks = torch.stack([torch.arange(6) < n for n in masks]).view(-1, 2, 3) if ids else torch.zeros(0, 2, 3)
    return found


# ---- targets
def test_labels_come_from_any_frame_that_shows_the_object() -> None:
    # The reference took the last frame's label, which for an absent object is the dummy class (here 40).
    labels, masks, _ = clip_objects([frame([7, -1], [3, 40], [2, 0]), frame([-1, 9], [40, 5], [0, 4])])
    assert labels.tolist() == [3, 5]
    assert masks.flatten(2).sum(2).tolist() == [[2, 0], [0, 4]]
    assert masks.dtype == torch.bool and masks.shape == (2, 2, 2, 3)


def test_objects_that_no_frame_shows_are_dropped() -> None:
    labels, masks, _ = clip_objects([frame([-1, 4], [40, 1], [6, 1]), frame([-1, 4], [40, 1], [6, 2])])
    assert labels.tolist() == [1] and masks.flatten(2).sum(2).tolist() == [[1, 2]]
    labels, masks, _ = clip_objects([frame([], [], []), frame([-1], [40], [3])])
    assert labels.shape == (0,) and masks.shape == (0, 2, 2, 3)


def test_frames_may_list_objects_in_any_order() -> None:
    second = frame([8, 2], [6, 1], [5, 3])
    second.gt_masks = BitMasks(second.gt_masks)
    labels, masks, _ = clip_objects([frame([2], [1], [1]), second, frame([], [], [])])
    assert labels.tolist() == [1, 6]
    assert masks.flatten(2).sum(2).tolist() == [[1, 3, 0], [0, 5, 0]]


def test_targets_reach_the_criterion(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(model, "weighted_losses", lambda outputs, targets: seen.extend([outputs, targets]))
    sample = clip(40, 50, 3, 2, 40)
    try:
        model.train()([sample, clip(30, 64, 3, 0)])
    finally:
        model.eval()
    outputs, targets = seen
    assert outputs["pred_masks"].shape[2:] == (3, 16, 16)  # (B, Q, T, H4, W4) of 64 x 64
    assert [t.size for t in targets] == [(64, 64)] * 2 and [sorted(t) for t in targets] == [
        ["ids", "labels", "masks"]
    ] * 2
    assert torch.equal(targets[0]["labels"], sample["instances"][0].gt_classes)
    for t in range(3):
        assert torch.equal(targets[0].unread("masks").masks[:, t], sample["instances"][t].gt_masks)
    assert targets[0]["ids"].tolist() == torch.stack([x.gt_ids for x in sample["instances"]], 1).tolist()
    padded = targets[0]["masks"]
    assert padded.shape == (2, 3, 64, 64) and not padded[..., 40:, :].any() and not padded[..., 50:].any()
    assert torch.equal(padded[..., :40, :50], torch.stack([x.gt_masks for x in sample["instances"]], 1))
    assert targets[1]["masks"].shape == (0, 3, 64, 64)


# ---- training
@pytest.mark.parametrize("config", [R50, SWIN_T])
def test_two_steps_lower_the_loss(config: str) -> None:
    torch.manual_seed(1)
    learner = tiny(config, "MODEL.SWIN.DROP_PATH_RATE", 0.0).train()
    batch = [clip(64, 64, 2, 1, 40)]
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(3):
        total = sum(learner(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total))
    assert history[2] < history[1] < history[0]
    with torch.no_grad():
        assert len(learner.eval()(batch)["pred_scores"]) == 10


def test_one_frame_is_a_image() -> None:
    """With T = 1 the losses equal those of the image model with the same weights and the same random points."""
    clips, images = tiny(R50).train(), tiny(COCO, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 40).train()
    # The encoding of time of the only frame is a constant; without it the models are one.
    clips.sem_seg_head.predictor.pe_layer.temporal = False
    images.load_state_dict(clips.state_dict())
    image = record(64, 96, 2, 40)
    image["instances"].gt_ids = torch.arange(2)
    sample = {"image": [image["image"]], "instances": [image["instances"]]}
    torch.manual_seed(3)
    expected = images([image])
    torch.manual_seed(3)
    found = clips([sample])
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss)


def test_wrong_records_are_named(model: Any) -> None:
    def broken(change: Any) -> list[dict[str, Any]]:
        sample = clip(32, 32, 2, 1)
        change(sample)
        return [sample, clip(32, 32, 2, 0)]

    cases = {
        r"clip clip/0\.jpg .*'instances'.*INPUT.DATASET_MAPPER_NAME": lambda s: s.pop("instances"),
        r"clip/0\.jpg .*gt_ids": lambda s: s["instances"][1].remove("gt_ids"),
        r"clip/0\.jpg has 2 frames, but instances of 1": lambda s: s["instances"].pop(),
        r"\[1, 2\] frames.*INPUT.SAMPLING_FRAME_NUM": lambda s: s["image"].pop(),
        r"one size .*has 8 x 9, 32 x 32": lambda s: s["instances"].__setitem__(0, clip(8, 9, 1, 1)["instances"][0]),
    }
    model.train()
    try:
        for message, change in cases.items():
            with pytest.raises(ValueError, match=message):
                model(broken(change))
    finally:
        model.eval()
    with pytest.raises(ValueError, match="the clip needs frames of one size .* 8 x 9, 32 x 32"):
        model.preprocess([torch.zeros(3, 32, 32), torch.zeros(3, 8, 9)])
    with pytest.raises(ValueError, match="no frames"):
        model.preprocess([])


# ---- inference
@torch.no_grad()
def test_clip_outputs_belong_together(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes; logits follow from the query embeddings; frames may go through the backbone in parts."""
    images, size = model.preprocess(clip(40, 60, 5, 0)["image"])
    outputs = model.clip_outputs(images)
    assert images.shape == (5, 3, 64, 64) and size == (40, 60)
    assert {k: tuple(v.shape) for k, v in outputs.items()} == {
        "pred_logits": (10, 41),
        "pred_masks": (10, 5, 16, 16),
        "pred_embeds": (10, 32),
    }
    predictor = model.sem_seg_head.predictor
    torch.testing.assert_close(predictor.class_embed(outputs["pred_embeds"]), outputs["pred_logits"])
    runs: list[int] = []
    hook = model.backbone.register_forward_pre_hook(lambda _, args: runs.append(len(args[0])))
    monkeypatch.setattr(network_call, "_TOGETHER", 2 * 64 * 64)
    parts = model.clip_outputs(images)
    hook.remove()
    assert runs == [2, 2, 1]
    for name, value in outputs.items():
        torch.testing.assert_close(parts[name], value, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_decoder_of_maskformer_takes_clips_too() -> None:
    node = "MODEL.MASK_FORMER"
    other = tiny(
        R50,
        *(f"{node}.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"),
        *(f"{node}.TRANSFORMER_IN_FEATURE", "pixel_embedding"),
    ).eval()
    images, _ = other.preprocess(clip(40, 60, 3, 0)["image"])
    outputs = other.clip_outputs(images)
    assert outputs["pred_masks"].shape == (10, 3, 16, 16)
    predictor = other.sem_seg_head.predictor
    torch.testing.assert_close(predictor.class_embed(outputs["pred_embeds"]), outputs["pred_logits"])


@torch.no_grad()
def test_results_are_the_best_pairs(model: Any) -> None:
    sample = clip(40, 60, 3, 0)
    images, _ = model.preprocess(sample["image"])
    outputs = model.clip_outputs(images)
    result = model([sample])
    scores, index = outputs["pred_logits"].softmax(-1)[:, :-1].flatten().sort(descending=True)
    assert result["pred_scores"] == pytest.approx(scores[:10].tolist())
    assert result["pred_labels"] == (index[:10] % 40).tolist()
    whole = F.interpolate(outputs["pred_masks"], (64, 64), mode="bilinear", align_corners=False)[..., :40, :60]
    whole = F.interpolate(whole, (45, 57), mode="bilinear", align_corners=False) > 0
    for query, mask in zip((index[:10] // 40).tolist(), result["pred_masks"], strict=True):
        assert torch.equal(mask, whole[query])
    assert model([{"image": sample["image"]}])["image_size"] == (40, 60)


def test_settings_of_the_results() -> None:
    few = tiny(R50, "TEST.DETECTIONS_PER_VIDEO", 3).eval()
    assert isinstance(few, VideoMaskFormer) and tiny(R50).test_topk_per_video == 10
    sample = clip(32, 32, 2, 0)
    with torch.no_grad():
        scores = few([sample])["pred_scores"]
        few.score_threshold = scores[1]
        above = few([sample])
        few.score_threshold = 1.0
        nothing = few([sample])
    assert len(scores) == 3
    assert above["pred_scores"] == scores[:2] and len(above["pred_masks"]) == 2
    assert nothing == {"image_size": (37, 29), "pred_scores": [], "pred_labels": [], "pred_masks": []}
    assert tiny(R50, "TEST.SCORE_THRESHOLD", 0.4).score_threshold == 0.4


# ---- weights
def test_image_model_of_coco_starts_a_video_model() -> None:
    images = tiny(COCO)
    learner = tiny(R50)
    before = learner.sem_seg_head.predictor.class_embed.weight.clone()
    report = load_into(learner, images.state_dict())
    assert not report.missing and not report.unexpected
    assert {key for key, *_ in report.reinitialized} == {
        "criterion.empty_weight",
        "sem_seg_head.predictor.class_embed.weight",
        "sem_seg_head.predictor.class_embed.bias",
    }
    other = images.state_dict()
    for name, value in learner.state_dict().items():
        assert name in {key for key, *_ in report.reinitialized} or torch.equal(value, other[name])
    assert torch.equal(learner.sem_seg_head.predictor.class_embed.weight, before)


def test_names_of_the_weights_are_those_of_the_image_model() -> None:
    images, clips = tiny(COCO, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 40), tiny(R50)
    assert list(clips.state_dict()) == list(images.state_dict())
    load_into(clips, images.state_dict(), strict=True)


@pytest.mark.gpu
def test_no_hidden_host_syncs() -> None:
    model = tiny(R50, "MODEL.DEVICE", "cuda")
    batch = [clip(64, 96, 2, 3, 40), clip(50, 70, 2, 0, 40)]
    for sample in batch:
        sample["image"] = [image.cuda() for image in sample["image"]]
    step_and_predict_without_syncs(model, batch)


@pytest.mark.parametrize("packed", [(True, True, True), (True, False, True)])
def test_frames_with_bits_are_the_same(packed: tuple[bool, ...]) -> None:
    frames = [frame([7, -1, 2], [3, 40, 1], [2, 0, 6]), frame([-1, 9], [40, 5], [0, 4]), frame([], [], [])]
    expected = clip_objects(frames)
    for each, change in zip(frames, packed, strict=True):
        if change:
            each.gt_masks = MaskBits.of(each.gt_masks.bool())
    labels, masks, ids = clip_objects(frames)
    assert isinstance(masks, MaskBits) == all(packed)
    masks = masks.unpacked() if isinstance(masks, MaskBits) else masks
    for ours, theirs in zip((labels, masks, ids), expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("nothing", [torch.zeros(0), torch.zeros(0, 0, 0)])
def test_masks_of_no_object_may_have_any_shape(nothing: torch.Tensor) -> None:
    first, second = frame([], [], []), frame([4], [1], [2])
    expected = clip_objects([first, second])
    first.gt_masks, first.gt_classes = nothing, torch.tensor([])  # float32
    assert torch.equal(clip_objects([first, second])[1], expected[1])


@pytest.mark.parametrize("pack", [MaskBits.of, lambda masks: masks])
def test_masks_of_another_size_than_their_frame_are_an_error(pack: Any) -> None:
    right, small, line = (frame([4], [1], [2]) for _ in range(3))
    small.gt_masks = pack(small.gt_masks.bool()[:, ::2, ::2])
    line.gt_masks = pack(line.gt_masks.bool()[:, :1])  # not repeated for each line
    for wrong in (small, line):
        with pytest.raises(ValueError, match=r"frame 1 of a clip has masks of \d+ x \d+, but is \d+ x \d+"):
            clip_objects([right, wrong])


def test_classes_that_are_no_whole_numbers_are_an_error() -> None:
    right, wrong = frame([4], [1], [2]), frame([4], [1], [2])
    right.gt_classes = right.gt_classes.int()
    wrong.gt_classes = wrong.gt_classes + 0.7
    with pytest.raises(TypeError, match="frame 1 of clip a.jpg has classes that are no whole numbers"):
        clip_objects([right, wrong], "clip a.jpg")


def test_losses_of_clips_with_bits_are_the_same(model: Any) -> None:
    batch = [clip(64, 96, 2, 3, 40), clip(50, 70, 2, 0, 40)]
    model.train()
    losses = []
    for packed in (False, True):
        for each in (frame for sample in batch for frame in sample["instances"]):
            each.gt_masks = MaskBits.of(each.gt_masks) if packed else each.gt_masks
        torch.manual_seed(0)
        losses.append(model(batch))
    model.eval()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_bits_are_read_on_a_gpu_by_unchanged_code(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(R50)
    assert not model.reads_mask_bits
    monkeypatch.setattr(VideoMaskFormer, "device", torch.device("cuda"))
    assert model.reads_mask_bits
    model.prepare_targets = lambda targets, images: []
    assert not model.reads_mask_bits


def test_an_id_that_a_frame_has_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"frame 1 of a clip has several objects with gt_ids 4"):
        clip_objects([frame([4], [1], [2]), frame([4, 4, -1], [1, 2, 0], [1, 2, 0])])


def test_frames_of_ground_truth_and_predictions_must_agree(model: Any) -> None:
    outputs = {"pred_logits": torch.zeros(1, 4, 41), "pred_masks": torch.zeros(1, 4, 3, 8, 8)}
    truth = [{"labels": torch.tensor([1]), "masks": torch.ones(1, 2, 32, 32, dtype=torch.bool)}]
    for call in (model.criterion, model.criterion.matcher):
        with pytest.raises(ValueError, match="ground truth have 2 frames, those of the predictions 3"):
            call(outputs, truth)


def test_a_class_that_the_model_does_not_have_is_named(model: Any) -> None:
    sample = clip(32, 32, 2, 1, 40)
    for frame_instances in sample["instances"]:
        frame_instances.gt_classes[:] = 40
    try:
        with pytest.raises(ValueError, match=r"clip .* has class 40, but MODEL\.SEM_SEG_HEAD\.NUM_CLASSES is 40"):
            model.train()([sample])
        for frame_instances in sample["instances"]:  # rows of objects that are not visible have a dummy class
            frame_instances.gt_ids[:] = -1
        model([sample])
    finally:
        model.eval()
