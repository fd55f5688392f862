"""Calibration and cascades, against torchmetrics and numbers worked out by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from stillmotion.__main__ import main
from stillmotion.calibration import (
    calibrate,
    confidence,
    fit_temperature,
    reliabilities,
    reliability,
    write_reliability,
)
from stillmotion.cascade import Pair, Point, choose
from stillmotion.data.packets import decoded_bytes
from stillmotion.evaluate import evaluate
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import read_config, save_pretrained
from stillmotion.predict import Predictor, predict
from stillmotion.protocols.pooling import softmax
from stillmotion.results import read_results
from stillmotion.tasks import Classification, Joint, MultiLabel, Score, task_from_dict
from tests.conftest import MakeVideo

TASK = Classification(("blue", "red"))
HERE: dict[str, Any] = {"workers": 0, "device": "cpu"}


def test_the_error_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 6)).astype(np.float32) * 3
    targets = rng.integers(0, 6, 400)
    found = reliability(softmax(logits), targets)
    expected = multiclass_calibration_error(
        torch.from_numpy(softmax(logits)), torch.from_numpy(targets), num_classes=6, n_bins=15, norm="l1"
    )
    assert found.error == pytest.approx(float(expected), abs=1e-6)
    assert found.samples.sum() == 400


def test_the_error_by_hand() -> None:
    # Two samples at 0.92, one right; one at 0.62, wrong; one wholly sure and right (its bin is the last).
    first = np.array([0.92, 0.92, 0.62, 1.0])
    found = reliability(np.stack([first, 1 - first], 1), np.array([0, 1, 1, 0]))
    assert found.samples.tolist() == [0] * 9 + [1] + [0] * 3 + [2, 1]
    assert found.error == pytest.approx((2 * (0.92 - 0.5) + 0.62 + 0.0) / 4)
    with pytest.raises(ValueError, match="no sample has a label"):
        reliability(np.empty((0, 2)), np.empty(0, int))


def test_every_column_of_one_class_has_its_own_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    hot = Classification(("a", "b", "c"), target="kind", temperature=2.0)
    task = Joint((Classification(("no", "yes"), target="armstand"), hot, Score("final", 0.0, 1.0)), (1.0, 1.0, 1.0))
    logits = rng.normal(size=(30, 6)).astype(np.float32) * 3
    targets = np.stack([rng.integers(0, 2, 30), rng.integers(0, 3, 30), rng.normal(size=30)], 1)
    targets[:4, 0] = -1  # not known
    found = reliabilities(task, logits, targets)
    kinds = targets[:, 1].astype(int)
    assert {metric: bins.error for metric, bins in found.items()} == pytest.approx({
        "ece.armstand": reliability(softmax(logits[4:, :2]), targets[4:, 0].astype(int)).error,
        "ece.kind": reliability(softmax(logits[:, 2:5]), kinds).error,
        "ece_calibrated.kind": reliability(softmax(logits[:, 2:5] / 2), kinds).error,
    })  # fmt: skip
    write_reliability(tmp_path, found)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "calibration.armstand.png", "calibration.json", "calibration.kind.png"
    ]  # fmt: skip


def test_the_temperature_is_the_best_on_a_fine_grid() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(1000, 4)).astype(np.float32) * 4
    chances = softmax(logits / 2.5).astype(np.float64)
    targets = np.array([rng.choice(4, p=p / p.sum()) for p in chances])
    grid = np.exp(np.linspace(np.log(0.5), np.log(10.0), 300))
    losses = [-np.log(softmax(logits / np.float32(t))[np.arange(1000), targets]).mean() for t in grid]
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=1e-2)
    assert found == pytest.approx(2.5, rel=0.15)
    with pytest.raises(ValueError, match="9 labelled samples are too few for a temperature; 10 are wanted"):
        fit_temperature(logits[:9], targets[:9])


def test_a_temperature_travels_with_its_task() -> None:
    rng = np.random.default_rng(2)
    joint = Joint((TASK, MultiLabel(("x", "y"), "tags"), Score("points", 0.0, 1.0)), (1.0, 1.0, 1.0))
    targets = np.concatenate([rng.integers(0, 2, (50, 1)), rng.integers(0, 2, (50, 2)), np.zeros((50, 1))], 1)
    logits = rng.normal(size=(50, joint.num_outputs)).astype(np.float32)
    fitted = calibrate(joint, logits, targets.astype(np.float32))
    read = task_from_dict(json.loads(json.dumps(fitted.to_dict())))
    temperature = fit_temperature(logits[:, :2], targets[:, 0].astype(int))
    expected = np.concatenate([logits[:, :2] / np.float32(temperature), logits[:, 2:]], 1)
    np.testing.assert_allclose(read.calibrated(logits), expected, rtol=1e-5)
    assert "temperature" not in TASK.to_dict()
    # The least sure column counts; a number says nothing.
    row = np.array([0.0, np.log(3.0), np.log(9.0), -5.0, 7.0], np.float32)
    assert confidence(joint, row) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="tags: only one class of several can be calibrated"):
        calibrate(MultiLabel(("x", "y"), "tags"), logits, targets)
    with pytest.raises(ValueError, match="points, a number, and cannot say how sure it is"):
        confidence(Score("points", 0.0, 1.0), row[:1])


def test_a_cascade_by_hand() -> None:
    # The student is right at 0.9 and 0.8, wrong at 0.7 and 0.6; the teacher is wrong about the second one alone.
    sure = np.array([0.9, 0.8, 0.7, 0.6])
    student = np.log(np.stack([sure, 1 - sure], 1)).astype(np.float32)
    teacher = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0]], np.float32)
    pair = Pair(TASK, student, teacher, np.array([0, 0, 1, 1]), (10.0, 100.0), np.array([[1024.0] * 4, [4096.0] * 4]))
    curve = pair.curve()
    assert [round(p.threshold, 3) for p in curve] == [0.0, 0.65, 0.75, 0.85, 1.0]
    assert [p.share for p in curve] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [p.accuracy for p in curve] == [0.5, 0.75, 1.0, 0.75, 0.75]
    assert [p.ms for p in curve] == [10.0, 35.0, 60.0, 85.0, 110.0]
    assert [p.kilobytes for p in curve] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert choose(curve) == curve[2]
    assert choose([Point(0.0, 0.0, 0.92), Point(0.5, 0.3, 0.925), Point(1.0, 1.0, 0.93)]).threshold == 0.0


def test_bytes_are_those_of_the_packets_up_to_the_frame(tmp_path: Path, make_video: MakeVideo) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (12, 32, 32, 3), np.uint8)
    video = make_video(tmp_path / "v.mp4", frames, options={"g": "4", "bf": "0", "sc_threshold": "0"})
    with av.open(str(video)) as container:
        sizes = [p.size for p in container.demux(video=0) if p.size]
    assert decoded_bytes(video, np.array([5])) == sum(sizes[4:6])
    assert decoded_bytes(video, np.array([0, 9, 10])) == sizes[0] + sum(sizes[8:11])


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Twelve validation and six test videos of noise."""
    rng, rows = np.random.default_rng(0), ["path,label,split"]
    for i in range(18):
        noise = rng.integers(0, 256, (6, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        make_video(tmp_path / f"{i}.mp4", noise, codec="mpeg4")
        rows.append(f"{i}.mp4,{('red', 'blue')[i % 2]},{'val' if i < 12 else 'test'}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "table.csv"


def make_run(folder: Path, seed: int, task: Any = TASK, **view: Any) -> Path:
    torch.manual_seed(seed)
    network = create_model("timm/test_resnet", num_classes=2, view={"size": 32, **view})
    with torch.no_grad():  # sure of what it knows nothing of
        for name, parameter in network.named_parameters():
            if name in network.classifier_names():
                parameter.mul_(60.0)
    return save_pretrained(network, task, folder)


def test_evaluation_calibrates_chooses_and_stores(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, teacher = make_run(tmp_path / "student", 0), make_run(tmp_path / "teacher", 1, num_frames=3)
    before = dict(Predictor.load(student)(tmp_path / "0.mp4").labels)
    (plain,) = evaluate(student, table, **HERE)
    assert "ece_calibrated" not in plain["metrics"]
    out = tmp_path / "out"
    command = ["evaluate", str(student), str(table), "--teacher", str(teacher), "--calibrate_on", "val", "--cascade_on",
               "val", "--output", str(out), "--workers", "0", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    assert "cascade" in capsys.readouterr().out
    rows = {row["name"]: {k: m["mean"] for k, m in row["metrics"].items()} for row in read_results(out)}
    assert list(rows) == ["student", "teacher", "cascade"]
    assert rows["student"]["ece"] == pytest.approx(plain["metrics"]["ece"]["mean"])

    config = read_config(student)
    temperature = config["task"]["temperature"]
    assert config["calibration"]["split"] == "val"
    assert config["calibration"]["samples"] == 12
    assert temperature > 1.5, "it was far too sure"
    assert config["calibration"]["ece_calibrated"] < config["calibration"]["ece"]
    bins = json.loads((out / "calibration.json").read_text())
    assert bins["ece_calibrated"]["ece"] == rows["student"]["ece_calibrated"]
    assert (out / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "cascade.png").read_bytes().startswith(b"\x89PNG")

    curve = list(csv.DictReader((out / "cascade.csv").open()))
    assert (float(curve[0]["accuracy"]), float(curve[-1]["accuracy"])) == (
        rows["student"]["top1"], rows["teacher"]["top1"])  # fmt: skip
    assert float(curve[-1]["kilobytes"]) > float(curve[0]["kilobytes"]) > 0
    chosen = json.loads((out / "cascade.json").read_text())["chosen"]
    assert rows["cascade"]["threshold"] == chosen["threshold"]

    # In use the logits are divided by the temperature.
    after = dict(Predictor.load(student)(tmp_path / "0.mp4").labels)
    log_odds = [np.log(p["red"] / p["blue"]) for p in (before, after)]
    assert log_odds[1] == pytest.approx(log_odds[0] / temperature, rel=1e-3)


def test_prediction_asks_the_teacher_and_rejects(table: Path, tmp_path: Path) -> None:
    student, teacher = make_run(tmp_path / "student", 0), make_run(tmp_path / "teacher", 1, num_frames=3)
    videos, out = [str(tmp_path / f"{i}.mp4") for i in range(8)], tmp_path / "out.jsonl"
    one, other = ([p.labels[0] for p in map(Predictor.load(r), videos)] for r in (student, teacher))
    threshold = sorted(p for _, p in one)[3] + 1e-6
    reject = 0.9
    assert predict(str(student), videos, output=str(out), teacher=str(teacher), threshold=threshold, reject=reject) == 0
    for line, mine, theirs in zip(out.read_text().splitlines(), one, other, strict=True):
        row = json.loads(line)
        name, p = theirs if mine[1] <= threshold else mine
        assert row["by"] == ("teacher" if mine[1] <= threshold else "student")
        assert (row["labels"][0]["label"], row["labels"][0]["probability"]) == (name, pytest.approx(p, abs=1e-5))
        assert row["text"] == ("unsure" if p < reject else name)
        assert row.get("unsure", False) == (p < reject)
        assert row["frames"] == (3 if mine[1] <= threshold else 1)
    assert predict(str(student), videos, output=str(tmp_path / "o.csv"), reject=1.0) == 0
    rows = list(csv.DictReader((tmp_path / "o.csv").open()))
    assert {(r["unsure"], r["by"]) for r in rows} == {("True", "")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"calibrate_on": "test"}, "calibrate_on=test: this is the split that is measured; name a held-out one"),
        ({"cascade_on": "val"}, "cascade_on=val: a cascade needs a teacher; name its run folder"),
        ({"calibrate_on": "val", "targets": ["label"]}, "calibrate_on: .* leave targets out"),
        ({"calibrate_on": "exam"}, "no sample in split 'exam'"),
    ],
)
def test_mistakes_are_told_in_one_line(table: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(make_run(tmp_path / "run", 0), table, **arguments, **HERE)
