"""RAFT (Teed & Deng, ECCV 2020) of torchvision, as `flow_function` gives the other methods."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from stillmotion.data.flow import RAFT, SMALLEST, Vectors
from stillmotion.device import pick_device

LEAST = 128
"""Pixels of a side: RAFT halves three times, its correlation pyramid three times more. Smaller frames are padded."""


def raft_function(
    name: str, weights: str | None, device: str
) -> Callable[[NDArray[np.uint8], NDArray[np.uint8]], Vectors]:
    """Flow from one frame to another, RGB (H, W, 3) or grey (H, W).

    Args:
        name: raft_small or raft_large.
        weights: File with a state dict of torchvision's network, or `default` (a download).
        device: `cpu`, `cuda`, ...; `auto` takes an accelerator if there is one.

    Raises:
        ValueError: There are no such weights, they are not those of this network, or there is no such device.
    """
    network = _load(name, weights)
    device = pick_device(device)
    network.to(device).eval()

    @torch.inference_mode()
    def flow(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Vectors:
        height, width = first.shape[:2]
        if min(height, width) < SMALLEST or np.array_equal(first, second):
            return np.zeros((height, width, 2), np.float32)
        across, down = max(LEAST, -(-width // 8) * 8) - width, max(LEAST, -(-height // 8) * 8) - height
        edges = (across // 2, across - across // 2, down // 2, down - down // 2)
        images = [pad(_image(frame).to(device), edges, mode="replicate") for frame in (first, second)]
        found = network(*images)[-1][0, :, edges[2] : edges[2] + height, edges[0] : edges[0] + width]
        return np.ascontiguousarray(found.permute(1, 2, 0).float().cpu().numpy())

    return flow


def weights_name(weights: str | None) -> str | None:
    """What a store remembers of weights: `default`, or the SHA-256 (16 digits) of the file."""
    if weights in (None, "default"):
        return weights
    path = Path(str(weights))
    if not path.is_file():
        raise ValueError(f"{path}: no such file of RAFT weights; give a file, or --weights default")
    return sha256(path.read_bytes()).hexdigest()[:16]


def _load(name: str, weights: str | None) -> Any:
    from torchvision.models import optical_flow

    assert name in RAFT
    if weights is None:
        raise ValueError(f"flow method {name!r} needs --weights: a file with torchvision's state dict, or `default`")
    if weights == "default":
        return getattr(optical_flow, name)(weights="DEFAULT")
    network = getattr(optical_flow, name)()
    weights_name(weights)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{weights}: these are not torchvision's weights of {name} ({reason})") from None
    return network


def _image(frame: NDArray[np.uint8]) -> torch.Tensor:
    """(1, 3, H, W) in -1..1."""
    colours = frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, 2)
    return torch.from_numpy(np.ascontiguousarray(colours.transpose(2, 0, 1))[None]).float() / 127.5 - 1.0
