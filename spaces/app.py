"""The web app of Mask2Former as a Hugging Face Space.

A Space installs requirements.txt with pip, which cannot install detectron2, often without the right to change that
environment afterwards. Where detectron2 is missing, a virtual environment on top of the installed packages gets it from
`mask2former setup`, and this file starts again in there.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ENVIRONMENT = Path.home() / ".cache" / "mask2former-space"
MODELS = "MASK2FORMER_MODELS"  # names of models whose weights are downloaded at the start, with commas between them
# Where a Space expects it; its page on huggingface.co shows it in a frame.
SERVE = ["serve", "--host", "0.0.0.0", "--port", "7860", "--embed-in", "https://huggingface.co"]


def complete_environment() -> None:
    """Continue in an environment that has detectron2, if this one has not."""
    if importlib.util.find_spec("detectron2") is not None:
        return
    if Path(sys.prefix) == ENVIRONMENT:
        raise SystemExit("mask2former setup did not install detectron2: see the messages above")
    venv.create(ENVIRONMENT, with_pip=True)
    python = str(ENVIRONMENT / "bin" / "python")
    # What is installed here is seen there, which "system_site_packages" does not do for a virtual environment.
    purelib = sysconfig.get_path("purelib", "posix_prefix", vars={"base": str(ENVIRONMENT)})
    installed = [path for path in sys.path if path.endswith("-packages")]
    Path(purelib, "installed.pth").write_text("".join(f"{path}\n" for path in installed), "utf-8")
    subprocess.run([python, "-m", "mask2former", "setup", "--torch", "keep"], check=True)
    os.execv(python, [python, __file__])


def download_weights() -> None:
    """Fetch the weights that the Space asks for; one that cannot be had does not keep the others from working."""
    from mask2former.zoo import resolve_weights

    for name in filter(None, map(str.strip, os.environ.get(MODELS, "").split(","))):
        try:
            print(f"{name}: {resolve_weights(name)}", flush=True)
        except (OSError, ValueError) as error:  # also damaged files
            print(f"{name} is left out: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    complete_environment()
    download_weights()
    from mask2former.cli import main

    sys.exit(main(SERVE))
