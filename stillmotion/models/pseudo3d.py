"""Pseudo-3D of any 2D network: temporal convolutions around its spatial ones (the idea of P3D, ICCV 2017).

The network's own modules and weights stay as they are and see frames as before, time merged into the batch; beside each
spatial convolution stands one over time. At the start it changes nothing, so a network that was trained on images
knows on a still clip what it knew on the picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.models.adapters import ImageEncoder
from stillmotion.models.encoder import Encoder
from stillmotion.models.temporal import TemporalConv, halve_time, split_time

TEMPORAL = "temporal"
"""Name of the further module within a convolution, and so a part of the further names of a state dict."""
STAGES = (2, 3, 4, 5)
CLIP_FRAMES = 16
"""That `pseudo3d/<name>` sees unless its view says otherwise, as P3D does."""


@dataclass
class Frames:
    """How many frames of each clip are in the batch where the network is now; shared by its modules.

    `set_outside` says that the network's caller merges time into the batch and sets `num`.
    """

    num: int = 1
    set_outside: bool = False


class Temporal(nn.Module):
    """What stands beside one spatial convolution S, wired as A, B or C of P3D; x is its input, s = S(x).

    A: T(s), serial; what follows S (normalisation, activation) follows T.
    B: s + T(x), parallel.
    C: s + T(ReLU(BN(s))), serial with a shortcut. The inner ReLU is what sets it apart from A.
    T starts as identity in A, with zeros in B and C.
    """

    def __init__(self, conv: nn.Conv2d, wiring: str, frames: Frames) -> None:
        super().__init__()
        depthwise = conv.groups == conv.in_channels > 1
        self.wiring, self.frames, self.stride = wiring, frames, _pair(conv.stride)
        if wiring == "B":
            self.conv = TemporalConv(conv.in_channels, conv.out_channels, groups=conv.groups)
        else:
            groups = conv.out_channels if depthwise else conv.groups
            self.conv = TemporalConv(conv.out_channels, conv.out_channels, groups=groups)
        self.bn = nn.BatchNorm2d(conv.out_channels) if wiring == "C" else None
        if wiring == "A":
            self.conv.pass_on()
        else:
            nn.init.zeros_(self.conv.weight)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        if self.wiring == "B":
            source = x[:, :, :: self.stride[0], :: self.stride[1]]
        else:
            source = s if self.bn is None else F.relu(self.bn(s))
        mixed: Tensor = self.conv(source, self.frames.num)
        return mixed if self.wiring == "A" else s + mixed


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def pseudo3d(
    model: nn.Module,
    *,
    wiring: str = "ABC",
    stages: Sequence[int] = STAGES,
    time_pool: Sequence[int] = (),
    size: tuple[int, int] = (224, 224),
) -> nn.Module:
    """Turns a 2D CNN, in place, into a network that sees clips.

    Args:
        model: Of timm or torchvision, or any other that takes (B, C, H, W); it now takes clips (B, T, C, H, W) too
            and gives the mean over time of what it gave. A state dict of the 2D network loads with `strict=False`;
            missing are only names with `temporal` in them.
        wiring: Letters A, B, C, given to the spatial convolutions in turn; empty adds none.
        stages: Where to add them: maps reduced to 1/2^stage of the picture (res2 of a ResNet is stage 2). The stem's
            first convolution stays 2D.
        time_pool: Stages after which the clip is halved in time (maximum of two frames).
        size: Height and width at which the stages are found.

    Returns:
        The same `model`.

    Raises:
        ValueError: Unknown letter or stage, no spatial convolution there, or wiring B around one that changes sizes
            by its padding.

    Example:
        >>> import torch, timm
        >>> net = timm.create_model("test_resnet", num_classes=5).eval()
        >>> frames = torch.randn(2, 1, 3, 64, 64)
        >>> flat = net(frames[:, 0])
        >>> clip_net = pseudo3d(net, wiring="ABC", size=(64, 64)).eval()
        >>> torch.allclose(clip_net(frames.expand(-1, 8, -1, -1, -1)), flat, atol=1e-4)
        True
    """
    if unknown := set(wiring) - set("ABC"):
        raise ValueError(f"wiring={wiring!r}: {min(unknown)!r} is none of A, B, C")
    frames = Frames()
    found = _trace(model, size)
    chosen = [c for c in found.convs if c.stage in stages]
    if wiring and not chosen:
        have = sorted({c.stage for c in found.convs})
        raise ValueError(f"stages={list(stages)}: no spatial convolution there; this network has some in {have}")
    for number, place in enumerate(chosen if wiring else ()):
        letter = wiring[number % len(wiring)]
        conv = place.conv
        if letter == "B" and not place.same:
            raise ValueError(f"wiring B around {place.name}: its padding changes the size of the maps; leave out its "
                             "stage, or wire with A and C")  # fmt: skip
        temporal = Temporal(conv, letter, frames).to(conv.weight.device)
        conv.add_module(TEMPORAL, temporal)
        conv.register_forward_hook(_add_time)
    for stage in time_pool:
        if stage not in found.entries:
            raise ValueError(f"time_pool={list(time_pool)}: nothing reduces the maps after stage {stage}; "
                             f"possible: {sorted(found.entries)}")  # fmt: skip
        found.entries[stage].register_forward_pre_hook(partial(_halve_time, frames))
    model.register_forward_pre_hook(partial(_merge_time, frames))
    model.register_forward_hook(partial(_mean_over_time, frames), with_kwargs=False)
    model.frames = frames  # type: ignore[assignment]
    return model


def _add_time(conv: nn.Module, args: tuple[Any, ...], s: Tensor) -> Tensor:
    temporal = conv.get_submodule(TEMPORAL)
    result: Tensor = temporal(args[0], s)
    return result


def _halve_time(frames: Frames, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, frames.num = halve_time(args[0], frames.num)
    return (x, *args[1:])


def _merge_time(frames: Frames, model: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if args[0].ndim != 5:
        if not frames.set_outside:
            frames.num = 1
        return None
    frames.num = args[0].shape[1]
    model._clips = len(args[0])  # type: ignore[assignment]
    return (args[0].flatten(0, 1), *args[1:])


def _mean_over_time(frames: Frames, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    clips = model.__dict__.pop("_clips", None)
    if clips is None:
        return None
    return output.unflatten(0, (clips, -1)).mean(1)


@dataclass
class _Place:
    """A spatial convolution: where it stands, and whether its output is as large as its stride says."""

    name: str
    conv: nn.Conv2d
    stage: int
    same: bool


@dataclass
class _Trace:
    """Spatial convolutions in the order in which they run; the outermost module that leaves each stage."""

    convs: list[_Place]
    entries: dict[int, nn.Module]


def _trace(model: nn.Module, size: tuple[int, int]) -> _Trace:
    """Finds the stages by the sizes of the maps in one run on nothing."""
    trace = _Trace([], {})
    handles = []
    names = {module: name for name, module in model.named_modules()}
    depth = {module: name.count(".") for module, name in names.items()}
    stem: list[nn.Module] = []

    def stage_of(x: Tensor) -> int:
        return round(math.log2(size[0] / x.shape[2]))

    def saw(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not (args and _is_map(args[0]) and _is_map(output)):
            return
        if isinstance(module, nn.Conv2d) and not stem:
            stem.append(module)
        elif isinstance(module, nn.Conv2d) and _is_spatial(module):
            stride = _pair(module.stride)
            expected = tuple(math.ceil(n / s) for n, s in zip(args[0].shape[2:], stride, strict=True))
            same = expected == tuple(output.shape[2:])
            trace.convs.append(_Place(names[module], module, stage_of(output), same))
        before, after = stage_of(args[0]), stage_of(output)
        if before >= 1 and after == before + 1:
            known = trace.entries.get(before)
            if known is None or depth[module] < depth[known]:
                trace.entries[before] = module

    for module in model.modules():
        handles.append(module.register_forward_hook(saw))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        state = {n: t.to("meta") for n, t in (*model.named_parameters(), *model.named_buffers())}
        with torch.no_grad(), torch.device("meta"):
            torch.func.functional_call(model, state, torch.zeros(1, 3, *size, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return trace


def _is_map(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 4


def _is_spatial(conv: nn.Conv2d) -> bool:
    """3x3 and larger; a 2x2 or 4x4 one only cuts patches."""
    return all(k % 2 for k in _pair(conv.kernel_size)) and max(_pair(conv.kernel_size)) > 1


class Pseudo3d(Encoder):
    """A 2D network of timm or torchvision as a pseudo-3D one; its logits and embedding are means over time, its
    taps keep it: (B, C, T, H, W).

    Args:
        image: The 2D network, changed in place.
        wiring, stages, time_pool: As in `pseudo3d`.
    """

    def __init__(
        self,
        image: ImageEncoder,
        *,
        wiring: str = "ABC",
        stages: Sequence[int] = STAGES,
        time_pool: Sequence[int] = (),
    ) -> None:
        super().__init__()
        (view,) = image.views.values()
        self.image = image
        self.views = {"clip": view}
        self.embedding_dim, self.num_classes, self.taps = image.embedding_dim, image.num_classes, image.taps
        self.weights_report = image.weights_report
        net = image.get_submodule("net")
        pseudo3d(net, wiring=wiring, stages=stages, time_pool=time_pool, size=view.size)
        self.frames: Frames = net.frames  # type: ignore[assignment]
        self.frames.set_outside = True

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        (clip,) = inputs
        self.frames.num = clip.shape[1]
        frames = clip.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        outputs = self.image.forward_net(frames)
        outputs = {k: v.reshape(clip.shape[0], -1, *v.shape[1:]).mean(1) for k, v in outputs.items()}
        return outputs | {k: split_time(v, clip.shape[0]) for k, v in self.image.watched().items()}

    def new_classifier(self, num_classes: int) -> None:
        self.image.reset_classifier(num_classes)

    def published_names(self) -> dict[str, str]:
        own = {published: f"image.{name}" for published, name in self.image.published_names().items()}
        return own | {name: name for name in self.state_dict()}

    def classifier_names(self) -> set[str]:
        return {f"image.{name}" for name in self.image.classifier_names()}

    def initialised_names(self) -> set[str]:
        return {name for name in self.state_dict() if f".{TEMPORAL}." in name}
