#!/bin/sh
# What both Dockerfiles install: docker/install.sh VENV cpu|cuda, from the top of the repository; VENV is absolute.
#
# Every version is that of mask2former/installation/constraints.txt, which `mask2former setup` applies itself. A virtual
# environment that is already there is completed. The op must compile; MASK2FORMER_BUILD_OPS=0 leaves it out.
set -eu

venv=$1
device=$2
constraints=mask2former/installation/constraints.txt
# The compiler of the CUDA that PyPI's torch is built with. The runtime libraries come with torch.
nvcc="nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-cccl==13.0.85"

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"
}

case $device in
    cpu) ops=cpu ;;
    cuda) ops=cpu,cuda ;;
    *)
        echo "docker/install.sh VENV cpu|cuda, not $device" >&2
        exit 2
        ;;
esac

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
if [ "$device" = cpu ]; then
    # The build without CUDA is a tenth of the size, and for Linux PyPI has none. pip prefers 2.11.0+cpu to 2.11.0.
    pip install --constraint $constraints --extra-index-url https://download.pytorch.org/whl/cpu \
        torch torchvision setuptools
else
    # shellcheck disable=SC2086 # a list of packages
    pip install --constraint $constraints torch torchvision setuptools $nvcc
fi
# A copy, not editable: the environment is all that the image keeps.
MASK2FORMER_BUILD_OPS=0 pip install --no-deps --no-build-isolation .
cd / # so that the copy is found, not this directory
MASK2FORMER_BUILD_OPS=${MASK2FORMER_BUILD_OPS:-$ops} "$venv/bin/mask2former" setup --torch keep --extras serve,video,images
if [ "$device" = cuda ]; then
    # shellcheck disable=SC2086
    pip uninstall --yes $(printf '%s\n' $nvcc | sed 's/==.*//')
fi
