"""Videos to look at: the frames of a sample beside their stored flow in colours, with the colour wheel as legend."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import flow_to_image

from stillmotion.data.flow import Vectors
from stillmotion.data.flow_files import path_of
from stillmotion.data.flow_store import CHUNK, FlowStore
from stillmotion.data.sampling import spread_evenly
from stillmotion.data.source import Videos
from stillmotion.data.table import Sample, read_table
from stillmotion.overlay import VideoWriter

MAX_FIELDS = 128
LEAST_HEIGHT = 240


def write_previews(folder: str | Path, table: str | Path, count: int, *, root: str | Path | None = None) -> list[Path]:
    """Writes `preview/NAME.mp4` of some samples of a store, spread over the table.

    Args:
        folder: The store.
        table: Its samples.
        count: How many of them.
        root: Folder that the table's relative paths start from.

    Returns:
        The videos.
    """
    store = FlowStore(folder)
    there = [sample for sample in read_table(table, root=root) if store.has(sample)]
    chosen = spread_evenly(len(there), count)
    return [_write(store, there[number]) for number in chosen.tolist()]


def _write(store: FlowStore, sample: Sample) -> Path:
    videos = Videos(store.settings.short_side)
    pairs, frames = (part[:MAX_FIELDS] for part in store.fields(sample))
    some = store.read(sample, pairs[:: max(1, len(pairs) // 8)])
    largest = max(1e-3, float(np.median([np.linalg.norm(field, axis=-1).max() for field in some])))
    target: Path = store.folder / "preview" / f"{path_of(sample, suffix=True)}.mp4"
    with VideoWriter(target, store.extent(sample).fps or 25.0) as video:
        for first in range(0, len(pairs), CHUNK):
            part = slice(first, first + CHUNK)
            shown = zip(videos.read(sample, frames[part]), store.read(sample, pairs[part]), strict=True)
            for frame, vectors in shown:
                video.add(draw_flow(frame, vectors, largest))
    return target


def draw_flow(frame: NDArray[np.uint8], vectors: Vectors, largest: float) -> NDArray[np.uint8]:
    """A frame, its flow in the colours of Baker et al. (IJCV 2011), and the wheel that tells what they mean.

    Args:
        frame: (H, W, 3) RGB.
        vectors: (H', W', 2).
        largest: Pixels of motion at the rim of the wheel; faster motion has the colours of the rim.

    Returns:
        (H'', W'', 3): frame, flow and legend side by side.
    """
    size = _enlarged(vectors.shape[:2])
    left = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
    flow = Image.fromarray(flow_colours(vectors, largest)).resize(size, Image.Resampling.BILINEAR)
    side = LEAST_HEIGHT // 2
    sheet = Image.new("RGB", (2 * size[0] + side, size[1]), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(flow, (size[0], 0))
    places = np.linspace(-1.0, 1.0, side - 20, dtype=np.float32)
    wheel = np.stack(np.meshgrid(places, places), -1) * np.float32(largest)
    wheel[np.linalg.norm(wheel, axis=-1) > largest] = 0.0
    sheet.paste(Image.fromarray(flow_colours(wheel, largest)), (2 * size[0] + 10, 10))
    text = f"towards its\ncolour; rim:\n{largest:.3g} pixels\na field"
    ImageDraw.Draw(sheet).text((2 * size[0] + 10, side), text, fill="black", font=ImageFont.load_default(14))
    return np.asarray(sheet, np.uint8)


def flow_colours(vectors: Vectors, largest: float) -> NDArray[np.uint8]:
    """Flow (H, W, 2) in colours, (H, W, 3): white is no motion, `largest` pixels have the full colour."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    inside = vectors * np.minimum(1.0, largest / np.maximum(length, 1e-9)).astype(np.float32)
    # torchvision divides by the longest vector of the picture: a column of its own keeps the scale of all pictures.
    rim = np.zeros((len(inside), 1, 2), np.float32)
    rim[:, 0, 0] = largest
    coloured = flow_to_image(torch.from_numpy(np.concatenate([inside, rim], 1).transpose(2, 0, 1)))
    return np.ascontiguousarray(coloured.numpy().transpose(1, 2, 0)[:, :-1])


def _enlarged(size: tuple[int, ...]) -> tuple[int, int]:
    """Width and height to show; tiny pictures are enlarged."""
    factor = max(1, -(-LEAST_HEIGHT // size[0]))
    return factor * size[1], factor * size[0]
