"""Folders of numbered images and single stills, read as videos of as many frames."""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stillmotion.data.faults import VideoError
from stillmotion.data.table import IMAGE_SUFFIXES


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


def read_image(path: Path) -> NDArray[np.uint8]:
    """One image, upright (EXIF orientation applied), RGB without alpha, (H, W, 3).

    Raises:
        VideoError: The file is no image that can be read in full.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
                grey = (np.asarray(upright).astype(np.uint32) + 128) // 257
                return np.repeat(grey[..., None].astype(np.uint8), 3, axis=2)
            return np.array(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise VideoError(f"{path}: an image that cannot be read ({words})") from error
