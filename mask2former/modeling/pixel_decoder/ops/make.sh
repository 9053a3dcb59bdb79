#!/usr/bin/env sh
# Compile the op of this package in place, with the torch of `python` (or of $PYTHON):
#     cd mask2former/modeling/pixel_decoder/ops && sh make.sh
# MASK2FORMER_BUILD_OPS, CUDA_HOME and TORCH_CUDA_ARCH_LIST are read; see INSTALL.md, 'The compiled op'.
set -e
cd "$(dirname "$0")"
exec "${PYTHON:-python}" setup.py build install
