"""A view's geometry as part of a graph: frames of any size in, frames of the view's size out, as Pillow makes them."""

from typing import Any

import torch
from torch import Tensor, nn

from stillmotion.view import View

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
"""Reach of the filters, in pixels of the larger grid; the only ones that a graph has."""


class Resample(nn.Module):
    """Resize and centre crop of a view without a draw, see `stillmotion.data.transforms.render_view`.

    Pillow resamples across, rounds to bytes, then down, and rounds again; so does this, with each pass as a product
    with the matrix of the filter's weights. Products are alike in every runtime, where antialiased resizing operators
    are not, and the crop comes for free: rows that are cropped away are not in the matrix. Values differ from Pillow's
    where its weights, rounded to 22 bits, tip a rounding: by one of 255 (two, where both passes tip), in under one of a
    hundred values, and in 3 of them where the size hardly changes. Pillow 13 goes down first where the height shrinks
    much more than the width (twice, say); then a quarter of the values differ by one, and enlarged ones by up to 4.

    Args:
        view: Of colours or their differences, with one crop, bilinear or bicubic.

    Raises:
        ValueError: The view has a geometry that graphs do not.

    Example:
        >>> Resample(View(size=(1, 2)))(torch.tensor([[[0, 10, 20, 30]]], dtype=torch.uint8)).tolist()
        [[[7, 23]]]
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        if view.kind not in ("rgb", "difference"):
            raise ValueError(f"preprocess: {view.kind} is not made from frames inside a graph; leave preprocess out")
        if view.num_crops != 1:
            raise ValueError(f"preprocess: view.num_crops={view.num_crops}; a graph takes the centre alone")
        if view.interpolation not in SUPPORT:
            raise ValueError(
                f"preprocess: view.interpolation={view.interpolation!r}; a graph has {' and '.join(SUPPORT)} only"
            )
        self.view = view

    def forward(self, frames: Tensor) -> Tensor:
        """(..., C, H, W) uint8 -> (..., C, h, w) uint8."""
        height, width = frames.shape[-2:]
        down, across = self._resized(height, width)
        (h, w), filter_name = self.view.size, str(self.view.interpolation)
        # Pillow leaves out a pass that changes nothing; its matrix is the identity, which does so too.
        x = frames.float() @ weights(width, across, w, filter_name).T
        x = weights(height, down, h, filter_name) @ to_levels(x)
        return to_levels(x).to(torch.uint8)

    def _resized(self, height: int, width: int) -> tuple[Any, Any]:
        """As `resized_size`, without a branch on the sizes, which a graph does not know."""
        resize = self.view.resize
        if resize is None:
            return self.view.size
        if not isinstance(resize, int):
            return resize
        # The shorter side becomes `resize`, and the other quotient is no smaller.
        return torch.sym_max(resize, resize * height // width), torch.sym_max(resize, resize * width // height)


def weights(size: int, resized: int, shown: int, filter_name: str) -> Tensor:
    """Pillow's weights of `size` pixels for the middle `shown` of `resized` ones, (shown, size)."""
    scale = size / resized
    stretch: Any = torch.sym_max(scale, 1.0)  # reduced pictures are averaged over what a pixel covers
    spare = resized - shown
    half = spare // 2
    first = half + (spare - 2 * half) * (half - half // 2 * 2)  # round(spare / 2), halves to the even number
    centres = (torch.arange(shown, dtype=torch.float64) + first + 0.5) * scale
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    distance = ((pixels - centres[:, None]) / stretch).abs()
    if filter_name == "bilinear":
        result = (1.0 - distance).clamp(min=0.0)
    else:  # Keys' cubic with a = -0.5
        near = (1.5 * distance - 2.5) * distance * distance + 1.0
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        result = torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, torch.zeros_like(far)))
    normalised: Tensor = result / result.sum(1, keepdim=True)
    return normalised.float()


def to_levels(x: Tensor) -> Tensor:
    """Whole levels from 0 to 255, halves up, as floats."""
    return (x + 0.5).floor().clamp(0.0, 255.0)
