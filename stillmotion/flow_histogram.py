"""Histograms of optical flow: how much of which part of the picture moves which way, and when.

The strong baseline without a network: whoever claims that a network sees motion should beat it.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from stillmotion.data.decode import decode_frames, probe
from stillmotion.data.flow import grey_frames
from stillmotion.data.table import Sample

RATE = 15.0
"""Frames a second between which flow is taken."""
SHORT_SIDE = 120
MAX_PAIRS = 64
SEGMENTS = 6
GRID = 3
DIRECTIONS = 8
SPEEDS = (0.05, 0.2)
"""Slow and fast begin here, in shorter picture sides a second; slower pixels count as still."""
DEFAULT_FPS = 25.0
"""For folders of images, which have no frame rate."""

Floats = NDArray[np.float32]


def read_flow_histogram(sample: Sample) -> Floats:
    """The histogram of a sample, at most `MAX_PAIRS` pairs of frames spread over it.

    Returns:
        (SEGMENTS, GRID, GRID, len(SPEEDS), DIRECTIONS); all zero for a single frame.

    Raises:
        ValueError: The file cannot be read, or the range holds no frame.
    """
    pairs, seconds = frame_pairs(sample)
    if not len(pairs):
        return np.zeros((SEGMENTS, GRID, GRID, len(SPEEDS), DIRECTIONS), np.float32)
    indices, places = np.unique(pairs, return_inverse=True)
    frames = decode_frames(sample.path, indices, short_side=SHORT_SIDE)
    return flow_histogram(frames, places.reshape(pairs.shape), seconds)


def frame_pairs(sample: Sample) -> tuple[NDArray[np.int64], float]:
    """Pairs of frames (P, 2) between which flow is taken, and the seconds between the two of a pair."""
    info = probe(sample.path)
    start, end = sample.frame_range(info.num_frames, info.fps)
    fps = info.fps or DEFAULT_FPS
    step = min(max(1, round(fps / RATE)), end - start - 1)
    if step < 1:
        return np.empty((0, 2), np.int64), 0.0
    firsts = np.arange(start, end - step, step)
    if len(firsts) > MAX_PAIRS:
        firsts = firsts[np.linspace(0, len(firsts) - 1, MAX_PAIRS).round().astype(int)]
    return np.stack([firsts, firsts + step], axis=1), step / fps


def flow_histogram(frames: NDArray[np.uint8], pairs: NDArray[np.int64], seconds: float) -> Floats:
    """Share of the pixels of each cell that move in a direction at a speed, averaged over each part of time.

    Args:
        frames: (T, H, W, 3), RGB.
        pairs: (P, 2), rows of `frames`, in the order of time.
        seconds: Between the two frames of a pair.

    Returns:
        (SEGMENTS, GRID, GRID, len(SPEEDS), DIRECTIONS). Direction 0 is to the right, 2 down, 4 to the left, 6 up.
    """
    height, width = frames.shape[1:3]
    grey = grey_frames(frames, stretch=True)
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    scale = 1.0 / (seconds * min(height, width))
    cells = (np.arange(height) * GRID // height)[:, None] * GRID + np.arange(width) * GRID // width
    counts, nothing = [], np.empty(0, np.float32)  # a flow of the right size would be taken as the first guess
    for first, second in pairs:
        u, v = np.moveaxis(np.asarray(dis.calc(grey[first], grey[second], nothing)), -1, 0) * scale
        speeds = np.digitize(np.hypot(u, v), SPEEDS) - 1
        directions = np.rint(np.arctan2(v, u) * (DIRECTIONS / (2 * np.pi))).astype(int) % DIRECTIONS
        moving = speeds >= 0
        bins = ((cells * len(SPEEDS) + speeds) * DIRECTIONS + directions)[moving]
        counts.append(np.bincount(bins, minlength=GRID * GRID * len(SPEEDS) * DIRECTIONS))
    areas = np.bincount(cells.ravel(), minlength=GRID * GRID).reshape(GRID, GRID, 1, 1)
    shares = np.stack(counts).reshape(-1, GRID, GRID, len(SPEEDS), DIRECTIONS) / areas
    bounds = [(k * len(pairs) // SEGMENTS, (k + 1) * len(pairs) // SEGMENTS) for k in range(SEGMENTS)]
    return np.stack([shares[a : max(a + 1, b)].mean(0) for a, b in bounds]).astype(np.float32)


def pool_histogram(rows: Floats, segments: int = 1, speeds: str = "both") -> Floats:
    """Features for a classifier out of histograms: coarser in time and speed, normalised, square root taken.

    Args:
        rows: (S, -1), flattened histograms.
        segments: Parts of time that are kept apart, a divisor of `SEGMENTS`.
        speeds: `both` slow and fast, their `sum`, or only `fast` (noise moves slowly).

    Returns:
        (S, D), each row of unit sum before the root, unless next to nothing moves.
    """
    x = rows.reshape(len(rows), segments, -1, GRID, GRID, len(SPEEDS), DIRECTIONS).mean(2)
    if speeds != "both":
        x = x.sum(-2) if speeds == "sum" else x[..., -1, :]
    x = x.reshape(len(rows), -1)
    result: Floats = np.sqrt(x / (x.sum(1, keepdims=True) + 1e-3))
    return result
