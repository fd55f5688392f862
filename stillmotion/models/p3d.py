"""P3D ResNets: pseudo-3D blocks A, B, C in turn (Qiu, Yao, Mei, ICCV 2017), wired as the official definitions are.

Time is merged into the batch, so every layer is a 2D one; layers are named as in the common PyTorch port.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.data.flow import LEVELS
from stillmotion.models.encoder import Encoder
from stillmotion.models.folding import conv_norm, forget_folded
from stillmotion.models.temporal import TemporalConv, halve_time, split_time
from stillmotion.view import View

Variant = Literal["official", "port"]
VIEW = View(size=(160, 160), num_frames=16)
CAFFE_BGR = (104.0, 117.0, 123.0)
"""Mean of the official networks, in units of 0..255."""

P3DS = {"p3d_63": (3, 4, 6, 3), "p3d_131": (3, 4, 23, 3), "p3d_199": (3, 8, 36, 3)}
"""Blocks in res2 to res5; only `p3d_199` was published."""


class Shortcut(nn.Sequential):
    """1x1x1 convolution and batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        """(B*T, C, H, W) -> (B*T, D, H / stride, W / stride)."""
        return conv_norm(self[0], self[1], x)  # type: ignore[arg-type]


class P3dBlock(nn.Module):
    """1x1x1, then S (1x3x3) and T (3x1x1) wired as A, B or C, then 1x1x1, and a shortcut.

    a = ReLU(BN(conv1 x)), s = ReLU(BN(S a)); A: u = ReLU(BN(T s)); B: u = ReLU(s + BN(T a));
    C: u = ReLU(w0 s + w1 BN(T s)). Without a wiring u = s: the 2D bottleneck of res5.

    Args:
        in_dim, dim: Channels of the input, of the bottleneck; the output has 4 * dim.
        stride: In space, in the first 1x1x1 and in the shortcut.
        wiring: A, B, C; empty for a 2D block.
        c_weights: Of s and T s in block C.
        relu_t: Whether T's output goes through a ReLU before the sum (the port does so; the official ones do not).
    """

    def __init__(
        self, in_dim: int, dim: int, *, stride: int, wiring: str, c_weights: tuple[float, float], relu_t: bool
    ) -> None:
        super().__init__()
        self.wiring, self.relu_t = wiring, relu_t
        self.weights = c_weights if wiring == "C" else (1.0, 1.0)
        self.conv1 = nn.Conv2d(in_dim, dim, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        if wiring:
            self.conv3 = TemporalConv(dim, dim)
            self.bn3 = nn.BatchNorm2d(dim)
        self.conv4 = nn.Conv2d(dim, 4 * dim, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(4 * dim)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_dim != 4 * dim:
            conv = nn.Conv2d(in_dim, 4 * dim, 1, stride, bias=False)
            self.downsample = Shortcut(conv, nn.BatchNorm2d(4 * dim))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """(B*T, C, H, W) -> (B*T, 4 * dim, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        a = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        u = F.relu(conv_norm(self.conv2, self.bn2, a), inplace=True)
        if self.wiring:
            u = self._wire(a, u, num_frames)
        return F.relu(conv_norm(self.conv4, self.bn4, u) + shortcut, inplace=True)

    def _wire(self, a: Tensor, s: Tensor, num_frames: int) -> Tensor:
        t = conv_norm(self.conv3, self.bn3, a if self.wiring == "B" else s, num_frames)
        if self.wiring == "A":
            return F.relu(t, inplace=True)
        if self.relu_t:
            t = F.relu(t, inplace=True)
        if self.weights != (1.0, 1.0):
            s, t = self.weights[0] * s, self.weights[1] * t
        return F.relu(s + t, inplace=True)


class Stage(nn.Sequential):
    """Blocks of one width."""

    def forward(self, x: Tensor, num_frames: int) -> Tensor:  # type: ignore[override]
        """(B*T, C, H, W) -> (B*T, D, h, w)."""
        for block in self:
            x = block(x, num_frames)
        return x


class P3d(Encoder):
    """A P3D ResNet. Its embedding is the mean of `layer4` (res5) over what is left of time, and space.

    It starts as the official training did, from a 2D ResNet of equal depth: `weights` may be a file of timm's or
    torchvision's resnet50, 101, 152. T is not in it and starts by `t_init`. Those networks take a stage's stride in
    the 3x3 convolution, P3D in the 1x1 before it, so in the first block of res3, res4, res5 the copied 3x3 sees maps
    of half the size: the copy is near the 2D network, not equal to it, and training has to repair that. Files of the
    port and the official Caffe blobs (`.npz`: `LAYER/0`, `LAYER/1`, ...) load too; the latter bring their BGR mean.

    Args:
        name: One of `P3DS`.
        num_classes: 0 for no classifier.
        view: What it sees; of kind `flow` it takes two channels.
        taps: Layers to give as well, (B, C, T, H, W); `layer3` is res4, `layer4` res5.
        variant: `official`, or `port` for weights of the common PyTorch port (its C block weighs 1 and 1, its T goes
            through a ReLU before the sum, its first pooling is padded).
        order: Blocks of res2 to res4 in turn, any letters of A, B, C; it does not start anew at a stage.
        c_weights, relu_t: Of the blocks; None takes the variant's.
        res5: `2d` (official) or `p3d`, which goes on with `order`.
        t_init: `gauss`: N(0, 0.001^2) in every T; `centre`: A's T starts by passing its frames on.
        dropout: Before the classifier.
        freeze_bn: Fixes statistics and affine of every batch norm but the first, as when fine-tuning (section 4.2).
        width: Channels of the stem, on which all others depend; 64 is the published network.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        view: View = VIEW,
        taps: Sequence[str] = (),
        variant: Variant = "official",
        order: str = "ABC",
        c_weights: Sequence[float] | None = None,
        relu_t: bool | None = None,
        res5: Literal["2d", "p3d"] = "2d",
        t_init: Literal["gauss", "centre"] = "gauss",
        dropout: float = 0.5,
        freeze_bn: bool = False,
        width: int = 64,
    ) -> None:
        super().__init__()
        _check(name, variant, order, c_weights, res5, t_init)
        self.port, self.freeze_bn = variant == "port", freeze_bn
        self.conv1 = nn.Conv2d(view.channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        own_weights = (1.0, 1.0) if self.port else (0.5, 0.5)
        weights = own_weights if c_weights is None else (c_weights[0], c_weights[1])
        self._blocks = {"c_weights": weights, "relu_t": self.port if relu_t is None else relu_t}
        self._dim, self._order, self._count = width, order, 0
        depths = P3DS[name]
        self.layer1 = self._stage(width, depths[0], 1)
        self.layer2 = self._stage(2 * width, depths[1], 2)
        self.layer3 = self._stage(4 * width, depths[2], 2)
        self._order = order if res5 == "p3d" else ""
        self.layer4 = self._stage(8 * width, depths[3], 2)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(32 * width, num_classes) if num_classes else None
        self.views = {"clip": view}
        self.embedding_dim, self.num_classes = 32 * width, num_classes
        self._from_2d = False
        self._start(t_init)
        if freeze_bn:
            for module in self._later_norms():
                module.requires_grad_(requires_grad=False)
        self.to(memory_format=torch.channels_last)
        self.watch(self, taps)

    def _stage(self, dim: int, num_blocks: int, stride: int) -> Stage:
        blocks = []
        for number in range(num_blocks):
            wiring = self._order[self._count % len(self._order)] if self._order else ""
            step = stride if number == 0 else 1
            blocks.append(P3dBlock(self._dim, dim, stride=step, wiring=wiring, **self._blocks))  # type: ignore[arg-type]
            self._dim, self._count = 4 * dim, self._count + 1
        return Stage(*blocks)

    def _start(self, t_init: str) -> None:
        for module in self.modules():
            if isinstance(module, TemporalConv):
                nn.init.normal_(module.weight, std=0.001)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if t_init == "centre" and isinstance(module, P3dBlock) and module.wiring == "A":
                module.conv3.pass_on()

    def _later_norms(self) -> list[nn.BatchNorm2d]:
        return [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)][1:]

    def train(self, mode: bool = True) -> "P3d":
        super().train(mode)
        forget_folded(self)
        if self.freeze_bn:
            for module in self._later_norms():
                module.eval()
        return self

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        (clip,) = inputs
        num_clips, num_frames = clip.shape[:2]
        x = clip.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        x, num_frames = halve_time(x, num_frames)
        padding = 1 if self.port else 0
        x = F.max_pool2d(x, 3, 2, padding, ceil_mode=not self.port)
        for stage in (self.layer1, self.layer2, self.layer3):
            x, num_frames = halve_time(stage(x, num_frames), num_frames)
        x = self.layer4(x, num_frames)
        embedding = x.mean((2, 3)).reshape(num_clips, num_frames, -1).mean(1)
        outputs = {"embedding": embedding}
        if self.fc is not None:
            outputs["logits"] = self.fc(self.dropout(embedding))
        return outputs | {name: split_time(maps, num_clips) for name, maps in self.watched().items()}

    def initialised_names(self) -> set[str]:
        return {name for name in self.state_dict() if ".conv3." in name or ".bn3." in name} if self._from_2d else set()

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of the port, of a 2D ResNet and of the official Caffe layers -> own names."""
        if "res2a_branch2a/0" in state:
            return self._from_caffe(state)
        self._from_2d = any(name.endswith("layer1.0.conv3.weight") for name in state) and not any(
            name.endswith("layer1.0.conv4.weight") for name in state
        )
        renamed = {"conv1_custom.": "conv1.", ".conv_normal.": ".conv2.", ".bn_normal.": ".bn2."}
        if self._from_2d:
            renamed = {".conv3.": ".conv4.", ".bn3.": ".bn4."}
        adapted = {}
        for name, tensor in state.items():
            own = name
            for given, wanted in renamed.items():
                own = own.replace(given, wanted)
            adapted[own] = tensor
        return adapted

    def _from_caffe(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = self._caffe_names()
        adapted = {names.get(name, name): tensor.squeeze() if name.startswith("bn") else tensor
                   for name, tensor in state.items()}  # fmt: skip
        if (stem := adapted.get("conv1.weight")) is None:
            return adapted
        if stem.shape[1] == 3:
            adapted["conv1.weight"] = stem.flip(1)  # its channels are BGR
        mean, std = tuple(value / 255 for value in reversed(CAFFE_BGR)), 1 / 255
        if self.views["clip"].kind == "flow":
            mean, std = (0.0,) * 3, 1 / LEVELS  # bytes less 128
        own = self.views["clip"].to_dict() | {"mean": mean, "std": (std,) * 3}
        self.views = {"clip": View.from_dict(own)}
        self.config = {**self.config, "view": self.views["clip"].to_dict()}
        return adapted

    def _caffe_names(self) -> dict[str, str]:
        """`res4b35_branch2b_t/0` -> `layer3.35.conv3.weight`, and so on."""
        blobs = ("weight", "bias", "running_mean", "running_var")
        layers = {"conv1": "conv1", "bn_conv1": "bn1"}
        layers |= {name: "fc" for name in ("fc_kinetics", "fc_sports1m", "fc")}
        for stage, blocks in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), 2):
            for number in range(len(blocks)):
                letters = "abc" if len(blocks) == 3 else "abcdef" if len(blocks) == 6 else ""
                block = letters[number] if letters else "a" if number == 0 else f"b{number}"
                own = f"layer{stage - 1}.{number}"
                parts = {"2a": "1", "2b": "2", "2b_t": "3", "2c": "4"}
                for part, index in parts.items():
                    layers[f"res{stage}{block}_branch{part}"] = f"{own}.conv{index}"
                    layers[f"bn{stage}{block}_branch{part}"] = f"{own}.bn{index}"
                layers[f"res{stage}{block}_branch1"] = f"{own}.downsample.0"
                layers[f"bn{stage}{block}_branch1"] = f"{own}.downsample.1"
        return {f"{given}/{k}": f"{own}.{blob}" for given, own in layers.items() for k, blob in enumerate(blobs)}


def _check(name: str, variant: str, order: str, c_weights: Any, res5: str, t_init: str) -> None:
    if not order or set(order) - set("ABC"):
        raise ValueError(f"{name}: order={order!r}: letters A, B, C wanted, such as ABC")
    if c_weights is not None and len(c_weights) != 2:
        raise ValueError(f"{name}: c_weights={list(c_weights)}: two numbers wanted, of s and T s")
    for option, value, known in (
        ("variant", variant, ("official", "port")),
        ("res5", res5, ("2d", "p3d")),
        ("t_init", t_init, ("gauss", "centre")),
    ):
        if value not in known:
            raise ValueError(f"{name}: {option}={value!r}: choose {known[0]} or {known[1]}")
