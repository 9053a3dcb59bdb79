"""Segment images, directories, videos or a webcam, and write overlays, JSON and label maps.

python demo/demo.py                                   # example images with the bundled models
python demo/demo.py --input cells/ --output out/      # your own images
python demo/demo.py --config-file C.yaml --input a.jpg b.jpg --opts MODEL.WEIGHTS model_final.pkl
python demo/demo.py --config-file youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml --weights W --video-input a.mp4

The same as `mask2former predict` and `mask2former track`, with the arguments of the reference implementation's demo.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "mask2former").is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

from detectron2.config import CfgNode  # noqa: E402

from mask2former import zoo  # noqa: E402
from mask2former.cli import arguments  # noqa: E402
from mask2former.cli.camera import Camera  # noqa: E402
from mask2former.cli.examples import EXAMPLES, example_images, example_scenes  # noqa: E402
from mask2former.cli.frames import segment_frames  # noqa: E402
from mask2former.cli.inputs import collect, similar  # noqa: E402
from mask2former.cli.segment_images import segment_images  # noqa: E402
from mask2former.cli.track import add_frames, add_tracking  # noqa: E402
from mask2former.cli.track_objects import open_video, track_objects  # noqa: E402
from mask2former.config import load_config  # noqa: E402
from mask2former.data.image_io import image_names  # noqa: E402
from mask2former.model_source import SHAPES_MODEL  # noqa: E402
from mask2former.segmenter import Segmenter  # noqa: E402
from mask2former.structures.task import Task  # noqa: E402
from mask2former.utils.failures import run_program  # noqa: E402

DEFAULT_OUTPUT = Path("output/demo")


def get_parser(parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Build the parser of the command line; its results are arguments of `setup_cfg`, too."""
    parser = parser_class(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model")
    arguments.add_model(model, tuple(Task))
    arguments.add_threshold(model, "--confidence-threshold")
    inputs = parser.add_argument_group("input (default: example images)")
    inputs.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, directories, or patterns such as 'cells/*.png'"
    )
    inputs.add_argument("--video-input", metavar="PATH", help="video file, or directory of frames")
    inputs.add_argument("--webcam", nargs="?", type=int, const=0, metavar="N", help="camera (default: number 0)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        metavar="PATH",
        help=f"directory, or one file: image or video, .json for COCO (default: {DEFAULT_OUTPUT})",
    )
    output.add_argument(
        "--save",
        nargs="+",
        choices=["overlay", "json", "masks"],
        help="what to write into a directory (default: overlay json)",
    )
    arguments.add_non_overlapping(output)
    arguments.add_drawing(output)
    video = parser.add_argument_group("video")
    add_tracking(video)
    add_frames(video)
    arguments.add_opts(parser)
    parser.set_defaults(default_output=DEFAULT_OUTPUT, default_save=("overlay", "json"), save_as=None)
    parser.set_defaults(intensity=False, pixel_size=None)  # of tables, which only mask2former predict writes
    return parser


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Return the config of parsed arguments, frozen, for programs that build a model or a predictor of it.

    Args:
        args: `config_file` (None: the defaults), `opts`, a list KEY VALUE KEY VALUE ..., and, if present, `weights`.
    """
    weights = getattr(args, "weights", None)
    cfg = load_config(args.config_file, [*(("MODEL.WEIGHTS", weights) if weights else ()), *args.opts])
    cfg.freeze()
    return cfg


def main(argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None) -> int:
    """Run the command line, with `get_parser` or another parser of its arguments; return the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return run_program(parser or get_parser(), _run, argv)


def _run(args: argparse.Namespace) -> int:
    sources = [name for name in ("input", "video_input", "webcam") if getattr(args, name) is not None]
    if len(sources) > 1:
        raise ValueError("choose only one of " + ", ".join(f"--{name.replace('_', '-')}" for name in sources))
    if args.task == Task.VIDEO and not sources:
        raise ValueError("--task video needs --video-input FILE (or a directory of frames)")
    if args.video_input and not Path(args.video_input).exists():
        raise ValueError(f"--video-input {args.video_input} does not exist{similar(Path(args.video_input))}")
    if not sources and args.model is None and args.config_file is None:
        return _examples(args)
    segment = arguments.load_segmenter(args)
    video_model = arguments.is_video_model(segment)
    if sources and (sources != ["input"] or args.task == Task.VIDEO or video_model):
        return _video(segment, args, tracking=args.task == Task.VIDEO or video_model)
    _refuse_video_model(segment)
    for name in args.input or ():
        _refuse_videos(Path(name).expanduser())
    if args.input:
        return segment_images(segment, args, *collect(args.input))
    return segment_images(segment, args, _scenes(args) if args.model == SHAPES_MODEL else example_images(), [])


def _examples(args: argparse.Namespace) -> int:
    """Segment the example images of each bundled model; what no bundled model knows comes last."""
    images = example_images()
    status = 0
    # Weights and overrides belong to the default model.
    if SHAPES_MODEL in zoo.list_bundled() and args.weights is None and not args.opts and _is_directory(args.output):
        target = str(_base(args) / SHAPES_MODEL) + "/"
        shapes = argparse.Namespace(**{**vars(args), "model": SHAPES_MODEL, "output": target})
        status = segment_images(arguments.load_segmenter(shapes), shapes, _scenes(args), [])
        print()
    segment = arguments.load_segmenter(args)
    _refuse_video_model(segment)
    status = max(status, segment_images(segment, args, images, [], EXAMPLES))
    print("\nPhotos are outside the domain of the bundled models: --model coco-panoptic-swin-t --input photo.jpg")
    return status


def _is_directory(output: str | None) -> bool:
    """Return whether --output is one, not a file that takes a single result."""
    return not output or not Path(output).suffix or Path(output).is_dir()


def _base(args: argparse.Namespace) -> Path:
    return Path(args.output).expanduser() if args.output and _is_directory(args.output) else DEFAULT_OUTPUT


def _scenes(args: argparse.Namespace) -> list[Path]:
    """Draw the scenes of the shapes world, beside the results."""
    return example_scenes(_base(args) / SHAPES_MODEL / "images")


def _refuse_video_model(segment: Segmenter) -> None:
    if arguments.is_video_model(segment):
        raise ValueError("this is a video model: give --video-input FILE, or a directory of frames")


def _refuse_videos(path: Path) -> None:
    """Raise ValueError for a video, or a directory of videos without images."""
    names = [path.name] if path.is_file() else [p.name for p in path.iterdir()] if path.is_dir() else []
    video = next((name for name in sorted(names) if Path(name).suffix.lower() in arguments.VIDEO_SUFFIXES), None)
    if video is not None and not image_names(names):
        file = path if path.is_file() else path / video
        raise ValueError(f"{file} is a video, and --input takes images: use --video-input {file}")


def _video(segment: Segmenter, args: argparse.Namespace, tracking: bool) -> int:
    """Segment a video or camera frame by frame, or track its objects."""
    if args.webcam is not None:
        if tracking:
            raise ValueError("--webcam is segmented image by image: use an image model, and omit --task video")
        args.default_save = ("overlay",)
        return segment_frames(segment, Camera(args.webcam), args)
    source = open_video([args.video_input] if args.video_input is not None else args.input)
    if tracking:
        return track_objects(segment, source, args)
    args.default_save = ("overlay",)
    return segment_frames(segment, source, args)


if __name__ == "__main__":
    sys.exit(main())
