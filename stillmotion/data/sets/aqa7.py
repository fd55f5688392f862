"""AQA-7 (Parmar & Morris 2019): 1,189 routines of seven Olympic actions with their scores; split 4 is the usual one.

`Split_4/split_4_train_list.mat` and `split_4_test_list.mat` hold `consolidated_train_list` and
`consolidated_test_list`: a row for each sample with action (from 1), number, final score. Samples are
`diving-out/001.avi`, or folders of frames `diving-out/001/img_00001.jpg`, 103 frames each. So says public code that
reads the set (names and columns of the lists, folders of frames of actions 1 to 6); the files themselves we could not
open. Trampoline (7) is left out in the usual protocol, and here.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, first_folder, make_table, mat_arrays
from stillmotion.data.table import Sample, Table, TableError

ACTIONS = ("diving", "gym_vault", "ski_big_air", "snowboard_big_air", "sync_diving_3m", "sync_diving_10m")
NUM_ACTIONS = 7
"""With trampoline."""


def _mat(part: str) -> bytes:
    from io import BytesIO

    from scipy.io import savemat

    file = BytesIO()
    savemat(file, {f"consolidated_{part}_list": [[1.0, 1.0 if part == "train" else 2.0, 80.5]]})
    return file.getvalue()


FETCH = Fetch(
    home=("http://rtis.oit.unlv.edu/datasets.html",),
    files=("AQA-7.zip",),
    terms="not stated where we looked",
    layout={
        "diving-out/001/img_00001.jpg": "",
        "diving-out/002/img_00001.jpg": "",
        "Split_4/split_4_train_list.mat": partial(_mat, "train"),
        "Split_4/split_4_test_list.mat": partial(_mat, "test"),
    },
    note="layout as public code reads it; the files themselves we could not open",
)


def read(
    root: Path, *, annotations: Path | None = None, action: str | None = None, missing: Missing = "error"
) -> Table:
    """Reads split 4.

    Args:
        root: Folder with `diving-out` and the others, or above.
        annotations: Folder with the two lists. Default: `Split_4` in `root`, or `root`.
        action: One of `ACTIONS`, as scores of different sports do not compare; None: all six.
        missing: What to do with listed samples that are not there.

    Returns:
        Splits `train` and `test`; columns `label` (the action) and `final_score`; no groups.

    Raises:
        TableError: In one line: file, row, remedy.
    """
    if action is not None and action not in ACTIONS:
        raise ValueError(f"action={action!r}: choose one of {', '.join(ACTIONS)}")
    base = annotations or root
    folder = first_folder(base / "Split_4", base, base / "AQA-7" / "Split_4", holding="split_4_train_list.mat")
    samples = []
    for part in ("train", "test"):
        path = folder / f"split_4_{part}_list.mat"
        rows = mat_arrays(path).get(f"consolidated_{part}_list")
        if rows is None or rows.ndim != 2 or rows.shape[1] < 3:
            raise TableError(f"{path}: no consolidated_{part}_list of action, number, score; get the official file")
        for line, (kind, number, score) in enumerate(rows[:, :3].astype(float).tolist(), start=1):
            if kind not in range(1, NUM_ACTIONS + 1) or number < 1 or score < 0:
                raise TableError(
                    f"{path} row {line}: {kind:g}, {number:g}, {score:g} is not action (1 to {NUM_ACTIONS}), number, "
                    "score; get the official file"
                )
            if kind > len(ACTIONS) or action not in (None, ACTIONS[int(kind) - 1]):
                continue
            label = ACTIONS[int(kind) - 1]
            name = f"{label}-out/{int(number):03d}.avi"
            targets = {"label": label, "final_score": f"{score:g}"}
            samples.append(Sample(root / name, name, targets, part, line=line))
    table = make_table(samples, folder / "split_4_train_list.mat", Videos(root), missing)
    return replace(
        table, notes=("columns and folders are as public code reads them; the official files we could not open",)
    )
