"""I3D: Inception-v1 inflated (Carreira, Zisserman, CVPR 2017, arXiv:1705.07750).

Layers are named as in piergiaj's PyTorch conversion of the published weights; those of hassony2's load as well.
"""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.models.adapters import VideoEncoder
from stillmotion.view import View

HALF = (0.5, 0.5, 0.5)
"""Mean and std that bring 0..1 to [-1, 1]. Flow is in units of its bound, 20 pixels, already."""
RGB_VIEW = View(num_frames=64, fps=25.0, mean=HALF, std=HALF)
FLOW_VIEW = View(kind="flow", num_frames=64, fps=25.0)
I3DS = {"i3d_rgb": RGB_VIEW, "i3d_flow": FLOW_VIEW}

MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Channels in each module: b0; b1a, b1b; b2a, b2b; b3b. Its output has b0 + b1b + b2b + b3b."""


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pads with zeros as TensorFlow's `SAME` does: to ceil(size / stride) positions, the odd one behind.

    Args:
        x: (B, C, T, H, W).
        kernel, stride: Over time, height, width.

    Example:
        >>> pad_same(torch.zeros(1, 1, 4, 7, 8), (3, 3, 3), (1, 2, 2)).shape
        torch.Size([1, 1, 6, 9, 9])
    """
    padding: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        missing = max((-(-size // s) - 1) * s + k - size, 0)
        padding += [missing // 2, missing - missing // 2]
    return F.pad(x, padding) if any(padding) else x


class Unit(nn.Module):
    """Convolution, batch norm, ReLU, with TensorFlow's padding."""

    def __init__(self, in_dim: int, dim: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_dim, dim, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(dim, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(x)), inplace=True)


class Pool(nn.Module):
    """Maximum with TensorFlow's padding. Its zeros change nothing: a ReLU comes before it."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches side by side: 1x1x1; 1x1x1 and 3x3x3, twice; maximum and 1x1x1."""

    def __init__(self, in_dim: int, dims: Sequence[int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = dims
        self.b0 = Unit(in_dim, b0)
        self.b1a, self.b1b = Unit(in_dim, b1a), Unit(b1a, b1b, 3)
        self.b2a, self.b2b = Unit(in_dim, b2a), Unit(b2a, b2b, 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(in_dim, b3b)
        self.dim = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 1)


class Classifier(nn.Module):
    """A 1x1x1 convolution without batch norm."""

    def __init__(self, in_dim: int, num_classes: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_dim, num_classes, 1, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T, 1, 1) -> (B, K): the mean over time."""
        logits: Tensor = self.conv3d(x)
        return logits.mean((2, 3, 4))


class I3d(VideoEncoder):
    """I3D on RGB or on flow. Its embedding is the pooled feature before the classifier: >= 0.

    Two neighbouring steps in time and all of space are averaged, the logits (and the embedding) then over what is
    left of time. So the first and the last step count half, as published.

    Args:
        name: One of `I3DS`.
        num_classes: 0 for no classifier.
        view: What it sees; the published one has 64 frames of 224x224 in [-1, 1]. Of kind `flow`: two channels.
        taps: Layers to give as well.
        width: Channels of the first convolution, on which all others depend; 64 is the published network.
        dropout: Before the classifier.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        view: View = RGB_VIEW,
        taps: Sequence[str] = (),
        width: int = 64,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if width < 4:
            raise ValueError(f"{name}: width={width}: needs at least 4")
        self.Conv3d_1a_7x7 = Unit(view.channels, width, 7, 2)
        self.MaxPool3d_2a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(width, width)
        self.Conv3d_2c_3x3 = Unit(width, 3 * width, 3)
        self.MaxPool3d_3a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        dim = 3 * width
        for module, dims in MIXED.items():
            if module == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = Pool((3, 3, 3), (2, 2, 2))
            elif module == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = Pool((2, 2, 2), (2, 2, 2))
            mixed = Mixed(dim, [d * width // 64 for d in dims])
            self.add_module(module, mixed)
            dim = mixed.dim
        self.trunk = tuple(self._modules)
        self.dropout = nn.Dropout(dropout)
        self.logits = Classifier(dim, num_classes) if num_classes else None
        self.views = {"clip": view}
        self.embedding_dim, self.num_classes = dim, num_classes
        self.watch(self, taps)

    def forward_net(self, x: Tensor) -> dict[str, Tensor]:
        for name in self.trunk:
            x = self.get_submodule(name)(x)
        pooled = F.avg_pool3d(x, (min(2, x.shape[2]), x.shape[3], x.shape[4]), 1)
        embedding = pooled.mean((2, 3, 4))
        if self.logits is None:
            return {"embedding": embedding}
        return {"logits": self.logits(self.dropout(pooled)), "embedding": embedding}

    def new_classifier(self, num_classes: int) -> None:
        device = self.Conv3d_1a_7x7.conv3d.weight.device
        self.logits = Classifier(self.embedding_dim, num_classes, device) if num_classes else None

    def classifier_names(self) -> set[str]:
        return {"logits.conv3d.weight", "logits.conv3d.bias"} if self.logits is not None else set()

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of hassony2's conversion -> own names, which are piergiaj's."""
        return {_own_name(name): tensor for name, tensor in state.items()}


BRANCHES = {"0": "b0", "1.0": "b1a", "1.1": "b1b", "2.0": "b2a", "2.1": "b2b", "3.1": "b3b"}


def _own_name(name: str) -> str:
    """`mixed_3b.branch_1.0.batch3d.bias` -> `Mixed_3b.b1a.bn.bias`; names of piergiaj pass unchanged.

    Example:
        >>> _own_name("module.conv3d_0c_1x1.conv3d.weight")
        'module.logits.conv3d.weight'
    """
    name = re.sub(r"branch_(\d(?:\.\d)?)(?=\.)", lambda found: BRANCHES.get(found[1], found[0]), name)
    name = name.replace("conv3d_0c_1x1.", "logits.").replace(".batch3d.", ".bn.").replace("mixed_", "Mixed_")
    return re.sub(r"conv3d_(?=\d)", "Conv3d_", name)
