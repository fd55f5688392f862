"""Optical flow between two frames, and its coding in bytes. OpenCV and NumPy only."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from stillmotion.view import FlowConfig

Frames = NDArray[np.uint8]
Grey = NDArray[np.uint8]
Vectors = NDArray[np.float32]
Calculate = Callable[[Grey, Grey], Vectors]
SMALLEST = 16
RAFT = ("raft_small", "raft_large")
"""Methods that need weights: computed into a store (`raft.py`), never while training reads."""
LEVELS = 127
"""Byte 128 is no motion, 1 and 255 are the bound: zero is exact and both directions are coded alike."""


def optical_flow(pairs: Sequence[tuple[Grey, Grey]], method: str = "dis") -> list[Vectors]:
    """How far every pixel moves from the first frame of a pair to the second.

    Args:
        pairs: Grey frames (H, W) uint8.
        method: `dis` (Kroeger et al. 2016; about a hundredth of TV-L1's time), `tvl1` (Zach et al. 2007, as the papers
            of two-stream networks; OpenCV's own settings), `farneback` (2003).

    Returns:
        (H, W, 2) of each pair, in pixels: u to the right, v down. All zero where a side is under 16 pixels, the least
        that the pyramids take.

    Raises:
        ValueError: There is no such method.
    """
    calculate = flow_function(method)
    return [calculate(first, second) for first, second in pairs]


def flow_function(method: str) -> Calculate:
    """What `optical_flow` does with one pair.

    Raises:
        ValueError: There is no such method.
    """
    if method in RAFT:
        raise ValueError(f"flow method {method!r} is read from a store only: run `stillmotion flow --method {method}`")
    if method not in METHODS:
        raise ValueError(f"flow method {method!r}: choose one of {', '.join(METHODS)}")
    calculate = METHODS[method]()

    def flow(first: Grey, second: Grey) -> Vectors:
        # Between equal frames nothing moves, which need not be computed.
        if min(first.shape) < SMALLEST or np.array_equal(first, second):
            return np.zeros((*first.shape, 2), np.float32)
        return np.asarray(calculate(first, second), np.float32)

    return flow


def _dis() -> Calculate:
    import cv2

    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    nothing = np.empty(0, np.float32)  # a flow of the right size would be taken as the first guess
    return lambda a, b: np.asarray(dis.calc(a, b, nothing))


def _tvl1() -> Calculate:
    import cv2

    tvl1 = cv2.optflow.DualTVL1OpticalFlow.create()
    nothing = np.empty(0, np.float32)
    return lambda a, b: np.asarray(tvl1.calc(a, b, nothing))


def _farneback() -> Calculate:
    import cv2

    nothing = np.empty(0, np.float32)
    # Pyramid of halves, three levels, window 15, three rounds, neighbourhood 5, sigma 1.2: OpenCV's example.
    return lambda a, b: np.asarray(cv2.calcOpticalFlowFarneback(a, b, nothing, 0.5, 3, 15, 3, 5, 1.2, 0))


METHODS: dict[str, Callable[[], Calculate]] = {
    "dis": _dis,
    "tvl1": _tvl1,
    "farneback": _farneback,
}


def grey_frames(frames: Frames | Sequence[Frames], *, stretch: bool) -> list[Grey]:
    """Frames as flow is computed on them.

    Args:
        frames: (H, W, 3) each, RGB. One that stands there several times is turned to grey once.
        stretch: Over the whole range of grey, by the darkest and brightest hundredth of all frames, and slightly
            blurred: dark videos show their motion too.
    """
    held = list(frames)  # while they are held, no two have the same id
    greys = {key: to_grey(frame) for key, frame in {id(frame): frame for frame in held}.items()}
    if stretch:
        table = stretch_table([greys[id(frame)] for frame in held])
        greys = {key: stretched(grey, table) for key, grey in greys.items()}
    return [greys[id(frame)] for frame in held]


def to_grey(frame: Frames) -> Grey:
    """One RGB frame (H, W, 3) in grey."""
    import cv2

    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def stretch_table(grey: Sequence[Grey]) -> Grey:
    """New value (256,) for each grey, by the darkest and brightest hundredth of about eight of the frames."""
    low, high = np.percentile(np.stack(grey[:: max(1, len(grey) // 8)]), [1, 99])
    return np.asarray(np.clip((np.arange(256) - low) * (255.0 / max(high - low, 1.0)), 0, 255), np.uint8)


def stretched(grey: Grey, table: Grey) -> Grey:
    """A grey frame with the values of the table, slightly blurred."""
    import cv2

    return np.asarray(cv2.GaussianBlur(table[grey], (0, 0), 1.0), np.uint8)


def flow_of_pairs(frames: Frames | Sequence[Frames], config: FlowConfig) -> list[Vectors]:
    """Flow between frames 0 and 1, 2 and 3, and so on.

    Args:
        frames: 2P of (H, W, 3), RGB.
        config: How.

    Returns:
        P times (H, W, 2).
    """
    grey = grey_frames(frames, stretch=config.stretch)
    return optical_flow(list(zip(grey[::2], grey[1::2], strict=True)), config.method)


def to_bytes(flow: Vectors, bound: float) -> NDArray[np.uint8]:
    """Codes pixels of motion: 128 is none, 255 is `bound` or more, 1 is `-bound` or less.

    Example:
        >>> to_bytes(np.array([0.0, 4.0, -9.0, 0.04], np.float32), 4.0).tolist()
        [128, 255, 1, 129]
    """
    return np.asarray(np.rint(np.clip(flow / bound, -1.0, 1.0) * LEVELS) + (LEVELS + 1), np.uint8)


def from_bytes(coded: NDArray[np.uint8], bound: float) -> Vectors:
    """What `to_bytes` coded, in pixels; off by at most `bound / 254` where it was within the bound."""
    return (coded.astype(np.float32) - (LEVELS + 1)) * np.float32(bound / LEVELS)
