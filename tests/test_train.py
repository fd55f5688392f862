"""Trainings of tiny networks on tiny videos, from the table to the run folder."""

import csv
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
from safetensors.torch import load_file
from torch import Tensor

from stillmotion.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, TrainerConfig
from stillmotion.data.journal import only_writer
from stillmotion.data.table import read_table
from stillmotion.engine import Engine
from stillmotion.evaluate import evaluate
from stillmotion.models.pretrained import load_pretrained
from stillmotion.run import Run
from stillmotion.train import Interrupted, Job, build, split, train
from stillmotion.view import Augment
from tests.conftest import DATA, MakeVideo, needs_data

STUDENT = ModelConfig(name="timm/test_efficientnet", options={"drop_rate": 0.2}, view={"size": 32})
TEACHER = ModelConfig(name="resnet3d_10", options={"width": 4}, view={"size": 16, "num_frames": 4})
HALLUCINATE = MethodConfig(name="hallucinate", options={"weight": 5.0})
COLOURS = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def most_are_undrawn(request: pytest.FixtureRequest) -> None:
    """All but the one that looks at everything in the folder."""
    if request.function is not test_a_run_from_the_table_to_the_folder:
        request.getfixturevalue("undrawn")


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Path:
    """18 training and 6 test videos, of which the colour is the class; one of each split is no video."""
    rng, rows = np.random.default_rng(0), []
    for i in range(24):
        frames = np.full((6, 24, 32, 3), 30, np.uint8)
        frames[..., 2 - i % 3] = rng.integers(100, 250)
        for t in range(6):
            frames[t, :, 4 * t : 4 * t + 4] = 255
        make_video(tmp_path / f"{i}.mp4", frames, codec="mpeg4")
        rows.append(f"{i}.mp4,{COLOURS[i % 3]},{'train' if i < 18 else 'test'},g{i // 3}")
    for name, part in (("bad1.mp4", "train"), ("bad2.mp4", "test")):
        (tmp_path / name).write_bytes(b"no video")
        rows.append(f"{name},red,{part},{name}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["path,label,split,group", *rows]) + "\n")
    return path


def settings(**changes: Any) -> dict[str, Any]:
    """Arguments of a small training; groups of settings take their changes as dicts."""
    optim = {"epochs": 2, "batch_size": 4, "lr": 1e-3, **changes.pop("optim", {})}
    data = {"workers": 0, **changes.pop("data", {})}
    trainer = {"accelerator": "cpu", "devices": 1, **changes.pop("trainer", {})}
    return {"student": STUDENT, "optim": OptimConfig(**optim), "data": DataConfig(**data),
            "trainer": TrainerConfig(**trainer), **changes}  # fmt: skip


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.path / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics(run: Run) -> dict[str, float | None]:
    return {name: metric["mean"] for name, metric in run.results()[0]["metrics"].items()}


def test_a_run_from_the_table_to_the_folder(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    before = set(tmp_path.iterdir())
    arguments = settings(method=HALLUCINATE, teacher=TEACHER)
    run = train(table, output=tmp_path / "run", **arguments)

    assert set(tmp_path.iterdir()) - before == {run.path}
    assert not list(Path().glob("lightning_logs*"))
    expected = """last.ckpt model.safetensors config.json settings.json results.json report.json environment.json events
        metrics.csv curves.png broken.csv predictions.csv per_class.csv confusion.json confusion.png report.html
        README.md .lock"""
    assert {p.name for p in run.path.iterdir()} == set(expected.split())
    assert run.config["task"]["class_names"] == list(COLOURS)
    assert run.settings["table_hash"] == read_table(table).hash
    assert run.settings["optim"]["lr"] == 1e-3

    with (run.path / "broken.csv").open(newline="") as file:
        broken = list(csv.DictReader(file))
    assert [(r["line"], r["file"]) for r in broken] == [("26", "bad1.mp4"), ("27", "bad2.mp4")]
    lines = (run.path / "metrics.csv").read_text().splitlines()
    assert len(lines) == 3
    assert {"loss", "task_loss", "hallucination_loss", "top1"} <= set(lines[0].split(","))
    gradients = run.read_json("report.json")["gradients"]
    assert gradients["ratios"]["task_loss"] == 1.0
    assert gradients["norms"]["hallucination_loss"] > 0.0

    (row,) = run.results()
    with (run.path / "predictions.csv").open(newline="") as file:
        right = [r["target"] == r["predicted"] for r in csv.DictReader(file)]
    assert len(right) == 6
    found = metrics(run)
    assert found["top1"] == pytest.approx(np.mean(right))
    assert found["unreadable"] == 2.0
    assert {"hallucinated_r2", "hallucinated_r2_within_class"} <= found.keys()
    assert row["cost"]["frames"] == 1
    (again,) = evaluate(run.path, table, workers=0, device="cpu")
    assert again["metrics"]["top1"] == row["metrics"]["top1"]

    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "2 epochs, 10 steps" in shown
    assert f"2 unreadable samples, listed in {run.path / 'broken.csv'}" in shown
    assert not [w for w in recwarn if "lightning" in str(w.filename)]

    changed = (run.path / "model.safetensors").stat().st_mtime_ns
    train(table, output=tmp_path / "run", **arguments)
    assert "finished already; top1" in capsys.readouterr().err
    assert (run.path / "model.safetensors").stat().st_mtime_ns == changed
    with pytest.raises(ValueError, match=r"begun with optim\.epochs=2, now 3; repeat the settings to resume, or give"):
        train(table, output=tmp_path / "run", **settings(method=HALLUCINATE, teacher=TEACHER, optim={"epochs": 3}))


SCRIPT = """
import sys
from tests.test_train import kill_settings
from stillmotion.train import train
train(sys.argv[1], output=sys.argv[2], **kill_settings())
"""


def kill_settings() -> dict[str, Any]:
    """A training that touches everything that a restart could get wrong, in 4 epochs of 4 or 5 steps."""
    return settings(
        method=HALLUCINATE,
        teacher=TEACHER,
        optim={"epochs": 4, "schedule": "plateau", "patience": 0, "clip_norm": 1.0, "warmup_steps": 3},
        data={"workers": 1, "augment": Augment(min_area=0.5, flip=0.5), "test": None},
        trainer={"checkpoint_every": 1, "select": "best"},
    )


def test_killed_in_the_middle_it_resumes_to_the_same_weights(table: Path, tmp_path: Path) -> None:
    killed = Run(tmp_path / "killed")
    command = [sys.executable, "-c", SCRIPT, str(table), str(killed.path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], start_new_session=True)
    end, seen = time.monotonic() + 120, set[int]()
    try:
        while len(seen) < 7 and time.monotonic() < end and process.poll() is None:  # two steps into the second epoch
            if killed.checkpoint.exists():
                seen.add(killed.checkpoint.stat().st_mtime_ns)
            time.sleep(0.001)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    step = killed.read_checkpoint()["stillmotion"]["position"][2]
    assert 7 <= step < 20
    assert not killed.finished
    resumed = train(table, output=killed.path, **kill_settings())
    whole = train(table, output=tmp_path / "whole", **kill_settings())
    assert same(weights(resumed), weights(whole)), f"killed at step {step}"
    assert metrics(resumed) == metrics(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_gives_one_line_and_a_checkpoint(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    step, untested = Engine.training_step, settings(data={"test": None})
    with monkeypatch.context() as patch:

        def interrupted(self: Engine, batch: Any, batch_idx: int) -> Tensor | None:
            if self.step == 3:
                signal.raise_signal(number)
            return step(self, batch, batch_idx)

        patch.setattr(Engine, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"^stopped at step 4; run the same command to resume$") as stop:
            train(table, output=tmp_path / "run", **untested)
    assert isinstance(stop.value, Interrupted)
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = train(table, output=tmp_path / "run", **untested)
    assert same(weights(resumed), weights(train(table, output=tmp_path / "whole", **untested)))


def test_the_same_student_starts_from_the_same_weights_in_every_method(table: Path, tmp_path: Path) -> None:
    starts = []
    for method, teacher in ((MethodConfig(), None), (HALLUCINATE, TEACHER)):
        built = job(table, tmp_path, method=method, teacher=teacher)
        parts, task = split(built)
        student = build(built, parts.train, task).student
        starts.append({k.removeprefix("backbone."): v for k, v in student.state_dict().items()})
    assert all(torch.equal(starts[1][k], v) for k, v in starts[0].items() if "classifier" not in k)


def job(table: Path, tmp_path: Path, **changes: Any) -> Job:
    given = {"method": MethodConfig(), "teacher": None, "features": None, "seed": 0, **settings(**changes)}
    return Job(table=read_table(table), run=Run(tmp_path / "run"), **given)


def test_selection_delivers_the_best_epoch_on_held_out_groups(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = [0.2, 0.9, 0.5]  # said of the epochs, so that the best one is known
    monkeypatch.setattr(Engine, "on_validation_epoch_end", lambda engine: engine._val_row.update(
        {"val_loss": 1.0, "val_top1": curve[engine.epoch]}))  # fmt: skip
    common: dict[str, Any] = {"trainer": {"select": "best"}, "data": {"val_fraction": 0.3, "test": None}}
    optim = {"lr": 0.01, "schedule": "constant"}
    run = train(table, output=tmp_path / "run", **settings(optim={**optim, "epochs": 3}, **common))
    until = train(table, output=tmp_path / "until", **settings(optim={**optim, "epochs": 2}, **common))
    assert same(weights(run), weights(until))
    last = {k.removeprefix("method.encoders.student."): v for k, v in run.read_checkpoint()["state_dict"].items()}
    assert not same(weights(run), last)
    assert metrics(run)["val_top1"] == 0.9
    assert not (run.path / "best.safetensors").exists()
    parts, _ = split(job(table, tmp_path, **common))
    assert parts.val is not None
    assert not set(parts.val.groups) & set(parts.train.groups)
    assert {s.split for s in parts.val} == {"train"}


def test_fewer_labels_leave_the_other_samples_in(table: Path, tmp_path: Path) -> None:
    parts, _ = split(job(table, tmp_path, data={"label_fraction": 0.34}))
    assert len(parts.train) == 19
    assert sum("label" in s.targets for s in parts.train) == 6
    assert parts.test is not None
    assert all("label" in s.targets for s in parts.test)


def test_stored_features_train_as_the_live_teacher(table: Path, tmp_path: Path) -> None:
    from stillmotion.extract import extract

    data: dict[str, Any] = {"num_draws": 2, "augment": Augment(flip=0.5), "test": None}
    extract(table, TEACHER, tmp_path / "features", data=DataConfig(workers=0, **data), device="cpu")
    # Features of other batch sizes differ by rounding, which Adam blows up to whole steps where a gradient is 0.
    options = {"method": HALLUCINATE, "data": data, "optim": {"optimiser": "sgd"}}
    live = train(table, output=tmp_path / "live", **settings(teacher=TEACHER, **options))
    cached = train(table, output=tmp_path / "cached", **settings(features=str(tmp_path / "features"), **options))
    for name, value in weights(live).items():
        torch.testing.assert_close(weights(cached)[name], value, rtol=0.0, atol=1e-3)
    options["method"] = MethodConfig(name="hallucinate", options={"weight": 5.0, "control": "shuffled"})
    other = weights(train(table, output=tmp_path / "other", **settings(features=str(tmp_path / "features"), **options)))
    assert max(float((other[name] - value).abs().max()) for name, value in weights(live).items()) > 0.1
    assert not any("teacher" in name for name in cached.read_checkpoint()["state_dict"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"val": "test"}}, "data.val and data.test are both 'test': the test split is never selected on"),
        ({"data": {"test": "exam"}}, "no sample in split 'exam'; splits here: train, test"),
        ({"optim": {"batch_size": 5, "accumulate": 2}}, "optim.batch_size=5 is no multiple of optim.accumulate=2"),
        ({"optim": {"trainable": ["no.such"]}}, "no parameter of the student matches 'no.such'"),
        ({"method": MethodConfig(name="hallucinate")}, "hallucinate needs a teacher"),
        ({"method": MethodConfig(name="guess")}, "unknown method 'guess'"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(
    table: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        train(table, output=tmp_path / "run", **settings(**changes))
    assert message in str(error.value)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_two_trainings_do_not_share_a_folder(table: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path / "run"), pytest.raises(ValueError, match="run: another process is writing to this"):
        train(table, output=tmp_path / "run", **settings())
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_leak_between_splits_is_told(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table.write_text(table.read_text().replace("train,g0", "train,g7"))
    split(job(table, tmp_path))
    assert f"warning: {table}: group 'g7' is in train (lines 2, 3, 4) and test" in capsys.readouterr().err


def test_without_a_readable_video_there_is_one_line(table: Path, tmp_path: Path) -> None:
    for i in range(18):
        (tmp_path / f"{i}.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"^none of 19 training samples can be read; the first: .*mp4.*$"):
        train(table, output=tmp_path / "run", **settings())


@needs_data
def test_every_broken_and_quirky_file_goes_through_a_training(tmp_path: Path) -> None:
    assert DATA is not None
    paths = [p for folder in ("broken", "quirks") for p in sorted((DATA / folder).iterdir())]
    table = tmp_path / "table.csv"
    # The same file may not stand in both splits, so that the test split names it by a range of all its frames.
    table.write_text("path,label,split,start_frame\n" + "".join(
        f"{path},{'ab'[i % 2]},{split},{start}\n"
        for split, start in (("train", ""), ("test", "0")) for i, path in enumerate(paths)))  # fmt: skip
    run = train(table, output=tmp_path / "run", **settings(optim={"epochs": 1}, data={"short_side": 64}))
    with (run.path / "broken.csv").open(newline="") as file:
        listed = {Path(r["file"].split("[")[0]).name for r in csv.DictReader(file)}
    assert listed == {p.name for p in paths if p.parent.name == "broken"}
    with (run.path / "predictions.csv").open(newline="") as file:
        predicted = {Path(r["id"].split("[")[0]).name for r in csv.DictReader(file)}
    assert predicted >= {p.name for p in paths if p.parent.name == "quirks"}


DDP = """
import sys
from tests.test_train import settings, HALLUCINATE, TEACHER
from stillmotion.train import train
changes = dict(trainer={"devices": 2, "strategy": "ddp"}, optim={"batch_size": 4}, data={"val": None})
train(sys.argv[1], output=sys.argv[2], **settings(method=HALLUCINATE, teacher=TEACHER, **changes))
"""


@pytest.mark.slow
def test_two_processes_train_together(table: Path, tmp_path: Path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script), str(table), str(tmp_path / "run")], env=environment, cwd=root,
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = Run.open(tmp_path / "run")
    assert metrics(run)["unreadable"] == 2.0
    assert json.loads((run.path / "report.json").read_text())["steps"] == 10, "as one process"


def test_min_steps_give_fewer_samples_the_same_budget(table: Path, tmp_path: Path) -> None:
    arguments = settings(optim={"epochs": 1, "min_steps": 12}, data={"label_fraction": 0.34})
    few = train(table, output=tmp_path / "few", **arguments)
    assert few.read_json("report.json")["steps"] == 12  # 6 labelled videos, 2 steps an epoch
    assert few.read_json("report.json")["epochs"] == 6
    again = train(table, output=tmp_path / "few", **arguments)  # a finished run stays as it is
    assert again.read_json("report.json")["steps"] == 12


def test_the_shared_network_remembers_how_frames_were_reduced(table: Path, tmp_path: Path) -> None:
    run = train(table, output=tmp_path / "run", **settings(optim={"epochs": 1}, data={"short_side": 64}))
    shared = tmp_path / "shared"  # as from the Hub: without settings.json
    shared.mkdir()
    for name in ("config.json", "model.safetensors"):
        (shared / name).write_bytes((run.path / name).read_bytes())
    assert load_pretrained(shared)[0].short_side == 64
