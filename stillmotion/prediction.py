"""What a model says of one input, and the files that hold it."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from stillmotion.tasks import Answer, Task

UNSURE = "unsure"


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
def prediction_writer(output: str | None, task: Task, top: int) -> Iterator[Callable[[Prediction], None]]:
    """Writes predictions as they come, so that an interrupted call keeps what it has."""
    suffix = Path(output).suffix.lower() if output else ".jsonl"
    if suffix not in (".jsonl", ".json", ".csv"):
        raise ValueError(f"output={output}: give a name that ends in .jsonl or .csv")
    if output is None:
        yield lambda prediction: _write_json(sys.stdout, prediction)
        return
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        if suffix == ".csv":
            table = csv.writer(file)
            heads = [f"{c}{i}" for i in range(1, top + 1) for c in ("label", "probability")]
            if not task.class_names:
                heads = ["text", *(h for _, p in task.parts for h in _heads(p))]
            table.writerow(["path", *heads, "seconds", "frames", "time", "fault", "error", "unsure", "by"])
            yield lambda prediction: _write_csv(file, table, prediction, len(heads))
        else:
            yield lambda prediction: _write_json(file, prediction)


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
