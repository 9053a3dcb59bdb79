"""Models as other projects use them at inference: by parts, attributes set, methods overridden, hooks registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.structures import ImageList, Instances

from mask2former import MaskFormer
from mask2former.modeling.meta_arch.mask_former_head import MaskFormerHead

from .client_models import batch, client_config, client_model, shapes

PREDICTION = {"pred_logits": (1, 7, 134), "pred_masks": (1, 7, 16, 16)}


@pytest.fixture(scope="module")
def shared() -> Any:
    return client_model()


@pytest.fixture
def model(shared: Any) -> Any:
    return shared.eval()


def one_image() -> list[dict[str, Any]]:
    return [{"image": torch.rand(3, 64, 64) * 255, "height": 40, "width": 50}]


def test_head_called_by_hand(model: Any) -> None:
    images = ImageList.from_tensors([torch.rand(3, 64, 64)], 32)
    with torch.no_grad():
        outputs = model.sem_seg_head(model.backbone(images.tensor))
    assert list(outputs) == ["pred_logits", "pred_masks", "aux_outputs"]
    assert shapes(outputs) == {**PREDICTION, "aux_outputs": [PREDICTION] * 3}
    masks = F.interpolate(outputs["pred_masks"], size=(64, 64), mode="bilinear", align_corners=False)
    assert masks.shape == (1, 7, 64, 64)
    assert outputs["pred_masks"].dtype == torch.float32


def test_pixel_decoder_and_predictor_called_by_hand(model: Any) -> None:
    with torch.no_grad():
        features = model.backbone(torch.rand(1, 3, 64, 64))
        mask_features, encoded, levels = model.sem_seg_head.pixel_decoder.forward_features(features)
        outputs = [
            model.sem_seg_head.predictor(levels, mask_features),
            model.sem_seg_head.predictor(levels, mask_features, None),
        ]
    assert shapes([mask_features, encoded, levels]) == [
        (1, 32, 16, 16),
        (1, 32, 2, 2),
        [(1, 32, 2, 2), (1, 32, 4, 4), (1, 32, 8, 8)],
    ]
    assert torch.equal(outputs[0]["pred_masks"], outputs[1]["pred_masks"])


def test_inference_methods_have_the_forms_of_their_results(model: Any) -> None:
    logits, masks = torch.randn(7, 134), torch.randn(7, 16, 16)
    assert model.semantic_inference(logits, masks).shape == (133, 16, 16)
    panoptic, segments = model.panoptic_inference(logits, masks)
    assert panoptic.shape == (16, 16) and panoptic.dtype == torch.int32
    assert {s["id"] for s in segments} == set(panoptic.unique().tolist()) - {0}
    instances = model.instance_inference(logits, masks)
    assert instances.pred_masks.shape == (len(instances), 16, 16) and instances.pred_masks.dtype == torch.bool
    assert (instances.pred_classes < 80).all()  # with panoptic results, stuff is no instance


def test_inference_methods_give_what_the_model_returns(model: Any) -> None:
    """Called with the logits of a forward pass at the size of the results, each method computes the model's result."""
    record = one_image()[0]
    got: dict[str, Any] = {}
    hook = model.sem_seg_head.register_forward_hook(lambda module, inputs, outputs: got.update(outputs))
    with torch.no_grad():
        result = model([record])[0]
    hook.remove()
    masks = F.interpolate(got["pred_masks"], (64, 64), mode="bilinear", align_corners=False)
    masks = F.interpolate(masks, (40, 50), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(model.semantic_inference(got["pred_logits"][0], masks), result["sem_seg"])
    panoptic, segments = model.panoptic_inference(got["pred_logits"][0], masks)
    assert torch.equal(panoptic, result["panoptic_seg"][0]) and segments == result["panoptic_seg"][1]
    instances = model.instance_inference(got["pred_logits"][0], masks)
    assert torch.equal(instances.pred_masks, result["instances"].pred_masks)
    torch.testing.assert_close(instances.scores, result["instances"].scores)


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (
            lambda model: model,
            "num_queries overlap_threshold object_mask_threshold metadata size_divisibility pixel_mean pixel_std "
            "sem_seg_postprocess_before_inference semantic_on instance_on panoptic_on test_topk_per_image criterion "
            "backbone sem_seg_head device prepare_targets",
        ),
        (
            lambda model: model.sem_seg_head.predictor,
            "num_queries num_heads num_layers num_feature_levels pe_layer query_feat query_embed level_embed "
            "input_proj class_embed mask_embed decoder_norm transformer_self_attention_layers "
            "transformer_cross_attention_layers transformer_ffn_layers forward_prediction_heads _set_aux_loss "
            "mask_classification",
        ),
        (
            lambda model: model.sem_seg_head,
            "in_features ignore_value common_stride loss_weight pixel_decoder predictor transformer_in_feature "
            "num_classes layers",
        ),
        (
            lambda model: model.criterion,
            "loss_labels loss_masks get_loss _get_src_permutation_idx _get_tgt_permutation_idx empty_weight num_points "
            "oversample_ratio importance_sample_ratio eos_coef losses matcher weight_dict",
        ),
    ],
    ids=["model", "decoder", "head", "criterion"],
)
def test_attributes(model: Any, part: Any, names: str) -> None:
    assert [name for name in names.split() if not hasattr(part(model), name)] == []


def test_attributes_that_are_set_act() -> None:
    model = client_model()
    with torch.no_grad():
        assert sorted(model(one_image())[0]) == ["instances", "panoptic_seg", "sem_seg"]
        model.semantic_on = model.panoptic_on = False
        model.test_topk_per_image = 3
        result = model(one_image())[0]
        assert list(result) == ["instances"] and len(result["instances"]) == 3
        model.instance_on, model.panoptic_on, model.object_mask_threshold = False, True, 1.0
        result = model(one_image())[0]
        assert list(result) == ["panoptic_seg"] and result["panoptic_seg"][1] == []
        model.object_mask_threshold = 0.0
        assert model(one_image())[0]["panoptic_seg"][1]
        model.overlap_threshold = 1e9
        assert model(one_image())[0]["panoptic_seg"][1] == []


def test_overridden_inference_methods_make_the_results() -> None:
    calls: list[str] = []

    class Mine(MaskFormer):
        def semantic_inference(self, mask_cls, mask_pred):
            calls.append("semantic")
            assert mask_cls.shape == (7, 134) and mask_pred.shape == (7, 40, 50)
            return 2 * super().semantic_inference(mask_cls, mask_pred)

        def panoptic_inference(self, mask_cls, mask_pred):
            calls.append("panoptic")
            panoptic, segments = super().panoptic_inference(mask_cls, mask_pred)
            return panoptic + 100, segments

        def instance_inference(self, mask_cls, mask_pred):
            calls.append("instance")
            return super().instance_inference(mask_cls, mask_pred)[:2]

    plain, mine = client_model(), Mine(client_config()).eval()
    mine.load_state_dict(plain.state_dict())
    record = one_image()
    with torch.no_grad():
        expected, found = plain(record)[0], mine(record)[0]
    assert sorted(calls) == ["instance", "panoptic", "semantic"]
    torch.testing.assert_close(found["sem_seg"], 2 * expected["sem_seg"])
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0] + 100)
    assert len(found["instances"]) == 2
    assert torch.equal(found["instances"].pred_masks, expected["instances"].pred_masks[:2])


def test_a_method_assigned_to_the_model_acts_and_semantic_scores_are_resized() -> None:
    options = ["MODEL.MASK_FORMER.TEST.INSTANCE_ON", False, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False]
    model = client_model(client_config(options=options))
    assert not model.settings.at_output_size
    seen = []

    def ones(mask_cls: torch.Tensor, mask_pred: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(mask_pred.shape))
        return torch.ones(133, *mask_pred.shape[1:])

    model.semantic_inference = ones
    with torch.no_grad():
        result = model(one_image())[0]["sem_seg"]
    assert seen == [(7, 64, 64)] and result.shape == (133, 40, 50) and torch.allclose(result, torch.ones(()))


def test_hooks_on_attention_and_norm(model: Any) -> None:
    attended, normed, classes = [], [], []
    decoder = model.sem_seg_head.predictor
    hooks = [
        layer.multihead_attn.register_forward_hook(lambda module, inputs, output: attended.append(output))
        for layer in decoder.transformer_cross_attention_layers
    ]
    hooks.append(decoder.decoder_norm.register_forward_hook(lambda module, inputs, output: normed.append(output)))
    hooks.append(decoder.class_embed.register_forward_hook(lambda module, inputs, output: classes.append(output)))
    with torch.no_grad():
        model([{"image": torch.rand(3, 64, 64) * 255}])
    for hook in hooks:
        hook.remove()
    assert [len(output) for output in attended] == [2] * 3 and attended[0][0].shape == (7, 1, 32)
    assert shapes(normed) == [(7, 1, 32)] * 4
    assert shapes(classes) == [(1, 7, 134)] * 4


def test_explicit_keywords_of_the_reference() -> None:
    class Mine(MaskFormer):
        @configurable
        def __init__(
            self,
            *,
            backbone,
            sem_seg_head,
            criterion,
            num_queries,
            object_mask_threshold,
            overlap_threshold,
            metadata,
            size_divisibility,
            sem_seg_postprocess_before_inference,
            pixel_mean,
            pixel_std,
            semantic_on,
            panoptic_on,
            instance_on,
            test_topk_per_image,
            mine,
        ):
            super().__init__(
                backbone=backbone,
                sem_seg_head=sem_seg_head,
                criterion=criterion,
                num_queries=num_queries,
                object_mask_threshold=object_mask_threshold,
                overlap_threshold=overlap_threshold,
                metadata=metadata,
                size_divisibility=size_divisibility,
                sem_seg_postprocess_before_inference=sem_seg_postprocess_before_inference,
                pixel_mean=pixel_mean,
                pixel_std=pixel_std,
                semantic_on=semantic_on,
                panoptic_on=panoptic_on,
                instance_on=instance_on,
                test_topk_per_image=test_topk_per_image,
            )
            self.mine = mine

        @classmethod
        def from_config(cls, cfg):
            return {**super().from_config(cfg), "mine": 1}

    model = Mine(client_config()).train()
    assert model.mine == 1 and len(model(batch())) == 12


def test_overridden_layers_of_the_head_are_called() -> None:
    calls = []

    class ClientHead(MaskFormerHead):
        def layers(self, features, mask=None):
            calls.append(1)
            return super().layers(features, mask)

    SEM_SEG_HEADS_REGISTRY.register(ClientHead)
    try:
        model = client_model(client_config(options=["MODEL.SEM_SEG_HEAD.NAME", "ClientHead"]), train=True)
        model(batch(1))
        model.eval()(one_image())
    finally:
        del SEM_SEG_HEADS_REGISTRY._obj_map["ClientHead"]
    assert len(calls) == 2


def test_results_are_detectron2s(model: Any) -> None:
    with torch.no_grad():
        result = model(one_image())[0]
    assert isinstance(result["instances"], Instances) and result["sem_seg"].shape == (133, 40, 50)
    assert result["panoptic_seg"][0].shape == (40, 50)
