"""The file formats: how a network is written to a file, and how the file is run, without code of this package."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ops.ms_deform_attn import pytorch_backend
from .network import ExportNetwork

OPSET = 18  # of ONNX; GridSample is in it from 16 on

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: of the file.
        write: writes a network to a file, traced with the example inputs.
        load: returns a function that runs the file: inputs on the CPU or a device -> outputs.
        devices: types of devices that the file can be made for.
    """

    suffix: str
    write: Callable[[ExportNetwork, tuple[Tensor, ...], Path, bool], None]
    load: Callable[[Path, ExportNetwork], Run]
    devices: tuple[str, ...] = ("cpu", "cuda")


def write_onnx(network: ExportNetwork, inputs: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
    """Write ONNX with operators of its standard alone, weights included; `dynamic`: the batch may have any size."""
    _require("onnx", "onnxscript")
    with _plain():
        program = torch.onnx.export(
            network,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(network.input_names),
            output_names=list(network.output_names),
            dynamic_shapes=_shapes(inputs) if dynamic else None,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


def load_onnx(path: Path, network: ExportNetwork) -> Run:
    """Return a function that runs an ONNX file with onnxruntime on the CPU."""
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # of what it folds, and what it does not
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        feeds = {name: value.cpu().numpy() for name, value in zip(network.input_names, inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(list(network.output_names), feeds)]

    return run


def write_torch_export(network: ExportNetwork, inputs: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
    """Write a program of `torch.export`, made of PyTorch's own operators."""
    torch.export.save(_program(network, inputs, dynamic), path)


def load_torch_export(path: Path, network: ExportNetwork) -> Run:
    """Return a function that runs a program of `torch.export`."""
    module = torch.export.load(path).module()
    return lambda inputs: module(*inputs)


def write_aoti(network: ExportNetwork, inputs: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
    """Write a package of AOTInductor: compiled code and weights, which C++ programs can load, too."""
    program = _program(network, inputs, dynamic)
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def load_aoti(path: Path, network: ExportNetwork) -> Run:
    """Return a function that runs a package of AOTInductor."""
    module = torch._inductor.aoti_load_package(str(path))
    return lambda inputs: module(*inputs)


def write_torchscript(network: ExportNetwork, inputs: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
    """Write TorchScript, by tracing."""
    if dynamic:
        raise ValueError("a traced program has a fixed batch; use another --format, or a number for --batch")
    with _plain(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecation, and of sizes that become constants, which they are here
        torch.jit.trace(network, inputs, check_trace=False).save(str(path))


def load_torchscript(path: Path, network: ExportNetwork) -> Run:
    """Return a function that runs TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(path))
    return lambda inputs: module(*inputs)


def _program(network: ExportNetwork, inputs: tuple[Tensor, ...], dynamic: bool) -> torch.export.ExportedProgram:
    with _plain():
        return torch.export.export(network, inputs, dynamic_shapes=_shapes(inputs) if dynamic else None)


def _shapes(inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Return for exporters that the first axis of everything but thresholds may have any size."""
    batch = torch.export.Dim("batch", min=1)
    shapes: dict[str, Any] = {"images": {0: batch}}
    if len(inputs) > 1:  # without post-processing there are no others, and none may be named
        shapes["others"] = tuple({0: batch} if value.dim() else {} for value in inputs[1:])
    return shapes


def _require(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"exporting needs {', '.join(missing)}: pip install 'mask2former[export]'")


@contextmanager
def _plain() -> Iterator[None]:
    """Trace without compiled ops, whose code is not in the file, and without the exporters' notes on each operator."""
    names = ("onnxscript", "onnx_ir", "torch.onnx")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with torch.no_grad(), pytorch_backend():
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


FORMATS = {
    "onnx": Format(".onnx", write_onnx, load_onnx, ("cpu",)),
    "torch_export": Format(".pt2", write_torch_export, load_torch_export),
    "aoti": Format(".aoti.pt2", write_aoti, load_aoti),
    "torchscript": Format(".ts", write_torchscript, load_torchscript),
}
