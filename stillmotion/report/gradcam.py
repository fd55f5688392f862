"""Grad-CAM: which places of the frames speak for an output of a network (Selvaraju et al., arXiv:1610.02391)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stillmotion.models.encoder import Encoder
from stillmotion.view import View

Heat = NDArray[np.float32]
MOST_STRETCHED = 2.5
"""By which factor the sides of maps may differ from those of the view, as strides do not divide every size."""
MOST_BEHIND = 4
"""Layers with weights between the last maps and the embedding: VGG has two. A transformer's maps are its input."""


def grad_cam(encoder: Encoder, inputs: Mapping[str, Tensor], output: int | None = None, *, view: str = "") -> Heat:
    """What of the frames speaks for an output: ReLU(sum_k a_k A_k), a_k the mean gradient of the output by map A_k.

    A are the last maps of the part that sees the view. A 2D network has maps of every frame, each with an a_k of its
    own; a 3D network's maps keep what its strides left of time, and a_k is the mean over place and time. All moments
    of a sample count, as the network joins them.

    Args:
        encoder: Put into `eval()`; its gradients are left alone.
        inputs: What its views show of one sample, as the loader gives it: (N, T, C, H, W) by name of the view.
        output: Number of the logit; None: the largest.
        view: Whose frames are meant; default: the first view.

    Returns:
        (N, T, H, W), 0 or more, in the size of the view: maps in between in place and time are interpolated. The mean
        over axis 1 is the heat of the clip as a whole. `to_bytes` makes pictures of it.

    Raises:
        ValueError: The network has no maps there (a transformer of tokens), or tells no classes.

    Example:
        >>> from stillmotion.models.factory import create_model
        >>> encoder = create_model("timm/test_resnet", num_classes=4, view={"size": 64})
        >>> grad_cam(encoder, {"frames": torch.zeros(1, 1, 3, 64, 64, dtype=torch.uint8)}).shape
        (1, 1, 64, 64)
    """
    name = view or next(iter(encoder.views))
    seen = encoder.views[name]
    device = next(encoder.parameters()).device
    batch = {f"student/{key}": inputs[key][None].to(device) for key in encoder.views}
    layer, call = _last_maps(encoder.eval(), batch, name)
    maps, gradient = _differentiate(encoder, batch, layer, call, output)
    if _channels_last(maps, seen):
        maps, gradient = maps.movedim(-1, 1), gradient.movedim(-1, 1)
    weights = gradient.flatten(2).mean(2)
    heat = torch.einsum("mk,mk...->m...", weights, maps).clamp(min=0.0)
    moments, place = inputs[name].shape[0], heat.shape[-2:]
    heat = heat.reshape(moments, 1, -1, *place)  # (N, 1, T', h, w)
    full = F.interpolate(heat, (seen.num_frames, *seen.size), mode="trilinear", align_corners=False)
    return np.asarray(full[:, 0].cpu().numpy(), np.float32)


def _last_maps(encoder: Encoder, batch: Mapping[str, Tensor], view: str) -> tuple[nn.Module, int]:
    """The module that gives the last maps of what sees a view, and which of its calls."""
    found: list[nn.Module] = []
    behind: list[nn.Module] = []  # layers that follow without maps

    def keep(module: nn.Module, args: Any, result: Any) -> None:
        if _is_map(module, result, encoder.views[view]):
            found.append(module)
            behind.clear()
        elif getattr(getattr(module, "weight", None), "ndim", 0) > 1:
            behind.append(module)

    hooks = [module.register_forward_hook(keep) for module in encoder.part_of(view).modules()]
    try:
        with torch.no_grad():
            encoder.from_batch(batch, "student")
    finally:
        for hook in hooks:
            hook.remove()
    if not found or len(behind) > MOST_BEHIND:
        raise ValueError(f"{encoder.config.get('name')}: has no maps in which places could be told apart at its end")
    return found[-1], found.count(found[-1]) - 1


def _is_map(module: nn.Module, result: Any, view: View) -> bool:
    """Whether a module gives maps; queries and weights of attention have as many axes, and another shape."""
    if not isinstance(result, Tensor) or result.ndim not in (4, 5):
        return False
    if isinstance(module, nn.Dropout | nn.Softmax | nn.Identity):
        return False
    first, last = result.shape[-2:], result.shape[-3:-1]  # channels first or last
    several = math.prod(first) > 1 and math.prod(result.shape[1:-1][-2:]) > 1  # behind the pooling one place is left
    return several and min(_distance(first, view), _distance(last, view)) < math.log(MOST_STRETCHED)


def _distance(size: Sequence[int], view: View) -> float:
    """By how much (the log of a factor) the sides of maps have another ratio than those of the view."""
    return abs(math.log(size[0] / size[1]) - math.log(view.size[0] / view.size[1]))


def _differentiate(
    encoder: Encoder, batch: Mapping[str, Tensor], layer: nn.Module, call: int, output: int | None
) -> tuple[Tensor, Tensor]:
    """Maps of a layer, and the gradient of a logit by them. Only what follows the layer is differentiated."""
    kept: list[Tensor] = []

    def cut(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        kept.append(result.detach().requires_grad_())
        return kept[-1].clone()  # the next layer may work in place

    hook = layer.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            outputs = encoder.from_batch(batch, "student")
    finally:
        hook.remove()
    if "logits" not in outputs:
        raise ValueError(f"{encoder.config.get('name')}: tells no classes, so nothing speaks for one")
    logits = outputs["logits"][0]
    chosen = logits.max() if output is None else logits[output]
    (gradient,) = torch.autograd.grad(chosen, kept[call])
    return kept[call].detach(), gradient


def _channels_last(maps: Tensor, view: View) -> bool:
    """Whether maps are (..., H, W, C), as Swin's: their shape says which two sides are those of the view."""
    return _distance(maps.shape[-3:-1], view) < _distance(maps.shape[-2:], view)


def to_bytes(heat: Heat) -> NDArray[np.uint8]:
    """Heat as bytes, the hottest place of all 255; all 0 where nothing speaks for the output.

    Example:
        >>> to_bytes(np.array([[0.0, 0.5], [1.0, 2.0]], np.float32)).tolist()
        [[0, 64], [128, 255]]
    """
    top = float(heat.max())
    return np.zeros(heat.shape, np.uint8) if top <= 0.0 else np.rint(heat * (255.0 / top)).astype(np.uint8)


def blend(frame: NDArray[np.uint8], heat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame under its heat: the hotter a place, the more it is covered by the colour of its heat.

    Args:
        frame: (H, W, 3) RGB.
        heat: (h, w) from `to_bytes`; brought to the size of the frame.

    Returns:
        (H, W, 3).
    """
    import cv2

    heat = np.asarray(cv2.resize(heat, (frame.shape[1], frame.shape[0]), interpolation=cv2.INTER_LINEAR))
    colours = np.asarray(cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO))[..., ::-1]
    share = 0.1 + 0.5 * (heat[..., None] / 255.0)
    return np.rint(frame * (1.0 - share) + colours * share).astype(np.uint8)
