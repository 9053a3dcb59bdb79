"""Package metadata and the one list of dependencies.

``tools/install.py`` reads ``INSTALL_REQUIRES`` and ``EXTRAS`` from this file as literals, so keep them plain
lists of strings without environment markers. Exact tested versions are in ``requirements/constraints.txt``.

Two packages that Mask2Former needs cannot be listed here; ``tools/install.py`` installs them:

* detectron2 is not on PyPI under its own name, so no requirement can name it;
* panopticapi is on PyPI only as ``panopticapi-lite``, whose metadata forbids NumPy 2 although its code works
  with it.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from setuptools import Command, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
import build_ops  # noqa: E402

INSTALL_REQUIRES = [
    "torch>=2.6",
    "torchvision>=0.21",
    "numpy>=1.26",
    "scipy>=1.11",  # linear_sum_assignment in the matcher
    "pillow>=10.1",
    "timm>=1.0.9",  # backbones
    "safetensors>=0.4.3",  # checkpoints
    "pycocotools>=2.0.7",
    "tqdm>=4.66",
    # Imported by detectron2, which tools/install.py installs without its own (outdated) list of dependencies.
    "fvcore>=0.1.5",
    "iopath>=0.1.9",
    "portalocker>=2.0",
    "yacs>=0.1.8",
    "omegaconf>=2.1",
    "hydra-core>=1.1",  # detectron2.utils.registry.locate and LazyConfig overrides
    "cloudpickle>=2.0",
    "tabulate>=0.9",
    "termcolor>=2.0",
    "packaging>=22.0",
    "pyyaml>=6.0",
    "matplotlib>=3.7",  # detectron2.utils.visualizer
    "opencv-python-headless>=4.8",  # detectron2.utils.visualizer and the video readers
    "tensorboard>=2.14",  # detectron2's TensorboardXWriter
]

EXTRAS = {
    "demo": ["scikit-image>=0.21"],  # the default pictures of demo/demo.py
    "video": ["av>=12.0"],
    "cityscapes": ["cityscapesscripts>=2.2"],
    "export": ["onnx>=1.16", "onnxscript>=0.2", "onnxruntime>=1.18"],
    "web": ["flask>=3.0"],
    "dev": [
        "pytest>=8.0",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "mypy>=1.13",
        "transformers>=4.45",  # an independent Mask2Former to compare with
        "faster-coco-eval>=1.6",  # an independent average precision to compare with
        "scikit-image>=0.21",
        "av>=12.0",
    ],
}


def read_version() -> str:
    """Return ``__version__`` of the package without importing it (importing needs PyTorch)."""
    init = ROOT / "mask2former" / "__init__.py"
    found = re.search(
        r"""^__version__\s*(?::\s*str\s*)?=\s*["']([^"']+)["']""", init.read_text("utf-8"), re.MULTILINE
    )
    if found is None:
        raise RuntimeError(f'{init} has no line like: __version__ = "0.1.0"')
    return found.group(1)


def read_long_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text("utf-8") if readme.exists() else ""


class Build(build):
    """The build, with the compiled op."""

    sub_commands = [*build.sub_commands, ("build_ops", None)]


class BuildOps(Command):
    """Compile the op into the build folder, or into the checkout for an editable install; see tools/build_ops.py."""

    description = "compile the op of mask2former/ops where that is possible"
    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False
        self.built: list[Path] = []

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        assert self.build_lib is not None
        folder = ROOT / ("" if self.editable_mode else self.build_lib) / build_ops.OPS
        if not self.editable_mode:
            for old in folder.glob("_*.abi3.so"):  # of an earlier build: this one may be without
                old.unlink()
        try:
            self.built = build_ops.build(folder, request=os.environ.get(build_ops.VARIABLE))
        except build_ops.BuildError as error:
            raise SystemExit(f"error: {error}") from None

    def get_source_files(self) -> list[str]:
        """What a source distribution must hold for this."""
        files = [*(ROOT / "tools").glob("build_*.py"), *(ROOT / build_ops.CSRC).rglob("*.*")]
        return sorted(str(path.relative_to(ROOT)) for path in files)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self.built]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """With a compiled library, the wheel is for one system and every Python; without, for every system."""

    def run(self) -> None:
        self.run_command("build_ops")
        if self.get_finalized_command("build_ops").built:
            self.root_is_pure, self.py_limited_api = False, "cp310"
            self.distribution.has_ext_modules = lambda: True
        super().run()


if __name__ == "__main__":
    setup(
        name="mask2former",
        version=read_version(),
        description="Mask2Former: universal image and video segmentation on detectron2",
        long_description=read_long_description(),
        long_description_content_type="text/markdown",
        author="The Mask2Former contributors",
        license="MIT",
        python_requires=">=3.10,<3.14",
        install_requires=INSTALL_REQUIRES,
        extras_require=EXTRAS,
        # The YAML files: configs/ in the repository, mask2former/configs/ in an installed package.
        packages=[*find_packages(include=["mask2former", "mask2former.*"]), "mask2former.configs"],
        package_dir={"mask2former": "mask2former", "mask2former.configs": "configs"},
        package_data={
            "mask2former": ["py.typed", "**/*.json", "bundled/**/*"],
            "mask2former.configs": ["*.yaml", "**/*.yaml"],
        },
        include_package_data=False,
        zip_safe=False,
        cmdclass={"build": Build, "build_ops": BuildOps, "bdist_wheel": Wheel},
        classifiers=[
            "Development Status :: 4 - Beta",
            "Intended Audience :: Developers",
            "Intended Audience :: Science/Research",
            "Operating System :: OS Independent",
            "Programming Language :: Python :: 3",
            "Programming Language :: Python :: 3.10",
            "Programming Language :: Python :: 3.11",
            "Programming Language :: Python :: 3.12",
            "Programming Language :: Python :: 3.13",
            "Topic :: Scientific/Engineering :: Artificial Intelligence",
            "Typing :: Typed",
        ],
    )
