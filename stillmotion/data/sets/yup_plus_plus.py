"""YUP++ dynamic scenes (Feichtenhofer, Pinz, Wildes 2017): 20 scenes, 30 videos of a still, 30 of a moving camera each.

`camera_stationary/Beach/Beach_static_cam_1.mp4`, `camera_moving/Beach/Beach_moving_cam_1.mp4`, ...: folders as in the
authors' code, file names as in public programs that read the set. The protocol trains on a tenth. The authors' lists
were drawn by MATLAB and are not published with their code. A list in the form that it writes (`NAME static_train` a
line, also static_test, moving_train, moving_test) can be given; otherwise the draw is ours.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, chosen, lines_of, read_scenes
from stillmotion.data.table import Sample, Table, TableError

CLASSES = (
    "beach", "building_collapse", "elevator", "escalator", "falling_trees", "fireworks", "forest_fire", "fountain",
    "highway", "lightning_storm", "marathon", "ocean", "railway", "rushing_river", "sky_clouds", "snowing", "street",
    "waterfall", "waving_flags", "windmill_farm",
)  # fmt: skip
NUM_VIDEOS = 30
"""Of a class with one kind of camera."""
Camera = Literal["static", "moving", "both"]

_NAME = re.compile(r".+_(?P<camera>static|moving)_cam_\d+")
_LINE = re.compile(r"(?P<name>\S+)\s+(?P<camera>static|moving)_(?P<split>train|test)")


def _layout() -> dict[str, str]:
    folders = {c: c.title().replace("_", "") for c in CLASSES}
    kinds = {"stationary": "static", "moving": "moving"}
    return {
        f"camera_{folder}/{name}/{name}_{kind}_cam_{i}.mp4": ""
        for name in folders.values()
        for folder, kind in kinds.items()
        for i in (1, 2)
    }


FETCH = Fetch(
    home=("http://vision.eecs.yorku.ca/research/dynamic-scenes/",),
    files=("http://vision.eecs.yorku.ca/WebShare/YUP++.zip (the address in the authors' code)",),
    terms="not stated where we looked",
    layout=_layout(),
    note=f"1 to {NUM_VIDEOS} of each kind of camera; the authors' lists are not published, the draw is ours",
)


def read(
    root: Path,
    *,
    annotations: Path | None = None,
    split: int = 1,
    camera: Camera = "both",
    missing: Missing = "error",
) -> Table:
    """Reads the class folders and draws a tenth of every class and kind of camera for training.

    Args:
        root: Folder with `camera_stationary` and `camera_moving`, or above.
        annotations: A list of `NAME static_train` lines instead of the draw.
        split: Number of the draw, 1 to 10; another number is another tenth.
        camera: `static` or `moving`: videos of this kind only.
        missing: `skip` accepts that a class has no folder.

    Returns:
        Labels as in `CLASSES`; further column `camera`; no groups.

    Raises:
        TableError: In one line: file, line, remedy.
    """
    chosen("split", split, range(1, 11))
    table = read_videos(root, camera, missing)
    if annotations is not None:
        return _listed(table, annotations)
    return draw(
        table, f"YUP++ {split}", NUM_VIDEOS // 10, what="the authors' 10/90 lists are not published; this draw is ours"
    )


def read_videos(root: Path, camera: Camera, missing: Missing) -> Table:
    """The videos with their kind of camera, without a split.

    Raises:
        TableError: A name does not tell the kind of camera.
        ValueError: No such kind.
    """
    if camera not in ("static", "moving", "both"):
        raise ValueError(f"camera={camera!r}: choose static, moving or both")
    table = read_scenes(root, CLASSES, missing)
    samples = []
    for s in table:
        match = _NAME.fullmatch(Path(s.name).stem)
        if match is None:
            raise TableError(f"{root / s.name}: not named Class_static_cam_N or Class_moving_cam_N; restore its name")
        samples.append(replace(s, targets={**s.targets, "camera": match["camera"]}))
    return replace(table, samples=tuple(samples)).select(lambda s: camera in ("both", s.targets["camera"]))


def draw(table: Table, key: str, num_train: int, *, what: str) -> Table:
    """Training and test split by class and kind of camera, the same wherever it is drawn.

    Videos are ranked by the SHA-256 of key and name, and the first `num_train` of each 30 are for training: no random
    generator, so that the draw is the same for all versions of all libraries.

    Args:
        table: Samples with `label` and `camera`.
        key: Another key is another draw.
        num_train: Training videos of a class and kind of camera.
        what: Note for the user.
    """

    def rank(sample: Sample) -> str:
        return hashlib.sha256(f"{key}/{Path(sample.name).stem}".encode()).hexdigest()

    cells: dict[tuple[str, str], list[Sample]] = {}
    for s in table:
        cells.setdefault((s.targets["label"], s.targets["camera"]), []).append(s)
    train = {s.name for cell in cells.values() for s in sorted(cell, key=rank)[: _share(len(cell), num_train)]}
    samples = tuple(replace(s, split="train" if s.name in train else "test") for s in table)
    notes = [what]
    if odd := [f"{label} ({camera}) {len(cell)}" for (label, camera), cell in cells.items() if len(cell) != NUM_VIDEOS]:
        notes.append(f"not {NUM_VIDEOS} videos, so not the draw of the whole set: {odd[0]}"
                     + (f" and {len(odd) - 1} more" if len(odd) > 1 else ""))  # fmt: skip
    return replace(table, samples=samples, notes=tuple(notes))


def _share(number: int, num_train: int) -> int:
    """Of an incomplete class the same share, and one at least."""
    return max(1, round(number * num_train / NUM_VIDEOS))


def _listed(table: Table, path: Path) -> Table:
    splits: dict[str, str] = {}
    for number, line in lines_of(path):
        match = _LINE.fullmatch(line)
        if match is None:
            raise TableError(f"{path} line {number}: {line!r} is not `NAME static_train`; correct the line")
        splits[match["name"]] = match["split"]
    if lost := [s.name for s in table if Path(s.name).stem not in splits]:
        raise TableError(f"{path}: {len(lost)} videos are in no split, the first {lost[0]!r}; complete the list")
    return replace(table, samples=tuple(replace(s, split=splits[Path(s.name).stem]) for s in table))
