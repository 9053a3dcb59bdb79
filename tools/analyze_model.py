#!/usr/bin/env python
"""Count flops, activations and parameters of a model, or print its structure. Runs on the CPU.

    python tools/analyze_model.py --tasks parameter structure --config-file CONFIG
    python tools/analyze_model.py --tasks flop --use-fixed-input-size --config-file CONFIG     # needs no dataset
    python tools/analyze_model.py --tasks flop activation -n 100 --config-file CONFIG [KEY VALUE ...]

One flop is one multiply-add, as in papers and in fvcore, which does the counting. Convolutions, matrix products,
attention (both of its products), norms and interpolation are counted; deformable attention counts five flops per sample
and channel: four for the bilinear interpolation, one for the weighted sum (Deformable DETR, appendix A.1). Of the
post-processing, the product of class scores and masks is counted if semantic results are on (`semantic_scores`), as in
published numbers. Elementwise operations (activation functions, additions, softmax) are not counted. Weights do not
matter and are not loaded.

Without --use-fixed-input-size, flop and activation are averaged over the first images of DATASETS.TEST, resized as in
evaluation, because images of different sizes cost differently. One input of a video model is a clip: all frames of a
video of DATASETS.TEST, or --num-frames synthetic ones.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "mask2former").is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from detectron2.config import CfgNode  # noqa: E402
from detectron2.engine import default_argument_parser  # noqa: E402
from detectron2.modeling import META_ARCH_REGISTRY, build_model  # noqa: E402
from fvcore.nn import (  # noqa: E402
    ActivationCountAnalysis,
    FlopCountAnalysis,
    flop_count_table,
    parameter_count,
    parameter_count_table,
)
from fvcore.nn.jit_handles import generic_activation_jit, get_shape  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from mask2former.cli.parser import refuse_given  # noqa: E402
from mask2former.config import load_config  # noqa: E402
from mask2former.ops import pytorch_backend  # noqa: E402
from mask2former.structures.task import Task  # noqa: E402
from mask2former.utils.failures import run_program  # noqa: E402
from mask2former.video_maskformer_model import VideoMaskFormer  # noqa: E402

Size = tuple[int, int]
TASKS = ("flop", "activation", "parameter", "structure")
TABLE_DEPTH = 3
_INPUTS = ("num_inputs", "use_fixed_input_size", "input_size", "num_frames")
# Arguments of detectron2's parser, which are here for the commands of the reference.
_OF_TRAININGS = ("resume", "eval_only", "num_gpus", "num_machines", "machine_rank")
SAMPLE_FLOPS = 5  # per point and channel: bilinear interpolation, and the weight


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_program(_parser(), _analyze, argv, mistake=1)


def _analyze(args: argparse.Namespace) -> None:
    if not {"flop", "activation"} & set(args.tasks):
        refuse_given(args, _INPUTS, f"on {', '.join(args.tasks)}: no image is used")
    if args.input_size:
        refuse_given(args, ("use_fixed_input_size",), "with --input-size")
    if args.input_size or args.use_fixed_input_size:
        refuse_given(args, ("num_inputs",), "on a synthetic image")
    elif args.num_frames is not None:
        raise ValueError("--num-frames has no effect on the dataset; add --use-fixed-input-size, or --input-size")
    changed = next((x for x in _OF_TRAININGS if getattr(args, x) != _parser().get_default(x)), None)
    if changed is not None:
        raise ValueError(f"--{changed.replace('_', '-')} has no effect: one process counts, and nothing is trained")
    cfg = load_config(args.config_file or None, args.opts)
    cfg.MODEL.DEVICE, cfg.MODEL.TIMM.WEIGHTS = "cpu", ""
    model = _build(cfg)
    inputs = _inputs(args, cfg, model) if {"flop", "activation"} & set(args.tasks) else []
    for task in args.tasks:
        print(_REPORTS[task](model, inputs))


def _build(cfg: CfgNode) -> nn.Module:
    """Build the model in evaluation mode; its config need not match a dataset."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        known = ", ".join(key for key, _ in META_ARCH_REGISTRY)
        raise ValueError(f"MODEL.META_ARCHITECTURE '{name}' is not registered; choose one of {known}")
    return build_model(cfg).eval()


def _parser() -> argparse.ArgumentParser:
    parser = default_argument_parser(epilog=" ")
    parser.description, parser.epilog = __doc__, None
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--tasks",
        choices=TASKS,
        required=True,
        nargs="+",
        help="flop: multiply-adds by module and operator; activation: outputs of convolutions, matrix products and "
        "attention; parameter: learnable parameters by module; structure: the modules",
    )
    parser.add_argument("-n", "--num-inputs", type=int, help="images of DATASETS.TEST to average over (default 100)")
    parser.add_argument(
        "--use-fixed-input-size",
        action="store_true",
        help="one synthetic image instead of the dataset: a square of INPUT.CROP.SIZE where training crops to a fixed "
        "size, else INPUT.MIN_SIZE_TEST x INPUT.MAX_SIZE_TEST",
    )
    parser.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="one synthetic image of this size instead of the dataset",
    )
    parser.add_argument(
        "--num-frames",
        type=int,
        help="frames of a synthetic clip, for video models (default: INPUT.SAMPLING_FRAME_NUM, as in training)",
    )
    return parser


# ---- inputs
class Input(NamedTuple):
    """Sizes (H, W) of one image or clip, padded for the network and of the results; and its number of frames."""

    padded: Size
    results: Size
    frames: int = 1


def _inputs(args: argparse.Namespace, cfg: CfgNode, model: nn.Module) -> list[Input]:
    divisor = getattr(model, "size_divisibility", None) or _part(model, "backbone").size_divisibility
    if args.input_size or args.use_fixed_input_size:
        size = (args.input_size[0], args.input_size[1]) if args.input_size else fixed_size(cfg)
        if min(size) < 1:
            raise ValueError("--input-size must be positive, such as 800 1333")
        return [Input(padded(size, divisor), size, _synthetic_frames(args, cfg, model))]
    settings = getattr(model, "settings", None)
    at_output = settings is not None and settings.at_output_size
    return [
        Input(padded(size, divisor), output if at_output else size, frames)
        for size, output, frames in _dataset_sizes(cfg, 100 if args.num_inputs is None else args.num_inputs)
    ]


def _synthetic_frames(args: argparse.Namespace, cfg: CfgNode, model: nn.Module) -> int:
    """Return the number of frames T of the synthetic input: 1 for image models."""
    if not isinstance(model, VideoMaskFormer):
        if args.num_frames is not None:
            raise ValueError(f"--num-frames is for video models, but MODEL.META_ARCHITECTURE is {type(model).__name__}")
        return 1
    frames = cfg.INPUT.SAMPLING_FRAME_NUM if args.num_frames is None else args.num_frames
    if frames < 1:
        raise ValueError(f"--num-frames must be at least 1, not {frames}")
    return frames


def fixed_size(cfg: CfgNode) -> Size:
    """Return (H, W) of the synthetic image of --use-fixed-input-size."""
    if cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE == "absolute":
        side = int(cfg.INPUT.CROP.SIZE[0])
        return side, side
    return cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST


def padded(size: Size, divisor: int) -> Size:
    """Return the size after padding to multiples of `divisor` (0 or 1: none)."""
    divisor = max(divisor, 1)
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def _dataset_sizes(cfg: CfgNode, count: int) -> list[tuple[Size, Size, int]]:
    """Return for the first images of DATASETS.TEST (H, W) in the network and of the results, and the frames."""
    from mask2former.data import build_test_loader

    if count < 1:
        raise ValueError(f"--num-inputs must be at least 1, not {count}")
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: set it to a dataset, or use --use-fixed-input-size")
    cfg.DATALOADER.NUM_WORKERS = 0
    try:
        loader = build_test_loader(cfg, cfg.DATASETS.TEST[0])
        samples = [batch[0] for batch in islice(loader, count)]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}\nUse --use-fixed-input-size to count without a dataset.") from error
    sizes = []
    for sample in samples:
        frames = [sample["image"]] if isinstance(sample["image"], Tensor) else sample["image"]
        height, width = frames[0].shape[-2:]
        output = (int(sample.get("height", height)), int(sample.get("width", width)))
        sizes.append(((height, width), output, len(frames)))
    return sizes


# ---- counting
class Network(nn.Module):
    """Backbone and segmentation head: from the normalized image, or the frames of one clip, to the predictions."""

    def __init__(self, model: nn.Module, frames: int = 1) -> None:
        super().__init__()
        self.options = {"frames": frames} if frames > 1 else {}
        self.backbone = _part(model, "backbone")
        self.sem_seg_head = _part(model, "sem_seg_head")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the predictions for (T, 3, H, W) as a flat tuple of tensors."""
        outputs = self.sem_seg_head(self.backbone(image), **self.options)
        if isinstance(outputs, Mapping):  # earlier predictions are computed where they are read; inference reads none
            outputs = [outputs[key] for key in outputs if key != "aux_outputs"]
        return tuple(_tensors(outputs))


def _part(model: nn.Module, name: str) -> Any:
    part = getattr(model, name, None)
    if part is None:
        raise ValueError(
            f"{type(model).__name__} has no {name}: flop and activation need a model of backbone and sem_seg_head; use "
            "the tasks parameter and structure"
        )
    return part


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def attention_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count query times key, and weights times value; shapes (..., N, D), (..., S, D), (..., S, D)."""
    query, key, value = (get_shape(x) for x in inputs[:3])
    return Counter(attention=prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def deformable_attention_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count flops of the compiled op: value (B, S, heads, D), attention (B, N, heads, L, P)."""
    return Counter(deformable_attention=SAMPLE_FLOPS * prod(get_shape(inputs[4])) * get_shape(inputs[0])[-1])


def sampling_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count flops of the PyTorch implementation, which samples one level with `grid_sample`: (B heads, D, N, P)."""
    return Counter(deformable_attention=SAMPLE_FLOPS * prod(get_shape(outputs[0])))


_FLOPS = {
    "aten::scaled_dot_product_attention": attention_flops,
    "mask2former::ms_deform_attn": deformable_attention_flops,
    "aten::grid_sampler": sampling_flops,  # nothing else in the network samples
}
_ACTIVATIONS = {"aten::scaled_dot_product_attention": generic_activation_jit("attention")}


def analyze(model: nn.Module, size: Size, kind: type = FlopCountAnalysis, frames: int = 1) -> Any:
    """Run fvcore's analysis of backbone and head for one image or clip (T, 3, H, W).

    Args:
        size: (H, W), padded.
        kind: fvcore's class, which determines what is counted.
        frames: number of frames T.
    """
    network = Network(model, frames)
    parameter = next(network.parameters())
    analysis = kind(network, (torch.zeros(frames, 3, *size, device=parameter.device),))
    analysis.set_op_handle(**(_FLOPS if kind is FlopCountAnalysis else _ACTIVATIONS))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    # Traced shapes are tensors, which the compiled op does not accept; the PyTorch implementation has its own handle.
    with torch.no_grad(), pytorch_backend(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about Python numbers
        analysis.total()  # traces now; later calls use the cache
    return analysis


def semantic_flops(model: nn.Module, size: Size) -> int:
    """Count class scores (Q, K) times masks (Q, h, w) if the model predicts semantic results, else 0."""
    settings = getattr(model, "settings", None)
    if settings is None or Task.SEMANTIC not in settings.tasks:
        return 0
    return model.num_queries * model.sem_seg_head.num_classes * prod(size)  # type: ignore[operator, union-attr]


# ---- reports
def _flop_report(model: nn.Module, inputs: Sequence[Input]) -> str:
    by_shape = _analyze_shapes(model, inputs, FlopCountAnalysis)
    counts = []
    for x in inputs:
        scores = semantic_flops(model, x.results)
        counts.append(Counter(by_shape[_shape(x)].by_operator()) + Counter(semantic_scores=scores))
    first = inputs[0]
    frames = f"{first.frames} frames of " if first.frames > 1 else ""
    return "\n".join(
        [
            f"Flops of one input of {frames}{first.padded[0]} x {first.padded[1]} (padded), by module:",
            flop_count_table(by_shape[_shape(first)], max_depth=TABLE_DEPTH, activations=None),
            *_average("flops", counts, ("G", 1e9), _unit(inputs)),
        ]
    )


def _shape(x: Input) -> tuple[int, Size]:
    """Return what the count of the network depends on."""
    return x.frames, x.padded


def _analyze_shapes(model: nn.Module, inputs: Sequence[Input], kind: type) -> dict[tuple[int, Size], Any]:
    """Analyze the network once for each shape of the inputs."""
    return {(t, size): analyze(model, size, kind, t) for t, size in dict.fromkeys(map(_shape, inputs))}


def _unit(inputs: Sequence[Input]) -> str:
    return "clip" if any(x.frames > 1 for x in inputs) else "image"


def _activation_report(model: nn.Module, inputs: Sequence[Input]) -> str:
    by_shape = _analyze_shapes(model, inputs, ActivationCountAnalysis)
    counts = [by_shape[_shape(x)].by_operator() for x in inputs]
    return "\n".join(_average("activations", counts, ("M", 1e6), _unit(inputs)))


def _average(quantity: str, counts: Sequence[Mapping[str, int]], unit: tuple[str, float], one: str) -> list[str]:
    """Format the mean over inputs by operator, and mean and standard deviation of the totals."""
    name, scale = unit
    operators: Counter[str] = Counter()
    for count in counts:
        operators.update(count)
    lines = [f"{quantity.capitalize()} by operator, mean of {len(counts)} inputs:"]
    for operator, total in operators.most_common():
        lines.append(f"  {operator:<22}{total / len(counts) / scale:12.3f} {name}")
    totals = np.array([sum(count.values()) for count in counts]) / scale
    lines.append(f"Total {quantity}: {totals.mean():.1f} {name} (standard deviation {totals.std():.1f}) of one {one}")
    return lines


def _parameter_report(model: nn.Module, inputs: Sequence[Input]) -> str:
    total = parameter_count(model)[""]
    return f"{parameter_count_table(model, max_depth=TABLE_DEPTH)}\nTotal parameters: {total / 1e6:.1f} M ({total})"


def _structure_report(model: nn.Module, inputs: Sequence[Input]) -> str:
    return f"Structure of the model:\n{model}"


_REPORTS = {
    "flop": _flop_report,
    "activation": _activation_report,
    "parameter": _parameter_report,
    "structure": _structure_report,
}

if __name__ == "__main__":
    sys.exit(main())
