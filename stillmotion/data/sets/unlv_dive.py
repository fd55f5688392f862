"""UNLV-Dive (Parmar & Morris 2017): 372 dives, as the MTL-AQA release annotates them in `UNLV_Dive_split_4`.

They are the first three events of MTL-AQA, and annotations and videos are those. Two splits: `*_split_0.pkl`
(279 / 93) and `*_split_370_4.pkl` (300 / 70), one dive of which has no annotation and is left out. 80 training dives of
the first, 78 of the second are in the test split of MTL-AQA: nothing trained on them may be tested there.
"""

from dataclasses import replace
from pathlib import Path

from stillmotion.data.sets import mtl_aqa
from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, chosen, make_table
from stillmotion.data.sets.mtl_aqa import UNVERIFIED, Release, Window, read_keys
from stillmotion.data.table import Table

FOLDER = "UNLV_Dive_split_4"
_LISTS = {0: "split_0.pkl", 4: "split_370_4.pkl"}

FETCH = Fetch(
    home=mtl_aqa.FETCH.home[:1],
    files=(f"folder MTL-AQA_dataset_release/Ready_2_Use/{FOLDER}", "videos 01, 02 and 03 of Video_List.xlsx there"),
    terms=mtl_aqa.FETCH.terms,
    layout={path.replace("MTL-AQA_split_0_data", FOLDER): text for path, text in mtl_aqa.FETCH.layout.items()},
    note=mtl_aqa.FETCH.note,
)


def read(
    root: Path,
    *,
    annotations: Path | None = None,
    split: int = 0,
    window: Window = "official",
    missing: Missing = "error",
) -> Table:
    """Reads the dives of a split.

    Args:
        root: Folder with the videos, in any folders below it.
        annotations: The release of MTL-AQA, or any of its folders above the pickles. Default: in `root`.
        split: 0 or 4.
        window: As for mtl_aqa.
        missing: What to do with dives whose video is not there.

    Returns:
        As for mtl_aqa.

    Raises:
        TableError: In one line: file, dive, remedy.
    """
    chosen("split", split, tuple(_LISTS))
    release = Release.of(annotations or root, FOLDER)
    parts, notes = {}, [UNVERIFIED]
    for part in ("train", "test"):
        path = release.folder / f"{part}_{_LISTS[split]}"
        keys = read_keys(path)
        parts[part] = [key for key in keys if key in release.dives]
        if lost := len(keys) - len(parts[part]):
            notes.insert(0, f"{path}: {lost} of its {len(keys)} dives have no annotation and are left out")
    samples = release.samples(root, parts, window)
    table = make_table(samples, release.folder / mtl_aqa.ANNOTATIONS, Videos(root), missing)
    return replace(table, notes=tuple(notes))
