"""The run folder: settings, checkpoint, shareable weights, results. Commands start from runs and from nothing else.

What lies in it:

    settings.json     every argument of the training, the table's hash, the fingerprints of the weights it began from
    last.ckpt         to resume (frozen networks are not in it)
    model.safetensors, config.json      to share: weights; network, classes, views
    results.json      the one-row table; written last, so it marks a finished run
    metrics.csv       one line an epoch; events/ the same for TensorBoard
    report.json       gradient norms of the loss parts, what stopped the run, what was unreadable
    report.html       the page for people; README.md the model card
    broken.csv        samples that were unreadable, or in part: line, file, reason
    environment.json  versions, hardware, commit, time
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stillmotion.config import DataConfig
from stillmotion.files import csv_text, write_atomic
from stillmotion.results import Row, read_results

if TYPE_CHECKING:
    from stillmotion.data.table import Table
    from stillmotion.models.encoder import Encoder
    from stillmotion.tasks import Task

PACKAGES = ("stillmotion", "torch", "torchvision", "lightning", "timm", "numpy", "av", "opencv-contrib-python-headless")
# What may differ between a run and its continuation, because it does not decide the weights. The table counts by its
# hash, stores of frames and flow by their promise to serve the same samples. The number of processes moves weights
# within rounding.
FREE = ("table", "root", "data.workers", "data.timeout", "data.packed", "data.flow", "trainer.checkpoint_every",
        "trainer.devices", "trainer.strategy", "trainer.timeout")  # fmt: skip
BROKEN = "broken.csv"


@dataclass(frozen=True)
class Run:
    """A folder that `stillmotion train` writes.

    Args:
        path: The folder.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing run.

        Raises:
            ValueError: The folder holds none.
        """
        path = Path(path)
        if not (path / "settings.json").is_file() and not (path / "config.json").is_file():
            raise ValueError(f"{path}: not a run folder (no settings.json, no config.json); give an --output of train")
        return cls(path)

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`: network, task, views."""
        return self.read_json("config.json")

    @property
    def settings(self) -> dict[str, Any]:
        """`settings.json`: all arguments of the training."""
        return self.read_json("settings.json")

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder if it is missing, and notes settings and environment in it.

        Raises:
            ValueError: There is a file of this name.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path}: is a file; give a folder as --output")
        self.path.mkdir(parents=True, exist_ok=True)
        for part in self.path.glob(".*.part"):  # a killed process left it
            part.unlink(missing_ok=True)
        if not self.checkpoint.exists():
            self.write_json("settings.json", settings)
            self.write_json("environment.json", environment())

    @property
    def checkpoint(self) -> Path:
        """Where the run resumes from."""
        return self.path / "last.ckpt"

    @property
    def finished(self) -> bool:
        """Whether the training is done and its results written."""
        return (self.path / "results.json").is_file() and (self.path / "model.safetensors").is_file()

    def load(self) -> "tuple[Encoder, Task]":
        """The trained network, in `eval()`, and its task.

        Raises:
            ValueError: The run has not delivered its weights yet.
        """
        from stillmotion.models.pretrained import load_pretrained

        if not (self.path / "model.safetensors").is_file():
            raise ValueError(f"{self.path}: no model.safetensors; the training has not ended: run its command again")
        encoder, task, _ = load_pretrained(self.path)
        return encoder.eval(), task

    def results(self) -> list[Row]:
        """Rows of `results.json`."""
        return read_results(self.path)

    def write_results(self, rows: Iterable[Row]) -> None:
        """Writes `results.json`."""
        self.write_json("results.json", {"rows": list(rows)})

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder.

        Raises:
            ValueError: Missing, or not JSON.
        """
        try:
            data = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{self.path}: no {name}; is this a run folder?") from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{self.path / name}: not JSON ({error}); remove the folder and train again") from None
        if not isinstance(data, dict):
            raise ValueError(f"{self.path / name}: not an object of JSON; remove the folder and train again")
        return data

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Writes a JSON file of the folder, whole or not at all."""
        write_atomic(self.path / name, json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def compare(self, settings: Mapping[str, Any]) -> None:
        """Makes sure that the folder is this training's. A training that saved nothing yet has no claim to it.

        Args:
            settings: Plain JSON data.

        Raises:
            ValueError: The folder belongs to a training with other settings; names the first that differs.
        """
        if not self.checkpoint.exists() and not self.finished:
            return
        old = flatten(_renamed(self.settings))
        new = flatten(json.loads(json.dumps(settings)))
        for key in dict.fromkeys([*new, *old]):
            if key in FREE or old.get(key) == new.get(key):
                continue
            raise ValueError(
                f"{self.path}: begun with {key}={_shown(old.get(key))}, now {_shown(new.get(key))}; repeat the "
                "settings to resume, or give another --output"
            )

    def read_checkpoint(self) -> dict[str, Any]:
        """Content of `last.ckpt`, on the CPU.

        Raises:
            ValueError: It is damaged.
        """
        import torch

        try:
            checkpoint: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("stillmotion"), dict):
                raise ValueError("no checkpoint of stillmotion")
        except PermissionError:
            raise ValueError(f"{self.checkpoint}: no permission to read it") from None
        except Exception as error:  # a damaged file can fail in any way; one with code is refused
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ValueError(f"{self.checkpoint}: not readable ({reason}); remove it to train from the start") from None
        return checkpoint

    def write_broken(self, table: "Table", errors: Mapping[str, str], faults: Mapping[str, str]) -> None:
        """Writes `broken.csv`: line, file and reason of what could not be read, or only in part; if all could, none is
        left from before.

        Args:
            table: Where the samples are.
            errors, faults: Reason by sample id, of those that were left out and of those that were used in part.
        """
        reasons = {**{name: (text, "in part") for name, text in faults.items()},
                   **{name: (text, "no") for name, text in errors.items()}}  # fmt: skip
        rows = [(s.line, s.id, *reasons[s.id]) for s in table if s.id in reasons]
        path = self.path / BROKEN
        if rows:
            write_atomic(path, csv_text(("line", "file", "reason", "used"), rows))
        else:
            path.unlink(missing_ok=True)


def _renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run from before there were several targets, as they are called now."""
    data = dict(settings.get("data", {}))
    if "target" in data:
        data = {**asdict(DataConfig(targets=[data.pop("target")])), **data}
    return {**settings, "data": data}


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names.

    Example:
        >>> flatten({"optim": {"lr": 0.1}, "seed": 0})
        {'optim.lr': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = None if value == {} else value
    return flat


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def fingerprint(name: str, weights: str | None) -> str | None:
    """Hash of the weights that a network starts from, if they lie in a file here: a run folder's, or `weights`.

    Args:
        name, weights: Of a `ModelConfig`.

    Returns:
        16 digits of the SHA-256; None where the weights come from elsewhere or from the seed.
    """
    for path in (Path(weights) if weights else None, Path(name) / "model.safetensors"):
        if path is not None and path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return None


def environment() -> dict[str, Any]:
    """Versions, hardware, commit and time, for `environment.json`."""
    gpus: list[str] = []
    threads = None
    if find_spec("torch") is not None:  # the core install predicts without it
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        threads = torch.get_num_threads()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "gpus": gpus,
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the package's own checkout, marked `-dirty` where it was changed; None if it is installed otherwise."""
    folder = Path(__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip() or None
