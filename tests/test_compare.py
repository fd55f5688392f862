"""Comparison: folds, mistakes, which job needs which, numbers by hand, and one small comparison from end to end."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillmotion.compare import compare, make_jobs
from stillmotion.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RowConfig, TrainerConfig
from stillmotion.data.journal import only_writer
from stillmotion.data.table import Sample, Table, read_table
from stillmotion.plan import Plan, check
from stillmotion.report.comparison import collect, write_comparison
from stillmotion.results import make_row, read_results
from stillmotion.tally import Entry, Tally, kind_of
from stillmotion.tasks import Classification
from stillmotion.trials import make_folds, write_arrays
from tests.conftest import MakeVideo

STUDENT = ModelConfig(name="timm/test_resnet", view={"size": 32})
TEACHER = ModelConfig(name="resnet3d_10", options={"width": 4}, view={"size": 32, "num_frames": 4})
OF_ROW = ModelConfig(name="row:teacher")
HALLUCINATE = MethodConfig(name="hallucinate")
DATA = DataConfig(num_draws=2, workers=0)


def sample(i: int, label: str, split: str | None = None, group: str | None = None, **targets: str) -> Sample:
    return Sample(Path(f"{i}.mp4"), f"{i}.mp4", {"label": label, **targets}, split, group, line=i + 2)


def small_table() -> Table:
    """Twelve training samples in six groups, four test samples in two."""
    rows = [sample(i, "ab"[i % 2], "train", f"g{i // 2}", fold=str(i % 3)) for i in range(12)]
    for i in range(12, 16):
        rows.append(sample(i, "ab"[i % 2], "test", f"t{i // 14}", backdrop="plain" if i < 14 else "rich"))
    return Table(tuple(rows), "table.csv")


def make_plan(tmp_path: Path, rows: dict[str, RowConfig], **changes: Any) -> Plan:
    table = changes.pop("table", small_table())
    data = changes.pop("data", DATA)
    splits = changes.pop("splits", "column")
    settings: dict[str, Any] = {
        "table": table, "output": tmp_path / "out", "rows": rows, "baselines": [], "seeds": [0, 1],
        "folds": make_folds(table, splits, data), "splits": splits, "fractions": [1.0], "evaluate": {"top1": {}},
        "subsets": {}, "references": [], "data": data, "optim": OptimConfig(), "trainer": TrainerConfig(),
        "probe": None, "workers": 1, "root": None,
    }  # fmt: skip
    return Plan(**{**settings, **changes})


ROWS = {
    "teacher": RowConfig(student=TEACHER),
    "plain": RowConfig(student=STUDENT),
    "hallucinet": RowConfig(student=STUDENT, method=HALLUCINATE, teacher=OF_ROW),
}


def test_folds_of_the_column() -> None:
    (fold,) = make_folds(small_table(), "column", DATA)
    assert (fold.name, len(fold.test)) == ("test", 4)


@pytest.mark.parametrize(("splits", "num"), [("folds:3", 3), ("leave-one-group-out", 6), ("column:fold", 3)])
def test_folds_test_every_training_sample_once(splits: str, num: int) -> None:
    folds = make_folds(small_table(), splits, replace(DATA, val="val"))
    assert len(folds) == len({f.name for f in folds}) == num
    tested = sorted(s.name for f in folds for s in f.test)
    assert tested == sorted(f"{i}.mp4" for i in range(12))
    for fold in folds:
        train = fold.table.select("train")
        assert (fold.data.train, fold.data.val, fold.data.test) == ("train", None, "test")
        assert not {s.name for s in train} & {s.name for s in fold.test}
        if splits == "column:fold":  # samples without a fold number are always trained on
            assert len(train) == 12
            assert {f"{i}.mp4" for i in range(12, 16)} < {s.name for s in train}
        else:
            assert not set(train.groups) & set(fold.test.groups)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ("random", "give column, folds:K, leave-one-group-out or column:NAME"),
        ("folds:9", "9 folds over 6 groups"),
        ("column:nothing", "nothing"),
    ],
)
def test_wrong_splits(splits: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_folds(small_table(), splits, DATA)


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ({}, {}, "rows is empty"),
        ({"a b": RowConfig(student=STUDENT)}, {}, "row 'a b': use letters"),
        (ROWS, {"references": ["plian"]}, "reference 'plian' is no row; rows: teacher, plain, hallucinet"),
        (ROWS, {"evaluate": {"top1": {}, "first": {}}}, "metric 'first': its name must begin with top1"),
        (ROWS, {"subsets": {"top1_x": {"backdrop": "blue"}}}, "'top1_x' is empty: no test sample has backdrop=blue"),
        (ROWS, {"seeds": [1, 1]}, "give at least one, each once"),
        (ROWS, {"fractions": [0.0]}, "must be above 0"),
        (
            ROWS,
            {"data": replace(DATA, num_draws=None)},
            "row 'hallucinet': stored teacher features need a fixed number",
        ),
        ({"plain": ROWS["plain"], "h": ROWS["hallucinet"]}, {}, "row 'h': there is no row 'teacher' here; rows: plain"),
        ({"teacher": ROWS["hallucinet"]}, {}, "row 'teacher' is its own teacher"),
        ({"a": replace(ROWS["plain"], optim={"epoch": 3})}, {}, "row 'a': optim has no 'epoch'; known: optimiser, lr"),
        (ROWS, {"baselines": ["magic"]}, "unknown baseline 'magic'; known: majority"),
        (ROWS, {"baselines": ["frame_linear"]}, "needs probe"),
    ],
)
def test_mistakes_are_found_before_training(
    tmp_path: Path, rows: dict[str, RowConfig], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check(make_plan(tmp_path, rows, **changes))
    assert "\n" not in str(error.value)


def test_jobs_wait_for_what_they_need(tmp_path: Path) -> None:
    rows = {
        **ROWS,
        "no_fusion": replace(ROWS["hallucinet"], method=replace(HALLUCINATE, options={"fuse": "none"})),
        "first": replace(ROWS["hallucinet"], teacher_seed="first"),
        "live": replace(ROWS["hallucinet"], cache=False),
        "random": replace(ROWS["hallucinet"], teacher=ModelConfig(name="row:teacher", weights="random")),
        "resumed": RowConfig(student=ModelConfig(name="row:plain")),
        "all_labels": replace(ROWS["hallucinet"], teacher=ModelConfig(name="row:teacher@100%")),
    }
    plan = make_plan(tmp_path, rows, fractions=[1.0, 0.25], baselines=["majority"])
    check(plan)
    jobs = {job.name: job for job in make_jobs(plan)}
    runs = plan.output / "runs"
    assert len(jobs) == len({job.name for job in make_jobs(plan)})

    store = "features/teacher/test/seed1/draws1"
    assert jobs["hallucinet/test/seed1"].after == ("teacher/test/seed1", store)
    assert jobs[store].after == ("teacher/test/seed1",)
    assert jobs[store].arguments["teacher"].name == str(runs / "teacher/test/seed1")
    assert jobs["no_fusion/test/seed1"].after[1] == store  # one store serves both
    assert jobs["hallucinet/test/seed1"].arguments["features"] == jobs[store].arguments["folder"]
    assert jobs["hallucinet/test/seed1"].arguments["teacher"] is None

    shared = jobs["first/test/seed1"].after
    assert shared == ("teacher/test/seed0", "features/teacher/test/seed0/draws1")
    assert jobs[shared[1]].lock == jobs["features/teacher/test/seed0/draws0"].lock
    live = jobs["live/test/seed1"]
    assert live.after == ("teacher/test/seed1",)
    assert live.arguments["teacher"].name == str(runs / "teacher/test/seed1")
    assert live.arguments["features"] is None
    assert jobs["random/test/seed1"].after[1].startswith("features/teacher/test/seed1-")
    assert jobs["resumed/test/seed0"].arguments["row"].student.name == str(runs / "plain/test/seed0")

    assert jobs["hallucinet@25%/test/seed0"].after[0] == "teacher@25%/test/seed0"
    assert jobs["hallucinet@25%/test/seed0"].arguments["fold"].data.label_fraction == 0.25
    assert jobs["all_labels@25%/test/seed0"].after[0] == "teacher/test/seed0"
    assert jobs["majority/test"].arguments["seed"] == 0


def test_metric_names() -> None:
    assert [kind_of(n) for n in ("top1", "top5_first", "mean_class_x")] == ["top1", "top5", "mean_class"]


def test_tally_by_hand() -> None:
    """Four samples; seed 0 of `a` is right on three, seed 1 on one; `b` on one, and cannot read the last sample."""
    samples = [
        sample(0, "x", group="g", back="p"),
        sample(1, "x", group="g", back="p"),
        sample(2, "y", group="h", back="q"),
        sample(3, "y", group="h", back="p"),
    ]
    right, wrong = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)  # for an x

    def logits(marks: str) -> dict[str, np.ndarray]:
        by_class = {"x": (wrong, right), "y": (right, wrong)}
        return {s.id: by_class[s.targets["label"]][int(m)] for s, m in zip(samples, marks, strict=False)}

    a = Entry("a", ("top1",), {0: {"top1": logits("1110")}, 1: {"top1": logits("1000")}})
    a.further = {0: {"hallucinated_r2": 0.5}, 1: {"hallucinated_r2": 0.1}}
    b = Entry("b", ("top1",), {0: {"top1": logits("010")}}, cost={"frames": 1})
    tally = Tally([a, b], samples, Classification(("x", "y")), {"top1_p": {"back": "p"}})
    assert tally.unreadable == ["3.mp4"]
    first, second = tally.rows()
    assert first["metrics"]["top1"]["values"] == [1.0, pytest.approx(1 / 3)]
    assert first["metrics"]["top1_p"]["values"] == [1.0, 0.5]
    assert first["metrics"]["mean_class"]["values"] == [1.0, 0.25]
    assert first["metrics"]["hallucinated_r2"]["values"] == [0.5, 0.1]
    assert second == make_row("b", {"top1": [1 / 3], "mean_class": [0.25], "top1_p": [0.5]}, {"frames": 1})
    assert tally.per_class()["a"] == {"x": 0.75, "y": 0.5}
    assert tally.confusion("a")["label"].tolist() == [[3, 1], [1, 1]]
    whole, part = tally.differences([("a", "b")])
    # Averaged over its seeds a is right 1, 1/2, 1/2; minus b: 1, -1/2, 1/2.
    assert (whole["metric"], whole["mean"]) == ("top1", pytest.approx(1 / 3))
    assert (whole["low"], whole["high"], whole["num_groups"]) == (0.25, 0.5, 2)
    assert (part["metric"], part["mean"], part["num_groups"]) == ("top1_p", 0.25, 1)


def fake_runs(plan: Plan, accuracy: dict[str, float], skip: tuple[str, ...] = ()) -> None:
    """Predictions as the jobs would leave them: a row is right on the first samples of a fold, up to its accuracy."""
    folds = {f.name: f for f in plan.folds}
    for trial in plan.trials():
        if trial.name in skip:
            continue
        test = folds[trial.fold].test
        truth = np.array(["ab".index(s.targets["label"]) for s in test])
        keep = np.arange(len(test)) < accuracy[trial.row] * len(test)
        logits = np.eye(2, dtype=np.float32)[np.where(keep, truth, 1 - truth)]
        folder = plan.run_folder(trial)
        for view in plan.evaluate:
            write_arrays(folder / "compare" / f"{view}.npz", ids=np.array([s.id for s in test]), logits=logits)
        row = make_row(trial.row, {"top1": [0.5], "hallucinated_r2": [0.25]})
        (folder / "results.json").write_text(json.dumps({"rows": [row]}))
        (folder / "metrics.csv").write_text("epoch,task_loss,hallucination_loss\n0,1,0.2\n1,0.5,0.1\n")


def test_folds_are_pooled_and_everything_is_written(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, ROWS, splits="folds:3", references=["plain"], fractions=[1.0, 0.5],
                     evaluate={"top1": {}, "top1_first": {"moment": "first"}})  # fmt: skip
    failed = {"hallucinet/fold2/seed1": "out of memory"}
    fake_runs(plan, {"teacher": 1.0, "plain": 0.5, "hallucinet": 0.75}, skip=tuple(failed))
    found = collect(plan, failed)
    assert found.incomplete == {"hallucinet": [1]}
    costs = found.cost_arguments(plan)
    assert costs["runs"]["hallucinet"] == plan.run_folder(plan.trials()[0]).parents[2] / "hallucinet/fold1/seed0"
    plan.output.joinpath("costs.json").write_text(json.dumps({"plain": {"params": 10, "gmacs": 0.5}}))
    rows = {r["name"]: r for r in write_comparison(plan, found, failed)}
    assert list(rows) == ["teacher", "plain", "hallucinet", "teacher@50%", "plain@50%", "hallucinet@50%"]
    assert rows["plain"]["metrics"]["top1"] == {"mean": 0.5, "std": 0.0, "values": [0.5, 0.5]}
    assert rows["hallucinet"]["metrics"]["top1"] == {"mean": 0.75, "std": None, "values": [0.75]}
    assert rows["hallucinet"]["metrics"]["hallucinated_r2"]["values"] == [0.25]
    assert rows["plain"]["cost"]["gmacs"] == 0.5
    assert list(rows.values()) == read_results(plan.output)

    data = json.loads((plan.output / "results.json").read_text())
    assert data["failed"] == failed
    assert data["num_samples"] == 12
    difference = next(d for d in data["differences"] if (d["row"], d["metric"]) == ("hallucinet", "top1"))
    assert (difference["reference"], difference["mean"], difference["num_groups"]) == ("plain", 0.25, 6)
    assert ("hallucinet@50%", "plain@50%") in {(d["row"], d["reference"]) for d in data["differences"]}
    assert ("hallucinet@50%", "plain") not in {(d["row"], d["reference"]) for d in data["differences"]}

    text = (plan.output / "results.md").read_text()
    assert "`hallucinet` minus `plain`: +25.0 points [" in text
    assert "95 % paired bootstrap over 6 test groups, 1 and 2 seeds averaged" in text
    assert "- failed: `hallucinet/fold2/seed1`: out of memory" in text
    assert "12 test samples in 6 groups of `table.csv`" in text
    arrays = np.load(plan.output / "predictions.npz")
    assert arrays["plain/top1"].shape == (2, 12, 2)
    assert (arrays["teacher/top1"].argmax(2) == arrays["targets"]).all()
    with (plan.output / "per_class.csv").open() as file:
        assert [r["row"] for r in csv.DictReader(file)] == list(rows)
    for name in ("results.png", "curves.png", "views.png", "labels.png", "confusion/plain.png", "differences.json"):
        assert (plan.output / name).stat().st_size > 100
    assert json.loads((plan.output / "confusion/teacher.json").read_text())["matrix"] == [[12, 0], [0, 12]]


def write_videos(folder: Path, make_video: MakeVideo) -> Path:
    """A box that moves left or right."""
    lines = ["path,label,split,group"]
    for i in range(12):
        frames = np.full((12, 32, 48, 3), 100, np.uint8)
        for t in range(12):
            x = 8 + 2 * t if i % 2 else 32 - 2 * t
            frames[t, 10:20, x : x + 8] = [250, 60 * (i % 4), 0]
        make_video(folder / f"{i}.mp4", frames)
        lines.append(f"{i}.mp4,{'left' if i % 2 else 'right'},{'train' if i < 8 else 'test'},g{i // 2}")
    (folder / "8.mp4").write_bytes(b"broken")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def compare_small(table: Path, output: Path) -> int:
    rows = {
        "hallucinet": ROWS["hallucinet"],
        "teacher": replace(ROWS["teacher"], optim={"epochs": 2}),
        "wrong": RowConfig(student=STUDENT, method=MethodConfig(name="no_such_method")),
    }
    return compare(table, output=output, rows=rows, baselines=["majority"], seeds=[3], reference="teacher", data=DATA,
                   evaluate={"top1_4": {"num_moments": 4, "moment": "uniform"}}, workers=2,
                   optim=OptimConfig(epochs=1, batch_size=4), trainer=TrainerConfig(accelerator="cpu"))  # fmt: skip


def test_small_comparison_and_its_resumption(
    tmp_path: Path, make_video: MakeVideo, capsys: pytest.CaptureFixture[str]
) -> None:
    table, output = write_videos(tmp_path, make_video), tmp_path / "out"
    assert compare_small(table, output) == 1
    rows = {r["name"]: r for r in read_results(output)}
    assert list(rows) == ["majority", "hallucinet", "teacher"]
    data = json.loads((output / "results.json").read_text())
    assert data["failed"] == {"wrong/test/seed3": data["failed"]["wrong/test/seed3"]}
    assert "no_such_method" in data["failed"]["wrong/test/seed3"]
    assert data["unreadable"] == ["8.mp4"]
    assert (data["num_samples"], rows["majority"]["metrics"]["top1"]["mean"]) == (3, pytest.approx(2 / 3))
    assert set(rows["hallucinet"]["metrics"]) >= {"top1", "top1_4", "hallucinated_r2", "hallucinated_r2_within_class"}
    assert rows["teacher"]["cost"]["frames"] == 4
    assert rows["hallucinet"]["cost"]["ms_per_video"]
    assert (output / "features/teacher/test/seed3/still").is_dir()
    errors = capsys.readouterr().err
    assert "1 of 5 jobs failed, wrong/test/seed3 first" in errors

    with only_writer(output), pytest.raises(ValueError, match="out: another process is writing to this folder"):
        compare_small(table, output)

    # As a kill between training and prediction, and one before a run's results, would leave it.
    text, written = (output / "results.md").read_text(), modified(output / "runs/teacher")
    (output / "runs/teacher/test/seed3/compare/top1_4.npz").unlink()
    (output / "runs/hallucinet/test/seed3/results.json").unlink()
    (output / "results.json").unlink()
    assert compare_small(table, output) == 1
    assert (output / "results.md").read_text() == text
    assert modified(output / "runs/teacher") == written


def modified(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in (".safetensors", ".json", ".ckpt")}


def test_every_run_failing_is_an_error(tmp_path: Path, make_video: MakeVideo) -> None:
    table = write_videos(tmp_path, make_video)
    rows = {"wrong": RowConfig(student=ModelConfig(name="timm/no_such_network"))}
    with pytest.raises(ValueError, match=r"every run failed; the first: wrong/test/seed0: .*no_such_network"):
        compare(read_table(table), output=tmp_path / "out", rows=rows, seeds=[0], data=DATA,
                trainer=TrainerConfig(accelerator="cpu"))  # fmt: skip
