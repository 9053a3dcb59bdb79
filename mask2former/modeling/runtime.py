"""How backbone and head are run: operation by operation, as a CUDA graph, or compiled (MODEL.COMPILE)."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic

import torch
from torch import Tensor, nn

from ..ops import backend
from .compiled_network import CompiledNetwork
from .compiled_shapes import CompiledShapes
from .cpu_linear import runs_onednn
from .cuda_graphs import GraphCache, Outputs, uncached_autocast
from .denoising import NoisedObjects
from .network_call import as_kernels_want, call_head, run_network
from .outputs import without_earlier
from .prepared import Prepared, has_own_methods, is_hooked
from .result_graphs import ResultGraphs
from .training_graphs import TrainingGraphs, is_hooked_in_training, is_uncapturable, may_capture
from .watched_modules import WatchedModules

logger = logging.getLogger(__name__)

MODES = ("auto", "off", "graph", "compile")
# Larger batches keep a GPU busy anyway, and their graphs would keep much memory. Eight images of 800 x 1344 fit.
_LARGEST = 12 * 2**20  # pixels
# On CPUs, images of fewer pixels do not repay what prepared weights cost in their first call.
_WORTH_PREPARING = 2**18
# Code of which we know that the same kernels are right in each call; other code may look at values, or at the clock.
_KNOWN = ("torch.", "torchvision.", "detectron2.", "fvcore.", "timm.", f"{__name__.rpartition('.modeling.')[0]}.")
_PLAIN = (object, Generic, ABC)
# Attributes that trainings change on their way: of dropout, stochastic depth and batch norms.
_SCHEDULED = ("p", "dropout", "rate", "drop_prob", "momentum")


class Runtime:
    """Runs a backbone and a head in the way that is fastest for a call.

    In inference on CUDA, also of clips, "auto" and "graph" launch a captured graph of the kernels that the modules
    would launch one by one, on weights that are cast before; "compile" captures code that PyTorch's compiler made,
    with batch norms folded into convolutions, which changes rounding. In training on CUDA, "auto" and "graph" launch
    captured graphs of the forward and of the backward pass where images of one size come again and again; "compile"
    runs compiled forms of backbone, pixel decoder and transformer decoder, in graphs too. Without CUDA, inference with
    "graph", and on CPUs for programs that predict with "auto", runs prepared weights: norms are folded, which changes
    rounding. In all other cases the modules are called as they are. Where a way is not possible, one line says why.

    Args:
        mode: one of `MODES`. "auto" calls as they are: modules of other projects, hooked ones, and the first images of
            each shape.
        predicts: whether it serves a program that predicts, where rounding may differ from that of the modules as they
            are: on x86 CPUs "auto" then runs known modules on prepared weights, as "graph" does, for images of at least
            `_WORTH_PREPARING` pixels in float32 or under autocast to bfloat16.

    Attributes:
        compile_training: whether training runs compiled code.
        compiler: arguments of `torch.compile`.
        result_graphs: launches results; None with "off".
    """

    def __init__(self, mode: str = "auto", predicts: bool = False) -> None:
        if mode not in MODES:
            raise ValueError(f"compile (MODEL.COMPILE) must be one of {', '.join(MODES)}, not {mode!r}")
        self.mode, self.predicts = mode, predicts
        self.compile_training = mode == "compile"
        self.compiler: dict[str, Any] = {}
        self._graphs = GraphCache(after=2 if mode == "auto" else 1)
        self.result_graphs = None if mode == "off" else ResultGraphs()
        self._training_graphs = TrainingGraphs()
        self._modules: dict[bool, _Modules] = {}  # in training and in evaluation, which take turns
        self._prepared: dict[torch.dtype | None, _PreparedNetwork] = {}
        self._compiled: list[CompiledNetwork] = []
        self._shapes = CompiledShapes()
        self._refused: set[str] = set()
        self._largest = _LARGEST
        self._of_prediction: Runtime | None = None

    @property
    def of_prediction(self) -> Runtime:
        """Return the runtime for a program that predicts: itself, but with "auto" one that `predicts`, for CPUs.

        All callers get the same one, so that prepared weights are there once for each model.
        """
        if self.mode != "auto" or self.predicts:
            return self
        if self._of_prediction is None:
            self._of_prediction = Runtime("auto", predicts=True)
        return self._of_prediction

    @property
    def captured(self) -> int:
        """Return how often CUDA graphs of inference were captured so far."""
        return self._graphs.captured

    @property
    def held(self) -> int:
        """Return how many CUDA graphs of inference there are now; those of other captures were dropped."""
        return len(self._graphs)

    @property
    def captured_in_training(self) -> int:
        """Return how often the CUDA graphs of training were captured so far."""
        return self._training_graphs.captured

    def __call__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        images: Tensor,
        frames: int | None = None,
        noised: NoisedObjects | None = None,
    ) -> Mapping[str, Any]:
        """Return the outputs of `head(backbone(images))`; those of inference may lack "aux_outputs".

        Args:
            images: (B, 3, H, W), or (B * T, 3, H, W) of clips.
            frames: T; None for images.
            noised: objects for denoising queries, in training.
        """
        keywords = {name: value for name, value in (("frames", frames), ("noised", noised)) if value is not None}
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # which see no kernel of a graph
            return run_network(backbone, head, images, keywords, known=False)
        if len(self._graphs) and (backbone.training or head.training):
            self._graphs.clear()  # a training that goes on after an evaluation needs the memory
        if self.result_graphs is not None and (backbone.training or head.training):
            self.result_graphs.clear()
        training = torch.is_grad_enabled() or backbone.training or head.training
        if not training:
            self._training_graphs.make_room()
            outputs = None if self.mode == "off" else self._infer(backbone, head, images, keywords)
            if outputs is not None:
                return outputs
        known = images.device.type == "cuda" and self._of(backbone, head).are_known
        if not training:
            return run_network(backbone, head, images, keywords, known)
        outputs = self._train_captured(backbone, head, images, keywords, known)
        return self._train(backbone, head, images, keywords, known) if outputs is None else outputs

    def _of(self, backbone: nn.Module, head: nn.Module) -> _Modules:
        """Return what is known of the modules as they are now."""
        modules = self._modules.get(backbone.training)
        if modules is None or not modules.are(backbone, head):
            modules = self._modules[backbone.training] = _Modules(backbone, head)
        return modules

    # ---- training
    def _train(
        self, backbone: nn.Module, head: nn.Module, images: Tensor, keywords: Mapping[str, Any], known: bool
    ) -> Mapping[str, Any]:
        if self.compile_training and "compile" not in self._refused:
            return self._run_compiled(backbone, head, as_kernels_want(images) if known else images, keywords)
        return run_network(backbone, head, images, keywords, known)

    def _train_captured(
        self, backbone: nn.Module, head: nn.Module, images: Tensor, keywords: Mapping[str, Any], known: bool
    ) -> Mapping[str, Any] | None:
        """Run the training graphs; None if the modules are to be called as they are."""
        if self.mode == "off" or "training graph" in self._refused or not may_capture(images):
            return None
        modules = self._of(backbone, head)
        if modules.are_hooked or modules.are_uncapturable or not (known or self.mode != "auto"):
            return None
        state = modules.watched.state()
        if not any(state.learn):  # as a teacher's network, outside of `torch.no_grad`
            return None
        noised: NoisedObjects | None = keywords.get("noised")
        others = {name: value for name, value in keywords.items() if name != "noised"}
        inputs = (images,) if noised is None else (images, *noised.tensors)

        def network(given: Sequence[Tensor]) -> Mapping[str, Any]:
            noise = {} if noised is None else {"noised": noised.with_tensors(given[1:])}
            return self._train(backbone, head, given[0], {**others, **noise}, known)

        noise_settings = None if noised is None else noised.settings
        kernels = (*others.items(), noise_settings, self.compile_training, *_autocast(), *_numerics())
        key = (modules, kernels, state)
        self._training_graphs.after = 1 if self.compile_training or self.mode != "auto" else 3
        try:
            return self._training_graphs(key, network, (backbone, head), inputs)  # type: ignore[no-any-return]
        except torch.OutOfMemoryError:  # the modules as they are share memory with the losses
            self._refuse("training graph", "not enough memory for CUDA graphs of training, which goes on without")
        except (RuntimeError, TypeError) as error:
            self._refuse("training graph", f"training goes on without CUDA graphs: {_first_line(error)}")
        self._training_graphs.clear()
        return None

    # ---- inference
    def _infer(
        self, backbone: nn.Module, head: nn.Module, images: Tensor, keywords: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        if images.device.type != "cuda":
            if self._compiles(images, keywords):
                return self._run_compiled(backbone, head, images, keywords, dynamic=False)
            prepared = self.mode == "graph" or (self.mode == "compile" and "compile" not in self._refused)
            prepared = prepared or self._prepares_unasked(backbone, head, images)
            return self._infer_prepared(backbone, head, images, keywords) if prepared else None
        pixels = images.shape[0] * images.shape[-2] * images.shape[-1]
        if "graph" in self._refused or pixels > self._largest or torch.cuda.is_current_stream_capturing():
            return None
        if torch._C._len_torch_dispatch_stack():  # something looks at operations, and would see none
            return None
        network = self._prepared_network(backbone, head)
        if network is None:
            return None
        try:
            compiled = self._compiles(images, keywords)
            key = (network, compiled, *keywords.items(), *_numerics())
            outputs = self._graphs(key, partial(network, keywords=keywords, compiled=compiled), images)
        except torch.OutOfMemoryError:  # the modules as they are may need less than two of their activations
            self._largest = pixels - 1
            self._forget()
            self._refuse(
                "memory", f"not enough memory for a CUDA graph of {pixels / 1e6:.1f} megapixels: smaller ones only"
            )
            return None
        except (RuntimeError, TypeError) as error:
            if network.fits():
                self._refuse("graph", f"CUDA graphs are not used: {_first_line(error)}")
            self._forget()
            return None
        if outputs is None or network.fits():  # looked at while the GPU works
            return outputs
        self._forget()
        return None

    def _prepares_unasked(self, backbone: nn.Module, head: nn.Module, images: Tensor) -> bool:
        """Return whether "auto" runs the prepared form on a CPU, where it is faster and may round differently."""
        if not self.predicts or self.mode != "auto" or images.device.type != "cpu" or images.dtype != torch.float32:
            return False
        if images.shape[0] * images.shape[-2] * images.shape[-1] < _WORTH_PREPARING or not runs_onednn():
            return False
        return _autocast_type("cpu") in (None, torch.bfloat16) and self._of(backbone, head).are_known

    def _infer_prepared(
        self, backbone: nn.Module, head: nn.Module, images: Tensor, keywords: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Run the form that graphs of other devices would hold."""
        dtype = _autocast_type(images.device.type)
        network = self._prepared.get(dtype)
        if network is None or not network.of(backbone, head) or not network.fits():
            network = self._prepared[dtype] = _PreparedNetwork(backbone, head, dtype, True, None, fold=True)
        return network.plain(images, keywords)

    def _forget(self) -> None:
        self._prepared.clear()
        self._compiled.clear()
        self._shapes.clear()
        self._graphs.clear()

    def _prepared_network(self, backbone: nn.Module, head: nn.Module) -> _PreparedNetwork | None:
        """Return the form of the network that is captured; None if the modules are to be called as they are."""
        dtype = _autocast_type("cuda")
        network = self._prepared.get(dtype)
        if network is None or not network.of(backbone, head):
            known = _is_known(backbone) and _is_known(head)
            if self.mode == "auto" and not known:
                return None
            run = partial(self._run_compiled, dynamic=False) if self.mode == "compile" else None
            network = self._prepared[dtype] = _PreparedNetwork(backbone, head, dtype, known, run)
            self._graphs.clear()
            self._shapes.clear()
        return network

    # ---- compiled code
    def _compiles(self, images: Tensor, keywords: Mapping[str, Any]) -> bool:
        """Count a call of inference, and return whether compiled code is to run."""
        if self.mode != "compile" or "compile" in self._refused:
            return False
        return self._shapes((images.shape, *keywords.items(), _autocast_type(images.device.type)))

    def _run_compiled(
        self,
        backbone: nn.Module,
        head: nn.Module,
        images: Tensor,
        keywords: Mapping[str, Any],
        dynamic: bool | None = None,
    ) -> Mapping[str, Any]:
        """Run compiled code of the modules, which are compiled if need be.

        Args:
            dynamic: whether code is for any shape; None: from the second shape on.
        """
        network = next((x for x in self._compiled if x.of(backbone, head, dynamic)), None)
        try:
            if network is None:
                logger.info("compiling the network, which takes a minute or two; PyTorch keeps the code for next time")
                network = CompiledNetwork(backbone, head, dynamic, self.compiler)
                self._compiled = [*self._compiled[-3:], network]
            return network(images, keywords)
        except torch._dynamo.exc.TorchDynamoException as error:
            self._compiled = []
            self._refuse("compile", f"the network is not compiled: {_first_line(error)}")
            return call_head(head, backbone(images), keywords)

    def _refuse(self, way: str, message: str) -> None:
        if way not in self._refused:
            self._refused.add(way)
            logger.warning("%s", message)

    def __deepcopy__(self, memo: object) -> Runtime:
        copied = Runtime(self.mode, self.predicts)
        copied.compile_training = self.compile_training
        return copied

    def __reduce__(self) -> tuple[object, ...]:
        return Runtime, (self.mode, self.predicts)


class _Modules:
    """What is known of a backbone and a head; it holds as long as `are` does.

    Attributes:
        watched: the modules.
        are_known, are_hooked, are_uncapturable: see the functions of these names.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        self._modules = (backbone, head)
        self.watched = WatchedModules(self._modules, is_hooked_in_training, addresses=False, numbers=_SCHEDULED)
        self.are_known = _is_known(backbone) and _is_known(head)
        self.are_hooked = any(is_hooked_in_training(module) for root in self._modules for module in root.modules())
        self.are_uncapturable = is_uncapturable(self._modules)

    def are(self, backbone: nn.Module, head: nn.Module) -> bool:
        """Return whether it is about these modules, as they are now."""
        return self._modules == (backbone, head) and self.watched.have_same_structure()


class _PreparedNetwork:
    """The form of a network that is captured, and whether it still is that of the modules."""

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        dtype: torch.dtype | None,
        known: bool,
        compiled: Callable[[nn.Module, nn.Module, Tensor, Mapping[str, Any]], Mapping[str, Any]] | None,
        fold: bool = False,
    ) -> None:
        self._modules = (backbone, head)
        self._compiled = compiled
        self._known = known
        with torch.inference_mode(False):  # a graph is captured outside of it
            self._prepared = Prepared(backbone, head, dtype, fold=fold or compiled is not None, channels_last=known)

    def of(self, backbone: nn.Module, head: nn.Module) -> bool:
        """Return whether it is made of these modules."""
        return self._modules == (backbone, head)

    def fits(self) -> bool:
        """Return whether modules, hooks and the places of weights are those that graphs were captured with."""
        return self._prepared.fits_in_place()

    def plain(self, images: Tensor, keywords: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the outputs for images outside of a graph, with weights as they are now."""
        self._prepared.refresh()  # faster than a search for changes that finds all; those through `.data` have no mark
        return run_network(self._prepared.backbone, self._prepared.head, images, keywords, self._known)

    def __call__(self, images: Tensor, keywords: Mapping[str, Any], compiled: bool = False) -> Outputs:
        """Return the outputs for images, of compiled code or not, with weights as they are now."""
        with uncached_autocast(images.device.type):
            self._prepared.refresh()  # part of the graph, so that no change of a weight is missed
            backbone, head = self._prepared.backbone, self._prepared.head
            if compiled and self._compiled is not None:
                outputs = self._compiled(backbone, head, as_kernels_want(images) if self._known else images, keywords)
            else:
                outputs = run_network(backbone, head, images, keywords, self._known)
        last = without_earlier(outputs)
        values = {name: last[name] for name in last}
        if not all(isinstance(value, Tensor) for value in values.values()):
            raise TypeError("the head returns other things than tensors")
        return values


def _is_known(network: nn.Module) -> bool:
    """Return whether all modules are of libraries that we know, without hooks and methods from elsewhere."""
    for module in network.modules():
        if is_hooked(module) or not has_own_methods(type(module), _KNOWN):
            return False
        if not all(f"{base.__module__}.".startswith(_KNOWN) for base in type(module).__mro__ if base not in _PLAIN):
            return False
    return True


def _autocast() -> tuple[torch.dtype | None, bool]:
    return _autocast_type("cuda"), torch.is_autocast_cache_enabled()


def _autocast_type(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _numerics() -> tuple[object, ...]:
    """Return the settings of PyTorch and of this package by which kernels are chosen."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    precisions = ("fp32_precision", "allow_tf32")  # since PyTorch 2.9 the second may be refused
    products, convolutions = (
        next(getattr(place, name) for name in precisions if hasattr(place, name))
        for place in (cuda.matmul, getattr(cudnn, "conv", cudnn))
    )
    return (
        products,
        convolutions,
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        cudnn.enabled,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()),
        backend("cuda"),
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
