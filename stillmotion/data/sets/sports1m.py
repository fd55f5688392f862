"""Sports-1M (Karpathy et al. 2014): 1,133,158 YouTube videos, 487 sports, several labels for some.

Lists: `original/train_partition.txt` and `test_partition.txt`, one `https://www.youtube.com/watch?v=ID 168,169` a line;
`labels.txt` names the classes from 0 on. They are published gzipped. The set has no video files: we take those that are
named by their YouTube id.
"""

import re
from pathlib import Path

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, first_folder, lines_of, make_table
from stillmotion.data.table import Sample, Table, TableError

_LINE = re.compile(r"\S+[?&]v=(?P<video>[\w-]+)\S*\s+(?P<labels>\d+(?:,\d+)*)")

FETCH = Fetch(
    home=("https://github.com/gtoderici/sports-1m-dataset",),
    files=("original/train_partition.txt, original/test_partition.txt and labels.txt", "the videos, from YouTube"),
    terms="the videos belong to their uploaders",
    layout={
        "videos/UDqivjS-lpI.mp4": "",
        "videos/_1234567890.mp4": "",
        "labels.txt": "boomerang\nfreestyle bmx\n",
        "original/train_partition.txt": "https://www.youtube.com/watch?v=UDqivjS-lpI 1,0\n",
        "original/test_partition.txt": "https://www.youtube.com/watch?v=_1234567890 0\n",
    },
)


def read(root: Path, *, annotations: Path | None = None, missing: Missing = "error") -> Table:
    """Reads both partitions.

    Args:
        root: Folder with the videos, `ID.mp4` in any folders below it.
        annotations: Folder with the two lists, or the one above `original`. Default: `original` in `root`, or `root`.
        missing: What to do with listed videos that are not there (many have left YouTube).

    Returns:
        Splits `train` and `test`; the group is the YouTube id. `label` is the first label, `labels` are all, with `|`
        between them; class numbers where there is no `labels.txt`.

    Raises:
        TableError: In one line: file, line, remedy.
    """
    base = annotations or root
    folder = first_folder(base, base / "original", holding="train_partition.txt")
    places = [f / "labels.txt" for f in (folder, folder.parent) if (f / "labels.txt").is_file()]
    names = [line for _, line in lines_of(places[0])] if places else None
    samples = []
    for part in ("train", "test"):
        path = folder / f"{part}_partition.txt"
        for number, line in lines_of(path):
            match = _LINE.fullmatch(line)
            if match is None:
                raise TableError(f"{path} line {number}: {line!r} is not `address?v=ID label,label`; correct the line")
            numbers = [int(text) for text in match["labels"].split(",")]
            if names is not None and max(numbers) >= len(names):
                raise TableError(f"{path} line {number}: label {max(numbers)} is not in {places[0]}, whose last is "
                                 f"{len(names) - 1}; correct the line")  # fmt: skip
            labels = [names[k] if names is not None else str(k) for k in numbers]
            name = f"{match['video']}.mp4"
            targets = {"label": labels[0], "labels": "|".join(labels)}
            samples.append(Sample(root / name, name, targets, part, match["video"], line=number))
    return make_table(samples, folder / "train_partition.txt", Videos(root, ignore_case=False), missing)
