"""Train, or with --eval-only evaluate, with the arguments of Mask2Former's trainer; --config-file is our recipe."""

import sys

from mask2former.engine import argument_parser, launch
from mask2former.engine.commands import train_or_evaluate

from my_segmentation import RECIPE

if __name__ == "__main__":
    parser = argument_parser()
    parser.set_defaults(config_file=str(RECIPE))
    sys.exit(launch(train_or_evaluate, parser.parse_args()))
