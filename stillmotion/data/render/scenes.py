"""Videos of scenes that move (waves, fire, snow, traffic) before a still or a moving camera, laid out as YUP++.

`camera_stationary/Ocean/Ocean_static_cam_1.mp4`, `camera_moving/Ocean/Ocean_moving_cam_1.mp4`, ...: what reads YUP++
reads these (two of the classes, rain and smoke, are not in it). They stand in for it in tests and demonstrations; a
result on them says nothing about real scenes.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from stillmotion.data.render import nature, town
from stillmotion.data.render.actions import FPS, write_video
from stillmotion.data.render.painting import Floats, Moment, Rng
from stillmotion.data.table import Table, read_table
from stillmotion.files import csv_text, write_atomic

SCENES: dict[str, Callable[[Rng, int, int], Moment]] = {
    "fireworks": town.fireworks,
    "forest_fire": nature.forest_fire,
    "fountain": nature.fountain,
    "highway": town.highway,
    "ocean": nature.ocean,
    "rain": nature.rain,
    "sky_clouds": nature.sky_clouds,
    "smoke": town.smoke,
    "snowing": nature.snowing,
    "waterfall": nature.waterfall,
    "waving_flags": town.waving_flags,
    "windmill_farm": town.windmill_farm,
}
"""By class name, as in YUP++ where it has the class."""
MARGIN = 0.14
"""How far a camera can look beyond the picture, on each side, as a share of its height."""
DETAIL = 1.5
"""Pixels that are painted for one of the video, in each direction."""
CLOSEST = 0.35
"""Share of the picture's height that a close-up shows at least."""
GREY = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Scene:
    """One video to be.

    Args:
        label: One of `SCENES`.
        camera: `static` or `moving`.
        seed: Decides everything else.
    """

    label: str
    camera: str
    seed: int


@dataclass(frozen=True)
class Look:
    """What makes two videos of a scene look unlike, apart from the scene itself.

    Args:
        share: Of the painted height that is seen; a close-up has little.
        corner: Where that part lies, (x, y), each 0 to 1.
        colour: Share of the colours that is left; 0 is grey.
        gains: Of red, green and blue.
        gamma: Brightness is raised to this power.
    """

    share: float
    corner: tuple[float, float]
    colour: float
    gains: tuple[float, float, float]
    gamma: float

    @classmethod
    def draw(cls, scene: Scene, variety: float) -> "Look":
        """That of a scene; without variety all look the same."""
        a, x, y, b, *rest = np.random.default_rng([scene.seed, 5]).uniform(size=8).tolist()
        red, green, blue, gamma = (2 * value - 1 for value in rest)
        return cls(
            share=1 - variety * (1 - CLOSEST) * a,
            corner=(x, y),
            colour=1 - variety * b,
            gains=(1 + 0.35 * variety * red, 1 + 0.35 * variety * green, 1 + 0.35 * variety * blue),
            gamma=float(np.exp(0.6 * variety * gamma)),
        )

    def grade(self, image: Floats) -> Floats:
        """Colours of a picture in 0 to 255."""
        grey = (image @ GREY)[..., None]
        mixed = (grey + self.colour * (image - grey)) * np.array(self.gains, np.float32)
        graded: Floats = 255 * (mixed / 255).clip(0, 1) ** self.gamma
        return graded


def draw_scene(
    scene: Scene, *, size: tuple[int, int] = (128, 96), num_frames: int = 24, variety: float = 0.0
) -> NDArray[np.uint8]:
    """Draws the frames of a scene.

    Args:
        scene: What is seen.
        size: Width and height in pixels.
        num_frames: How many.
        variety: See `render_scenes`.

    Returns:
        (T, H, W, 3) uint8, RGB.
    """
    rng = np.random.default_rng([scene.seed, 3])
    look = Look.draw(scene, variety)
    detail = max(DETAIL, 1 / look.share)
    width, height = (round(detail * side) for side in size)
    seen = [round(look.share * side) for side in (width, height)]
    left, top = (round(at * (side - part)) for at, side, part in zip(look.corner, (width, height), seen, strict=True))
    margin = round(MARGIN * height)
    at = SCENES[scene.label](rng, height + 2 * margin, width + 2 * margin)
    begin, way, shake = rng.uniform(0, 20), rng.uniform(-1, 1, (2, 2)), rng.uniform(0, 2 * np.pi, (2, 2))
    light, tint = rng.uniform(0.88, 1.1), rng.uniform(0.95, 1.05, 3)
    frames = np.empty((num_frames, size[1], size[0], 3), np.uint8)
    for i in range(num_frames):
        share = i / max(1, num_frames - 1) if scene.camera == "moving" else 0.0
        swing = 0.12 * np.sin(shake + 2 * np.pi * np.array([[1.0], [2.3]]) * share).sum(0)
        offset = (way[0] * (1 - share) + way[1] * share + (swing if scene.camera == "moving" else 0.0)).clip(-1, 1)
        x, y = (margin * (1 + offset)).round().astype(int)
        window = np.s_[y + top : y + top + seen[1], x + left : x + left + seen[0]]
        image = at(begin + i / FPS)[window] * (light * tint).astype(np.float32)
        image = look.grade(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        frames[i] = (image + rng.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8)
    return frames


def plan_scenes(num_videos: int, seed: int) -> list[Scene]:
    """So many videos of every class and kind of camera, each with its own seed."""
    rng = np.random.default_rng([seed, 4])
    return [
        Scene(label, camera, int(rng.integers(2**31)))
        for label in SCENES
        for camera in ("static", "moving")
        for _ in range(num_videos)
    ]


def render_scenes(
    folder: str | Path,
    *,
    num_videos: int = 6,
    train_share: float = 0.5,
    seed: int = 0,
    size: tuple[int, int] = (128, 96),
    num_frames: int = 24,
    variety: float = 0.0,
    workers: int = 1,
    progress: bool = False,
) -> Table:
    """Renders a set of videos and its table.

    Args:
        folder: Gets `table.csv`, `camera_stationary` and `camera_moving`.
        num_videos: Of every class and kind of camera, two or more.
        train_share: Share of them that is for training, one at least and not all.
        seed: Decides everything.
        size: Width and height in pixels, both even.
        num_frames: Frames of a video, 12 a second.
        variety: 0 shows every scene whole and by its own colours, which one frame tells apart; up to 1, videos of a
            scene are close-ups of any part, in any light, with shifted or faded colours.
        workers: Processes that draw.
        progress: Show a bar.

    Returns:
        The table, with the columns path, label, split, camera.

    Raises:
        ValueError: Too few videos, an odd size, no frames, or a share or variety outside 0 to 1.
    """
    if num_videos < 2 or num_frames < 1:
        raise ValueError(f"num_videos={num_videos}, num_frames={num_frames}: give at least 2 videos and 1 frame")
    if not 0 < train_share < 1:
        raise ValueError(f"train_share={train_share}: give a share between 0 and 1")
    if min(size) < 16 or any(side % 2 for side in size):
        raise ValueError(f"size={size[0]}x{size[1]}: give two even numbers, 16 or more")
    if not 0 <= variety <= 1:
        raise ValueError(f"variety={variety}: give a number from 0 to 1")
    folder = Path(folder)
    plan = plan_scenes(num_videos, seed)
    num_train = min(num_videos - 1, max(1, round(train_share * num_videos)))
    rows = []
    for i, scene in enumerate(plan):
        name, number = scene.label.title().replace("_", ""), i % num_videos + 1
        place = f"camera_{'moving' if scene.camera == 'moving' else 'stationary'}/{name}"
        (folder / place).mkdir(parents=True, exist_ok=True)
        split = "train" if number <= num_train else "test"
        rows.append([f"{place}/{name}_{scene.camera}_cam_{number}.mp4", scene.label, split, scene.camera])
    render = partial(_render, size=size, num_frames=num_frames, variety=variety)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        done = pool.map(render, [folder / row[0] for row in rows], plan, chunksize=4)
        for _ in track(done, "rendering", total=len(plan), disable=not progress, console=Console(stderr=True)):
            pass
    write_atomic(folder / "table.csv", csv_text(["path", "label", "split", "camera"], rows))
    return read_table(folder / "table.csv")


def _render(path: Path, scene: Scene, *, size: tuple[int, int], num_frames: int, variety: float) -> None:
    write_video(path, draw_scene(scene, size=size, num_frames=num_frames, variety=variety))
