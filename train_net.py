#!/usr/bin/env python
"""Train or evaluate a model for images or videos.

    python train_net.py --config-file configs/nuclei/maskformer2_efficientnet_lite0.yaml --num-gpus 1
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.safetensors
    torchrun --nproc-per-node 8 train_net.py --config-file ... --resume

Any config key can be set at the end of the command: KEY VALUE KEY VALUE ...
"""

import argparse
import sys

import mask2former  # noqa: F401  (registers models and datasets)
from mask2former.engine import Trainer, argument_parser, launch, setup


def main(args: argparse.Namespace) -> object:
    """Train or evaluate on one rank; return the evaluation results, if any."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.load_for_test(cfg, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            Trainer.test_with_TTA(cfg, model)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    sys.exit(launch(main, argument_parser().parse_args()))
