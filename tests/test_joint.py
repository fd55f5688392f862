"""Scores and several columns at once: numbers worked out by hand, and everything a user does with a table of them."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from stillmotion.__main__ import _expand, main
from stillmotion.baselines import run_baseline
from stillmotion.config import DataConfig, ScoreConfig
from stillmotion.data.split import drop_labels, hold_out
from stillmotion.data.table import Sample, Table, TableError, read_table
from stillmotion.late_fusion import evaluate_fused
from stillmotion.methods.logits import distillation_loss, task_distillation
from stillmotion.overlay import draw_overlay
from stillmotion.predict import Prediction
from stillmotion.predictions import Predictions, read_predictions, write_predictions
from stillmotion.results import paired_spearman, read_results
from stillmotion.run import Run
from stillmotion.tally import Entry, Tally, kind_of, load_views
from stillmotion.tasks import (
    Classification,
    Joint,
    MultiLabel,
    Score,
    make_task,
    metrics_of,
    split_targets,
    task_from_dict,
    task_of,
)
from stillmotion.trials import make_folds, run_baseline_fold
from tests.conftest import MakeVideo

pytestmark = pytest.mark.usefixtures("undrawn")

SCORE = Score("points", low=0.0, high=20.0, offset=10.0, scale=4.0)
JOINT = Joint(
    (Classification(("pike", "tuck"), "position"), MultiLabel(("a", "b"), "tags"), SCORE), (1.0, 1.0, 0.5)
)  # fmt: skip


def sample(number: int, split: str | None = None, group: str | None = None, **targets: str) -> Sample:
    return Sample(Path(f"{number}.mp4"), f"{number}.mp4", targets, split, group, line=number + 2)


SAMPLES = [
    sample(0, position="tuck", tags="a|b", points="14"),
    sample(1, position="pike", points="6"),
    sample(2, tags="b"),
    sample(3),
]
LOGITS = np.array(
    [[0.0, 1.0, 2.0, -1.0, 0.5], [0.0, 1.0, 0.0, 0.0, -1.5], [3.0, 0.0, 1.0, -1.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0]],
    np.float32,
)


def test_score_metrics_by_hand() -> None:
    """Guesses 12, 4, 18, 12 of 14, 6, 10, 14: errors 2, 2, 8, 2."""
    targets = np.array([14.0, 6.0, 10.0, 14.0, np.nan], np.float32)
    logits = np.array([[0.5], [-1.5], [2.0], [0.5], [7.0]], np.float32)
    found = SCORE.metrics(logits, targets)
    assert list(found) == list(SCORE.metric_kinds)
    # Ranks 2.5, 1, 4, 2.5 against 3.5, 1, 2, 3.5: covariances 0, 2.25, -0.75, 0 about the mean 2.5.
    assert found["spearman"] == pytest.approx(1.5 / 4.5)
    assert found["spearman"] == pytest.approx(spearmanr([12, 4, 18, 12], [14, 6, 10, 14]).statistic)
    assert found["mae"] == pytest.approx(14 / 4)
    assert found["mse"] == pytest.approx((4 + 4 + 64 + 4) / 4)
    assert found["relative_l2"] == pytest.approx(100 * 19 / 400)
    assert SCORE.metrics(logits[4:], targets[4:]) == {}
    for few in (slice(0, 1), slice(0, 4, 3)):  # one sample, and two equal guesses
        assert math.isnan(SCORE.metrics(logits[few], targets[few])["spearman"])


def test_score_losses_by_hand() -> None:
    logits, targets = torch.tensor([[0.5], [1.0], [3.0]], requires_grad=True), torch.tensor([14.0, 6.0, math.nan])
    mse = SCORE.loss(logits, targets)  # wanted 1 and -1: errors -0.5 and 2
    assert mse.item() == pytest.approx((0.25 + 4.0) / 2)
    mse.backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([-0.5, 2.0, 0.0]), "without a score nothing is learned"
    both = Score("points", 0.0, 20.0, 10.0, 4.0, criterion="mse_l1")
    assert both.loss(logits, targets).item() == pytest.approx((0.25 + 4.0) / 2 + (0.5 + 2.0) / 2)
    assert SCORE.loss(logits, torch.full((3,), math.nan)).item() == 0.0


def test_scores_as_distributions_by_hand() -> None:
    """Bins 0, 10, 20; of a 10 exp(-1/2), 1, exp(-1/2) in parts; of a 20 exp(-2), exp(-1/2), 1."""
    task = Score("points", 0.0, 20.0, criterion="usdl", bins=3, sigma=1.0)
    assert task.output_names == ("points=0", "points=10", "points=20")
    e = math.exp
    wanted = np.array([[e(-0.5), 1, e(-0.5)], [e(-2), e(-0.5), 1]])
    wanted /= wanted.sum(1, keepdims=True)
    np.testing.assert_allclose(task.distribution(torch.tensor([10.0, 20.0])), wanted, rtol=1e-6)
    logits = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], np.float32))
    assert task.guess(logits).tolist() == pytest.approx([10.0, 2.0 + 14.0]), "the expectation"
    assert task.guess(torch.tensor(logits)).tolist() == pytest.approx([10.0, 16.0])
    slow = (wanted * (np.log(wanted) - logits)).sum(1)
    loss = task.loss(torch.tensor(logits), torch.tensor([10.0, 20.0]))
    assert loss.item() == pytest.approx(slow.mean(), rel=1e-5)
    assert task.loss(torch.tensor(np.log(wanted)), torch.tensor([10.0, 20.0])).item() == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(task.guess(task.logits_of(np.array([0.0, 3.0, 25.0]))), [0, 3, 20], atol=1e-4)
    np.testing.assert_allclose(SCORE.guess(SCORE.logits_of(np.array([0.0, 3.0, 25.0]))), [0, 3, 25], atol=1e-5)


def test_joint_is_the_weighted_sum_of_its_parts() -> None:
    targets = JOINT.encode_all(SAMPLES)
    np.testing.assert_array_equal(targets[2:], [[-1, 0, 1, np.nan], [-1, -1, -1, np.nan]])
    assert JOINT.labelled(targets).tolist() == JOINT.labelled(torch.tensor(targets)).tolist() == [True] * 3 + [False]
    assert [JOINT.text(t) for t in targets] == ["tuck, a|b, 14", "pike, -, 6", "-, b, -", ""]
    logits = torch.tensor(LOGITS, requires_grad=True)
    loss = JOINT.loss(logits, torch.tensor(targets))
    tasks = [task for _, task in JOINT.parts]
    own = [torch.tensor(task.encode_all(SAMPLES)) for task in tasks]
    slow = [
        F.cross_entropy(torch.tensor(LOGITS[:2, :2]), torch.tensor([1, 0])),
        F.binary_cross_entropy_with_logits(torch.tensor(LOGITS[[0, 2], 2:4]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])),
        torch.tensor(((0.5 - 1.0) ** 2 + (-1.5 + 1.0) ** 2) / 2),
    ]
    parts = [task.loss(torch.tensor(LOGITS[:, place]), y) for (place, task), y in zip(JOINT.parts, own, strict=True)]
    assert [p.item() for p in parts] == pytest.approx([p.item() for p in slow])
    assert loss.item() == pytest.approx(sum(w * p.item() for w, p in zip((1, 1, 0.5), slow, strict=True)))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[3].tolist() == [0.0] * 5
    assert torch.isfinite(logits.grad).all()
    empty = torch.empty(0, 5, requires_grad=True)
    assert JOINT.loss(empty, torch.empty(0, 4)).item() == 0.0
    assert task_from_dict(json.loads(json.dumps(JOINT.to_dict()))) == JOINT


def test_joint_metrics_by_hand() -> None:
    """Right: both columns of sample 0, none of sample 1's one, none of sample 2's one."""
    targets = JOINT.encode_all(SAMPLES)
    found = JOINT.metrics(LOGITS, targets)
    assert found["top1.position"] == 0.5
    assert found["top1.tags"] == 0.5
    assert found["correct"] == pytest.approx(1 / 3)
    assert found["all_correct"] == pytest.approx(1 / 3)
    assert found["spearman.points"] == pytest.approx(1.0), "guesses 12 and 4 of 14 and 6"
    assert found["mse.points"] == pytest.approx(4.0)
    assert found["joint"] == pytest.approx((0.5 + 0.5 + 1.0) / 3)
    assert set(found) == set(JOINT.metric_kinds)
    flat = LOGITS.copy()
    flat[:, 4] = 0.0
    assert JOINT.metrics(flat, targets)["joint"] == pytest.approx(1 / 3), "no ranking counts as 0"
    assert JOINT.metrics(LOGITS[3:], targets[3:]) == {}
    for points in (JOINT.points(LOGITS, targets), JOINT.points(torch.tensor(LOGITS), torch.tensor(targets))):
        values, known = points["correct"]
        assert (values[:3].tolist(), known.tolist()) == ([1.0, 0.0, 0.0], [True, True, True, False])
    assert JOINT.classes_of(targets).tolist()[2:] == [-1, -1]


def test_pooling_goes_part_by_part() -> None:
    clips = np.stack([LOGITS, LOGITS[::-1]], 1)
    pooled = JOINT.pool(clips, "scores")
    shares = np.stack([Classification(("a", "b")).scores(x[:, :2]) for x in (LOGITS, LOGITS[::-1])])
    np.testing.assert_allclose(np.exp(pooled[:, :2]), shares.mean(0), rtol=1e-5)
    np.testing.assert_allclose(pooled[:, 4], (LOGITS[:, 4] + LOGITS[::-1, 4]) / 2)
    np.testing.assert_allclose(JOINT.pool(clips, "scores", np.array([1.0, 0.0]))[:, 4], LOGITS[:, 4])
    np.testing.assert_allclose(JOINT.scores(LOGITS), JOINT.scores(torch.tensor(LOGITS)), rtol=1e-5)


def test_distillation_goes_part_by_part() -> None:
    mine, taught = torch.tensor(LOGITS), torch.tensor(LOGITS[::-1].copy())
    slow = distillation_loss(mine[:, :2], taught[:, :2], temperature=2.0)
    slow = slow + distillation_loss(mine[:, 2:4], taught[:, 2:4], temperature=2.0, exclusive=False)
    slow = slow + 0.5 * (mine[:, 4] - taught[:, 4]).square().mean()
    torch.testing.assert_close(task_distillation(mine, taught, JOINT, temperature=2.0), slow)


def test_networks_compare_in_units_of_the_table() -> None:
    other = Score("points", 0.0, 20.0, offset=0.0, scale=17.0)
    logits = np.array([[0.5], [-1.0]], np.float32)
    assert SCORE.in_units(logits).tolist() == [[12.0], [6.0]]
    assert SCORE.unscaled().guess(SCORE.in_units(logits)).tolist() == [12.0, 6.0]
    assert SCORE.same_as(other)
    assert SCORE.output_names != other.output_names, "the classifier of one is of no use to the other"


def test_tasks_are_made_of_a_table() -> None:
    table = Table(
        tuple(sample(i, "train" if i < 3 else "test", points=str(p), label="ab"[i % 2])
              for i, p in enumerate((2, 4, 6, 20))), "t.csv")  # fmt: skip
    task = task_of(table, DataConfig(targets=["points:score"]))
    assert isinstance(task, Score)
    assert (task.offset, task.scale) == (4.0, pytest.approx(math.sqrt(8 / 3))), "of the training samples"
    assert (task.low, task.high) == (2.0, 20.0), "of all samples"
    score = ScoreConfig(offset=0.0, scale=17.0, low=0.0, high=104.5, loss="mse_l1")
    made = make_task(table, ["points:score"], score=score)
    assert made == Score("points", 0.0, 104.5, 0.0, 17.0, "mse_l1")
    joint = make_task(table, ["label", "points:score"], weights={"points": 3.0})
    assert joint.weights == (1.0, 3.0)
    assert joint.columns == ("label", "points")
    assert make_task(table, ["label"]) == Classification(("a", "b"))
    for kind in ("train", "val"):
        assert metrics_of(["label", "points:score"]) == joint.metric_kinds, kind
    assert kind_of("spearman.points_first", joint.metric_kinds) == "spearman.points"
    for weights, message in (({"x": 1.0}, "'x' is no target; targets: label, points"),
                             ({"label": -1.0}, "label has -1.0; give 0 or more")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make_task(table, ["label", "points:score"], weights=weights)
    with pytest.raises(ValueError, match="there is one target"):
        make_task(table, ["label"], weights={"label": 1.0})
    with pytest.raises(ValueError, match="targets is empty"):
        split_targets([])
    with pytest.raises(ValueError, match=r"score.scale=0.0: must be above 0"):
        ScoreConfig(scale=0.0)
    with pytest.raises(ValueError, match="range of scores 9 to 5 is empty"):
        make_task(table, ["points:score"], score=ScoreConfig(low=9.0, high=5.0))


@pytest.mark.parametrize("text", ["abc", "nan", "inf", "1_000", "1,5"])
def test_a_score_that_is_no_number(text: str) -> None:
    table = Table((sample(0, points="1"), sample(1, points="2"), sample(2, points=text)), "t.csv")
    with pytest.raises(TableError, match=rf"^t.csv line 4 \(2.mp4\): points is '{text}', no number; correct the score"):
        make_task(table, ["points:score"])
    with pytest.raises(TableError, match=r"line 4 \(2.mp4\): points is"):
        SCORE.encode(table[2])


def test_splits_of_several_targets() -> None:
    """Every sample keeps all its values or none; held-out groups have every class of every column."""
    rows = [sample(i, group=f"g{i}", position=("pike", "tuck")[i % 2], tags="ab"[i // 2 % 2], points=str(i))
            for i in range(40)]  # fmt: skip
    table = Table(tuple(rows), "t.csv")
    task = make_task(table, ["position", "tags", "points:score"])
    fewer = drop_labels(table, task.columns, 0.25, 0, stratum=task.stratum)
    assert sorted({len(s.targets) for s in fewer}) == [0, 3]
    assert sum(bool(s.targets) for s in fewer) == 10
    _, val = hold_out(table, 0.1, 0, strata=task.strata)
    assert {s.targets["position"] for s in val} == {"pike", "tuck"}
    assert {s.targets["tags"] for s in val} == {"a", "b"}
    assert len(val) <= 8


def test_rank_correlations_are_compared_over_groups() -> None:
    rng = np.random.default_rng(0)
    true = np.arange(30.0)
    good, bad = true + rng.normal(0, 1, (2, 30)), rng.normal(0, 1, (1, 30))
    groups = [f"g{i // 3}" for i in range(30)]
    found = paired_spearman(good, bad, true, groups, num=300)
    assert found is not None
    slow = np.mean([spearmanr(g, true).statistic for g in good]) - spearmanr(bad[0], true).statistic
    assert found.mean == pytest.approx(slow)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.mean < found.high
    # The same resamples, one after the other.
    picks = np.random.default_rng(0).integers(10, size=(300, 10))
    each = []
    for groups_of in picks:
        rows = np.concatenate([3 * g + np.arange(3) for g in groups_of])
        a = np.mean([spearmanr(g[rows], true[rows]).statistic for g in good])
        each.append(a - spearmanr(bad[0][rows], true[rows]).statistic)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(each, [0.025, 0.975])))
    assert str(found).startswith(f"{found.mean:+.3f} [{found.low:+.3f}, ")
    assert paired_spearman(good, np.zeros((1, 30)), true, groups) is None


def test_tally_of_several_targets() -> None:
    samples = [sample(i, group=f"g{i}", position=("pike", "tuck")[i % 2], points=str(i)) for i in range(6)]
    samples[5] = sample(5, group="g5", position="tuck")
    task = Joint((Classification(("pike", "tuck"), "position"), Score("points", 0.0, 4.0)), (1.0, 1.0))
    right = {s.id: np.array([1.0 - i % 2, i % 2, i], np.float32) for i, s in enumerate(samples)}
    wrong = {s.id: np.array([1.0, 0.0, (7 * i) % 5], np.float32) for i, s in enumerate(samples)}  # 0 2 4 1 3
    same = {s.id: np.array([1.0, 0.0, 2.0], np.float32) for s in samples}
    entries = [Entry(n, ("joint",), {0: {"joint": x}}) for n, x in (("a", right), ("b", wrong), ("c", same))]
    tally = Tally(entries, samples, task, {"all_correct_pike": {"position": "pike"}})
    a, b, c = (row["metrics"] for row in tally.rows())
    assert a["joint"]["mean"] == a["all_correct"]["mean"] == 1.0
    assert b["top1.position"]["mean"] == b["correct"]["mean"] == 0.5
    assert b["mse.points"]["mean"] == pytest.approx((0 + 1 + 4 + 4 + 1) / 5)
    assert b["all_correct_pike"]["mean"] == 1.0
    assert c["spearman.points"] == {"mean": None, "std": None, "values": [None]}
    found = {d["metric"]: d for d in tally.differences([("a", "b"), ("a", "c")])[:6]}
    assert list(found) == ["spearman.points", "correct", "all_correct", "top1.position", "mse.points",
                           "all_correct_pike"]  # fmt: skip
    assert found["top1.position"]["mean"] == 0.5
    assert found["mse.points"]["mean"] == pytest.approx(-2.0)
    assert found["spearman.points"]["mean"] == pytest.approx(1.0 - spearmanr(range(5), [0, 2, 4, 1, 3]).statistic)
    assert "points" not in found["mse.points"]["text"], "not in percent"
    assert tally.differences([("a", "c")])[0]["metric"] == "correct", "no ranking to compare with"
    assert tally.per_class()["b"] == {"position=pike": 1.0, "position=tuck": 0.0}
    assert tally.confusion("b")["position"].tolist() == [[3, 0], [3, 0]]


def test_majority_and_mean_of_several_targets() -> None:
    rows = [sample(i, position="tuck" if i else "pike", points=str(3 * i)) for i in range(3)]
    train, test = Table((*rows, sample(3)), "t.csv"), Table((sample(9, position="tuck", points="5"),), "t.csv")
    for score in (ScoreConfig(), ScoreConfig(loss="usdl", bins=7)):
        task = make_task(train, ["position", "points:score"], score=score)
        found = run_baseline("majority", train, test, task)
        assert task.describe(found.logits[0]) == "tuck, 3.000"
        assert task.metrics(found.logits, found.targets)["mse.points"] == pytest.approx(4.0, abs=1e-3)


def test_guesses_from_samples_alike_in_columns() -> None:
    rows = [
        sample(0, position="pike", points="2", pool="a"),
        sample(1, position="tuck", points="4", pool="b"),
        sample(2, position="tuck", points="8", pool="b"),
        sample(3, position="pike", points="0", pool="b"),
        sample(4, position="pike"),
        sample(5, pool="c", points="7"),
    ]
    train = Table(tuple(rows), "t.csv")
    test = Table(tuple(sample(6 + i, pool=pool, position="pike") for i, pool in enumerate("abcd")), "t.csv")
    task = make_task(train, ["position", "points:score"])
    found = run_baseline("alike:pool", train, test, task)
    # Pool c has a score and no position, pool d nothing: what is missing comes from all, 3 of 5 pikes and 21 / 5.
    assert [task.describe(row) for row in found.logits] == ["pike, 2.000", "tuck, 4.000", "pike, 7.000", "pike, 4.200"]
    with pytest.raises(ValueError, match="unknown baseline 'alike'; known: majority, alike:COLUMN"):
        run_baseline("alike", train, test, task)
    with pytest.raises(ValueError, match="needs column 'depth', which no sample has"):
        run_baseline("alike:pool+depth", train, test, task)


def test_predictions_come_back_and_are_fused(tmp_path: Path) -> None:
    table = ["path,position,points,split"]
    table += [f"{i}.mp4,{('pike', 'tuck')[i % 2]},{5 * i},test" for i in range(3)]
    (tmp_path / "table.csv").write_text("\n".join(table))
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_bytes(b"")
    position = Classification(("pike", "tuck"), "position")
    files = []
    for name, scale in (("a", 1.0), ("b", 10.0)):
        task = Joint((position, Score("points", 0.0, 10.0, 0.0, scale)), (1.0, 1.0))
        guesses = np.array([0.0, 4.0, 8.0]) + (0.0 if name == "a" else 2.0)
        logits = np.stack([[1.0, 1.0, -1.0], [0.0, 0.0, 0.0], guesses / scale], 1).astype(np.float32)
        targets = np.array([[0, 0], [1, 5], [0, 10]], np.float32)
        (tmp_path / name).mkdir()
        write_predictions(
            tmp_path / name, Predictions([f"{i}.mp4" for i in range(3)], [None] * 3, logits, targets), task
        )
        assert read_predictions(tmp_path / name)[0] == task
        files.append(str(tmp_path / name / "predictions.csv"))
    with Path(files[0]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["target"] == "tuck, 5"
    assert (rows[1]["predicted"], rows[1]["position"], rows[1]["position_predicted"]) == ("pike, 4.00", "tuck", "pike")
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert {"confusion.position.png", "per_class.position.csv", "scores.points.png", "task.json"} <= names
    rows, _ = evaluate_fused(files, tmp_path / "table.csv")
    metrics = {row["name"]: row["metrics"] for row in rows}
    assert metrics["fused"]["mse.points"]["mean"] == pytest.approx(0 + (1 + 0 + 1) / 3), "guesses 1, 5, 9 of 0, 5, 10"
    assert metrics["a"]["top1.position"]["mean"] == pytest.approx(1 / 3)


def test_predictions_read_as_a_person_would_write_them() -> None:
    names = {"rotation_type": ("back", "forward"), "ss_no": ("2 somersaults", "2.5 somersaults"),
             "tw_no": ("0 twists", "1 twist"), "position": ("pike", "tuck")}  # fmt: skip
    score = Score("final_score", 0.0, 104.5, 67.0, 17.0)
    task = Joint((*(Classification(v, k) for k, v in names.items()), score), (1.0,) * 5)
    logits = np.array([0, 3, 0, 3, 0, 3, 0, 3, (68.43 - 67) / 17], np.float32)
    assert task.describe(logits) == "forward, 2.5 somersaults, 1 twist, tuck, 68.4"
    said = Prediction("x.mp4", [], 0.1, 6, answers=task.answers(logits))
    data = said.to_dict()
    assert data["text"] == "forward, 2.5 somersaults, 1 twist, tuck, 68.4"
    assert "labels" not in data
    assert data["targets"]["final_score"] == {"value": pytest.approx(68.43, abs=1e-4)}
    assert data["targets"]["tw_no"]["value"] == "1 twist"
    assert data["targets"]["tw_no"]["probability"] == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-5)
    assert [line for line, _ in said.lines] == ["rotation_type: forward", "ss_no: 2.5 somersaults", "tw_no: 1 twist",
                                                "position: tuck", "final_score: 68.4"]  # fmt: skip
    frame = np.full((120, 160, 3), 128, np.uint8)
    drawn = draw_overlay(frame, said.lines, [0.5], 0.5)
    assert (drawn[: 8 * 13, :60] != 128).any(2).mean() > 0.5
    tags = MultiLabel(("run", "jump", "sit"), "tags").answers(np.array([2.0, 1.0, -1.0], np.float32))
    assert tags[0].text == "run and jump"


def test_the_command_line_takes_targets_as_a_list() -> None:
    assert _expand(["train", "t.csv", "--targets", "a", "b:score", "--seed", "1"]) == [
        "train", "t.csv", "--data.targets", '["a", "b:score"]', "--seed", "1"]  # fmt: skip
    assert _expand(["evaluate", "run", "t.csv", "--targets", "a"]) == ["evaluate", "run", "t.csv", "--targets", '["a"]']


COLOURS = {"red": (200, 40, 40), "blue": (40, 40, 200)}
TRAIN = ["--student", "timm/mobilenetv3_small_050", "--student.view.size", "32", "--data.workers", "0",
         "--optim.epochs", "1", "--optim.batch_size", "4", "--trainer.accelerator", "cpu"]  # fmt: skip
HERE = ["--workers", "0", "--device", "cpu"]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, make_video: MakeVideo) -> Write:
    """Twelve videos of a coloured ground; a table with two classes and a score, changed by line."""

    def make(changes: dict[int, dict[str, str]] | None = None, **columns: Callable[[int], str]) -> Path:
        lines = []
        for k in range(12):
            colour, size = list(COLOURS)[k % 2], ("small", "large")[k // 2 % 2]
            row = {"path": f"{k}.mp4", "colour": colour, "size": size, "points": f"{10 + 7 * (k % 5)}",
                   "split": "train" if k < 8 else "test", "group": f"g{k}"}  # fmt: skip
            row |= {name: value(k) for name, value in columns.items()} | (changes or {}).get(k, {})
            lines.append(row)
            if not (tmp_path / f"{k}.mp4").exists():
                frames = np.full((4, 32, 32, 3), COLOURS[colour], np.uint8)
                make_video(tmp_path / f"{k}.mp4", frames)
        with (tmp_path / "table.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        return tmp_path / "table.csv"

    return make


def test_a_users_own_table(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained, evaluated, predicted and used as a teacher through the command line; some values are missing."""
    table = write({1: {"points": ""}, 2: {"colour": "", "size": ""}, 3: {"colour": "", "size": "", "points": ""}})
    run = tmp_path / "run"
    targets = ["--targets", "colour", "size", "points:score"]
    further = ["--trainer.select", "best", "--data.target_weights.points", "0.5", "--data.score.loss", "mse_l1"]
    assert main(["train", str(table), "--output", str(run), *TRAIN, *targets, *further]) == 0
    metrics = read_results(run)[0]["metrics"]
    assert {"joint", "correct", "all_correct", "top1.colour", "top1.size", "spearman.points", "relative_l2.points",
            "mae.points", "mse.points", "val_joint"} <= metrics.keys()  # fmt: skip
    assert Run(run).config["task"]["weights"] == [1.0, 1.0, 0.5]
    with (run / "metrics.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert {"correct", "top1.colour", "mse.points", "val_loss"} <= line.keys()

    out = tmp_path / "out"
    assert main(["evaluate", str(run), str(table), "--output", str(out), "--protocol", "video", "--num_moments", "2",
                 "--pooling", "scores", *HERE]) == 0  # fmt: skip
    assert "top1.colour (%)" in capsys.readouterr().out
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = [row["colour"] == row["colour_predicted"] for row in rows]
    assert read_results(out)[0]["metrics"]["top1.colour"]["mean"] == pytest.approx(np.mean(known))

    video = str(tmp_path / "8.mp4")
    assert main(["predict", str(run), video, "--device", "cpu", "--overlay", str(tmp_path / "o.mp4")]) == 0
    said = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert said["text"] == ", ".join([said["targets"]["colour"]["value"], said["targets"]["size"]["value"],
                                      f"{said['targets']['points']['value']:.2f}"])  # fmt: skip
    assert main(["predict", str(run), video, "--device", "cpu", "--output", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == ["path", "text", "colour", "colour_probability", "size", "size_probability", "points",
                         "seconds", "frames", "time", "fault", "error", "unsure", "by"]  # fmt: skip
    assert float(row["points"]) == pytest.approx(said["targets"]["points"]["value"], rel=1e-4)
    assert row["text"] == said["text"]

    teach = ["--teacher", str(run), "--method", "logits", *targets]
    # Of another scale is not the teacher's classifier; with the same settings it is.
    assert main(["train", str(table), "--output", str(tmp_path / "s"), *TRAIN, *teach, "--data.score.scale", "17"]) == 2
    assert "in units of" in capsys.readouterr().err
    assert main(["train", str(table), "--output", str(tmp_path / "s"), *TRAIN, *teach]) == 0
    assert "distillation_loss" in (tmp_path / "s" / "metrics.csv").read_text()
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "s"), str(table), "--teacher", str(run), *HERE]) == 0
    assert "agreement" in capsys.readouterr().out
    assert main(["evaluate", str(run), str(table), "--targets", "colour", *HERE]) == 2
    assert "was trained for colour, size, points:score" in capsys.readouterr().err


def test_a_score_alone_without_a_ranking(write: Write, tmp_path: Path) -> None:
    """Two test samples of one score have no rank correlation: null in the results, and no crash."""
    table = write(points=lambda k: "5" if k >= 8 else str(k))
    run = tmp_path / "run"
    options = ["--targets", "points:score", "--data.score.loss", "usdl", "--data.score.bins", "11"]
    assert main(["train", str(table), "--output", str(run), *TRAIN, *options, "--data.val", "test", "--data.test",
                 "null", "--trainer.select", "best"]) == 0  # fmt: skip
    metrics = read_results(run)[0]["metrics"]
    assert metrics["val_spearman"]["mean"] is None
    assert metrics["val_mse"]["mean"] is not None
    assert (
        main(["predict", str(run), str(tmp_path / "8.mp4"), "--device", "cpu", "--output", str(tmp_path / "p.jsonl")])
        == 0
    )
    (line,) = (tmp_path / "p.jsonl").read_text().splitlines()
    assert 0.0 <= json.loads(line)["targets"]["points"]["value"] <= 7.0


def test_folds_are_joined_in_units_of_the_table(write: Write, tmp_path: Path) -> None:
    """Each fold scales scores by its own training samples; the mean that `majority` guesses is that of the others."""
    data = DataConfig(targets=["colour", "points:score"], workers=0)
    table = read_table(write(split=lambda k: ""))
    folds = make_folds(table, "folds:3", data)
    points = {s.id: float(s.targets["points"]) for s in table}
    means, logits = {}, {}
    for fold in folds:
        path = tmp_path / f"{fold.name}.npz"
        run_baseline_fold("majority", fold, path, None, tmp_path / "cache", 0)
        means |= {s.id: np.mean([float(t.targets["points"]) for t in fold.table.select("train")]) for s in fold.test}
        logits |= load_views({"joint": path})["joint"]
    task = task_of(folds[0].table, folds[0].data).unscaled()
    tally = Tally([Entry("majority", ("joint",), {0: {"joint": logits}})], list(table), task, {})
    error = np.mean([(means[name] - points[name]) ** 2 for name in points])
    assert tally.rows()[0]["metrics"]["mse.points"]["mean"] == pytest.approx(error, rel=1e-4)
    assert {name: row[2] for name, row in logits.items()} == pytest.approx(means, rel=1e-5)


WRONG: dict[str, tuple[dict[int, dict[str, str]], dict[str, Callable[[int], str]], list[str], str]] = {
    "not a number": ({9: {"points": "many"}}, {}, ["points:score"], "line 11 (9.mp4): points is 'many', no number"),
    "constant": ({}, {"points": lambda k: "3"}, ["colour", "points:score"], "has the one score 3"),
    "no score": ({}, {"points": lambda k: ""}, ["points:score"], "no row has a value in column `points`"),
    "one class": ({}, {"colour": lambda k: "red"}, ["colour", "size"], "column 'colour' has the one class 'red'"),
    "twice": ({}, {}, ["colour", "colour:score"], "targets: column 'colour' stands twice"),
    "unknown": ({}, {}, ["colour", "shape"], "column `shape` (further columns: colour, points, size)"),
    "kind": ({}, {}, ["points:number"], "unknown kind 'number'; known: classification, multilabel, score"),
    "new class": ({9: {"size": "huge"}}, {}, ["colour", "size"], "class 'huge' has samples in split 'test'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tables_are_told_in_one_line(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    changes, columns, targets, message = WRONG[case]
    table = write(changes, **columns)
    assert main(["train", str(table), "--output", str(tmp_path / "run"), *TRAIN, "--targets", *targets]) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_two_hundred_classes(write: Write, tmp_path: Path) -> None:
    """More classes than videos here; those without a video are in a table of unreadable size otherwise."""
    names = "|".join(f"c{i:03d}" for i in range(200))
    table = write(tags=lambda k: names if k == 0 else f"c{k:03d}")
    run = tmp_path / "run"
    assert (
        main(["train", str(table), "--output", str(run), *TRAIN, "--targets", "tags:multilabel", "points:score"]) == 0
    )
    assert Run(run).config["task"]["tasks"][0]["class_names"][-1] == "c199"
    assert (
        main(["predict", str(run), str(tmp_path / "8.mp4"), "--device", "cpu", "--output", str(tmp_path / "p.jsonl")])
        == 0
    )
    said: dict[str, Any] = json.loads((tmp_path / "p.jsonl").read_text())
    assert len(said["targets"]["tags"]["labels"]) == 5


def test_a_run_from_before_there_were_several_targets(tmp_path: Path) -> None:
    """`data.target` of an old folder is `data.targets` with one entry."""
    run = Run(tmp_path)
    run.write_json("settings.json", {"data": {"target": "colour", "workers": 0}, "seed": 1})
    run.checkpoint.write_bytes(b"")
    now: dict[str, Any] = {"seed": 1, "data": asdict(DataConfig(targets=["colour"]))}
    run.compare(now)
    with pytest.raises(ValueError, match=r"begun with data.targets=\['colour'\], now \['size'\]"):
        run.compare({**now, "data": {**now["data"], "targets": ["size"]}})
