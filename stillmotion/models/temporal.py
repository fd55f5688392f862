"""Time merged into the batch, (B*T, C, H, W): convolution and pooling over time for networks that are 2D otherwise.

With `channels_last` maps the steps between space and time are views, so nothing is copied for them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TemporalConv(nn.Conv2d):
    """A 3x1x1 convolution over time, with zeros beyond the ends, no bias.

    Args:
        in_dim, out_dim: Channels.
        groups: `in_dim` for a depthwise one.

    Its weight is (out_dim, in_dim / groups, 3, 1), as a 2D convolution over time x (height * width).
    """

    def __init__(self, in_dim: int, out_dim: int, *, groups: int = 1) -> None:
        super().__init__(in_dim, out_dim, (3, 1), padding=(1, 0), groups=groups, bias=False)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:  # type: ignore[override]
        """(B*T, C, H, W) -> (B*T, D, H, W)."""
        channels, height, width = x.shape[1:]
        over_time = x.reshape(-1, num_frames, channels, height * width).transpose(1, 2)
        mixed = super().forward(over_time)
        return mixed.transpose(1, 2).reshape(-1, self.out_channels, height, width)

    @torch.no_grad()
    def pass_on(self) -> None:
        """Sets the weights so that every frame is passed on unchanged; wants as many channels out as in."""
        nn.init.zeros_(self.weight)
        out = torch.arange(self.out_channels)
        self.weight[out, out % self.weight.shape[1], 1] = 1.0


def halve_time(x: Tensor, num_frames: int) -> tuple[Tensor, int]:
    """Maximum of every two frames; an odd last one stays alone.

    Args:
        x: (B*T, C, H, W).
        num_frames: T.

    Returns:
        Maps (B*ceil(T/2), C, H, W) and ceil(T/2).

    Example:
        >>> x, num_frames = halve_time(torch.tensor([1.0, 4.0, 3.0]).reshape(3, 1, 1, 1), 3)
        >>> x.flatten().tolist(), num_frames
        ([4.0, 3.0], 2)
    """
    if num_frames == 1:
        return x, 1
    clips = x.reshape(-1, num_frames, *x.shape[1:])
    if x.requires_grad:  # the way back through pooling takes a tenth of that through a maximum of slices
        halved = F.max_pool3d(clips.transpose(1, 2), (2, 1, 1), ceil_mode=True).transpose(1, 2)
    else:  # which is faster forwards
        padded = torch.cat([clips, clips[:, -1:]], 1) if num_frames % 2 else clips
        halved = torch.maximum(padded[:, ::2], padded[:, 1::2])
    return halved.flatten(0, 1), (num_frames + 1) // 2


def split_time(x: Tensor, num_clips: int) -> Tensor:
    """(B*T, C, H, W) -> (B, C, T, H, W), and (B*T, D) -> (B, D, T)."""
    return x.reshape(num_clips, -1, *x.shape[1:]).transpose(1, 2)
