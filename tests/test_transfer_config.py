"""Two stages in one comparison: pre-training on a table of its own, a kill in between, and the transfer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from stillmotion.compare import make_jobs
from stillmotion.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RowConfig, TrainerConfig
from stillmotion.data.table import read_table
from stillmotion.plan import Plan, check, read_stages
from stillmotion.results import read_results
from stillmotion.trials import make_folds
from tests.conftest import MakeVideo
from tests.recipes import CONFIGS, commands_of, settings_of

RECIPE = CONFIGS / "hallucinet" / "transfer_tiny.yaml"


def write_videos(folder: Path, make_video: MakeVideo, classes: str, num_frames: int) -> Path:
    rng, lines = np.random.default_rng(0), ["path,label,split,group"]
    for k in range(8):
        noise = rng.integers(0, 256, (num_frames, 6, 8, 3), np.uint8)
        make_video(folder / f"{k}.mp4", noise.repeat(8, 1).repeat(8, 2))
        lines.append(f"{k}.mp4,{classes[k % len(classes)]},{'train' if k < 5 else 'test'},g{k}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


@pytest.fixture
def tables(tmp_path: Path, make_video: MakeVideo) -> tuple[Path, Path]:
    """Actions of three classes, and of the dives two, 30 frames long: shorter than the window."""
    return (
        write_videos(tmp_path / "actions", make_video, "abc", 18),
        write_videos(tmp_path / "dives", make_video, "xy", 30),
    )


@pytest.mark.slow
def test_a_kill_between_the_stages(tables: tuple[Path, Path], tmp_path: Path) -> None:
    """The command of the recipe's comment, with a few of its rows."""
    (command,) = commands_of(RECIPE)
    actions, dives = map(str, tables)
    run, recipe, settings = tmp_path / "run", tmp_path / "recipe.yaml", settings_of(RECIPE)
    names = ["teacher", "pre_both", "from_nothing", "from_both_hallucinating"]
    settings["rows"] = {name: settings["rows"][name] for name in names}
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False))
    places = {"TABLE": dives, "ACTIONS": actions, "RUN": str(run), f"configs/hallucinet/{RECIPE.name}": str(recipe)}
    words = [places.get(word, word) for word in command]
    left_out = [at for at, word in enumerate(words) if word.startswith("--rows.") and word.split(".")[1] not in names]
    words = [word for at, word in enumerate(words) if at not in left_out and at - 1 not in left_out]
    call = [sys.executable, "-m", "stillmotion", *words, "--trainer.accelerator", "cpu"]
    process = subprocess.Popen(call, cwd=RECIPE.parents[2], start_new_session=True, stderr=subprocess.DEVNULL)
    done, deadline = run / "runs/pre_both/table/seed0/results.json", time.monotonic() + 600
    try:
        while not done.exists():
            assert process.poll() is None, "ended before stage two"
            assert time.monotonic() < deadline, "stage one takes ten minutes"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    stages = [path for path in (run / "runs").rglob("model.safetensors") if path.parents[1].name == "table"]
    assert len(stages) == 2
    before = {path: path.stat().st_mtime_ns for path in stages}
    assert not (run / "results.json").exists()
    ended = subprocess.run(call, cwd=RECIPE.parents[2], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert {path: path.stat().st_mtime_ns for path in stages} == before, "stage one was not trained again"

    rows = {row["name"]: row for row in read_results(run)}
    assert list(rows) == names[2:]
    assert all(row["cost"]["frames"] > 1 for row in rows.values())
    assert "hallucinated_r2" in rows["from_both_hallucinating"]["metrics"]
    data = json.loads((run / "results.json").read_text())
    assert [row["name"] for row in data["stages"]] == names[:2]
    assert "hallucinated_r2" in data["stages"][1]["metrics"]
    assert data["classes"] == ["x", "y"]
    text = (run / "results.md").read_text()
    assert "## Stages before" in text
    assert "`pre_both` on `table.csv`" in text

    # What stage one learned, hallucination included, is where stage two begins: one epoch of small steps away.
    def start(row: str) -> dict[str, torch.Tensor]:
        return load_file(run / f"runs/{row}/seed0/model.safetensors")

    first, second, other = start("pre_both/table"), start("from_both_hallucinating/test"), start("from_nothing/test")
    for name in ("backbone.net.layer1.0.conv1.weight", "hallucinator.0.weight"):
        moved = (second[f"backbone.{name}"] - first[name]).abs().max()
        assert moved < 1e-3 < (other[f"backbone.{name}"] - first[name]).abs().max()
    assert (first["classifier.weight"].shape[0], second["classifier.weight"].shape) == (3, (2, 256))


STUDENT = ModelConfig(name="timm/test_resnet", view={"size": 32})
TEACHER = ModelConfig(name="resnet3d_10", options={"width": 4}, view={"size": 32, "num_frames": 4})


def make_plan(tables: tuple[Path, Path], rows: dict[str, RowConfig], **changes: Any) -> Plan:
    data, table = DataConfig(num_draws=2), read_table(tables[1])
    given: dict[str, Any] = {"references": [], "fractions": [1.0], "baselines": [], **changes}
    return Plan(
        table=table, output=tables[1].parent / "out", rows=rows, seeds=[0, 1], folds=make_folds(table, "column", data),
        splits="column", evaluate={"top1": {}}, subsets={}, data=data, optim=OptimConfig(), trainer=TrainerConfig(),
        probe=None, workers=1, root=None, stages=read_stages(rows, data, None), **given,
    )  # fmt: skip


def test_the_recipe_has_every_way_to_begin() -> None:
    rows = settings_of(RECIPE)["rows"]
    begun = {name: row["method"]["options"] for name, row in rows.items() if name.startswith("pre")}
    assert begun == {
        "pre_classes": {"weight": 0},
        "pre_hallucination": {"weight": 50, "task_weight": 0},
        "pre_both": {"weight": 50},
    }
    starts = {
        name: row["student"]["options"]["backbone"]["name"] for name, row in rows.items() if name.startswith("from")
    }
    assert list(starts.values()) == [
        "timm/test_resnet", "row:pre_classes", "row:pre_hallucination", *["row:pre_both"] * 3
    ]  # fmt: skip
    assert [row["method"]["options"]["weight"] for row in rows.values() if "table" not in row] == [0, 0, 0, 0, 50, 50]


def test_which_training_waits_for_which(tables: tuple[Path, Path]) -> None:
    actions = str(tables[0])
    inner = ModelConfig(name="sequence", options={"backbone": {"name": "row:pre", "options": {}}, "aggregate": "lstm"})
    hallucinate = MethodConfig(name="hallucinate")
    rows = {
        "teacher": RowConfig(student=TEACHER, table=actions),
        "pre": RowConfig(student=STUDENT, method=hallucinate, teacher=ModelConfig(name="row:teacher"), table=actions),
        "other": RowConfig(student=STUDENT, table=actions, data={"train": "test", "test": None}),
        "last": RowConfig(student=inner, method=hallucinate, teacher=ModelConfig(name="row:teacher")),
    }
    plan = make_plan(tables, rows, fractions=[0.5])
    check(plan)
    jobs = {job.name: job for job in make_jobs(plan)}
    assert jobs["pre/table/seed1"].after == ("teacher/table/seed1", "features/teacher/table/seed1/draws1")
    last = jobs["last@50%/test/seed1"]
    store = "features/teacher/table/seed1-on-test/draws1"
    assert last.after == ("pre/table/seed1", "teacher/table/seed1", store)
    assert last.arguments["row"].student.options["backbone"]["name"] == str(plan.output / "runs/pre/table/seed1")
    assert jobs["pre/table/seed1"].arguments["views"] == {}
    for name, table, share in (("pre/table/seed1", tables[0], 1.0), ("last@50%/test/seed1", tables[1], 0.5)):
        fold = jobs[name].arguments["fold"]
        assert (fold.table.source, fold.data.label_fraction) == (str(table), share)
        assert jobs[next(a for a in jobs[name].after if a.startswith("features"))].arguments["fold"].table == fold.table
    assert jobs["other/table/seed0"].arguments["fold"].data.train == "test"
    assert [trial.row for trial in plan.trials()] == ["last", "last"]


@pytest.mark.parametrize(
    ("pre", "last", "changes", "message"),
    [
        ({"data": {"tset": None}}, {}, {}, "row 'pre': data has no 'tset'; known: targets"),
        ({"data": {"test": "x"}}, {}, {}, r"'x'; splits here: train, test; set rows\.pre\.data\.test"),
        ({"table": "nothing.csv"}, {}, {}, r"row 'pre': nothing\.csv: no such file"),
        ({}, {"data": {"test": None}}, {}, "row 'last': data is for rows with a table of their own"),
        ({"student": ModelConfig(name="row:last")}, {}, {}, "a table of its own, and starts from row 'last'"),
        ({}, {}, {"references": ["pre"]}, "reference 'pre' has a table of its own"),
        ({}, {"student": ModelConfig(name="row:pre@50%")}, {}, "table of its own and sees all its labels"),
        ({}, {"student": ModelConfig(name="fused", options={"motion": {"name": "row:per"}})}, {}, "no row 'per' here"),
        ({}, {"table": "TABLE"}, {}, "all rows have tables of their own"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_training(
    tables: tuple[Path, Path], pre: dict[str, Any], last: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    if last.get("table"):
        last = {"table": str(tables[0])}
    rows = {
        "pre": RowConfig(**{"student": STUDENT, "table": str(tables[0]), **pre}),
        "last": RowConfig(**{"student": ModelConfig(name="row:pre"), **last}),
    }
    with pytest.raises(ValueError, match=message) as error:
        check(make_plan(tables, rows, **changes))
    assert "\n" not in str(error.value)
