"""Run the Python blocks of a guide that are marked `python runnable`, each by itself, in the working directory.

    python tests/docs/run_snippets.py GUIDE.md

Runs in its own process, because the examples register components by name permanently.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.docs.markdown import blocks  # noqa: E402

# What `make_inputs` imports, for who forks a process that has done so.
IMPORTED = ("numpy", "torch", "detectron2.modeling", "PIL.Image", "mask2former.checkpoint", "mask2former.config")


def make_inputs() -> None:
    """Write the inputs of the examples: images, and a model called "nuclei" (tiny, with random weights)."""
    import numpy as np
    import torch
    from detectron2.modeling import build_model
    from PIL import Image

    from mask2former.checkpoint import save_safetensors
    from mask2former.config import load_config

    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Path("docs/images").mkdir(parents=True)
    for name in ("cells.png", "a.png", "b.png", "docs/images/cells.png"):
        Image.fromarray(pixels).save(name)
    cfg = load_config(
        "nuclei/maskformer2_efficientnet_lite0.yaml",
        [
            *("MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1),
            *("MODEL.MASK_FORMER.DEC_LAYERS", 2, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 8),
            *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96),
        ],
    )
    directory = Path("nuclei")  # a directory has precedence over a name of the zoo
    directory.mkdir()
    (directory / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    (directory / "classes.json").write_text(json.dumps(["nucleus"]), encoding="utf-8")
    save_safetensors(build_model(cfg), directory / "model.safetensors")


def main(arguments: Sequence[str]) -> int:
    """Run the blocks of the guide that the arguments name; return 1 if one fails."""
    page = Path(arguments[0]).resolve()
    make_inputs()
    failed = 0
    for block in blocks(page):
        if block.info != ("python", "runnable"):
            continue
        # Empty lines before the code make the traceback show the line numbers of the guide.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        try:
            exec(code, {"__name__": "example"})
        except Exception:
            failed += 1
            traceback.print_exc()
            sys.stderr.write(f"{block.name} failed\n")
        else:
            sys.stderr.write(f"{block.name} passed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
