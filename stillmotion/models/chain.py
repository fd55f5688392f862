"""A 2D CNN as stages that run one after the other, divided where its maps shrink."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stillmotion.models.adapters import ImageEncoder, TimmEncoder, TorchvisionImage
from stillmotion.models.encoder import Encoder

PROBE = 64
"""Side of the picture by which stages are found; every usual reduction divides it."""
FIRST_LEVEL = 2
"""Of the first stage: maps of a quarter of the picture, res2 of a ResNet."""
HEADS = (nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Linear)
"""What stands behind the last maps of a network of torchvision."""
WORK = "ResNet, MobileNet, EfficientNet, RegNet, VGG or ConvNeXt of timm or torchvision"


class Chain:
    """The stages of a network, and the way from its last maps to its embedding.

    The network's own modules run, in their own order; what runs is checked against the network at the start.

    Args:
        encoder: A 2D CNN of timm or torchvision. It keeps its modules; hooks on a Sequential that the stages divide do
            not run.

    Attributes:
        encoder: As given.
        stages: Modules of each stage: reductions 4 (with the stem), 8, 16, 32 in most networks.
        widths: Channels of the maps that a stage ends with.

    Raises:
        ValueError: The network is no chain of modules, or sees several frames one by one.

    Example:
        >>> from stillmotion.models.factory import create_model
        >>> Chain(create_model("torchvision/resnet18", num_classes=0)).widths
        [64, 128, 256, 512]
    """

    def __init__(self, encoder: Encoder) -> None:
        name = encoder.config.get("name")
        if not isinstance(encoder, TimmEncoder | TorchvisionImage):
            raise ValueError(f"{name}: its layers cannot be taken apart; take a {WORK}")
        self.encoder: ImageEncoder = encoder
        (view,) = encoder.views.values()
        frames = view.num_frames - (view.kind == "difference")
        if frames > 1 and view.kind != "flow" and not encoder.stack:
            raise ValueError(f"{name}: sees {frames} frames one by one, not as one picture; set options.stack=true, or "
                             "view.num_frames=1")  # fmt: skip
        self.channels = view.channels * frames
        try:
            units, self.rest = _take_apart(encoder, self._picture((PROBE, PROBE)))
            levels = sorted({level for _, level in units})
            self.stages = [[unit for unit, own in units if own == level] for level in levels]
            agrees = self._agrees()
        except Exception:  # modules that do not follow one another can fail in any way
            agrees = False
        if not agrees:
            raise ValueError(f"{name}: its layers are no chain, one after the other; take a {WORK}")
        self.widths = [x.shape[1] for x in self._run((PROBE, PROBE))]

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Runs a stage, counted from 0, on pictures or on the maps of the stage before."""
        for unit in self.stages[number]:
            x = unit(x)
        return x

    def embed(self, maps: Tensor) -> Tensor:
        """From the maps of the last stage to the embedding (B, D), as the network does it."""
        if isinstance(self.encoder, TimmEncoder):
            embedding: Tensor = self.encoder.net.forward_head(maps, pre_logits=True)
            return embedding
        if not (self.rest and isinstance(self.rest[0], nn.AdaptiveAvgPool2d)):
            maps = maps.mean((2, 3), keepdim=True)
        for module in self.rest:
            maps = module(maps.flatten(1) if isinstance(module, nn.Linear) else maps)
        return maps.flatten(1)

    def sizes(self) -> list[tuple[int, ...]]:
        """Height and width of the maps of every stage, for the network's own view."""
        (view,) = self.encoder.views.values()
        return [tuple(x.shape[2:]) for x in self._run(view.size)]

    def drop_nothing(self) -> None:
        """Switches off all dropout behind the last maps."""
        net = self.encoder.get_submodule("net")
        if hasattr(net, "drop_rate"):
            net.drop_rate = 0.0  # type: ignore[assignment]
        inside = {module for stage in self.stages for unit in stage for module in unit.modules()}
        for module in net.modules():
            if isinstance(module, nn.Dropout) and module not in inside:
                module.p = 0.0

    def _picture(self, size: tuple[int, int]) -> Tensor:
        like = next(self.encoder.parameters())
        noise = torch.randn(1, self.channels, *size, generator=torch.Generator().manual_seed(0))
        return noise.to(like.device, like.dtype)

    @torch.no_grad()
    def _run(self, size: tuple[int, int]) -> list[Tensor]:
        x, maps = self._picture(size), []
        with _Still(self.encoder):
            for number in range(len(self.stages)):
                x = self.stage(number, x)
                maps.append(x)
        return maps

    @torch.no_grad()
    def _agrees(self) -> bool:
        if not self.stages:
            return False
        maps = self._run((PROBE, PROBE))[-1]
        with _Still(self.encoder):
            expected = self.encoder.forward_net(self._picture((PROBE, PROBE)))["embedding"]
            return _equal(self.embed(maps), expected)


class _Still:
    """Puts a network into `eval()` for a while; afterwards every part is as it was, and its taps keep nothing."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.modes = [(module, module.training) for module in encoder.modules()]

    def __enter__(self) -> None:
        self.encoder.eval()

    def __exit__(self, *_: object) -> None:
        for module, training in self.modes:
            module.training = training
        self.encoder._kept = {}


Unit = tuple[nn.Module, int]
"""A module, and the level of its maps: the power of 2 that they are smaller by than the picture."""


@torch.no_grad()
def _take_apart(encoder: ImageEncoder, picture: Tensor) -> tuple[list[Unit], list[nn.Module]]:
    """Modules up to the last maps, in the order of the network's children, and those behind; nothing if they fail."""
    net = encoder.get_submodule("net")
    children = [child for child in net.children() if not isinstance(child, nn.Identity)]
    units: list[Unit] = []
    x, number = picture, 0
    with _Still(encoder):
        for number, child in enumerate(children):  # noqa: B007
            if isinstance(child, HEADS) or isinstance(_first(child), HEADS):
                break
            try:
                part, x = _units(child, x)
            except Exception:  # it stands behind the maps, or elsewhere
                break
            units += part
        else:
            number = len(children)
        if isinstance(encoder, TimmEncoder):  # says itself where its maps end
            return units[: _longest(units, picture, encoder.net.forward_features(picture))], []
    return units, [leaf for child in children[number:] for leaf in _leaves(child)]


def _units(module: nn.Module, x: Tensor) -> tuple[list[Unit], Tensor]:
    """A module as it is, or the members of a Sequential within which maps shrink; and the maps it gives."""
    if type(module).forward is not nn.Sequential.forward:
        x = module(x)
        if x.ndim != 4:
            raise ValueError("no maps")
        return [(module, max(FIRST_LEVEL, round(math.log2(PROBE / x.shape[2]))))], x
    units: list[Unit] = []
    for member in module.children():
        part, x = _units(member, x)
        units += part
    if len({level for _, level in units}) == 1:  # whole, so that taps on it are reached
        units = [(module, units[-1][1])]
    return units, x


def _longest(units: list[Unit], x: Tensor, wanted: Tensor) -> int:
    """How many modules give the wanted maps, most of all if there are several such numbers; 0 if none does."""
    found = 0
    for number, (unit, _) in enumerate(units, 1):
        x = unit(x)
        if _equal(x, wanted):
            found = number
    return found


def _equal(x: Tensor, wanted: Tensor) -> bool:
    """But for rounding, whatever the scale."""
    return x.shape == wanted.shape and bool((x - wanted).abs().max() <= 1e-4 * wanted.abs().max())


def _first(module: nn.Module) -> nn.Module:
    return next(_leaves(module), module)


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Members of Sequentials, to the bottom."""
    if type(module).forward is not nn.Sequential.forward:
        yield module
        return
    for member in module.children():
        yield from _leaves(member)
