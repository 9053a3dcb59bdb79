"""Segment images, directories, videos or a webcam, and write overlays, JSON and label maps.

python demo/demo.py                                   # the example images with the bundled model
python demo/demo.py --input cells/ --output out/      # your own images
python demo/demo.py --config-file C.yaml --input a.jpg b.jpg --opts MODEL.WEIGHTS model_final.pkl
python demo/demo.py --config-file youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml --weights W --video-input a.mp4
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "mask2former").is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import video_io  # noqa: E402
from tqdm import tqdm  # noqa: E402

from mask2former.data.image_io import IMAGE_SUFFIXES, WRITABLE_SUFFIXES  # noqa: E402
from mask2former.model_source import DEFAULT_MODEL  # noqa: E402
from mask2former.result_files import CocoDocument  # noqa: E402
from mask2former.results import Result  # noqa: E402
from mask2former.segmenter import Segmenter  # noqa: E402
from mask2former.structures.task import Task  # noqa: E402
from mask2former.utils.file_io import short_path  # noqa: E402
from mask2former.utils.hints import did_you_mean  # noqa: E402
from mask2former.visualization import comfortable_scale  # noqa: E402

DEFAULT_OUTPUT = Path("output/demo")

# Example images of scikit-image: shortest edge in the network, and what to expect of a model trained on nuclei.
EXAMPLES = {
    "ihc.png": (800, "real nuclei, but in brown-stained tissue, which the training data lacks: most are missed"),
    "cell.png": (512, "a complete cell in phase contrast: not a nucleus, outside the training domain"),
    "coins.png": (512, "coins are not nuclei: outside the training domain, but detected anyway"),
}


class UserError(ValueError):
    """An error that the user can fix; the message says how."""


def argument_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _model_arguments(parser.add_argument_group("model"))
    _input_arguments(parser.add_argument_group("input (default: example images of scikit-image)"))
    _output_arguments(parser.add_argument_group("output"))
    video_io.add_arguments(parser.add_argument_group("video"))
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config overrides; must come last",
    )
    return parser


def _model_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of the model."""
    group.add_argument(
        "--model",
        metavar="NAME",
        help=f"model of the zoo, or a training output directory (default: {DEFAULT_MODEL})",
    )
    group.add_argument("--config-file", metavar="FILE", help="config file instead of --model (needs weights)")
    group.add_argument("--weights", metavar="FILE", help="weights to load; same as --opts MODEL.WEIGHTS FILE")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument(
        "--task",
        default="auto",
        choices=["auto", *map(str, Task)],
        help="what to predict; auto: what the model was trained for; video: track objects through a video",
    )
    group.add_argument("--amp", action="store_true", help="lower precision (bfloat16 or float16): faster on a GPU")
    group.add_argument(
        "--confidence-threshold",
        type=_fraction,
        default=0.5,
        metavar="S",
        help="drop objects and segments with a lower score (default: 0.5)",
    )
    group.add_argument(
        "--min-size",
        type=int,
        metavar="N",
        help="shortest edge of images in the network; larger values find smaller objects "
        "(default: INPUT.MIN_SIZE_TEST)",
    )


def _input_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of the input."""
    group.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, directories, or patterns such as 'cells/*.png'"
    )
    group.add_argument("--video-input", metavar="PATH", help="video file, or directory of frames")
    group.add_argument("--webcam", nargs="?", type=int, const=0, metavar="N", help="camera (default: number 0)")


def _output_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of the output."""
    group.add_argument(
        "--output",
        metavar="PATH",
        help=f"directory, or one file: image or video, .json for COCO (default: {DEFAULT_OUTPUT})",
    )
    group.add_argument(
        "--save",
        nargs="+",
        choices=["overlay", "json", "masks"],
        help="what to write into a directory (default: overlay json)",
    )
    group.add_argument(
        "--non-overlapping",
        action=argparse.BooleanOptionalAction,
        help="assign each pixel to at most one object and remove near-duplicates (default: only with the model "
        f"{DEFAULT_MODEL})",
    )
    group.add_argument(
        "--labels",
        choices=["auto", "yes", "no"],
        default="auto",
        help="draw class names (auto: where they fit)",
    )
    group.add_argument(
        "--scale",
        type=_scale,
        default=None,
        metavar="X",
        help="size of overlays relative to the image (default: small images are enlarged)",
    )


def _fraction(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text}")
    return value


def _scale(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 16.0:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most 16, not {text}")
    return value


# ------------------------------------------------------------------ inputs
def example_images() -> list[Path]:
    """Return the example files that are part of the scikit-image package."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the example images come with scikit-image: pip install scikit-image, or use --input FILE ...")
    directory = Path(next(iter(spec.submodule_search_locations))) / "data"
    files = [directory / name for name in EXAMPLES if (directory / name).is_file()]
    if not files:
        raise UserError(f"{directory} contains none of {', '.join(EXAMPLES)}; use --input FILE ...")
    return files


def collect(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the files of paths, directories and patterns, without duplicates; and messages for inputs without any."""
    files: dict[Path, None] = {}
    problems = []
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not matches:
                problems.append(f"{item}: no images in this directory (supported: {', '.join(sorted(IMAGE_SUFFIXES))})")
        elif path.is_file():
            matches = [path]
        elif glob.has_magic(item):
            matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
            if not matches:
                problems.append(f"{item}: this pattern matches no file (searched from {Path.cwd()})")
        else:
            matches = []
            problems.append(f"{item}: does not exist.{_similar(path)}")
        files.update(dict.fromkeys(matches))
    return list(files), problems


def _similar(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Its directory {path.parent} does not exist either."
    return did_you_mean(path.name, (p.name for p in path.parent.iterdir()))


# ------------------------------------------------------------------ outputs
@dataclass
class Writer:
    """Writer of the results that --output and --save select; keeps a list of the files written."""

    target: Path
    save: frozenset[str]
    labels: bool | None = None
    scale: float | None = None
    single: bool = False  # target is one image
    document: CocoDocument | None = None
    written: list[Path] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    @classmethod
    def create(cls, args: argparse.Namespace, count: int) -> Writer:
        """Build the writer for `count` inputs; UserError if --output and --save do not fit them."""
        target = Path(args.output).expanduser() if args.output else DEFAULT_OUTPUT
        labels = {"auto": None, "yes": True, "no": False}[args.labels]
        suffix = target.suffix.lower()
        if target.is_dir() or not suffix or suffix not in WRITABLE_SUFFIXES | {".json"}:
            if target.exists() and not target.is_dir():
                raise UserError(
                    f"--output {target} is a file of unknown type; give a directory, .json "
                    f"or {', '.join(sorted(WRITABLE_SUFFIXES))}"
                )
            return cls(target, frozenset(args.save or ("overlay", "json")), labels, args.scale)
        if args.save:
            raise UserError(f"--save selects files of a directory, but --output {target} is a file; drop --save")
        if suffix == ".json":
            return cls(target, frozenset({"json"}), labels, args.scale, single=True)
        if count > 1:
            raise UserError(f"--output {target} is a single image, but there are {count} inputs; give a directory")
        return cls(target, frozenset({"overlay"}), labels, args.scale, single=True)

    def add(self, result: Result, caption: str = "") -> None:
        """Write the files of one image; UserError if the overlay would overwrite its input."""
        assert result.path is not None
        stem = self._unique(result.path.stem)
        if "overlay" in self.save:
            scale = self.scale or comfortable_scale(*result.image.shape[:2])
            path = self.target if self.single else self.target / f"{stem}{self._suffix(result.path)}"
            if path.exists() and path.samefile(result.path):
                raise UserError(f"{path}: the overlay would overwrite its input; choose another --output")
            self.written += result.save(path, scale=scale, labels=self.labels, caption=caption)
        if "masks" in self.save:
            self.written += result.save_masks(self.target / "masks", stem)
        if "json" in self.save:
            self.document = self.document or CocoDocument(result.classes)
            self.document.add(result.to_coco(), result.size, result.path.name if result.path else None)

    def finish(self) -> None:
        """Write the JSON file."""
        if self.document is not None:
            self.written.append(self.document.save(self.target if self.single else self.target / "results.json"))

    def _unique(self, stem: str) -> str:
        """Return the stem, with a number if an image of another directory already used it."""
        name, number = stem, 2
        while name in self._names:
            name, number = f"{stem}_{number}", number + 1
        self._names.add(name)
        return name

    @staticmethod
    def _suffix(path: Path) -> str:
        return ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"


# ------------------------------------------------------------------ segmentation
def segment_images(segment: Segmenter, args: argparse.Namespace) -> int:
    """Segment the images of --input, or the examples; return the exit status, 1 if any could not be segmented."""
    files, problems = collect(args.input) if args.input else (example_images(), [])
    for problem in problems:
        _print_error(problem)
    writer = Writer.create(args, len(files))
    examples = EXAMPLES if not args.input and args.model is None and args.config_file is None else {}
    sizes = {path: args.min_size or examples.get(path.name, (None, ""))[0] for path in files}
    rows = []
    for result in _results(segment, sizes, problems):
        remark = examples.get(result.path.name, (None, ""))[1] if result.path else ""
        result = result.filter(non_overlapping=True) if args.non_overlapping else result
        caption = f"{result.path.name}: {_objects(result)}; {remark}" if remark and result.path else ""
        try:
            writer.add(result, caption)
        except UserError as error:
            problems.append(str(error))
            _print_error(str(error))
            continue
        rows.append(
            [
                result.path.name if result.path else "",
                _objects(result),
                _scores(result),
                f"{result.seconds:.2f}",
                remark,
            ]
        )
    writer.finish()
    if rows:
        print(table(["image", "objects", "top scores", "seconds", "remark"], rows))
        print(f"\n{_plural(len(rows), 'image')}, {_plural(len(writer.written), 'file')} written:")
        for path in writer.written[-8:]:
            print(f"  {short_path(path)}")
        if len(writer.written) > 8:
            print(f"  ... and {len(writer.written) - 8} more in {writer.target}")
    if problems:
        _print_error(f"{len(problems)} of the inputs gave no result, see above")
    return 1 if problems else 0


def _results(segment: Segmenter, files: dict[Path, int | None], problems: list[str]) -> Iterator[Result]:
    """Yield a result for each readable file, resized to its shortest edge; append a message for each other one."""
    with tqdm(files, unit="image", mininterval=0.5, disable=len(files) < 4) as progress:
        for path in progress:
            try:
                result = segment(path, min_size=files[path])
            except (ValueError, OSError) as error:
                message = str(error) if str(path) in str(error) else f"{path}: {error}"
                problems.append(message)
                with tqdm.external_write_mode():
                    _print_error(message)
                continue
            yield result


def _objects(result: Result) -> str:
    """Format counts per class: "31 nucleus" or "12: 5 person, 4 car, 3 tree"."""
    counts = result.counts()
    if not counts:
        return "0"
    if result.tasks == ("semantic",):
        return f"{len(counts)} classes: " + ", ".join(list(counts)[:4]) + (", ..." if len(counts) > 4 else "")
    listed = [f"{n} {name}" for name, n in counts.items()]
    text = ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
    return text if len(listed) == 1 else f"{sum(counts.values())}: {text}"


def _scores(result: Result) -> str:
    if result.panoptic is not None:
        scores = sorted((s.score for s in result.panoptic.segments if s.score is not None), reverse=True)
    elif result.instances is not None:
        scores = [float(s) for s in result.instances.scores[:3]]
    else:
        return "-"
    return " ".join(f"{s:.2f}" for s in scores[:3]) or "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as aligned text; empty columns are omitted."""
    columns = [i for i in range(len(head)) if any(row[i] for row in rows)]
    widths = {i: max(len(head[i]), *(len(row[i]) for row in rows)) for i in columns}
    ruler = ["-" * widths.get(i, 0) for i in range(len(head))]
    lines = ["  ".join(row[i].ljust(widths[i]) for i in columns) for row in (head, ruler, *rows)]
    return "\n".join(line.rstrip() for line in lines)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _print_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = argument_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sources = [name for name in ("input", "video_input", "webcam") if getattr(args, name) is not None]
    try:
        if len(sources) > 1:
            raise UserError("choose only one of " + ", ".join(f"--{name.replace('_', '-')}" for name in sources))
        if args.non_overlapping is None:
            args.non_overlapping = args.config_file is None and args.model in (None, DEFAULT_MODEL)
        if args.task == "video" and not sources:
            raise UserError("--task video needs --video-input FILE (or a directory of frames)")
        if args.video_input and not Path(args.video_input).exists():
            raise UserError(f"--video-input {args.video_input} does not exist{_similar(Path(args.video_input))}")
        segment = Segmenter.load(
            args.model,
            config=args.config_file,
            weights=args.weights,
            device=args.device,
            overrides=args.opts,
            task=args.task,
            score_threshold=args.confidence_threshold,
            amp=args.amp,
        )
        print(f"model: {args.config_file or args.model or DEFAULT_MODEL}, {segment}")
        video_model = hasattr(segment.model, "clip_outputs")
        if sources and (sources != ["input"] or args.task == "video" or video_model):
            return video_io.run(segment, args)
        if video_model:
            raise UserError("this is a video model: give --video-input FILE, or a directory of frames")
        return segment_images(segment, args)
    except (UserError, ValueError, FileNotFoundError) as error:
        _print_error(str(error))
        return 2
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
