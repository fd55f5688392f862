"""UCF101 (Soomro, Zamir, Shah 2012): 13,320 clips, 101 classes, three official splits.

Lists: `ucfTrainTestlist/{train,test}list0{1,2,3}.txt`, one `Class/v_Class_gXX_cYY.avi` a line (the training lists add
the class number), Windows line ends. Videos: `UCF-101/Class/v_Class_gXX_cYY.avi`. Clips of one gXX of a class were cut
from one source video. The class is `HandstandPushups`, its files are named `v_HandStandPushups_...`.
"""

import re
from pathlib import Path

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, chosen, first_folder, lines_of, make_table
from stillmotion.data.table import Sample, Table, TableError

_NAME = re.compile(r"(?P<label>[^/]+)/v_.+_g(?P<group>\d+)_c\d+\.avi(?: \d+)?")

FETCH = Fetch(
    home=("https://www.crcv.ucf.edu/data/UCF101.php",),
    files=("UCF101.rar (6.5 GB)", "UCF101TrainTestSplits-RecognitionTask.zip"),
    terms="published for research without an open licence",
    layout={
        "UCF-101/TaiChi/v_TaiChi_g09_c01.avi": "",
        "UCF-101/TaiChi/v_TaiChi_g01_c02.avi": "",
        "ucfTrainTestlist/trainlist01.txt": "TaiChi/v_TaiChi_g09_c01.avi 90\r\n",
        "ucfTrainTestlist/testlist01.txt": "TaiChi/v_TaiChi_g01_c02.avi\r\n",
    },
)


def read(root: Path, *, annotations: Path | None = None, split: int = 1, missing: Missing = "error") -> Table:
    """Reads an official split.

    Args:
        root: Folder with the class folders, or one above.
        annotations: Folder with the lists. Default: `ucfTrainTestlist` in `root`, or `root`.
        split: 1, 2 or 3.
        missing: What to do with listed videos that are not there.

    Returns:
        Splits `train` and `test`; groups `Class_gXX`.

    Raises:
        TableError: In one line: file, line, remedy.
    """
    chosen("split", split, (1, 2, 3))
    folder = first_folder(annotations or root / "ucfTrainTestlist", root, holding=f"trainlist0{split}.txt")
    samples = []
    for part in ("train", "test"):
        path = folder / f"{part}list0{split}.txt"
        for number, line in lines_of(path):
            match = _NAME.fullmatch(line)
            if match is None:
                raise TableError(f"{path} line {number}: {line!r} is not Class/v_Class_gXX_cYY.avi; correct the line")
            label, name = match["label"], line.split()[0]
            group = f"{label}_g{match['group']}"
            samples.append(Sample(root / name, name, {"label": label}, part, group, line=number))
    return make_table(samples, folder / f"trainlist0{split}.txt", Videos(root), missing)
