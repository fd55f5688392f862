"""Holding groups out, folds and fewer labels."""

from collections import Counter
from pathlib import Path

import pytest

from stillmotion.__main__ import main
from stillmotion.data.split import drop_labels, group_folds, hold_out, leave_one_group_out
from stillmotion.data.table import Sample, Table, TableError, read_table
from stillmotion.tasks import Classification

TASK = Classification(("a", "b", "c"))


def table_of(*rows: tuple[str | None, str | None]) -> Table:
    samples = (
        Sample(Path(f"{k}.mp4"), f"{k}.mp4", {} if label is None else {"label": label}, group=group, line=k + 2)
        for k, (label, group) in enumerate(rows)
    )
    return Table(tuple(samples), "videos.csv")


def labels(table: Table) -> Counter[str | None]:
    return Counter(s.targets.get("label") for s in table)


def persons(num: int, each: int, classes: str = "abc") -> Table:
    return table_of(*((c, f"p{p}") for p in range(num) for c in classes for _ in range(each)))


def assert_divided(table: Table, first: Table, second: Table) -> None:
    assert sorted(s.name for s in (*first, *second)) == sorted(s.name for s in table)
    assert not set(first.groups) & set(second.groups)


def test_hold_out_takes_whole_groups_in_proportion() -> None:
    table = persons(20, 3)
    train, val = hold_out(table, 0.2, seed=0, strata=TASK.strata)
    assert_divided(table, train, val)
    assert labels(val) == {"a": 12, "b": 12, "c": 12}  # 4 of 20 persons
    assert hold_out(table, 0.2, seed=0, strata=TASK.strata) == (train, val)
    assert {hold_out(table, 0.2, seed, strata=TASK.strata)[1].hash for seed in range(5)} != {val.hash}


@pytest.mark.parametrize("seed", range(5))
def test_hold_out_has_every_class_on_both_sides(seed: int) -> None:
    # Few large groups of one class each, as in arid6: a tenth would be less than one group.
    table = table_of(*((c, f"{c}{g}") for c in "abc" for g in range(3) for _ in range(8)), *[("d", "d0")] * 5)
    train, val = hold_out(table, 0.1, seed, strata=TASK.strata)
    assert_divided(table, train, val)
    assert labels(val) == {"a": 8, "b": 8, "c": 8}
    assert labels(train) == {"a": 16, "b": 16, "c": 16, "d": 5}  # d has one group: training keeps it


def test_hold_out_without_groups_is_stratified() -> None:
    table = table_of(*[("a", None)] * 40, *[("b", None)] * 20, *[(None, None)] * 10)
    train, val = hold_out(table, 0.1, seed=1, strata=TASK.strata)
    assert labels(val) == {"a": 4, "b": 2}
    assert labels(train) == {"a": 36, "b": 18, None: 10}


def test_hold_out_needs_two_groups_of_a_class() -> None:
    with pytest.raises(TableError, match="no class has two groups"):
        hold_out(table_of(("a", "x"), ("b", "x")), 0.5, seed=0, strata=TASK.strata)


def test_folds_are_disjoint_by_group_and_balanced() -> None:
    table = persons(10, 2)
    tests = []
    for train, test in group_folds(table, 5, seed=0, stratum=TASK.stratum):
        assert_divided(table, train, test)
        assert labels(test) == {"a": 4, "b": 4, "c": 4}
        tests += [s.name for s in test]
    assert sorted(tests) == sorted(s.name for s in table)
    with pytest.raises(ValueError, match="11 folds over 10 groups; give 2 to 10"):
        next(group_folds(table, 11, seed=0, stratum=TASK.stratum))


def test_leave_one_group_out() -> None:
    table = persons(3, 1)
    folds = list(leave_one_group_out(table))
    assert [test.groups for _, test in folds] == [["p0"], ["p1"], ["p2"]]
    for train, test in folds:
        assert_divided(table, train, test)
    with pytest.raises(TableError, match=r"videos\.csv line 3 \(1\.mp4\): no group"):
        list(leave_one_group_out(table_of(("a", "x"), ("a", None))))


def test_drop_labels_keeps_a_share_of_each_class() -> None:
    table = table_of(*[("a", "x")] * 40, *[("b", "y")] * 20, *[("c", "z")] * 3, (None, "z"))
    fewer = drop_labels(table, ["label"], 0.1, seed=0, stratum=TASK.stratum)
    assert labels(fewer) == {"a": 4, "b": 2, "c": 1, None: 57}
    assert [s.name for s in fewer] == [s.name for s in table]
    assert [s.group for s in fewer] == [s.group for s in table]
    more = drop_labels(table, ["label"], 0.25, seed=0, stratum=TASK.stratum)
    assert {s.name for s in fewer if s.targets} < {s.name for s in more if s.targets}
    assert drop_labels(table, ["label"], 1.0, seed=0, stratum=TASK.stratum) == table
    assert drop_labels(table, ["label"], 0.1, seed=1, stratum=TASK.stratum) != fewer
    with pytest.raises(ValueError, match=r"label_fraction=0: must be above 0"):
        drop_labels(table, ["label"], 0, seed=0, stratum=TASK.stratum)


def class_folders(root: Path, *classes: str, each: int) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for k in range(each):
            (root / name / f"{k}.mp4").touch()
    return root


def test_data_split_divides_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = class_folders(tmp_path / "videos", "bow", "jump", each=10)
    assert main(["data", "split", str(folder), "--output", str(tmp_path / "t.csv"), "--val_share", "0.25"]) == 0
    assert "20 samples, 2 classes" in capsys.readouterr().out
    written = read_table(tmp_path / "t.csv")
    counts = Counter((s.split, s.targets["label"]) for s in written)
    # 2 of 10 for the test, a quarter of the other 8 for validation
    assert counts == {(s, c): n for s, n in (("test", 2), ("val", 2), ("train", 6)) for c in ("bow", "jump")}
    assert [s.path for s in written] == sorted(folder.rglob("*.mp4"))


def test_data_split_keeps_groups_together_and_needs_no_classes(tmp_path: Path) -> None:
    rows = "".join(f"{k}.mp4,{k / 7},p{k // 4}\n" for k in range(40))
    (tmp_path / "in.csv").write_text("path,score,group\n" + rows)
    for k in range(40):
        (tmp_path / f"{k}.mp4").touch()
    arguments = ["data", "split", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv")]
    assert main([*arguments, "--target", "null"]) == 0
    written = read_table(tmp_path / "out.csv")
    sides = {s.group: s.split for s in written}
    assert all(sides[s.group] == s.split for s in written)
    assert Counter(sides.values()) == {"train": 8, "test": 2}


@pytest.mark.parametrize(
    ("head", "more", "message"),
    [
        ("path,label,split", ["--test_share", "0.5"], "has the splits train already"),
        ("path,action,group", [], "rename `action` to `label`"),
        ("path,label,group", ["--test_share", "1"], "test_share=1.0: must be at least 0 and below 1"),
    ],
)
def test_data_split_refuses_in_one_line(
    head: str, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "in.csv").write_text(f"{head}\na.mp4,bow,train\n")
    assert main(["data", "split", str(tmp_path / "in.csv"), "--output", str(tmp_path / "o.csv"), *more]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "o.csv").exists()
