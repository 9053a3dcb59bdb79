"""Build commands for the compiled op, and the list of packages; the metadata is in pyproject.toml."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Command, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
from installation_package import load  # noqa: E402

build_ops, project = load("build_ops"), load("project")
HERE = project.Project(ROOT)


class Build(build):
    """Build command that includes the compiled op."""

    sub_commands = [*build.sub_commands, ("build_ops", None)]


class BuildOps(Command):
    """Compile the op into the build directory, or for an editable install into the checkout."""

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
        directory = ROOT / ("" if self.editable_mode else self.build_lib) / HERE.ops
        if not self.editable_mode:
            for old in directory.glob("_*.abi3.so"):  # left by an earlier build; this one may not include it
                old.unlink()
        try:
            self.built = build_ops.build(HERE, directory, request=os.environ.get(build_ops.VARIABLE))
        except build_ops.BuildError as error:
            raise SystemExit(f"error: {error}") from None

    def get_source_files(self) -> list[str]:
        """Return the files that a source distribution needs for this command."""
        files = [ROOT / "tools/installation_package.py", *(ROOT / HERE.csrc).rglob("*.*")]
        return sorted(str(path.relative_to(ROOT)) for path in files)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self.built]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """Wheel for one platform and every Python if it has a compiled library, else for every platform."""

    def run(self) -> None:
        self.run_command("build_ops")
        if self.get_finalized_command("build_ops").built:
            self.root_is_pure, self.py_limited_api = False, "cp310"
            self.distribution.has_ext_modules = lambda: True
        super().run()


if __name__ == "__main__":
    setup(
        # The YAML files: configs/ in the repository, mask2former/configs/ in an installed package.
        packages=[
            *find_packages(include=["mask2former", "mask2former.*", "mask2former_video", "mask2former_video.*"]),
            "mask2former.configs",
        ],
        package_dir={"mask2former.configs": "configs"},
        cmdclass={"build": Build, "build_ops": BuildOps, "bdist_wheel": Wheel},
    )
