"""Evaluation on small videos, against numbers worked out here."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillmotion.config import ModelConfig
from stillmotion.data.table import TableError, read_table
from stillmotion.evaluate import evaluate, view_settings
from stillmotion.measure import Reading, distance, measure_cost
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.models.student import HallucinatingStudent
from stillmotion.predictions import Predictions, confusion, predict_table, write_predictions
from stillmotion.results import read_results
from stillmotion.tasks import UNLABELLED, Classification
from tests.conftest import MakeVideo

TASK = Classification(("blue", "red"))
HERE: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 3}


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Four training and five test videos; one test video is unlabelled, one is none."""
    rng, rows = np.random.default_rng(0), []
    for i in range(9):
        frames = rng.integers(0, 60, (8, 24, 24, 3)).astype(np.uint8)
        frames[..., 2 * (i % 2)] += np.arange(8, dtype=np.uint8)[:, None, None] * 20
        make_video(tmp_path / f"{i}.mp4", frames, codec="mpeg4")
        label = "" if i == 8 else ("red", "blue")[i % 2]
        rows.append(f"{i}.mp4,{label},{'train' if i < 4 else 'test'},g{i}")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    rows.append("bad.mp4,red,test,bad")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["path,label,split,group", *rows]) + "\n")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A hallucinating student with random weights, saved as a run."""
    torch.manual_seed(0)
    backbone = create_model("timm/mobilenetv3_small_050", num_classes=0, view={"size": 32})
    student = HallucinatingStudent(backbone, num_classes=2, hallucinated_dim=32)
    return save_pretrained(student, TASK, tmp_path / "student")


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A teacher whose embedding is as wide as what the student hallucinates."""
    torch.manual_seed(1)
    net = create_model("resnet3d_10", num_classes=2, width=4, view={"size": 16, "num_frames": 4})
    assert net.embedding_dim == 32
    return save_pretrained(net, TASK, tmp_path / "teacher")


def values(row: Any) -> dict[str, float]:
    return {name: metric["mean"] for name, metric in row["metrics"].items()}


def test_evaluation_with_a_teacher(table: Path, run: Path, teacher: Path, tmp_path: Path) -> None:
    rows = evaluate(run, table, teacher=teacher, output=tmp_path / "out", **HERE)
    assert [r["name"] for r in rows] == ["student", "teacher"]
    assert rows == read_results(tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    with (tmp_path / "out" / "teacher" / "predictions.csv").open(newline="") as file:
        theirs = {r["id"]: r["predicted"] for r in csv.DictReader(file)}
    labelled = [r for r in lines if r["target"]]
    assert (len(lines), len(labelled)) == (5, 4)
    found = values(rows[0])
    assert found["top1"] == np.mean([r["target"] == r["predicted"] for r in labelled])
    assert found["agreement"] == np.mean([r["predicted"] == theirs[r["id"]] for r in lines])
    assert found["unreadable"] == 1.0
    assert {"feature_mse", "hallucinated_r2", "hallucinated_r2_within_class"} <= found.keys()
    assert (tmp_path / "out" / "broken.csv").read_text().splitlines()[1].startswith("11,bad.mp4,")
    matrix = json.loads((tmp_path / "out" / "confusion.json").read_text())
    assert matrix["classes"] == ["blue", "red"]
    assert np.sum(matrix["matrix"]) == 4
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_cost_is_that_of_one_video(table: Path, run: Path) -> None:
    one = evaluate(run, table, **HERE)[0]["cost"]
    many = evaluate(run, table, protocol="video", num_moments=4, **HERE)[0]["cost"]
    assert (one["frames"], many["frames"]) == (1, 4)
    assert one["gmacs"] is not None
    assert many["gmacs"] == pytest.approx(4 * one["gmacs"])
    assert one["params"] == many["params"]
    assert one["ms_per_video"] is not None
    assert one["ms_per_video"] > 0


def test_the_video_protocol_averages_the_moments(table: Path, run: Path) -> None:
    used = read_table(table).select("test")
    encoder = create_model(str(run), num_classes=2)
    view = view_settings("video", None, 3, None, None)
    found = predict_table(create_model(str(run), num_classes=2, view=view), used, TASK, outputs=["moment_logits"])
    moments = found.outputs["moment_logits"]
    assert moments.shape == (5, 3, 2)
    np.testing.assert_allclose(found.logits, moments.mean(1), atol=1e-6)
    # Of 8 frames the three parts have their middles at 1, 4, 6; frame 4 is the centre.
    np.testing.assert_allclose(moments[:, 1], predict_table(encoder, used, TASK).logits, atol=1e-6)
    assert (np.abs(moments[:, 0] - moments[:, 1]) > 1e-6).any(1).all()


def test_settings_of_a_protocol_give_way_to_the_users() -> None:
    assert view_settings("static", "first", None, None, {"size": 64}) == {
        "num_frames": 1, "num_moments": 1, "moment": "first", "size": 64,
    }  # fmt: skip
    assert view_settings("clip", None, 2, None, {"stride": 2}) == {"num_moments": 2, "stride": 2}
    with pytest.raises(ValueError, match="protocol='movie': choose one of own, static, clip, video"):
        view_settings("movie", None, None, None, None)  # type: ignore[arg-type]


def predictions(logits: list[list[float]], names: str = "abc", **outputs: list[Any]) -> Predictions:
    return Predictions(
        ids=list(names),
        groups=["g", None, "g"][: len(names)],
        logits=np.array(logits, np.float32),
        targets=np.array([0, 1, -1][: len(names)]),
        outputs={name: np.array(value, np.float32) for name, value in outputs.items()},
    )


def test_the_distance_by_hand() -> None:
    # Sample b could not be read by the teacher; a and c are compared. logit(3/4) = log 3.
    log3 = float(np.log(3.0))
    student = predictions([[1, 0], [0, 1], [0, 1]], hallucinated=[[[0.0]], [[9.0]], [[log3]]])
    teacher = predictions([[1, 0], [1, 0]], "ac", embedding=[[[log3]], [[log3]]])
    found = distance(student, teacher, None, TASK)
    assert found == pytest.approx({"agreement": 0.5, "feature_mse": 0.25**2 / 2})
    # Training features: mean 0 over both, class 0 at log 3, which is what the teacher says of a.
    reference = predictions([[1, 0], [1, 0]], "xy", embedding=[[[log3]], [[-log3]]])
    found = distance(student, teacher, reference, TASK)
    assert found["hallucinated_r2"] == pytest.approx(1 - log3**2 / (2 * log3**2))
    assert np.isnan(found["hallucinated_r2_within_class"])  # class 0 leaves no error to explain
    # Without a guess of its width there is only the agreement.
    other = predictions([[1, 0], [0, 1], [0, 1]], embedding=[[[0.0, 1.0]]] * 3)
    assert distance(other, teacher, reference, TASK) == {"agreement": 0.5}


def test_predictions_are_written_for_people_and_programs(tmp_path: Path) -> None:
    given = predictions([[1.5, -0.25], [0.0, 3.0], [1e-3, 2.0]])
    write_predictions(tmp_path, given, TASK)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["id"], r["group"]) for r in rows] == [(i, g or "") for i, g in zip(given.ids, given.groups, strict=True)]
    index = {name: i for i, name in enumerate(TASK.class_names)}
    assert [index[r["target"]] if r["target"] else UNLABELLED for r in rows] == given.targets.tolist()
    np.testing.assert_allclose([[float(v) for v in r["logits"].split()] for r in rows], given.logits, rtol=1e-6)
    assert (tmp_path / "per_class.csv").read_text().splitlines() == [
        "class,samples,correct,accuracy,precision,mistaken_for", "blue,1,1,1.0,1.0,", "red,1,1,1.0,1.0,",
    ]  # fmt: skip


def test_confusion_counts_rows_of_the_true_class() -> None:
    matrix = confusion(np.array([0, 1, 1, 0]), np.array([0, 0, 1, -1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_a_network_by_name_takes_the_classes_of_the_table(table: Path) -> None:
    config = ModelConfig(name="timm/mobilenetv3_small_050", view={"size": 32})
    (row,) = evaluate(config, table, **HERE)
    assert row["name"] == "mobilenetv3_small_050"
    assert values(row)["top1"] in (0.0, 0.25, 0.5, 0.75, 1.0)


def test_timing_survives_unreadable_videos(table: Path, run: Path) -> None:
    used = read_table(table).select(lambda s: s.name == "bad.mp4")
    cost = measure_cost(create_model(str(run), num_classes=2), used, Reading())
    assert cost["ms_per_video"] is None
    assert cost["frames"] is None
    with pytest.raises(ValueError, match=r"none of 1 samples can be read; the first: bad\.mp4: "):
        evaluate(run, used, split=None, **HERE)


def test_mistakes_are_told_in_one_line(table: Path, run: Path) -> None:
    with pytest.raises(TableError, match="no sample in split 'exam'"):
        evaluate(run, table, split="exam", **HERE)
    with pytest.raises(ValueError, match=r"device=cuda:99: not here \("):
        evaluate(run, table, **{**HERE, "device": "cuda:99"})
    table.write_text(table.read_text().replace("5.mp4,blue", "5.mp4,green"))
    with pytest.raises(TableError, match=r"table\.csv line 7: unknown label 'green'; classes: blue, red"):
        evaluate(run, table, **HERE)
