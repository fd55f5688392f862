"""3D ResNets and ResNeXts of Hara et al. (arXiv:1711.09577); layers are named as in the published weights."""

from collections.abc import Sequence
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.models.adapters import VideoEncoder
from stillmotion.view import View

Shortcut = Literal["A", "B"]
Triple = tuple[int, int, int]
"""Over time, height, width."""

VIEW = View(
    size=(112, 112),
    num_frames=16,
    # Published in units of 0..255, and divided by 1.
    mean=(114.7748 / 255, 107.7354 / 255, 99.4750 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
)

RESNETS = {
    "resnet3d_10": ("basic", (1, 1, 1, 1)),
    "resnet3d_18": ("basic", (2, 2, 2, 2)),
    "resnet3d_34": ("basic", (3, 4, 6, 3)),
    "resnet3d_50": ("bottleneck", (3, 4, 6, 3)),
    "resnext3d_50": ("resnext", (3, 4, 6, 3)),
    "resnext3d_101": ("resnext", (3, 4, 23, 3)),
    "resnext3d_152": ("resnext", (3, 8, 36, 3)),
}
"""Block and number of blocks in each of the four stages."""


class PadShortcut(nn.Module):
    """Shortcut of type A: every `stride`-th position, and zeros for the further channels. It has no weights."""

    def __init__(self, stride: Triple, more_channels: int) -> None:
        super().__init__()
        self.stride, self.more_channels = stride, more_channels

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = self.stride
        return F.pad(x[:, :, ::t, ::h, ::w], (0, 0, 0, 0, 0, 0, 0, self.more_channels))


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut."""

    def __init__(self, in_dim: int, dim: int, stride: Triple, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_dim, dim, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(dim)
        self.conv2 = nn.Conv3d(dim, dim, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(dim)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1x1x1, grouped 3x3x3 (which takes the stride), 1x1x1, and a shortcut."""

    def __init__(
        self, in_dim: int, dim: int, stride: Triple, downsample: nn.Module | None, mid_dim: int, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_dim, mid_dim, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(mid_dim)
        self.conv2 = nn.Conv3d(mid_dim, mid_dim, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm3d(mid_dim)
        self.conv3 = nn.Conv3d(mid_dim, dim, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(dim)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


class ResNet3d(VideoEncoder):
    """A 3D ResNet or ResNeXt. Its embedding is the mean of `layer4` over time and space, after the last ReLU: >= 0.

    At the published sizes that mean is the published pooling (T/16, S/32, S/32); other sizes work too.

    Args:
        name: One of `RESNETS`.
        num_classes: 0 for no classifier.
        view: What it sees; a published one has 16 frames of 112x112.
        taps: Layers to give as well.
        width: Channels of the stem, on which all others depend; 64 is the published network.
        cardinality: Groups of a ResNeXt.
        stem_kernel, stem_stride: Of the first convolution, over time, height, width.
        stem_pool: Whether a 3x3x3 maximum of stride 2 follows the first convolution.
        time_strides: Strides over time of that maximum and of stages 2, 3, 4; smaller ones keep more of the motion.
        shortcut: B (convolution) or A (padding, as in the published ResNets of depth 18 and 34).
        dropout: Before the classifier.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        view: View = VIEW,
        taps: Sequence[str] = (),
        width: int = 64,
        cardinality: int = 32,
        stem_kernel: Sequence[int] = (7, 7, 7),
        stem_stride: Sequence[int] = (1, 2, 2),
        stem_pool: bool = True,
        time_strides: Sequence[int] = (2, 2, 2, 2),
        shortcut: Shortcut = "B",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kernel = _triple(f"{name}: stem_kernel", stem_kernel)
        stride = _triple(f"{name}: stem_stride", stem_stride)
        if len(time_strides) != 4:
            raise ValueError(f"{name}: time_strides={list(time_strides)}: four numbers wanted, for pool and stages 2-4")
        if shortcut not in ("A", "B"):
            raise ValueError(f"{name}: shortcut={shortcut!r}: choose A or B")
        self.block, depths = RESNETS[name]
        if self.block == "resnext" and width < 16:
            raise ValueError(f"{name}: width={width}: a ResNeXt needs at least 16")
        self.cardinality, self.shortcut = cardinality, shortcut
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv1 = nn.Conv3d(3, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, (time_strides[0], 2, 2), 1) if stem_pool else nn.Identity()
        self.dim = width
        self.layer1 = self._stage(width, depths[0], (1, 1, 1))
        self.layer2 = self._stage(2 * width, depths[1], (time_strides[1], 2, 2))
        self.layer3 = self._stage(4 * width, depths[2], (time_strides[2], 2, 2))
        self.layer4 = self._stage(8 * width, depths[3], (time_strides[3], 2, 2))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.dim, num_classes) if num_classes else None
        self.views = {"clip": view}
        self.embedding_dim, self.num_classes = self.dim, num_classes
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.watch(self, taps)

    def _stage(self, width: int, num_blocks: int, stride: Triple) -> nn.Sequential:
        dim = width * (1 if self.block == "basic" else 4)
        blocks = [self._block(width, dim, stride)]
        blocks += [self._block(width, dim, (1, 1, 1)) for _ in range(num_blocks - 1)]
        return nn.Sequential(*blocks)

    def _block(self, width: int, dim: int, stride: Triple) -> nn.Module:
        in_dim, self.dim = self.dim, dim
        downsample: nn.Module | None = None
        if in_dim != dim or any(s != 1 for s in stride):
            if self.shortcut == "A":
                downsample = PadShortcut(stride, dim - in_dim)
            else:
                conv = nn.Conv3d(in_dim, dim, 1, stride, bias=False)
                downsample = nn.Sequential(conv, nn.BatchNorm3d(dim))
        if self.block == "basic":
            return BasicBlock(in_dim, dim, stride, downsample)
        if self.block == "bottleneck":
            return Bottleneck(in_dim, dim, stride, downsample, width)
        # planes = 2 * width, of which each of the groups takes planes / 32 (METHODS 1.1).
        return Bottleneck(
            in_dim, dim, stride, downsample, self.cardinality * (2 * width // 32), groups=self.cardinality
        )

    def forward_net(self, x: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        embedding = x.mean((2, 3, 4))
        if self.fc is None:
            return {"embedding": embedding}
        return {"logits": self.fc(self.dropout(embedding)), "embedding": embedding}


def _triple(option: str, value: Sequence[int]) -> Triple:
    if len(value) != 3:
        raise ValueError(f"{option}={list(value)}: three numbers wanted, for time, height, width")
    return cast(Triple, tuple(value))
