#!/usr/bin/env python
"""Alias of train_net.py, under the name of the reference's script for videos: the config selects the model.

python train_net_video.py --config-file configs/youtubevis_2019/video_maskformer2_R50_bs16_8ep.yaml --num-gpus 8
"""

import sys

from mask2former.engine import argument_parser, launch
from train_net import Trainer, main, setup

__all__ = ["Trainer", "main", "setup"]

if __name__ == "__main__":
    sys.exit(launch(main, argument_parser().parse_args()))
