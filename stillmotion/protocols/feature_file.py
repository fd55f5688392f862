"""Features of videos or clips in one file that other tools read too: Parquet or npz."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.faults import one_line
from stillmotion.files import write_atomic

SUFFIXES = (".parquet", ".npz")
RESERVED = ("id", "clip", "info")
WRITE_FIRST = "`stillmotion features` writes one"


@dataclass(frozen=True)
class VideoFeatures:
    """Rows of features.

    Args:
        ids: `Sample.id` of each of R rows; the clips of a video stand together.
        arrays: Features (R, D) by tap.
        clips: Number of the clip within its video, (R,); None where a row is a video.
        info: What they come from, JSON data.
        source: Their file, for messages.
    """

    ids: list[str]
    arrays: dict[str, NDArray[np.float32]]
    clips: NDArray[np.int64] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    source: str = "features"

    def videos(self) -> "VideoFeatures":
        """One row a video: the mean of its clips.

        Example:
            >>> x = VideoFeatures(["a", "a", "b"], {"f": np.array([[1.0], [3.0], [5.0]])}, np.array([0, 1, 0]))
            >>> x.videos().ids, x.videos().arrays["f"].tolist()
            (['a', 'b'], [[2.0], [5.0]])
        """
        if self.clips is None:
            return self
        names = list(dict.fromkeys(self.ids))
        places = {name: i for i, name in enumerate(names)}
        rows = np.array([places[name] for name in self.ids])
        counts = np.bincount(rows)[:, None]
        arrays = {}
        for tap, values in self.arrays.items():
            sums = np.zeros((len(names), values.shape[1]))
            np.add.at(sums, rows, values)
            arrays[tap] = np.asarray(sums / counts, np.float32)
        return VideoFeatures(names, arrays, None, self.info, self.source)

    def pick(self, tap: str | None) -> str:
        """The tap of this name; None takes the only one, or `embedding`.

        Raises:
            ValueError: There is no such tap, or several and none is named.
        """
        if tap is None and (len(self.arrays) == 1 or "embedding" in self.arrays):
            return "embedding" if "embedding" in self.arrays else next(iter(self.arrays))
        if tap is None or tap not in self.arrays:
            raise ValueError(f"{self.source}: tap={tap}: choose one of {', '.join(self.arrays)}")
        return tap


def check_output(path: Path, taps: list[str]) -> None:
    """Refuses names that a file cannot have, before hours are spent.

    Raises:
        ValueError: In one line: what, and what it could be.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"output={path}: give a name that ends in {' or '.join(SUFFIXES)}")
    if not taps:
        raise ValueError("taps is empty: name at least one, such as embedding")
    if taken := [tap for tap in taps if tap in RESERVED]:
        raise ValueError(f"taps: {taken[0]!r} is the name of another column of the file")


def write_features(path: Path, features: VideoFeatures) -> None:
    """Writes `.parquet` (columns `id`, `clip` and a list a tap) or `.npz` (the same arrays), whole or not at all."""
    check_output(path, list(features.arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    if path.suffix.lower() == ".npz":
        arrays: dict[str, Any] = {"id": np.array(features.ids), "info": np.array(json.dumps(features.info))}
        arrays |= features.arrays if features.clips is None else {"clip": features.clips, **features.arrays}
        np.savez(file, **arrays)
        write_atomic(path, file.getvalue())
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"id": pa.array(features.ids)}
    columns |= {} if features.clips is None else {"clip": pa.array(features.clips)}
    for tap, values in features.arrays.items():
        flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
        columns[tap] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    table = pa.table(columns).replace_schema_metadata({"stillmotion": json.dumps(features.info)})
    pq.write_table(table, file)
    write_atomic(path, file.getvalue())


def read_features(path: str | Path) -> VideoFeatures:
    """Reads what `write_features` wrote.

    Raises:
        ValueError: In one line: the file, and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {WRITE_FIRST}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: not a {' or '.join(SUFFIXES)} file; {WRITE_FIRST}")
    try:
        read = _read_npz if path.suffix.lower() == ".npz" else _read_parquet
        columns, info = read(path)
        ids = [str(name) for name in columns.pop("id")]
        clips = columns.pop("clip", None)
        if not columns or any(a.ndim != 2 or len(a) != len(ids) for a in columns.values()):
            raise ValueError("no features with one row for each id")
        arrays = {tap: np.asarray(values, np.float32) for tap, values in columns.items()}
        clips = None if clips is None else np.asarray(clips, np.int64).reshape(len(ids))
    except Exception as error:  # a damaged file can fail in any way: zip, NumPy, Arrow, JSON
        raise ValueError(f"{path}: not a file of features ({one_line(error)[:200]}); {WRITE_FIRST}") from None
    return VideoFeatures(ids, arrays, clips, info, str(path))


def _read_npz(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    with np.load(path) as data:
        columns = {name: data[name] for name in data.files}
    return columns, json.loads(str(columns.pop("info", "{}")))


def _read_parquet(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            columns[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
        elif name in RESERVED:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns, json.loads((table.schema.metadata or {}).get(b"stillmotion", b"{}"))
