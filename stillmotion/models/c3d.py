"""C3D (Tran et al., ICCV 2015, arXiv:1412.0767); layers are named as in the common PyTorch conversion."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.models.adapters import VideoEncoder
from stillmotion.view import View

VIEW = View(
    size=(112, 112),
    num_frames=16,
    # Channel means of the official Sports-1M mean file (sport1m_train16_128_mean, in github.com/facebookarchive/C3D),
    # in units of 0..255 and divided by 1. The values are those of github.com/DavideA/c3d-pytorch/issues/1; the official
    # code subtracts the whole file, a mean for each frame and pixel.
    mean=(101.41 / 255, 97.66 / 255, 90.25 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
)


class C3d(VideoEncoder):
    """Eight 3x3x3 convolutions and three linear layers. Its embedding is fc6 after the ReLU: >= 0.

    fc6 is the feature that is used everywhere; the classifier fc8 sees fc7, which follows it.

    The official weights take blue before red, and so does the network; `views` gives it RGB as all others have.

    Args:
        name: `c3d`.
        num_classes: 0 for no classifier; fc7 goes with it.
        view: What it sees; the published one has 16 frames of 112x112. fc6 depends on its size and length.
        taps: Layers to give as well.
        width: Channels of the first convolution, on which all others and fc6, fc7 depend; 64 is the published network.
        dropout: After fc6 and after fc7.
        channels: Order of the channels that the first convolution takes: `bgr`, as the official weights do, or `rgb`.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        view: View = VIEW,
        taps: Sequence[str] = (),
        width: int = 64,
        dropout: float = 0.5,
        channels: Literal["bgr", "rgb"] = "bgr",
    ) -> None:
        super().__init__()
        if channels not in ("bgr", "rgb"):
            raise ValueError(f"{name}: channels={channels!r}: choose bgr or rgb")
        self.swaps = channels == "bgr" and view.channels == 3
        self.conv1 = _conv(view.channels, width)
        self.pool1 = nn.MaxPool3d((1, 2, 2))
        self.conv2 = _conv(width, 2 * width)
        self.pool2 = nn.MaxPool3d(2)
        self.conv3a, self.conv3b = _conv(2 * width, 4 * width), _conv(4 * width, 4 * width)
        self.pool3 = nn.MaxPool3d(2)
        self.conv4a, self.conv4b = _conv(4 * width, 8 * width), _conv(8 * width, 8 * width)
        self.pool4 = nn.MaxPool3d(2)
        self.conv5a, self.conv5b = _conv(8 * width, 8 * width), _conv(8 * width, 8 * width)
        self.pool5 = nn.MaxPool3d(2, padding=(0, 1, 1))
        self.fc6 = nn.Linear(8 * width * _positions(name, view), 64 * width)
        self.fc7: nn.Linear | None = None
        self.fc8: nn.Linear | None = None
        self.dropout = nn.Dropout(dropout)
        self.views = {"clip": view}
        self.embedding_dim, self.num_classes = 64 * width, num_classes
        if num_classes:
            self.fc7, self.fc8 = nn.Linear(64 * width, 64 * width), nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.watch(self, taps)

    def forward_net(self, x: Tensor) -> dict[str, Tensor]:
        if self.swaps:
            x = x.flip(1)
        x = self.pool1(F.relu(self.conv1(x), inplace=True))
        x = self.pool2(F.relu(self.conv2(x), inplace=True))
        x = self.pool3(F.relu(self.conv3b(F.relu(self.conv3a(x), inplace=True)), inplace=True))
        x = self.pool4(F.relu(self.conv4b(F.relu(self.conv4a(x), inplace=True)), inplace=True))
        x = self.pool5(F.relu(self.conv5b(F.relu(self.conv5a(x), inplace=True)), inplace=True))
        embedding = F.relu(self.fc6(x.flatten(1)))
        if self.fc7 is None or self.fc8 is None:
            return {"embedding": embedding}
        hidden = F.relu(self.fc7(self.dropout(embedding)))
        return {"logits": self.fc8(self.dropout(hidden)), "embedding": embedding}

    def new_classifier(self, num_classes: int) -> None:
        device, dim = self.fc6.weight.device, self.embedding_dim
        if num_classes and self.fc7 is None:
            self.fc7 = nn.Linear(dim, dim, device=device)
        elif not num_classes:
            self.fc7 = None
        self.fc8 = nn.Linear(dim, num_classes, device=device) if num_classes else None

    def classifier_names(self) -> set[str]:
        return {"fc8.weight", "fc8.bias"} if self.fc8 is not None else set()


def _conv(in_dim: int, dim: int) -> nn.Conv3d:
    return nn.Conv3d(in_dim, dim, 3, padding=1)


def _positions(name: str, view: View) -> int:
    """Time, height and width that the five pools leave, multiplied: 1x4x4 of 16x112x112."""
    num_frames = (view.num_frames - (view.kind == "difference")) // 16
    height, width = ((side // 16 + 2) // 2 for side in view.size)
    if not num_frames or min(view.size) < 16:
        given = f"{view.num_frames} of {view.size[0]}x{view.size[1]}"
        raise ValueError(f"{name}: needs at least 16 frames of 16x16; the view gives {given}")
    return num_frames * height * width
