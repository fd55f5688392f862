"""Folders of numbered images and single stills, read as videos of as many frames."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stillmotion.data.examine import DIGEST_SIZE, Examination
from stillmotion.data.faults import VideoError, one_line
from stillmotion.data.picture import Size, as_array, scaled
from stillmotion.data.table import IMAGE_SUFFIXES

ORIENTATION = 0x0112
"""EXIF tag; values from 5 swap width and height."""


def is_images(path: Path) -> bool:
    """Whether the path is read here: a folder, or a file with the suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES or path.is_dir()


def image_files(path: Path) -> tuple[Path, ...]:
    """The images of a folder in numeric order (`img_2.jpg` before `img_10.jpg`), or the one still.

    Raises:
        VideoError: The path does not exist or is a folder without images.
    """
    if path.is_dir():
        return _folder(path, path.stat().st_mtime_ns)
    if not path.exists():
        raise VideoError(f"{path}: not found")
    return (path,)


@lru_cache(maxsize=1024)
def _folder(path: Path, modified: int) -> tuple[Path, ...]:
    files = [f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".")]
    if not files:
        raise VideoError(f"{path}: a folder without images")
    return tuple(sorted(files, key=_numeric))


def _numeric(path: Path) -> tuple[list[int | str], str]:
    parts = re.split(r"(\d+)", path.stem)  # text and numbers in turn, so that like compares with like
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def image_size(path: Path) -> Size:
    """Width and height, upright, from the file's head alone.

    Raises:
        VideoError: The file is no image.
    """
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION, 1) >= 5 else (width, height)


def read_image(path: Path) -> NDArray[np.uint8]:
    """One image, upright (EXIF orientation applied), RGB without alpha, (H, W, 3).

    Raises:
        VideoError: The file is no image that can be read in full.
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
            grey = (np.asarray(upright).astype(np.uint32) + 128) // 257
            return np.repeat(grey[..., None].astype(np.uint8), 3, axis=2)
        return np.array(upright.convert("RGB"))


def examine_images(path: Path) -> Examination:
    """Reads every image of a folder, or the one still, as `examine` does for a video.

    Raises:
        VideoError: Not one image can be read.
    """
    files = image_files(path)
    content = hashlib.blake2b(digest_size=16)
    damaged: list[int] = []
    faults: list[str] = []
    size: Size | None = None
    for number, file in enumerate(files):
        try:
            picture = read_image(file)
        except VideoError as error:
            damaged.append(number)
            faults.append(str(error).removeprefix(f"{path}").lstrip("/: "))
            continue
        size = size or (picture.shape[1], picture.shape[0])
        content.update(reduced(picture, (DIGEST_SIZE, DIGEST_SIZE)).tobytes())
    if size is None:
        raise VideoError(f"{path}: {faults[0]}")
    fault = f"{len(damaged)} of {len(files)} images cannot be read, first {faults[0]}" if faults else None
    keyframes = tuple(number for number in range(len(files)) if number not in damaged)
    return Examination(
        num_frames=len(files),
        fps=None,
        size=size,
        keyframes=keyframes,
        damaged=tuple(damaged),
        fault=fault,
        digest=content.hexdigest(),
    )


def reduced(picture: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """An image at another size, with the scaler that videos have."""
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return as_array(scaled(frame, *size))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        words = one_line(error)
        raise VideoError(f"{path}: an image that cannot be read ({words})") from error
