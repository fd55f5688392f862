"""YUPENN Dynamic Scenes (Derpanis et al. 2012): 14 scenes, 30 videos each; protocol: leave one video out.

One folder a class. How the folders are spelt we could not verify, so upper case, blanks and punctuation do not count.
"""

from pathlib import Path

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, read_scenes
from stillmotion.data.table import Table

CLASSES = (
    "beach", "city_street", "elevator", "forest_fire", "fountain", "highway", "lightning_storm", "ocean", "railway",
    "rushing_river", "sky_clouds", "snowing", "waterfall", "windmill_farm",
)  # fmt: skip

FETCH = Fetch(
    home=("http://vision.eecs.yorku.ca/research/dynamic-scenes/",),
    files=("the videos of YUPENN, a folder a class",),
    terms="not stated where we looked",
    layout={f"{name}/1.avi": "" for name in CLASSES},
    note="the page's address is from memory; upper case, blanks and punctuation of the folders do not count",
)


def read(root: Path, *, annotations: Path | None = None, missing: Missing = "error") -> Table:
    """Reads the class folders, in any folders below `root`. There is no list.

    Args:
        root: Folder with the class folders.
        annotations: Not used: there are none.
        missing: `skip` accepts that a class has no folder.

    Returns:
        Labels as in `CLASSES`. No split and no groups: `stillmotion svm --protocol leave-one-out`.

    Raises:
        TableError: In one line: folder and remedy.
    """
    return read_scenes(root, CLASSES, missing)
