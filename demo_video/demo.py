"""Track the objects of a video, or of frames, with the arguments of the reference implementation's demo for videos.

python demo_video/demo.py --config-file configs/youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml \
    --input frames/*.jpg --output out/ --save-frames True --opts MODEL.WEIGHTS model_final.pkl

The same as `demo/demo.py --task video`, whose other arguments it takes too; `mask2former track` is the command for new
scripts.
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")


def image_demo() -> ModuleType:
    """Load demo/demo.py, which has the name of this script."""
    name = "mask2former_image_demo"
    spec = importlib.util.spec_from_file_location(name, ROOT / "demo" / "demo.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def translated(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of demo/demo.py: `--save-frames` may have a value, and a single --input be a pattern."""
    result: list[str] = []
    rest = list(arguments)
    opts = rest.index("--opts") if "--opts" in rest else len(rest)
    rest, last = rest[:opts], rest[opts:]
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name == "--save-frames":
            if not equals and rest and rest[0].lower() in _YES + _NO:
                value = rest.pop(0)
            if value.lower() not in (*_YES, *_NO, ""):
                raise ValueError(f"--save-frames {value}: give True or False")
            if value.lower() not in _NO:
                result.append(name)
            continue
        result.append(argument)
        if argument == "--input" and rest and (len(rest) == 1 or rest[1].startswith("-")):
            pattern = Path(rest.pop(0)).expanduser()
            result += [str(pattern)] if pattern.exists() else sorted(glob.glob(str(pattern))) or [str(pattern)]
    if not any(argument.partition("=")[0] == "--task" for argument in result):
        result += ["--task", "video"]
    return result + last


class _Parser(argparse.ArgumentParser):
    """Parser of demo/demo.py that takes the arguments of this script."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments, by default those of the command line, and return what is not known beside them."""
        try:
            arguments = translated(sys.argv[1:] if args is None else args)
        except ValueError as error:
            self.error(str(error))
        return super().parse_known_args(arguments, namespace)


def get_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line; its results are arguments of `setup_cfg`, too."""
    parser: argparse.ArgumentParser = image_demo().get_parser(_Parser)
    return parser


def setup_cfg(args: argparse.Namespace) -> Any:
    """Return the config of parsed arguments, frozen; see `setup_cfg` of demo/demo.py."""
    return image_demo().setup_cfg(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    demo = image_demo()
    status: int = demo.main(argv, demo.get_parser(_Parser))
    return status


if __name__ == "__main__":
    sys.exit(main())
