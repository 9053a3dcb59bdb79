"""A backbone and a head for inference: norms folded into convolutions, weights stored as the kernels want them.

What changes is copied, and everything else is shared with the original, so that later changes of it count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from types import FunctionType
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

from .backbone.swin import Mlp, PatchMerging, WindowAttention
from .cpu_linear import DILATION, CpuLinear, prefers_convolution
from .derived_weights import DerivedWeights
from .pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder, MSDeformAttnTransformerEncoderLayer
from .pixel_decoder.ops.modules import MSDeformAttn
from .transformer_decoder.layers import Attention, FFNLayer
from .watched_modules import WatchedModules

# Modules of other projects may use their children in any way: only these are taken apart.
_KNOWN = ("torch.nn.modules.", "torchvision.ops.", "detectron2.", "timm.", __name__.rpartition(".modeling.")[0] + ".")

# What is stored in another type or memory format: the parameters of these very classes, not of subclasses.
_LEAVES: dict[type, tuple[str, ...]] = {
    nn.Conv2d: ("weight", "bias"),
    Conv2d: ("weight", "bias"),
    nn.ConvTranspose2d: ("weight", "bias"),
    nn.Linear: ("weight", "bias"),
    Attention: ("in_proj_weight", "in_proj_bias"),
}
# Whose linear layers are applied to thousands of tokens.
_OF_TOKENS = (MSDeformAttn, MSDeformAttnTransformerEncoderLayer, WindowAttention, Mlp, PatchMerging)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

_TIMM_CONVOLUTION = "timm.layers.conv2d_same.Conv2dSame"
_TIMM_NORMS = (
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
    "torchvision.ops.misc.FrozenBatchNorm2d",
)
# Blocks of timm: which norm follows which convolution directly.
_TIMM_PAIRS = {
    "timm.models.efficientnet.EfficientNetFeatures": (("conv_stem", "bn1"),),
    "timm.models._efficientnet_blocks.ConvBnAct": (("conv", "bn1"),),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "timm.models._efficientnet_blocks.InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    "timm.models._efficientnet_blocks.EdgeResidual": (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
    "timm.models.resnet.BasicBlock": (("conv1", "bn1"), ("conv2", "bn2")),
    "timm.models.resnet.Bottleneck": (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
}


class Prepared:
    """Forms of a backbone and a head for inference; both are in evaluation mode.

    Modules that are hooked, parametrized, or of a class of another project are those of the original, with all that is
    inside them. So is every module in which nothing is to change.

    Args:
        backbone, head: the originals; they stay as they are.
        dtype: torch.bfloat16 or torch.float16: store weights of linear layers and convolutions in this type; the forms
            then run under autocast of this type only, with the same results bit by bit if `fold` is False. None for
            the type that they have.
        fold: fold batch norms that use running statistics into the convolution before them, and compute large products
            on CPUs by oneDNN, which both changes rounding.
        channels_last: store weights of convolutions in this memory format.

    Attributes:
        backbone, head: the forms, to be called as the originals; copied weights get no gradients.
    """

    backbone: nn.Module
    head: nn.Module

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        dtype: torch.dtype | None = None,
        fold: bool = True,
        channels_last: bool = True,
    ) -> None:
        self._originals = (backbone, head)
        self._weights = DerivedWeights(dtype, channels_last)
        self._fold = fold
        self._forms: dict[tuple[int, bool], nn.Module] = {}
        self.backbone, self.head = self._form(backbone, True), self._form(head, True)
        self._watched = WatchedModules(self._originals, is_hooked)
        self._layout = self._weights.layout()
        self.refresh()

    def refresh(self) -> None:
        """Take over changed weights by tensor operations in place, so that a CUDA graph can hold them."""
        self._weights.refresh()

    def fits(self) -> bool:
        """Return whether modules, their modes, methods and hooks, and the shapes, types and devices of their weights
        are still those of the start; if not, a new object is needed.
        """
        return self._watched.have_same_structure() and self._layout == self._weights.layout()

    def fits_in_place(self) -> bool:
        """Return `fits()`, and whether all parameters and buffers are still where they were at the start."""
        return self.fits() and self._watched.have_same_addresses()

    def _form(self, module: nn.Module, dtype: bool) -> nn.Module:
        """Return the form of a module: itself if nothing in it is to change. `dtype` False: types stay."""
        key = (id(module), dtype)
        if key not in self._forms:
            self._forms[key] = self._new_form(module, dtype) if _is_plain(module) else module
        return self._forms[key]

    def _new_form(self, module: nn.Module, dtype: bool) -> nn.Module:
        if self._weights.dtype == torch.float16 and isinstance(module, MSDeformAttnPixelDecoder):
            dtype = False  # it leaves autocast
        parameters, children = self._folded(module, dtype) if self._fold else ({}, {})
        for name, child in module.named_children():
            if name not in children and (form := self._form(child, dtype)) is not child:
                children[name] = form
        if not parameters:
            parameters = self._stored(module, dtype)
        attributes = self._in_lists(module, dtype) if children else {}
        if _activates_new_tensor(module):
            attributes["activation"] = F.relu_
        if self._fold and _is_pointwise(module) and prefers_convolution(module.weight):
            attributes["dilation"] = DILATION
        if self._fold and type(module) in _OF_TOKENS:
            children |= self._token_layers(module, children)
        return _clone(module, parameters, children, attributes) if parameters or children or attributes else module

    def _stored(self, module: nn.Module, dtype: bool) -> dict[str, Tensor]:
        """Return copies of the module's own weights, of those that are to be stored differently."""
        weights = {name: getattr(module, name) for name in _LEAVES.get(type(module), ())}
        return {
            name: self._weights.copy(module, name, dtype)
            for name, weight in weights.items()
            if weight is not None and self._weights.differs(weight, dtype)
        }

    def _folded(self, module: nn.Module, dtype: bool) -> tuple[dict[str, Tensor], dict[str, nn.Module | None]]:
        """Return the weights of a convolution with its norm folded, and children that are replaced by folding."""
        if isinstance(module, Conv2d):
            norm: Any = module.norm
            if not _folds(module, norm):
                return {}, {}
            weight, bias = self._weights.fold(module, norm, dtype)
            return {"weight": weight, "bias": bias}, {"norm": None}
        children: dict[str, nn.Module | None] = {}
        for first, second in _pairs(module):
            convolution, norm = module.get_submodule(first), module.get_submodule(second)
            if isinstance(convolution, nn.Conv2d) and _folds(convolution, norm):
                weight, bias = self._weights.fold(convolution, norm, dtype)
                children[first] = _clone(convolution, {"weight": weight, "bias": bias}, {}, {})
                children[second] = nn.Sequential(*norm.children()).eval()  # timm's activation
        return {}, children

    def _token_layers(self, module: nn.Module, forms: Mapping[str, nn.Module | None]) -> dict[str, nn.Module | None]:
        """Return the linear layers among the children in the form that is faster on CPUs."""
        linear = {name: forms.get(name, child) for name, child in module.named_children() if type(child) is nn.Linear}
        return {
            name: _clone(child, {}, {}, {}, CpuLinear)
            for name, child in linear.items()
            if isinstance(child, nn.Linear) and _is_plain(child) and prefers_convolution(child.weight)
        }

    def _in_lists(self, module: nn.Module, dtype: bool) -> dict[str, Any]:
        """Return attributes that are plain lists of modules, as in detectron2's ResNet, with the forms in them."""
        lists = {name: value for name, value in vars(module).items() if isinstance(value, list)}
        return {
            name: [self._forms.get((id(item), dtype), item) for item in value]
            for name, value in lists.items()
            if any(isinstance(item, nn.Module) for item in value)
        }


def is_hooked(module: nn.Module) -> bool:
    """Return whether calling a module does more than its class says: hooks, compiled calls, methods of the object."""
    own = vars(module)
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own.get("_compiled_call_impl") is not None:
        return True
    return not _methods(type(module)).isdisjoint(own)  # type: ignore[arg-type]


@cache
def _methods(cls: type) -> frozenset[str]:
    return frozenset(name for name in dir(cls) if callable(getattr(cls, name, None)))


def has_own_methods(cls: type, libraries: tuple[str, ...]) -> bool:
    """Return whether all methods of a class of modules are code of `libraries`, as others may be assigned to it."""
    bases = (base for base in cls.__mro__ if base is not nn.Module)
    methods = (value for base in bases for value in vars(base).values() if isinstance(value, FunctionType))
    return all(f"{method.__module__}.".startswith(libraries) for method in methods)


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is of a class that is known, with the methods that this class was written with."""
    if is_hooked(module):
        return False
    cls = type(module)
    if not f"{cls.__module__}.".startswith(_KNOWN):
        return False
    if cls.__module__.startswith("torch.") and cls not in _CONTAINERS and module._modules:
        return False  # it may read the weights of its children
    return has_own_methods(cls, ("torch.", *_KNOWN))


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of children of which the second is called on the result of the first, which nobody else sees."""
    if type(module) is nn.Sequential:
        yield from pairwise(module._modules)
    yield from _TIMM_PAIRS.get(_name(module), ())


def _folds(convolution: nn.Module, norm: Any) -> bool:
    """Return whether a norm is a fixed affine function, and is the only one to see what the convolution returns."""
    is_convolution = type(convolution) in (nn.Conv2d, Conv2d) or _name(convolution) == _TIMM_CONVOLUTION
    if not is_convolution or not isinstance(norm, nn.Module) or not (_is_plain(convolution) and _is_plain(norm)):
        return False
    if type(norm) not in (FrozenBatchNorm2d, nn.BatchNorm2d) and _name(norm) not in _TIMM_NORMS:
        return False
    if isinstance(norm, nn.BatchNorm2d) and (norm.training or norm.running_mean is None or not norm.affine):
        return False
    own = (convolution.norm, convolution.activation) if type(convolution) is Conv2d else (None, None)
    return own[0] is norm or own == (None, None)


def _activates_new_tensor(module: Any) -> bool:
    """Return whether a module applies ReLU to a tensor that only it has, which then needs no second one."""
    if getattr(module, "activation", None) is not F.relu:
        return False
    if type(module) in (MSDeformAttnTransformerEncoderLayer, FFNLayer):
        return _is_plain(module.linear1)
    return type(module) is Conv2d and (module.norm is None or _is_plain(module.norm))


def _is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return type(module) in (nn.Conv2d, Conv2d) and (module.kernel_size, module.groups) == ((1, 1), 1)


def _clone(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    children: Mapping[str, nn.Module | None],
    attributes: Mapping[str, Any],
    cls: type[nn.Module] | None = None,
) -> nn.Module:
    """Return a module that shares with `module` all but what is given; hooks that are registered later, too."""
    cls = cls or type(module)
    clone = cls.__new__(cls)
    vars(clone).update(vars(module))
    if parameters:
        vars(clone)["_parameters"] = {**module._parameters, **parameters}
    if children:
        vars(clone)["_modules"] = {**module._modules, **children}
    vars(clone).update(attributes)
    return clone
