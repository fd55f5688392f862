"""Convolution and batch norm as one convolution, where nothing is learned: one pass over the maps less."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_folded: WeakKeyDictionary[nn.Module, tuple[Any, nn.Module]] = WeakKeyDictionary()


def conv_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, *args: Any) -> Tensor:
    """`norm(conv(*args))`; in evaluation without gradients as one convolution, with equal values up to rounding.

    The folded weights are made once and again when a weight or statistic has changed. They are no part of the network:
    its state dict, copies and exports know nothing of them.
    """
    tensors = (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    learning = torch.is_grad_enabled() or conv.training or norm.training
    watched = conv._forward_hooks or norm._forward_hooks
    traced = torch.compiler.is_compiling() or not isinstance(conv.weight, nn.Parameter)
    if learning or watched or traced or any(t is None or t.is_meta or t.is_inference() for t in tensors):
        result: Tensor = norm(conv(*args))
        return result
    state = tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors if t is not None)
    known = _folded.get(conv)
    if known is None or known[0] != state:
        known = _folded[conv] = (state, fuse_conv_bn_eval(conv, norm))
    result = known[1](*args)
    return result


def forget_folded(module: nn.Module) -> None:
    """Drops what was folded of a network; for weights that were changed through `.data`, which leaves no trace."""
    for part in module.modules():
        _folded.pop(part, None)
