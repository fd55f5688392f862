"""Box, flip and size of a draw where the network computes: the loader hands over frames as they were read.

What Pillow does in `transforms.py` as two sums over pixels, across and down, is here two products of matrices with the
same weights, rounded in the same places. Pillow's weights are fixed-point numbers, so a value may differ by one of 255.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillmotion.data.transforms import render_view
from stillmotion.stopwatch import Stopwatch
from stillmotion.view import Draw, View

ROWS, COLUMNS = "@rows", "@columns"
"""Behind the key of frames as they were read: the weights of their pixels, (h, H) and (w, W)."""


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x, a = np.abs(x), -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


KERNELS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {"bilinear": _bilinear, "bicubic": _bicubic}


def resample_weights(length: int, size: int, low: float, high: float, kernel: str) -> NDArray[np.float32]:
    """Weights (size, length) that Pillow gives the pixels of a row when it resizes the part from `low` to `high`.

    Example:
        >>> resample_weights(4, 2, 0.0, 4.0, "bilinear").round(3)
        array([[0.429, 0.429, 0.143, 0.   ],
               [0.   , 0.143, 0.429, 0.429]], dtype=float32)
    """
    scale = (high - low) / size
    centres = low + (np.arange(size) + 0.5) * scale
    weights = KERNELS[kernel]((np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1.0))
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def is_deferred(view: View) -> bool:
    """Whether a view's geometry can be left to the device: that of the draw, with a filter that is a sum."""
    return view.kind in ("rgb", "difference") and view.resize is None and view.interpolation in KERNELS


def as_read(
    frames: Sequence[NDArray[np.uint8]], view: View, draw: Draw, watch: Stopwatch | None = None
) -> NDArray[np.uint8]:
    """In the place of `render_view`: frames (N, T, H, W, 3) as they are, where the device can do the rest."""
    if not is_deferred(view):
        return render_view(frames, view, draw, watch)
    return np.stack(frames).reshape(view.num_moments, view.num_frames, *frames[0].shape)


def weights_of(key: str, frames: NDArray[np.uint8], view: View, draw: Draw) -> dict[str, Tensor]:
    """Weights of the rows and columns of frames (N, T, H, W, 3), by key."""
    (height, width), (top, left, tall, wide) = frames.shape[2:4], draw.box
    (h, w), kernel = view.size, str(view.interpolation)
    rows = resample_weights(height, h, top * height, min(1.0, top + tall) * height, kernel)
    columns = resample_weights(width, w, left * width, min(1.0, left + wide) * width, kernel)
    columns = columns[::-1].copy() if draw.flip else columns
    return {key + ROWS: torch.from_numpy(rows), key + COLUMNS: torch.from_numpy(columns)}


def pad(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Makes frames of several sizes, and their weights, fit into one batch; what is added has weight 0."""
    padded = [dict(item) for item in items]
    for key in [name.removesuffix(ROWS) for name in (items[0] if items else {}) if name.endswith(ROWS)]:
        height, width = (max(item[key].shape[axis] for item in items) for axis in (2, 3))
        for item in padded:
            right, below = width - item[key].shape[3], height - item[key].shape[2]
            if right or below:
                item[key] = torch.nn.functional.pad(item[key], (0, 0, 0, right, 0, below))
                item[key + ROWS] = torch.nn.functional.pad(item[key + ROWS], (0, below))
                item[key + COLUMNS] = torch.nn.functional.pad(item[key + COLUMNS], (0, right))
    return padded


def render_batch(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Frames as the views see them, uint8 (B, N, T, 3, h, w), on the device that they are on."""
    keys = [name.removesuffix(ROWS) for name in given if name.endswith(ROWS)]
    if not keys:
        return given
    batch = dict(given)
    for key in keys:
        rows, columns = (batch.pop(key + end)[:, None, None, None] for end in (ROWS, COLUMNS))
        across = _rounded(batch[key].movedim(-1, -3).float() @ columns.mT)
        batch[key] = _rounded(rows @ across).to(torch.uint8)
    return batch


def _rounded(levels: Tensor) -> Tensor:
    return levels.add_(0.5).floor_().clamp_(0.0, 255.0)
