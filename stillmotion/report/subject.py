"""What a report is about: a training, an evaluation or a comparison, read back from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillmotion.data.source import FrameSource, Videos
from stillmotion.data.table import Sample, Table, TableError, read_table
from stillmotion.predictions import FILE
from stillmotion.report.said import Said, read_arrays, read_said
from stillmotion.results import Row, read_results
from stillmotion.run import Run
from stillmotion.tasks import Task, metrics_of, task_from_dict

if TYPE_CHECKING:
    from stillmotion.models.encoder import Encoder

Kind = Literal["training", "evaluation", "comparison"]
Role = Literal["plain", "student", "teacher"]
ROLES: tuple[Role, ...] = ("plain", "student", "teacher")


class Missing(ValueError):
    """Data of a part of a report is missing: one line that says which command adds it."""


@dataclass(frozen=True)
class Limits:
    """How much of what costs time a report shows.

    Args:
        errors: Samples that the network is most confidently wrong about.
        clips: Samples that are looked at closely (Grad-CAM, nearest training clips).
        seconds: For each part; what is ready by then is shown.
        device: Where networks run: auto, cpu or cuda.
    """

    errors: int = 6
    clips: int = 6
    seconds: float = 20.0
    device: str = "auto"


@dataclass(frozen=True)
class Subject:
    """A folder that `train`, `evaluate --output` or `compare` wrote.

    Args:
        folder: The folder.
        kind: Who wrote it.
        results: All of `results.json`.
        rows: Its rows.
        settings: Arguments of the command, `{}` if they are not known.
        chosen: Names of the rows (or run folders) that the user gave a role.
        table_path, root: The table, where it is not the one of the settings.
        limits: None leaves out what costs time.
    """

    folder: Path
    kind: Kind
    results: Mapping[str, Any]
    rows: list[Row]
    settings: Mapping[str, Any]
    chosen: Mapping[Role, str]
    table_path: str | None = None
    root: str | None = None
    limits: Limits | None = None

    @property
    def name(self) -> str:
        """Of the folder; of a run within a comparison also its row and split."""
        parts = self.folder.resolve().parts
        return "/".join(parts[-3:]) if len(parts) > 3 and parts[-4] == "runs" else parts[-1]

    @property
    def data(self) -> Mapping[str, Any]:
        """Settings of `DataConfig`."""
        data: Mapping[str, Any] = self.settings.get("data", {})
        return data

    @cached_property
    def task(self) -> Task:
        """What the networks tell.

        Raises:
            Missing: It is not known.
        """
        found = self.results.get("task")
        if found is None and self.kind == "training":
            found = Run(self.folder).read_json("config.json").get("task")
        if found is None:
            raise Missing("what the networks tell is not noted here; the command that wrote this folder adds it")
        return task_from_dict(found)

    @cached_property
    def table(self) -> Table:
        """The samples.

        Raises:
            Missing: The table is not where it was.
        """
        path = self.table_path or self.settings.get("table")
        remedy = f"`stillmotion report {self.folder} --table TABLE` adds this"
        if path is None:
            raise Missing(f"the table is not known; {remedy}")
        try:
            return read_table(path, root=self.root or self.settings.get("root"))
        except (TableError, OSError) as error:
            if self.table_path:
                raise
            raise Missing(f"{error}; {remedy}") from None

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """Samples of the table by their id."""
        return {sample.id: sample for sample in self.table}

    @cached_property
    def runs(self) -> dict[str, Path]:
        """Folder of a trained network by row: of a comparison the first split and seed of each."""
        if self.kind == "training":
            found = {self.rows[0]["name"]: self.folder}
            teacher = (self.settings.get("teacher") or {}).get("name")
            return found | ({"teacher": Path(teacher)} if teacher and _is_run(teacher) else {})
        if self.kind == "evaluation":
            given = [self.settings.get("model"), self.settings.get("teacher")]
            return {r["name"]: Path(p) for r, p in zip(self.rows, given, strict=False) if p and _is_run(p)}
        found = {}
        for row in self.rows:
            folders = sorted(p.parent for p in self.folder.glob(f"runs/{row['name']}/*/seed*/model.safetensors"))
            if folders:
                found[row["name"]] = folders[0]
        return found

    @cached_property
    def roles(self) -> dict[Role, str]:
        """Which row plays which role; those without a network are left out."""
        found = _roles(self.settings.get("rows", {})) if self.kind == "comparison" else self._own_roles()
        share = max((float(f) for f in self.settings.get("label_fractions", [1.0])), default=1.0)
        if share < 1.0:
            found = {role: f"{row}@{100 * share:g}%" for role, row in found.items()}
        found |= self.chosen
        names = [row["name"] for row in self.rows]
        return {role: row for role, row in found.items() if row in names or row in self.runs or _is_run(row)}

    def _own_roles(self) -> dict[Role, str]:
        found: dict[Role, str] = {"student": self.rows[0]["name"]}
        if self.kind == "training":
            return found | ({"teacher": "teacher"} if "teacher" in self.runs else {})
        return found | ({"teacher": self.rows[1]["name"]} if len(self.rows) > 1 else {})

    def run_of(self, role: Role) -> Path | None:
        """Folder of the network of a role; None without one."""
        row = self.roles.get(role)
        if row is None:
            return None
        return self.runs.get(row) or (Path(row) if _is_run(row) else None)

    def network(self, role: Role) -> "Encoder | None":
        """The network of a role, on the device of the limits, in `eval()`; None without one."""
        from stillmotion.device import pick_device
        from stillmotion.models.pretrained import load_pretrained

        run = self.run_of(role)
        if run is None:
            return None
        assert self.limits is not None, "costs time"
        return load_pretrained(run)[0].to(pick_device(self.limits.device)).eval()

    def said(self, row: str) -> Said | None:
        """What a row said of the test samples (of a comparison: its first seed); None if it is not known."""
        if self.kind == "comparison":
            return read_arrays(self.folder / "predictions.npz", row, metrics_of(self.data.get("targets", ["label"]))[0])
        place = {self.rows[0]["name"]: self.folder}
        if len(self.rows) > 1:
            place[self.rows[1]["name"]] = self.folder / "teacher"
        return read_said(place[row] / FILE, self.task) if row in place else None

    def tested(self) -> list[Sample]:
        """Labelled test samples that the student was not trained on, in the order of the table.

        Raises:
            Missing: The table is not there, or nothing was tested.
        """
        ids = self._tested_ids()
        found = [sample for sample in self.table if sample.id in ids and self.task.has_label(sample)]
        if not found:
            raise Missing("no test sample with a label is in the table; `--table TABLE` names another")
        return found

    def trained_on(self) -> list[Sample]:
        """Samples that the student was trained on.

        Raises:
            Missing: The table is not there.
        """
        if self.settings.get("splits", "column") == "column" and self.table.splits:
            name = self.data.get("train", "train")
            return [sample for sample in self.table if sample.split == name]
        ids = self._tested_ids()
        return [sample for sample in self.table if sample.id not in ids]

    def _tested_ids(self) -> set[str]:
        run = self.run_of("student")
        if self.kind == "comparison" and run is not None:  # one split of several
            files = sorted((run / "compare").glob("*.npz"))
            if files:
                with np.load(files[0]) as arrays:
                    return set(arrays["ids"].tolist())
        names = [self.roles["student"]] if "student" in self.roles else [row["name"] for row in self.rows]
        said = next((found for name in names if (found := self.said(name)) is not None), None)
        if said is None:
            raise Missing("nothing was tested; train with a test split (`--data.test`), or `stillmotion evaluate`")
        return set(said.ids)

    def frames(self) -> FrameSource:
        """Where the frames of the samples come from: the packed store of the training if it is there, or the videos."""
        from stillmotion.data.store import FrameStore

        packed = self.data.get("packed")
        if packed and Path(packed).is_dir():
            return FrameStore(packed)
        return Videos(self.data.get("short_side"))

    def look(self) -> Limits:
        """How much of a part that costs time is made.

        Raises:
            Missing: None of it.
        """
        if self.limits is None:
            raise Missing(f"takes some seconds, so it was left out; `stillmotion report {self.folder}` adds this")
        return self.limits


def read_subject(
    folder: str | Path,
    *,
    table: str | None = None,
    root: str | None = None,
    chosen: Mapping[Role, str] | None = None,
    limits: Limits | None = None,
) -> Subject:
    """Reads a folder.

    Args:
        folder: What `train`, `evaluate --output` or `compare` wrote.
        table, root, chosen, limits: As in `Subject`.

    Raises:
        ValueError: It holds no results, or a row that is asked for is none.
    """
    folder = Path(folder)
    rows = read_results(folder)
    if not rows:
        raise ValueError(f"{folder / 'results.json'}: has no rows, so there is nothing to report")
    results = Run(folder).read_json("results.json")
    settings = results.get("settings", {})
    if "rows" in settings:
        kind: Kind = "comparison"
    elif (folder / "settings.json").is_file():
        kind, settings = "training", Run(folder).settings
    else:
        kind = "evaluation"
    subject = Subject(folder, kind, results, rows, settings, dict(chosen or {}), table, root, limits)
    for role, name in subject.chosen.items():
        if role not in subject.roles:
            names = ", ".join(row["name"] for row in rows)
            raise ValueError(f"{role}={name}: is neither a row here ({names}) nor a run folder; name one of these")
    return subject


def _is_run(path: str | Path) -> bool:
    from stillmotion.models.pretrained import is_run

    return is_run(path)


def _roles(rows: Mapping[str, Any]) -> dict[Role, str]:
    """Roles in a comparison: the first row that learns from a row, that row, and the same student by itself."""
    for name, row in rows.items():
        teacher, method = (row.get("teacher") or {}).get("name", ""), row["method"]
        control = method["options"].get("weight", 1.0) == 0 or method["options"].get("control") not in (None, "none")
        if teacher.startswith("row:") and method["name"] != "supervised" and not control:
            found: dict[Role, str] = {"student": name, "teacher": teacher.removeprefix("row:").partition("@")[0]}
            alone = [n for n, r in rows.items() if r["method"]["name"] == "supervised" and not r.get("table")]
            like = [n for n in alone if rows[n]["student"] == row["student"]]
            plain = [n for n in (*like, "plain") if n in rows and n != found["teacher"]]
            return found | ({"plain": plain[0]} if plain else {})
    return {"student": next(iter(rows))} if rows else {}


def spread(samples: Sequence[Sample], count: int, task: Task) -> list[Sample]:
    """Some samples, class by class in turn, each class in the order of the table; no look at any result."""
    by_class: dict[str | None, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(task.stratum(sample), []).append(sample)
    lists = [by_class[key] for key in sorted(by_class, key=str)]
    turns = [part[i] for i in range(max(map(len, lists), default=0)) for part in lists if i < len(part)]
    return turns[:count]
