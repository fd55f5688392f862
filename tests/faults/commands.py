"""The commands that are disturbed, and what must be the same afterwards."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

STUDENT = ("--student.name", "resnet3d_10", "--student.options", '{"width": 2}',
           "--student.view", '{"size": 32, "num_frames": 4}')  # fmt: skip
COMPARISON = {
    "rows": {
        name: {"student": {"name": "resnet3d_10", "options": {"width": 2}, "view": {"size": 32, "num_frames": 4}}}
        for name in ("one", "two")
    },
    "optim": {"epochs": 2, "batch_size": 2},
    "data": {"workers": 0},
}


def train(table: Path, out: Path) -> list[str]:
    """Arguments of a training of a few steps that saves after each."""
    return ["train", str(table), "--output", str(out), *STUDENT, "--optim.epochs", "3", "--optim.batch_size", "2",
            "--trainer.checkpoint_every", "1", "--data.workers", "1"]  # fmt: skip


def extract(table: Path, out: Path) -> list[str]:
    """Arguments of an extraction of many small batches."""
    return ["extract", str(table), "--output", str(out), *[a.replace("student", "teacher") for a in STUDENT],
            "--data.num_draws", "4", "--data.workers", "1", "--batch_size", "2"]  # fmt: skip


def flow(table: Path, out: Path) -> list[str]:
    """Arguments of the flow of all videos."""
    return ["flow", str(table), "--output", str(out), "--workers", "0"]


def pack(table: Path, out: Path) -> list[str]:
    """Arguments of a store of frames."""
    return ["pack", str(table), "--output", str(out), "--workers", "1"]


def compare(table: Path, out: Path) -> list[str]:
    """Arguments of a comparison of two trainings."""
    config = out.with_name("comparison.json")
    config.write_text(json.dumps(COMPARISON))
    return ["compare", str(table), "--config", str(config), "--output", str(out)]


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "train": train, "extract": extract, "flow": flow, "pack": pack, "compare": compare,
}  # fmt: skip


def result(name: str, out: Path) -> dict[str, Any]:
    """What a command is for: files to the byte, of results everything but times."""
    if name in ("extract", "flow", "pack"):
        files = [p for p in sorted(out.rglob("*")) if p.is_file() and p.name != ".lock" and ".parts" not in p.parts]
        return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        key = str(path.relative_to(out))
        if path.name in ("model.safetensors", "predictions.csv", "config.json"):
            found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "metrics.csv":
            with path.open(newline="") as file:
                found[key] = [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(file)]
        elif path.name == "results.json":
            rows = json.loads(path.read_text())["rows"]
            found[key] = [row["metrics"] for row in rows]  # names are those of folders
        elif path.suffix in (".part", ".tmp"):
            found[key] = "left behind"
    return found
