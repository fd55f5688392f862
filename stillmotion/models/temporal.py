"""Time merged into the batch, (B*T, C, H, W): convolution, pooling and shift over time for 2D networks.

With `channels_last` maps the steps between space and time are views, so nothing is copied for them.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shift = Literal["none", "both", "past"]


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


def shift_moments(x: Tensor, num_moments: int, num_crops: int, num_channels: int, shift: Shift) -> Tensor:
    """Channels of the moments beside, in the place of a moment's own (TSM, Lin et al., arXiv:1811.08383, Fig. 1).

    Args:
        x: (B * num_moments * num_crops, C, H, W), moment by moment, crop by crop.
        num_moments: N.
        num_crops: Of every moment, each shifted by itself.
        num_channels: So many first channels come from the next moment and so many following ones from the previous
            (`both`), or so many first ones from the previous (`past`). There are zeros at the ends.
        shift: `none` gives x.

    Returns:
        As x.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).reshape(2, 3, 1, 1)
        >>> shift_moments(x, 2, 1, 1, "both").reshape(2, 3).tolist()
        [[4.0, 0.0, 3.0], [0.0, 2.0, 6.0]]
    """
    if shift == "none" or not num_channels:
        return x
    moments = x.reshape(-1, num_moments, num_crops, *x.shape[1:])
    moved = []
    if shift == "both":
        next_one, moments = moments[:, :, :, :num_channels], moments[:, :, :, num_channels:]
        moved = [torch.cat([next_one[:, 1:], torch.zeros_like(next_one[:, :1])], 1)]
    previous, rest = moments[:, :, :, :num_channels], moments[:, :, :, num_channels:]
    moved += [torch.cat([torch.zeros_like(previous[:, :1]), previous[:, :-1]], 1), rest]
    return torch.cat(moved, 3).reshape(x.shape)


def split_time(x: Tensor, num_clips: int) -> Tensor:
    """(B*T, C, H, W) -> (B, C, T, H, W), and (B*T, D) -> (B, D, T)."""
    return x.reshape(num_clips, -1, *x.shape[1:]).transpose(1, 2)
