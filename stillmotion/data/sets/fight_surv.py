"""Surveillance Camera Fight Dataset (Akti, Tataroglu, Ekenel 2019): 2-second clips, fight or noFight, folds by source.

It has `fight/fi001.mp4`, `noFight/nofi001.mp4`, ... and `videos.txt`, where the address of each source video
is followed by its clips (`fi001: 0.13.50 - 0.15.60`) and the last lines name two collections (`nofi062 - nofi076 :
CamNet Dataset`). It has no split: folds are ours. A `labels.csv` beside the videos gives sources and folds directly.
"""

import re
from dataclasses import replace
from pathlib import Path

from stillmotion.data.sets.fetch import Fetch
from stillmotion.data.sets.layout import Missing, Videos, chosen, lines_of, make_table
from stillmotion.data.table import Sample, Table, TableError, read_table

NUM_FOLDS = 5
_CLIP = re.compile(r"((?:no)?fi\d{3})\s*:.*")
_RANGE = re.compile(r"nofi(\d{3})\s*-\s*nofi(\d{3})\s*:\s*(\w+).*")

FETCH = Fetch(
    home=("https://github.com/seymanurakti/fight-detection-surv-dataset",),
    files=("the repository: folders fight and noFight, videos.txt",),
    terms="MIT; real violence filmed by surveillance cameras",
    layout={
        "fight/fi001.mp4": "",
        "noFight/nofi001.mp4": "",
        "videos.txt": "https://www.youtube.com/watch?v=x\nfi001: 0.13.50 - 0.15.60\nnofi001: 0.20.00 - 0.22.00\n",
    },
)


def read(root: Path, *, annotations: Path | None = None, split: int | None = None, missing: Missing = "error") -> Table:
    """Reads the clips with their sources and folds.

    Args:
        root: Folder with `fight` and `noFight`.
        annotations: `labels.csv` or `videos.txt`. Default: the first of these in `root`.
        split: The fold that is the test split, 0-4; None gives no split, for a comparison over all folds.
        missing: What to do with listed videos that are not there.

    Returns:
        The group is the source video (`s01`, ... in the order of `videos.txt`); the column `fold` is 0-4.

    Raises:
        TableError: In one line: file, line, remedy.
    """
    path = annotations or next((root / n for n in ("labels.csv", "videos.txt") if (root / n).is_file()), None)
    if path is None:
        raise TableError(f"{root}: neither labels.csv nor videos.txt here; pass annotations=")
    samples = _from_labels(path, root) if path.suffix == ".csv" else _from_videos(path, root)
    table = make_table(samples, path, Videos(root), missing)
    if split is None:
        return table
    chosen("split", split, range(NUM_FOLDS))
    folds = {str(split): "test"}
    return replace(table, samples=tuple(replace(s, split=folds.get(s.targets["fold"], "train")) for s in table.samples))


def _from_labels(path: Path, root: Path) -> list[Sample]:
    samples = []
    for s in read_table(path, root=root, check_files=False):
        if lacking := [c for c in ("label", "source", "fold") if c not in s.targets]:
            raise TableError(f"{path} line {s.line}: no `{lacking[0]}`; fill it in")
        targets = {"label": s.targets["label"], "fold": s.targets["fold"]}
        samples.append(Sample(s.path, s.name, targets, None, s.targets["source"], line=s.line))
    return samples


def _from_videos(path: Path, root: Path) -> list[Sample]:
    group, num_sources = "", 0
    found: dict[str, Sample] = {}
    for number, line in lines_of(path):
        if line.startswith("http"):
            num_sources += 1
            group, clips = f"s{num_sources:02d}", []
        elif match := _RANGE.fullmatch(line):
            group = match[3].lower()
            clips = [f"nofi{i:03d}" for i in range(int(match[1]), int(match[2]) + 1)]
        elif match := _CLIP.fullmatch(line):
            clips = [match[1]]
        else:
            raise TableError(f"{path} line {number}: {line!r} is neither an address nor a clip; correct the line")
        for clip in clips:
            label = "noFight" if clip.startswith("no") else "fight"
            name = f"{label}/{clip}.mp4"
            # Two clips are named twice (nofi022, nofi076): the first source counts.
            found.setdefault(clip, Sample(root / name, name, {"label": label}, None, group, line=number))
    folds = _folds(list(found.values()))
    return [replace(s, targets={**s.targets, "fold": str(folds[s.group or ""])}) for s in found.values()]


def _folds(samples: list[Sample]) -> dict[str, int]:
    """Sources, the largest first, each to the fold where its classes are scarcest."""
    counts: dict[str, dict[str, int]] = {}
    for s in samples:
        by_label = counts.setdefault(s.group or "", {"fight": 0, "noFight": 0})
        by_label[s.targets["label"]] += 1
    filled = [{"fight": 0, "noFight": 0} for _ in range(NUM_FOLDS)]
    folds: dict[str, int] = {}
    for source in sorted(counts, key=lambda name: (-sum(counts[name].values()), name)):
        size = counts[source]
        cost = [sum((f[label] + n) ** 2 - f[label] ** 2 for label, n in size.items()) for f in filled]
        best = cost.index(min(cost))
        folds[source] = best
        for label, n in size.items():
            filled[best][label] += n
    return folds
