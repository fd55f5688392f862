"""What a model says of one input, and the files that hold it."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TextIO

from stillmotion.tasks import Answer, Task

UNSURE = "unsure"
MODEL_FILES = (".safetensors", ".json", ".onnx", ".xml", ".bin", ".pt2")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one input.

    Args:
        path: The input, as it was named.
        labels: Classes with probabilities, most probable first; empty after an error, and of a network that tells of
            several columns or of a score.
        seconds: From file to labels, decoding included.
        frames: Different frames that were read.
        error: Why nothing was predicted, in one line.
        fault: What is wrong with a file that could be read in part; the prediction is of that part.
        time: In live sources: seconds of the stream up to the last frame seen.
        answers: What the network says of each column; empty after an error.
        unsure: It is less sure than asked for (`reject`): the answer does not count, and is listed all the same.
        by: In a cascade: whether the `student` or the `teacher` answers.
        active: In live sources: classes whose event lasts.
        dropped: In live sources: frames that came too fast, so far.
    """

    path: str
    labels: list[tuple[str, float]]
    seconds: float
    frames: int
    error: str | None = None
    fault: str | None = None
    time: float | None = None
    answers: tuple[Answer, ...] = ()
    unsure: bool = False
    by: Literal["student", "teacher"] | None = None
    active: tuple[str, ...] | None = None
    dropped: int | None = None

    @property
    def text(self) -> str:
        """As a person would write it: `forward, 2.5 somersaults, 1 twist, tuck, 68.4`; or `unsure`."""
        return UNSURE if self.unsure else ", ".join(answer.text for answer in self.answers)

    @property
    def lines(self) -> list[tuple[str, float | None]]:
        """What a picture shows, with probabilities: the three best classes, or a line for each of several columns."""
        found: list[tuple[str, float | None]] = [(name, p) for name, p in self.labels[:3]]
        found = found or [(f"{answer.target}: {answer.text}", answer.probability) for answer in self.answers]
        return [(UNSURE, None), *found] if self.unsure else found

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; from `error` on only what there is.

        Of several columns, or a score, `targets` has what is said of each in the place of `labels`.
        """
        data: dict[str, Any] = {"path": self.path, "text": self.text or None, "labels": _listed(self.labels)}
        if self.answers and not self.labels:
            del data["labels"]
            data["targets"] = {a.target: _told(a) for a in self.answers}
        data |= {"seconds": round(self.seconds, 6), "frames": self.frames}
        data |= {"error": self.error, "fault": self.fault, "time": self.time, "unsure": self.unsure or None}
        data |= {"by": self.by, "active": None if self.active is None else list(self.active), "dropped": self.dropped}
        return {k: v for k, v in data.items() if v is not None}


def _told(answer: Answer) -> dict[str, Any]:
    if answer.score is not None:
        return {"value": round(answer.score, 6)}
    return {"value": answer.text, "probability": round(answer.labels[0][1], 6), "labels": _listed(answer.labels)}


def _listed(labels: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"label": name, "probability": round(p, 6)} for name, p in labels]


@contextmanager
def prediction_writer(
    output: str | None, task: Task, top: int, *, append: bool = False
) -> Iterator[Callable[[Prediction], None]]:
    """Writes predictions as they come, so that an interrupted call keeps what it has.

    Args:
        output: `.jsonl` or `.csv`; None writes JSON lines to the standard output.
        task: What is predicted.
        top: Classes that are named.
        append: Write behind what is there.

    Raises:
        ValueError: The name ends otherwise.
    """
    suffix = _suffix(output)
    if output is None:
        yield lambda prediction: _write_json(sys.stdout, prediction)
        return
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", newline="", encoding="utf-8") as file:
        if suffix == ".csv":
            table = csv.writer(file)
            heads = [f"{c}{i}" for i in range(1, top + 1) for c in ("label", "probability")]
            if not task.class_names:
                heads = ["text", *(h for _, p in task.parts for h in _heads(p))]
            if not append:
                table.writerow(["path", *heads, "seconds", "frames", "time", "fault", "error", "unsure", "by"])
            yield lambda prediction: _write_csv(file, table, prediction, len(heads))
        else:
            yield lambda prediction: _write_json(file, prediction)


def _suffix(output: str | None) -> str:
    suffix = Path(output).suffix.lower() if output else ".jsonl"
    if suffix not in (".jsonl", ".json", ".csv"):
        raise ValueError(f"output={output}: give a name that ends in .jsonl or .csv")
    return suffix


class Unfinished:
    """A file of predictions on the way: beside it stands what it is made from, until it is whole.

    Args:
        output: The file.
        settings: Of the models, JSON data; `model` and `teacher` are looked at, too.
        names: Of the inputs, in their order.

    Raises:
        ValueError: The name ends otherwise than `prediction_writer` takes it.
    """

    def __init__(self, output: str, settings: Mapping[str, Any], names: Sequence[str]) -> None:
        _suffix(output)
        self.output, self.names = Path(output), names
        self.mark = Path(f"{output}.unfinished")
        files = {name: _files(settings[name]) for name in ("model", "teacher") if settings[name] is not None}
        inputs = sha256("\0".join(names).encode()).hexdigest()
        self.made_from = json.dumps({**settings, "files": files, "inputs": inputs}, default=str) + "\n"

    def take_up(self) -> tuple[int, int, int]:
        """Cuts off what an interrupted call wrote last and not wholly, or all if it was another.

        Returns:
            How many inputs are done; how many of them could not be read, and how many only in part.
        """
        rows: list[tuple[str | None, str | None]] = []
        if self.output.is_file() and self.mark.is_file() and self.mark.read_text(encoding="utf-8") == self.made_from:
            rows = self._keep()
        self.output.parent.mkdir(parents=True, exist_ok=True)
        if not rows and self.output.is_file():  # before the mark stands: rows of another call are not to be taken up
            self.output.write_bytes(b"")
        self.mark.write_text(self.made_from, encoding="utf-8")
        return len(rows), sum(e is not None for e, _ in rows), sum(e is None and f is not None for e, f in rows)

    def finish(self) -> None:
        """The file is whole."""
        self.mark.unlink(missing_ok=True)

    def _keep(self) -> list[tuple[str | None, str | None]]:
        """Error and fault of the rows that stay: those of the first inputs, in their order."""
        rows: list[tuple[str | None, str | None]] = []
        size, head = 0, None if self.output.suffix.lower() == ".csv" else ["JSON"]
        with self.output.open("rb") as file:
            for line in file:
                text = line.decode(errors="replace")
                if head is None:
                    head = next(csv.reader([text]))
                elif (row := _row(text, head)) is None or self.names[len(rows) : len(rows) + 1] != [row.get("path")]:
                    break
                else:
                    rows.append((row.get("error") or None, row.get("fault") or None))
                size += len(line)
        with self.output.open("r+b") as file:
            file.truncate(size if rows else 0)
        return rows


def _row(text: str, head: list[str]) -> dict[str, Any] | None:
    """A line of the file; None if it is not whole."""
    if not text.endswith("\n"):
        return None
    try:
        row = json.loads(text) if head == ["JSON"] else dict(zip(head, next(csv.reader([text])), strict=True))
    except (ValueError, csv.Error):
        return None
    return row if isinstance(row, dict) else None


def _files(model: str) -> list[tuple[str, int, int]]:
    """Name, size and time of the files of a model; none of one that is not here."""
    path = Path(model)
    found = sorted(path.glob("*")) if path.is_dir() else [path, path.with_suffix(".bin")]
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in found if p.suffix in MODEL_FILES and p.is_file()]


def _write_json(file: TextIO, prediction: Prediction) -> None:
    print(json.dumps(prediction.to_dict(), ensure_ascii=False), file=file, flush=True)


def _heads(task: Task) -> list[str]:
    """Columns of a CSV file for a column of the training's table."""
    return [task.target, f"{task.target}_probability"] if task.class_names else [task.target]


def _write_csv(file: TextIO, table: Any, prediction: Prediction, width: int) -> None:
    cells = [cell for name, p in prediction.labels for cell in (name, f"{p:.6f}")]
    if prediction.answers and not prediction.labels:
        cells = [prediction.text]
        for answer in prediction.answers:
            cells += [answer.text, f"{answer.probability:.6f}"] if answer.labels else [f"{answer.score:.6g}"]
    cells += [""] * (width - len(cells))
    table.writerow([prediction.path, *cells, f"{prediction.seconds:.6f}", prediction.frames, prediction.time,
                    prediction.fault, prediction.error, prediction.unsure or None, prediction.by])  # fmt: skip
    file.flush()
