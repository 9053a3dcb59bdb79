#!/usr/bin/env python
"""Train or evaluate a model for images or videos.

    python train_net.py --config-file configs/nuclei/maskformer2_efficientnet_lite0.yaml --num-gpus 1
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.safetensors
    torchrun --nproc-per-node 8 train_net.py --config-file ... --resume

Any config key can be set at the end of the command: KEY VALUE KEY VALUE ...

Scripts of other projects import `Trainer`, `setup` and `main`; ADVANCED_USAGE.md says what can be overridden.
"""

import sys

import mask2former  # noqa: F401  (registers models and datasets)
from mask2former.engine import Trainer, argument_parser, launch, setup
from mask2former.engine.commands import train_or_evaluate as main

__all__ = ["Trainer", "main", "setup"]

if __name__ == "__main__":
    sys.exit(launch(main, argument_parser().parse_args()))
