"""static-YUP++ (after Gao, Xiong, Grauman 2018): one frame of every YUP++ video tells the scene; half are for training.

The split of the paper is not available. This one is ours: 15 of the 30 videos of every class and kind of camera, fixed
by the rule of `yup_plus_plus.draw` with the key `static-YUP++`. So a result on it cannot be compared with
Table 6 of HalluciNet (arXiv:1912.04430). That only the centre frame is seen is up to the network's view
(`moment: centre`).
"""

from dataclasses import replace
from pathlib import Path

from stillmotion.data.sets import yup_plus_plus
from stillmotion.data.sets.layout import Missing
from stillmotion.data.sets.yup_plus_plus import NUM_VIDEOS, Camera, draw, read_videos
from stillmotion.data.table import Table

OURS = "the split of the paper (Gao et al.) is not available; this one is ours, so Table 6 cannot be compared"

FETCH = replace(yup_plus_plus.FETCH, note=OURS)


def read(root: Path, *, annotations: Path | None = None, camera: Camera = "both", missing: Missing = "error") -> Table:
    """Reads the class folders and divides every class and kind of camera in halves.

    Args:
        root: Folder with `camera_stationary` and `camera_moving`, or above.
        annotations: Not used: there are none.
        camera: `static` or `moving`: videos of this kind only.
        missing: `skip` accepts that a class has no folder.

    Returns:
        As for yup_plus_plus.

    Raises:
        TableError: In one line: file and remedy.
    """
    return draw(read_videos(root, camera, missing), "static-YUP++", NUM_VIDEOS // 2, what=OURS)
