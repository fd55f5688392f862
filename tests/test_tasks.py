"""Tasks: several labels a sample from the table to the run folder, against numbers worked out here."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from stillmotion.compare import compare
from stillmotion.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RowConfig
from stillmotion.data.split import drop_labels, group_folds, hold_out
from stillmotion.data.splits import check_classes, check_labels
from stillmotion.data.table import Sample, Table, TableError, read_table
from stillmotion.evaluate import evaluate
from stillmotion.methods.logits import distillation_loss
from stillmotion.predict import predict
from stillmotion.protocols.pooling import mean_average_precision, pool_clips
from stillmotion.results import read_results
from stillmotion.tasks import Classification, MultiLabel, make_task, task_from_dict
from stillmotion.train import train
from tests.conftest import MakeVideo

pytestmark = pytest.mark.usefixtures("undrawn")

TASK = MultiLabel(("jump", "run", "sit"), "tags")


def sample(value: str | None) -> Sample:
    return Sample(Path("x.mp4"), "x.mp4", {"tags": value} if value else {}, line=7)


@pytest.fixture
def tagged(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Six training videos, of which one has no tags, and four test videos."""
    rng = np.random.default_rng(0)
    tags = ["run", "jump", "run|jump", "sit", "sit|run", "", "run", "jump|sit", "sit", "run|jump"]
    lines = ["path,tags,split,group"]
    for k, tag in enumerate(tags):
        make_video(tmp_path / f"{k}.mp4", rng.integers(0, 256, (6, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2))
        lines.append(f"{k}.mp4,{tag},{'train' if k < 6 else 'test'},g{k}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


def test_labels_become_marks_and_back() -> None:
    targets = TASK.encode_all([sample("run|jump"), sample(" sit "), sample(None)])
    assert targets.tolist() == [[1, 1, 0], [0, 0, 1], [-1, -1, -1]]
    assert TASK.labelled(targets).tolist() == TASK.labelled(torch.tensor(targets)).tolist() == [True, True, False]
    assert [TASK.text(t) for t in targets] == ["jump|run", "sit", ""]
    with pytest.raises(TableError, match=r"line 7 \(x.mp4\): unknown tags 'fly'; classes: jump, run, sit"):
        TASK.encode(sample("run|fly"))
    assert task_from_dict(TASK.to_dict()) == TASK
    with pytest.raises(ValueError, match="unknown task kind 'many'; known: classification, multilabel, score, joint"):
        task_from_dict({"kind": "many"})


@pytest.mark.parametrize("kind", [Classification, MultiLabel])
def test_arrays_and_tensors_agree(kind: type[Classification | MultiLabel]) -> None:
    task = kind(("a", "b", "c"))
    targets = task.encode_all([Sample(Path("x"), "x", {"label": name}) for name in "abca"])
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    first = [("a", "b", "c")[k] for k in logits.argmax(1)]
    expected = [name == true for name, true in zip(first, "abca", strict=True)]
    assert task.right(logits, targets).tolist() == expected
    assert task.right(torch.tensor(logits), torch.tensor(targets)).tolist() == expected
    assert task.metrics(logits, targets)["top1"] == np.mean(expected)
    assert task.marks(targets).astype(int).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_loss_is_that_of_every_class_alone() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [5.0, 5.0, 5.0], [0.0, 1.0, -2.0]], requires_grad=True)
    targets = torch.tensor([[1, 0, 1], [-1, -1, -1], [0, 0, 1]])
    loss = TASK.loss(logits, targets)
    p = logits.detach().sigmoid()
    slow = [-torch.where(t > 0, q.log(), (1 - q).log()).mean() for t, q in zip(targets, p, strict=True)]
    assert loss.item() == pytest.approx(float(slow[0] + slow[2]) / 2, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1].tolist() == [0.0, 0.0, 0.0], "without a label nothing is learned"
    assert TASK.loss(logits, torch.full((3, 3), -1)).item() == 0.0


def test_metrics_against_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    task = MultiLabel(tuple("abcdefg"))
    logits = rng.normal(size=(40, 7)).astype(np.float32)
    targets = (rng.random((40, 7)) < 0.3).astype(np.int64)
    targets[targets.sum(1) == 0, 2] = 1
    targets[5] = -1
    known = np.arange(40) != 5
    found = task.metrics(logits, targets)
    assert found["mAP"] == pytest.approx(average_precision_score(targets[known], logits[known], average="macro"))
    order = np.argsort(-logits[known], axis=1)
    assert found["top5"] == np.mean([row[best[:5]].any() for row, best in zip(targets[known], order, strict=True)])
    assert task.metrics(logits[5:6], targets[5:6]) == {}


def test_distillation_of_classes_that_do_not_exclude_each_other() -> None:
    student, teacher = torch.tensor([[0.2, -1.0]]), torch.tensor([[2.0, 0.5]])
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    slow = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() * 4
    found = distillation_loss(student, teacher, temperature=2.0, exclusive=False)
    torch.testing.assert_close(found, slow)
    bce = F.binary_cross_entropy_with_logits(student / 2, p, reduction="sum") * 4
    entropy = F.binary_cross_entropy_with_logits(teacher / 2, p, reduction="sum") * 4
    torch.testing.assert_close(found, bce - entropy)


def test_splits_are_compared_label_by_label(tagged: Path) -> None:
    table = read_table(tagged)
    assert check_classes(table, "train", "test", "tags", MultiLabel.names) == []
    check_labels(table, ("jump", "run", "sit"), "tags", MultiLabel.names)
    with pytest.raises(TableError, match="unknown tags 'sit'; classes: jump, run"):
        check_labels(table, ("jump", "run"), "tags", MultiLabel.names)
    assert make_task(table, ["tags:multilabel"]) == TASK
    assert len(make_task(table, ["tags"]).class_names) == 6, "as one class each, every combination is its own"
    with pytest.raises(ValueError, match="target 'tags:many': unknown kind 'many'; known: classification"):
        make_task(table, ["tags:many"])


NET = ModelConfig(name="timm/mobilenetv3_small_050", view={"size": 32})
OPTIM = OptimConfig(epochs=1, batch_size=3)


def test_from_training_to_prediction(tagged: Path, tmp_path: Path) -> None:
    data = DataConfig(targets=["tags:multilabel"], test="test", workers=0)
    teacher = train(tagged, output=tmp_path / "teacher", student=NET, data=data, optim=OPTIM)
    method = MethodConfig(name="hallucinate", options={"weight": 1.0})
    run = train(
        tagged,
        output=tmp_path / "student",
        student=NET,
        method=method,
        teacher=ModelConfig(name=str(teacher.path)),
        data=data,
        optim=OPTIM,
    )
    metrics = read_results(run.path)[0]["metrics"]
    assert {"top1", "mAP", "hallucinated_r2"} <= metrics.keys()
    with (run.path / "predictions.csv").open(newline="") as file:
        assert [r["target"] for r in csv.DictReader(file)] == ["run", "jump|sit", "sit", "jump|run"]
    with (run.path / "per_class.csv").open(newline="") as file:
        assert [(r["class"], r["samples"]) for r in csv.DictReader(file)] == [("jump", "2"), ("run", "2"), ("sit", "2")]
    assert not (run.path / "confusion.png").exists()

    row = evaluate(run.path, tagged, protocol="video", num_moments=2, workers=0, device="cpu")[0]
    assert {"top1", "mAP", "clip_top1"} <= row["metrics"].keys()
    assert predict(str(run.path), [str(tagged.parent / "6.mp4")], output=str(tmp_path / "p.jsonl"), device="cpu") == 0
    (line,) = (tmp_path / "p.jsonl").read_text().splitlines()
    found = json.loads(line)["labels"]
    assert {entry["label"] for entry in found} == {"jump", "run", "sit"}
    assert all(0.0 < entry["probability"] < 1.0 for entry in found)


def test_samples_without_a_label_anywhere() -> None:
    assert TASK.encode(sample("|")).tolist() == [-1, -1, -1], "no name, no label"
    nothing = TASK.encode_all([])
    assert nothing.shape == (0, 3)
    assert TASK.metrics(np.empty((0, 3), np.float32), nothing) == {}
    table = Table(tuple(sample("|") for _ in range(3)), "t.csv")
    with pytest.raises(TableError, match="column 'tags' has no class; a classifier needs two"):
        make_task(table, ["tags:multilabel"])


def test_fewer_labels_are_drawn_from_all_samples() -> None:
    names = [f"{a}|{b}" for a in "abcde" for b in "fghij"]
    table = Table(tuple(replace(sample(n), name=f"{i}.mp4", group=f"g{i}") for i, n in enumerate(names)), "t.csv")
    kept = drop_labels(table, ["tags"], 0.2, 0, stratum=TASK.stratum)
    assert sum("tags" in s.targets for s in kept) == 5
    more = drop_labels(table, ["tags"], 0.4, 0, stratum=TASK.stratum)
    assert {s.name for s in kept if s.targets} < {s.name for s in more if s.targets}
    assert (
        sum(
            "tags" in s.targets
            for s in drop_labels(table, ["tags"], 0.2, 0, stratum=Classification((), "tags").stratum)
        )
        == 25
    ), "each combination as a class"
    train, val = hold_out(table, 0.2, 0, strata=TASK.strata)
    assert (len(train), len(val)) == (20, 5)
    assert [len(test) for _, test in group_folds(table, 5, 0, stratum=TASK.stratum)] == [5] * 5


def test_probabilities_are_those_of_the_training(tmp_path: Path, make_video: MakeVideo) -> None:
    """By hand: logits (2, 0) and (10, 12); the softmax ranks the first sample's class a first."""
    softmax, sigmoid = Classification(("a", "b")), MultiLabel(("a", "b"))
    logits = np.array([[2.0, 0.0], [10.0, 12.0]], np.float32)
    marks = np.array([[True, False], [False, True]])
    assert mean_average_precision(softmax.scores(logits), marks) == 1.0
    assert mean_average_precision(sigmoid.scores(logits), marks) == 0.75
    clips = np.array([[[2.0, -1.0], [0.0, 3.0]]], np.float32)
    mean = sigmoid.scores(clips).mean(1)
    np.testing.assert_allclose(sigmoid.scores(pool_clips(clips, "scores", exclusive=False)), mean, rtol=1e-5)

    for k in range(4):
        make_video(tmp_path / f"{k}.mp4", np.full((4, 32, 32, 3), 60 * k, np.uint8))
    lines = [f"{k}.mp4,{tag},{tag},{'train' if k < 2 else 'test'}" for k, tag in enumerate("abab")]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,tags,split", *lines]))
    data = DataConfig(test=None, workers=0)
    run = train(tmp_path / "t.csv", output=tmp_path / "run", student=NET, data=data, optim=OPTIM)
    here: dict[str, Any] = {"workers": 0, "device": "cpu"}
    one, several = (
        evaluate(run.path, tmp_path / "t.csv", targets=targets, **here)[0]["metrics"]
        for targets in ((), ["tags:multilabel"])
    )
    assert one["mAP"] == several["mAP"]
    assert one["top1"] == several["top1"]


def test_folds_are_joined_before_map_is_taken(tagged: Path, tmp_path: Path) -> None:
    pairs = ("run|jump", "jump|sit", "sit|run")
    table = tagged.parent / "pairs.csv"
    table.write_text("\n".join(["path,tags", *(f"{k}.mp4,{pairs[k % 3]}" for k in range(10))]))
    data = DataConfig(targets=["tags:multilabel"], test=None, workers=0)
    rows = {"plain": RowConfig(student=NET)}
    compare(table, output=tmp_path / "out", rows=rows, data=data, optim=OPTIM, seeds=[0], splits="folds:2", workers=1)
    (row,) = read_results(tmp_path / "out")
    with np.load(tmp_path / "out" / "predictions.npz") as found:
        logits, targets = found["plain/top1"][0], found["targets"]
    assert len(targets) == 10
    assert row["metrics"]["mAP"]["mean"] == pytest.approx(mean_average_precision(logits, targets > 0))
    with pytest.raises(ValueError, match="metric 'mean_class_x': its name must begin with top1, top5, mAP"):
        compare(table, output=tmp_path / "b", rows=rows, data=data, evaluate={"mean_class_x": {}}, splits="folds:2")


def test_comparison(tagged: Path, tmp_path: Path) -> None:
    rows = {
        "plain": RowConfig(student=NET),
        "logits": RowConfig(student=NET, method=MethodConfig(name="logits"), teacher=ModelConfig(name="row:plain")),
    }
    data = DataConfig(targets=["tags:multilabel"], test="test", workers=0, num_draws=1)
    compare(tagged, output=tmp_path / "out", rows=rows, data=data, optim=OPTIM, seeds=[0], baselines=[], workers=1)
    found = {row["name"]: row["metrics"] for row in read_results(tmp_path / "out")}
    assert all({"top1", "mAP"} <= metrics.keys() for metrics in found.values())
    with pytest.raises(ValueError, match="baselines tell one class a sample, column 'tags' has several"):
        compare(tagged, output=tmp_path / "b", rows=rows, data=data, optim=OPTIM, seeds=[0], baselines=["majority"])
