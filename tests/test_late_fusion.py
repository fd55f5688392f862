"""Late fusion out of stored predictions: means, weights and mistakes worked out by hand."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stillmotion.__main__ import _expand, main
from stillmotion.late_fusion import evaluate_fused, simplex
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.predictions import Predictions, read_predictions, write_predictions
from stillmotion.results import read_results
from stillmotion.tasks import Classification
from tests.conftest import MakeVideo, write_table

LABELS = "abab"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four test and two validation samples of two classes; no video is needed."""
    lines = [f"{k}.mp4,{label},{'test' if k < 4 else 'val'}" for k, label in enumerate(LABELS + "ab")]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    for k in range(6):
        (tmp_path / f"{k}.mp4").write_bytes(b"")
    return tmp_path / "table.csv"


def stored(folder: Path, chances: list[float], names: tuple[str, str] = ("a", "b")) -> str:
    """Predictions with these probabilities of the first class."""
    folder.mkdir()
    p = np.array(chances)
    logits = np.log(np.stack([p, 1 - p], 1)).astype(np.float32)
    ids = [f"{k}.mp4" for k in range(len(p))]
    targets = np.arange(len(p)) % 2
    write_predictions(folder, Predictions(ids, [None] * len(p), logits, targets), Classification(names))
    return str(folder / "predictions.csv")


def test_the_mean_of_probabilities_by_hand(table: Path, tmp_path: Path) -> None:
    a = stored(tmp_path / "a", [0.9, 0.6, 0.6, 0.9, 0.5, 0.5])
    b = stored(tmp_path / "b", [0.4, 0.1, 0.3, 0.6, 0.5, 0.5])
    rows, weights = evaluate_fused([a, b], table, output=tmp_path / "both")
    # Means 0.65, 0.35, 0.45, 0.75 of class a; the classes are a, b, a, b: right, right, wrong, wrong.
    assert {r["name"]: r["metrics"]["top1"]["mean"] for r in rows} == {"fused": 0.5, "a": 0.5, "b": 0.25}
    assert weights == {"a": 0.5, "b": 0.5}
    task, logits = read_predictions(tmp_path / "both")
    assert task == Classification(("a", "b"))
    np.testing.assert_allclose(np.exp(logits["0.mp4"]), [0.65, 0.35], atol=1e-5)
    assert read_results(tmp_path / "both") == rows
    assert json.loads((tmp_path / "both" / "fusion.json").read_text()) == {"weights": weights, "chosen_on": None}


def test_weights_are_chosen_on_the_held_out_split(table: Path, tmp_path: Path) -> None:
    # On val (a, b), `b` is right and `a` wrong; the mean is right as soon as b weighs 0.35 * w > 0.25 * (1 - w),
    # w > 0.417: equal weights are right already, and stay.
    a = stored(tmp_path / "a", [0.9, 0.6, 0.6, 0.9, 0.25, 0.75])
    b = stored(tmp_path / "b", [0.4, 0.1, 0.3, 0.6, 0.85, 0.15])
    assert evaluate_fused([a, b], table, weights_on="val")[1] == {"a": 0.5, "b": 0.5}
    # With 0.15 instead of 0.35, w > 0.625: 0.65 is the next step.
    c = stored(tmp_path / "c", [0.4, 0.1, 0.3, 0.6, 0.65, 0.35])
    rows, weights = evaluate_fused([a, c], table, weights_on="val")
    assert weights == pytest.approx({"a": 0.35, "c": 0.65})
    # 0.35 * 0.9 + 0.65 * 0.4 = 0.575; 0.275; 0.405; 0.705
    assert rows[0]["metrics"]["top1"]["mean"] == 0.5
    assert len(list(simplex(3, 20))) == 231, "22 over 2"


def test_classes_in_another_order_are_matched_by_name(table: Path, tmp_path: Path) -> None:
    a = stored(tmp_path / "a", [0.9, 0.1, 0.9, 0.1])
    b = stored(tmp_path / "b", [0.1, 0.9, 0.1, 0.9], names=("b", "a"))
    assert evaluate_fused([a, b], table)[0][0]["metrics"]["top1"]["mean"] == 1.0


def test_runs_are_evaluated_first(tmp_path: Path, make_video: MakeVideo, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path, make_video, train=2, test=2, num_frames=5)
    for name in ("x", "y"):
        torch.manual_seed(ord(name))
        net = create_model("resnet3d_10", num_classes=2, width=4, view={"size": 16, "num_frames": 4})
        save_pretrained(net, Classification(("a", "b")), tmp_path / name)
    here = ["--workers", "0", "--device", "cpu"]
    assert main(["evaluate", str(tmp_path / "x"), str(table), "--output", str(tmp_path / "alone"), *here]) == 0
    capsys.readouterr()
    call = ["evaluate", str(tmp_path / "alone" / "results.json"), str(table), "--fuse", str(tmp_path / "y"), *here]
    assert main([*call, "--output", str(tmp_path / "out")]) == 0
    assert "weights: alone 0.50, y 0.50" in capsys.readouterr().out
    chances = []
    for folder in ("alone", "out/y", "out"):
        _, logits = read_predictions(tmp_path / folder)
        chances.append(torch.tensor(np.stack([logits[k] for k in ("2.mp4", "3.mp4")])).softmax(1))
    torch.testing.assert_close(chances[2], (chances[0] + chances[1]) / 2, atol=1e-4, rtol=1e-4)


def test_the_command_line_takes_a_list() -> None:
    assert _expand(["evaluate", "a", "t.csv", "--fuse", "b", "c", "--split", "val"]) == [
        "evaluate", "a", "t.csv", "--fuse", '["b", "c"]', "--split", "val"]  # fmt: skip
    assert _expand(["evaluate", "a", "t.csv", "--fuse", '["b"]']) == ["evaluate", "a", "t.csv", "--fuse", '["b"]']


def test_mistakes_are_told_in_one_line(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = stored(tmp_path / "a", [0.9, 0.1, 0.9, 0.1, 0.5, 0.5])
    few = stored(tmp_path / "few", [0.9, 0.1])
    other = stored(tmp_path / "other", [0.9, 0.1, 0.9, 0.1], names=("a", "c"))
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "per_class.csv").write_text("class\na\nb\n")
    with (torn / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "logits"], ["0.mp4", "1 2 3"]])
    for fuse, options, message in (
        (few, [], "no scores of 2 of 4 samples"),
        (other, [], "its classes differ from those of"),
        (str(torn / "predictions.csv"), [], "2 classes, and other numbers of logits"),
        (a, [], "a network stands twice"),
        (str(tmp_path / "none" / "results.json"), [], "no predictions of `evaluate --output` in it"),
        (few, ["--weights_on", "test"], "this is the split that is measured"),
        (few, ["--teacher", "x"], "evaluate it without fuse"),
    ):
        assert main(["evaluate", a, str(table), "--fuse", fuse, *options]) == 2
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1
    assert main(["evaluate", a, str(table), "--weights_on", "val"]) == 2
    assert "name some with fuse" in capsys.readouterr().err
