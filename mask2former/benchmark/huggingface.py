"""Hugging Face's Mask2Former of the same size with random weights, to compare with; nothing is downloaded."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..checkpoint.huggingface_config import config_to_huggingface
from ..structures.task import Task, tasks_of
from ..utils.device import forked_random
from .measure import StepsInARow, Work
from .synthetic import batch_of

NAME = "Hugging Face"


def build(cfg: CfgNode) -> Any:
    """Build their model like that of a config, on the device of the config.

    Raises:
        ValueError: transformers is not installed, or lacks such a model.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError("--compare huggingface needs transformers: pip install transformers") from error
    settings = config_to_huggingface(_with_swin(cfg))
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        settings["backbone_config"] = _resnet(cfg, transformers)
    elif cfg.MODEL.BACKBONE.NAME != "D2SwinTransformer":
        raise ValueError(f"--compare huggingface: it has no {cfg.MODEL.BACKBONE.NAME}, only ResNet and Swin")
    else:
        settings["backbone_config"] = transformers.SwinConfig(**settings["backbone_config"])
    settings.pop("architectures")
    with forked_random(torch.device(cfg.MODEL.DEVICE)):
        torch.manual_seed(0)
        config = transformers.Mask2FormerConfig(**settings)
        return transformers.Mask2FormerForUniversalSegmentation(config).to(cfg.MODEL.DEVICE)


def _with_swin(cfg: CfgNode) -> CfgNode:
    """Return a config whose backbone can be converted; only the settings of the other parts are used for ResNets."""
    changed = cfg.clone()
    changed.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    return changed


def _resnet(cfg: CfgNode, transformers: Any) -> Any:
    depths = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}.get(cfg.MODEL.RESNETS.DEPTH)
    if depths is None:
        raise ValueError(f"--compare huggingface: no ResNet of depth {cfg.MODEL.RESNETS.DEPTH}")
    stages = ["stage1", "stage2", "stage3", "stage4"]
    return transformers.ResNetConfig(depths=depths, layer_type="bottleneck", out_features=stages)


def _compiled(model: nn.Module, cfg: CfgNode) -> Any:
    """Compile their model if ours is to be compiled in all cases."""
    return torch.compile(model) if cfg.MODEL.COMPILE == "compile" else model


def _pixels(args: argparse.Namespace, cfg: CfgNode) -> Tensor:
    """Return normalized images (B, 3, H, W), padded as ours."""
    images = torch.stack([sample["image"] for sample in batch_of(args, cfg)]).to(cfg.MODEL.DEVICE)
    mean, std = (
        torch.tensor(x, device=images.device).view(-1, 1, 1) for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    multiple = max(1, cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY)
    height, width = (-(-edge // multiple) * multiple for edge in args.size)
    padding = (0, width - args.size[1], 0, height - args.size[0])
    return nn.functional.pad((images - mean) / std, padding)


def inference(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Work]:
    """Return their network, and network and post-processing, on normalized pixels that are on the device."""
    from transformers import Mask2FormerImageProcessor

    model = build(cfg).eval()
    if args.dense:
        with torch.no_grad():
            for parameter in model.class_predictor.parameters():
                parameter.mul_(100.0)
    run = _compiled(model, cfg)
    pixels, processor, tasks = _pixels(args, cfg), Mask2FormerImageProcessor(), tasks_of(cfg)
    autocast = torch.autocast(pixels.device.type, torch.bfloat16, enabled=args.bf16)
    sizes = [tuple(args.source or args.size)] * args.batch

    def network() -> Any:
        with torch.inference_mode(), autocast:
            return run(pixels)

    def results() -> None:
        outputs = network()
        with torch.inference_mode():
            outputs.class_queries_logits = outputs.class_queries_logits.float()
            outputs.masks_queries_logits = outputs.masks_queries_logits.float()
            found: list[Any] = []
            if Task.SEMANTIC in tasks:
                found += [x.cpu() for x in processor.post_process_semantic_segmentation(outputs, sizes)]
            if Task.INSTANCE in tasks:
                found += processor.post_process_instance_segmentation(outputs, target_sizes=sizes)
            if Task.PANOPTIC in tasks:
                found += processor.post_process_panoptic_segmentation(
                    outputs, target_sizes=sizes, label_ids_to_fuse=set()
                )
            _ = [x["segmentation"].cpu() for x in found if isinstance(x, dict) and x["segmentation"] is not None]

    return {f"{NAME}, network": network, f"{NAME}, network and results": results}


def training(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Work]:
    """Return their forward and backward pass, and steps with AdamW and clipping; targets are on the device."""
    model = build(cfg).train()
    run = _compiled(model, cfg)
    pixels = _pixels(args, cfg)
    device = pixels.device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)
    samples = [sample["instances"] for sample in batch_of(args, cfg)]
    height, width = pixels.shape[-2:]
    masks = []
    for sample in samples:
        padding = (0, width - sample.gt_masks.shape[-1], 0, height - sample.gt_masks.shape[-2])
        masks.append(nn.functional.pad(sample.gt_masks.to(device).float(), padding))
    classes = [sample.gt_classes.to(device) for sample in samples]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def gradients() -> None:
        with autocast:
            loss = run(pixel_values=pixels, mask_labels=masks, class_labels=classes).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def step() -> None:
        gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()

    return {
        f"{NAME}, forward, losses, backward": gradients,
        f"{NAME}, training step": step,
        f"{NAME}, training steps in a row": StepsInARow(step),
    }
