"""What the readers of official data sets share: finding the listed videos on disk, and saying which are missing."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from stillmotion.data.faults import one_line
from stillmotion.data.rows import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from stillmotion.data.table import Sample, Table, TableError

Missing = Literal["error", "skip", "keep"]


class Videos:
    """Finds listed videos below a folder, whatever their container and the exact folders they were unpacked to.

    Args:
        root: Folder with the videos.
        ignore_case: Whether names that differ by case only are the same video (not so for YouTube ids).
    """

    def __init__(self, root: Path, *, ignore_case: bool = True) -> None:
        self.root = root
        self.ignore_case = ignore_case

    def find(self, listed: str) -> Path:
        """The video that a list names `folder/name.ext`.

        That very file; else a file with the same name in a folder of the same name; else the only file of that name.
        Other containers and folders of frames count as the same name. Without any: `root / listed`, which is missing.
        """
        exact = self.root / listed
        if exact.exists():
            return exact
        found = self._by_name.get(self._key(listed), [])
        folder = self._key(os.path.dirname(listed))
        beside = [p for p in found if self._key(p.parent.name) == folder] or found
        return beside[0] if len(beside) == 1 else exact

    def _key(self, name: str) -> str:
        stem, suffix = os.path.splitext(os.path.basename(name))
        stem = stem if suffix.lower() in VIDEO_SUFFIXES else stem + suffix
        return stem.lower() if self.ignore_case else stem

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        names: dict[str, list[Path]] = {}
        for path in _media(self.root):
            names.setdefault(self._key(path.name), []).append(path)
        return names


def _media(root: Path) -> Iterator[Path]:
    """Videos and folders of frames below `root`."""
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders.sort()
        if files and Path(min(files)).suffix.lower() in IMAGE_SUFFIXES:
            yield Path(folder)
        yield from (Path(folder, name) for name in sorted(files) if Path(name).suffix.lower() in VIDEO_SUFFIXES)


def make_table(samples: Sequence[Sample], source: Path, videos: Videos, missing: Missing) -> Table:
    """A table of listed videos: finds each, and treats the missing ones as `missing` says.

    Args:
        samples: As listed; `name` is the listed name, `path` is found here.
        source: The list, for messages.
        videos: Where they lie.
        missing: As for `present`.

    Raises:
        TableError: An empty list, no folder, or as `present`.
    """
    if not samples:
        raise TableError(f"{source}: lists no video")
    root = videos.root
    if not root.is_dir():
        raise TableError(f"{root}: no such folder; pass the folder with the videos of {source.name}")
    found = []
    for s in samples:
        path = videos.find(s.name)
        found.append(replace(s, path=path, name=path.relative_to(root).as_posix()))
    return present(Table(tuple(found), str(source)), root, missing)


def present(table: Table, root: Path, missing: Missing) -> Table:
    """The samples whose video is there.

    Args:
        table: Listed samples.
        root: Where they were looked for, for messages.
        missing: `error` refuses missing videos, `skip` leaves them out, `keep` keeps their rows.

    Raises:
        TableError: Missing videos with `error`; nothing left with `skip`.
    """
    if missing == "keep":
        return table
    there = {path: path.exists() for path in {s.path for s in table}}
    absent = [s for s in table if not there[s.path]]
    if absent and (missing == "error" or len(absent) == len(table)):
        remedy = "correct the folder" if missing == "skip" else "correct the folder, or pass missing=skip"
        raise TableError(
            f"{root}: {len(absent)} of {len(table)} samples listed in {table.source} have no video here, the first "
            f"{absent[0].name!r}; {remedy}"
        )
    return table.select(lambda s: there[s.path])


def read_scenes(root: Path, classes: Sequence[str], missing: Missing) -> Table:
    """A data set without lists: the videos of class folders, wherever these lie below `root`.

    Args:
        root: Folder with the class folders.
        classes: Names of the folders; case, blanks and punctuation do not count. Other folders are passed over.
        missing: `skip` and `keep` accept that a class has no video.

    Raises:
        TableError: A class has no video, or the folder is not there.
    """
    if not root.is_dir():
        raise TableError(f"{root}: no such folder; pass the one with the class folders")
    names = {_letters(name): name for name in classes}
    samples = []
    for path in _media(root):
        if label := names.get(_letters(path.parent.name)):
            samples.append(Sample(path, path.relative_to(root).as_posix(), {"label": label}))
    there = {s.targets["label"] for s in samples}
    lacking = [name for name in classes if name not in there]
    if lacking and (missing == "error" or not samples):
        remedy = "correct the folder" if missing != "error" else "complete the set, or read with missing=skip"
        raise TableError(
            f"{root}: {len(lacking)} of {len(classes)} classes have no video, the first {lacking[0]!r}; {remedy}"
        )
    return Table(tuple(sorted(samples, key=lambda s: (s.targets["label"], s.name))), str(root))


def _letters(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())


def lines_of(path: Path) -> list[tuple[int, str]]:
    """Numbered lines of a list that are not blank, stripped; any line ends.

    Raises:
        TableError: There is no such file.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file; pass annotations=, the folder with the official lists")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def mat_arrays(path: Path) -> dict[str, Any]:
    """Arrays of a MATLAB file (before version 7.3) by name.

    Raises:
        TableError: Not such a file.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise TableError(f"{path}: no such file; pass annotations=, the folder with the official lists")
    try:
        return {name: array for name, array in loadmat(path).items() if not name.startswith("__")}
    except (MatReadError, ValueError, TypeError, NotImplementedError, OSError) as error:
        raise TableError(f"{path}: not a MATLAB file ({one_line(error)}); get it again") from None


def first_folder(*candidates: Path | None, holding: str) -> Path:
    """The first of several folders that holds a file matching the pattern `holding`.

    Raises:
        TableError: None does.
    """
    folders = [c for c in candidates if c is not None]
    for folder in folders:
        if folder.is_dir() and next(folder.glob(holding), None) is not None:
            return folder
    raise TableError(f"{folders[0]}: no {holding} here; pass annotations=, the folder with the official lists")


def chosen(name: str, value: int, known: Sequence[int]) -> int:
    """`value`, if it is one of `known`.

    Raises:
        ValueError: It is not.
    """
    if value not in known:
        raise ValueError(f"{name}={value}: choose one of {', '.join(map(str, known))}")
    return value
