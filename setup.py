"""Package metadata and the one list of dependencies.

``tools/install.py`` reads ``INSTALL_REQUIRES`` and ``EXTRAS`` from this file as literals, so keep them plain
lists of strings without environment markers. Exact tested versions are in ``requirements/constraints.txt``.

Two packages that Mask2Former needs cannot be listed here; ``tools/install.py`` installs them:

* detectron2 is not on PyPI under its own name, so no requirement can name it;
* panopticapi is on PyPI only as ``panopticapi-lite``, whose metadata forbids NumPy 2 although its code works
  with it.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

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
