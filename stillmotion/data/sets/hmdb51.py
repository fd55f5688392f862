"""HMDB51 (Kuehne et al. 2011): 6,766 clips, 51 classes, three official splits of 3,570 / 1,530.

Lists: `testTrainMulti_7030_splits/CLASS_test_split{1,2,3}.txt`, one `name.avi N` a line; N is 1 for train, 2 for test,
0 for neither. Videos: `CLASS/name.avi`, and the name is MOVIE_CLASS_bodypart_camera_people_view_quality_number: the
group is MOVIE. The official splits keep the clips of a movie together within a class, not across classes: 133 to 149
movies have clips on both sides, which `check_leaks` reports.
"""

import re
from pathlib import Path

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, chosen, first_folder, lines_of, make_table
from stillmotion.data.table import Sample, Table, TableError

_SPLITS = {"0": "unused", "1": "train", "2": "test"}
_TAGS = r"[fhlu]_(?:cm|nm)_np\d+_(?:ba|bm|fr|le|ri)_(?:goo|med|bad)_\d+\.avi"

FETCH = Fetch(
    home=("https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/",),
    files=("hmdb51_org.rar (2 GB), and the archive of every class in it", "test_train_splits.rar"),
    terms="CC BY 4.0 by its page; the clips are from films and YouTube",
    layout={
        "hmdb51_org/kick/Film_kick_f_cm_np1_le_bad_1.avi": "",
        "hmdb51_org/kick/Other_kick_f_cm_np1_le_bad_0.avi": "",
        "testTrainMulti_7030_splits/kick_test_split1.txt": (
            "Film_kick_f_cm_np1_le_bad_1.avi 1 \nOther_kick_f_cm_np1_le_bad_0.avi 2 \n"
        ),
    },
)


def read(
    root: Path,
    *,
    annotations: Path | None = None,
    split: int = 1,
    missing: Missing = "error",
    unused: bool = False,
) -> Table:
    """Reads an official split.

    Args:
        root: Folder with the class folders, or one above.
        annotations: Folder with the 153 lists. Default: `testTrainMulti_7030_splits` in `root`, or `root`.
        split: 1, 2 or 3.
        missing: What to do with listed videos that are not there.
        unused: Also give the clips that the split leaves out, as split `unused`.

    Returns:
        Splits `train` and `test`; groups are source movies.

    Raises:
        TableError: In one line: file, line, remedy.
    """
    chosen("split", split, (1, 2, 3))
    pattern = f"*_test_split{split}.txt"
    folder = first_folder(annotations or root / "testTrainMulti_7030_splits", root, holding=pattern)
    samples = []
    for path in sorted(folder.glob(pattern)):
        label = path.name.removesuffix(pattern[1:])
        name_of = re.compile(rf"(?P<movie>.+)_{re.escape(label)}_{_TAGS}")
        for number, line in lines_of(path):
            name, _, code = line.rpartition(" ")
            match = name_of.fullmatch(name.strip())
            if match is None or code not in _SPLITS:
                raise TableError(f"{path} line {number}: {line!r} is not `name.avi 0|1|2`; correct the line")
            if code != "0" or unused:
                listed = f"{label}/{name.strip()}"
                sample = Sample(root / listed, listed, {"label": label}, _SPLITS[code], match["movie"], line=number)
                samples.append(sample)
    return make_table(samples, folder / pattern, Videos(root), missing)
