"""MTL-AQA (Parmar & Morris 2019, arXiv:1904.04346): 1,412 dives of 15 events with attributes, score and commentary.

The release has `Ready_2_Use/MTL-AQA_split_0_data` with pickles: `final_annotations_dict.pkl` (by event and dive),
`train_split_0.pkl` and `test_split_0.pkl` (1,059 / 353 dives; every event is in both), `final_captions_dict.pkl`; and
`smaller_training_sets/size_140`, `size_280`, `size_450`, a part of which is in the test split. It has no video: those
are on YouTube, to be put as `whole_videos/01.mp4` ... (or as `whole_videos_frames/01/000001.jpg` ..., all frames).

`final_annotations_dict_with_dive_number.pkl` of the CoRe release (Yu et al. 2021) beside them adds the judges' seven
scores and the dive number; the spreadsheets of the release, which also hold the judges' scores, are not read.

Verified: all fields against the spreadsheets, the window against the official loader. Not verified: that frame numbers
begin with 1 and count the frames that a decoder gives (we have no video), and how the captions' file is laid out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stillmotion.data.sets.fetch import Fetch, pickled
from stillmotion.data.sets.layout import Missing, Videos, chosen, first_folder, make_table
from stillmotion.data.sets.plain_pickle import load_plain
from stillmotion.data.table import SEPARATOR, Sample, Table, TableError

Key = tuple[int, int]
"""Number of the event, number of the dive in it."""
Window = Literal["official", "annotated"]

ANNOTATIONS = "final_annotations_dict.pkl"
NAMES = {
    "position": ("free", "pike", "tuck"),
    "armstand": ("standing", "armstand"),
    "rotation_type": ("back", "forward", "inward", "reverse"),
}
"""What the numbers of an attribute mean."""
COUNTS = {"ss_no": 9, "tw_no": 7}
"""Attributes that count half somersaults and half twists, and the largest that the official heads tell apart."""
_TURNS = {"ss_no": "somersault", "tw_no": "twist"}
NUMBERS = ("difficulty", "final_score")
WINDOW, SEEN = 103, 96
"""The official window ends at the dive's last frame; its first 96 frames are used."""
SIZES = (140, 280, 450)
AGAIN = "get the file from its official page again"
UNVERIFIED = (
    "frame numbers are taken to begin with 1 and to count decoded frames, which we could not verify without the "
    "videos: look at a few dives"
)

_EXAMPLE = {"position": 1, "armstand": 0, "rotation_type": 2, "ss_no": 7, "tw_no": 0, "difficulty": 3.2,
            "final_score": 88.0, "primary_view": 0, "start_frame": 201, "end_frame": 300}  # fmt: skip

FETCH = Fetch(
    home=("https://github.com/ParitoshParmar/MTL-AQA", "https://github.com/yuxumin/CoRe (judges' scores, optional)"),
    files=(
        "folder MTL-AQA_dataset_release/Ready_2_Use",
        "15 videos of Video_List.xlsx there, from YouTube, at their native frame rate and uncut",
        "final_annotations_dict_with_dive_number.pkl, optional",
    ),
    terms="no licence stated; the videos belong to their broadcasters",
    layout={
        "whole_videos/01.mp4": "",
        f"Ready_2_Use/MTL-AQA_split_0_data/{ANNOTATIONS}": pickled({(1, 1): _EXAMPLE, (1, 2): _EXAMPLE}),
        "Ready_2_Use/MTL-AQA_split_0_data/train_split_0.pkl": pickled([(1, 1)]),
        "Ready_2_Use/MTL-AQA_split_0_data/test_split_0.pkl": pickled([(1, 2)]),
    },
    note=f"instead of whole_videos/01.mp4 also whole_videos_frames/01/000001.jpg ...; {UNVERIFIED}",
)


def read(
    root: Path,
    *,
    annotations: Path | None = None,
    split: int = 0,
    window: Window = "official",
    size: int | None = None,
    missing: Missing = "error",
) -> Table:
    """Reads the dives of a split.

    Args:
        root: Folder with the videos, in any folders below it.
        annotations: The release, or any of its folders above the pickles. Default: in `root`.
        split: 0 is the official one. The number of an event: that event is the test split, the others are for training.
        window: `official`: the first 96 of the 103 frames that end with the dive, whatever its length, so that half of
            the clips begin before it. `annotated`: from its first to its last frame.
        size: 140, 280 or 450: train on this smaller official set, without the dives of it that are in the test split.
        missing: What to do with dives whose video is not there.

    Returns:
        Groups are events. Columns: dive, position, armstand, rotation_type, ss_no and tw_no (`2.5 somersaults`,
        `1 twist`), difficulty, final_score; where their files are there, caption, dive_number, judge_scores. No
        `label`.

    Raises:
        TableError: In one line: file, dive, remedy.
    """
    release = Release.of(annotations or root, "MTL-AQA_split_0_data")
    source = release.folder / ANNOTATIONS
    events = sorted({event for event, _ in release.dives})
    notes: tuple[str, ...] = ()
    if split == 0:
        train, test = (release.keys(release.folder / f"{part}_split_0.pkl") for part in ("train", "test"))
        if size is not None:
            chosen("size", size, SIZES)
            source = release.folder.parent / "smaller_training_sets" / f"size_{size}" / "train_split_0.pkl"
            train, dropped = without(release.keys(source), test)
            notes = (f"{source}: {dropped} of its {len(train) + dropped} dives are in the test split and left out",)
    else:
        chosen("split", split, (0, *events))
        if size is not None:
            raise ValueError(f"size={size}: the smaller sets belong to the official split; leave out split={split}")
        train = [key for key in release.dives if key[0] != split]
        test = [key for key in release.dives if key[0] == split]
    samples = release.samples(root, {"train": train, "test": test}, window)
    table = make_table(samples, source, Videos(root), missing)
    return replace(table, notes=(*notes, UNVERIFIED))


@dataclass(frozen=True)
class Release:
    """What a folder of the release says.

    Args:
        folder: Where the pickles lie.
        dives: Fields by event and dive.
        more: Further columns by event and dive.
    """

    folder: Path
    dives: Mapping[Key, Mapping[str, Any]]
    more: Mapping[Key, Mapping[str, str]]

    @classmethod
    def of(cls, base: Path, name: str) -> "Release":
        """Finds and reads the folder `name` of the release at, or anywhere above, which `base` is."""
        inside = (Path(), Path(name), Path("Ready_2_Use", name), Path("MTL-AQA_dataset_release", "Ready_2_Use", name))
        folder = first_folder(*(base / part for part in inside), holding=ANNOTATIONS)
        dives = read_dives(folder / ANNOTATIONS)
        more: dict[Key, dict[str, str]] = {key: {} for key in dives}
        captions = folder / "final_captions_dict.pkl"
        judges = f"{ANNOTATIONS.removesuffix('.pkl')}_with_dive_number.pkl"
        found = [path for path in (captions, folder / judges, folder.parent / judges) if path.is_file()]
        for path in found:
            columns = _caption if path == captions else _judged
            held = load_plain(path, allow=["scalar"] if path == captions else ["array"])
            for key, said in _by_key(path, held).items():
                try:
                    more.setdefault(key, {}).update(columns(said))
                except (KeyError, TypeError, ValueError) as error:
                    what = f"{type(error).__name__}: {error}"
                    raise TableError(f"{path} dive {key}: {what}; {AGAIN}, or remove it") from None
        return cls(folder, dives, more)

    def keys(self, path: Path) -> list[Key]:
        """Dives of a list, all of which are annotated."""
        keys = read_keys(path)
        if unknown := [key for key in keys if key not in self.dives]:
            raise TableError(f"{path}: dive {unknown[0]} is not in {ANNOTATIONS}; get both files again")
        return keys

    def samples(self, root: Path, parts: Mapping[str, list[Key]], window: Window) -> list[Sample]:
        """Rows of the dives of each split."""
        if window not in ("official", "annotated"):
            raise ValueError(f"window={window!r}: choose official or annotated")
        samples = []
        for part, keys in parts.items():
            for key in keys:
                fields = self.dives[key]
                start, end = frame_window(fields["start_frame"], fields["end_frame"], window)
                if start < 0:
                    raise TableError(
                        f"{self.folder / ANNOTATIONS} dive {key}: ends at frame {fields['end_frame']}, before the "
                        f"official window of {WINDOW} frames is full; pass window=annotated"
                    )
                name = f"whole_videos/{key[0]:02d}.mp4"
                targets = {"dive": str(key[1]), **_targets(fields), **self.more[key]}
                samples.append(Sample(root / name, name, targets, part, f"event{key[0]:02d}", start, end))
        return samples


def frame_window(first: int, last: int, window: Window) -> tuple[int, int]:
    """Frames of a dive, counted from 0 and half-open.

    Args:
        first, last: Frame numbers of the annotation, counted from 1, both included.
        window: `official` looks at the last one only.

    Example:
        >>> frame_window(201, 300, "annotated"), frame_window(201, 300, "official")
        ((200, 300), (197, 293))
    """
    return (first - 1, last) if window == "annotated" else (last - WINDOW, last - WINDOW + SEEN)


def read_keys(path: Path) -> list[Key]:
    """A split of the release: a list of (event, dive).

    Raises:
        TableError: In one line: file and remedy.
    """
    listed = load_plain(path, allow=["scalar"])
    if not isinstance(listed, list) or not listed or not all(_is_key(item) for item in listed):
        raise TableError(f"{path}: not a list of (event, dive); {AGAIN}")
    return list(dict.fromkeys(listed))


def without(keys: list[Key], others: list[Key]) -> tuple[list[Key], int]:
    """Keys that are not among the others, and how many are.

    Example:
        >>> without([(1, 1), (1, 2)], [(1, 2), (9, 9)])
        ([(1, 1)], 1)
    """
    there = set(others)
    kept = [key for key in keys if key not in there]
    return kept, len(keys) - len(kept)


def small_sets(release: Release) -> dict[str, tuple[int, int]]:
    """Dives of every smaller training set beside the release, and how many of these are in the test split."""
    test = release.keys(release.folder / "test_split_0.pkl")
    base = release.folder.parent
    lists = [*base.glob("smaller_training_sets/size_*/train_split_0.pkl"), *base.glob("UNLV_Dive*/train_split_0.pkl")]
    return {path.parent.name: (len(keys := read_keys(path)), without(keys, test)[1]) for path in sorted(lists)}


def read_dives(path: Path) -> dict[Key, dict[str, Any]]:
    """The annotation of every dive, checked.

    Raises:
        TableError: In one line: file, dive, field, remedy.
    """
    dives = _by_key(path, load_plain(path))
    largest = {name: len(words) - 1 for name, words in NAMES.items()} | COUNTS
    for key, fields in dives.items():
        where = f"{path} dive {key}"
        if not isinstance(fields, dict):
            raise TableError(f"{where}: not a dict of fields; {AGAIN}")
        for name in (*NAMES, *COUNTS):
            if _whole(fields.get(name)) not in range(largest[name] + 1):
                raise TableError(f"{where}: {name} is {fields.get(name)!r}, not one of 0 to {largest[name]}; {AGAIN}")
        for name in NUMBERS:
            value = fields.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1000:
                raise TableError(f"{where}: {name} is {value!r}, not a number of points; {AGAIN}")
        first, last = (_whole(fields.get(name)) for name in ("start_frame", "end_frame"))
        if not 1 <= first <= last:
            raise TableError(f"{where}: start_frame {fields.get('start_frame')!r} and end_frame "
                             f"{fields.get('end_frame')!r} hold no frames; {AGAIN}")  # fmt: skip
    return dives


def _by_key(path: Path, data: Any) -> dict[Key, Any]:
    if not isinstance(data, dict) or not data or not all(_is_key(key) for key in data):
        raise TableError(f"{path}: not a dict by (event, dive); {AGAIN}")
    return data


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _caption(words: list[str]) -> dict[str, str]:
    spoken = " ".join(word for word in words if word not in ("<sos>", "<eos>"))
    return {"caption": spoken} if spoken else {}


def _judged(fields: Mapping[str, Any]) -> dict[str, str]:
    scores = SEPARATOR.join(f"{score:g}" for score in fields["judge_scores"])
    return {"dive_number": str(fields["dive_number"]), "judge_scores": scores}


def _is_key(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(number, int) for number in item)


def _targets(fields: Mapping[str, Any]) -> dict[str, str]:
    named = {name: words[fields[name]] for name, words in NAMES.items()}
    turned = {name: turns(name, fields[name]) for name in COUNTS}
    return {**named, **turned, **{name: f"{fields[name]:g}" for name in NUMBERS}}


def turns(name: str, halves: int) -> str:
    """Half somersaults or half twists in words.

    Example:
        >>> turns("ss_no", 5), turns("tw_no", 2), turns("tw_no", 0)
        ('2.5 somersaults', '1 twist', '0 twists')
    """
    return f"{halves / 2:g} {_TURNS[name]}{'' if halves == 2 else 's'}"
