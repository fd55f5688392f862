"""The linear SVM protocols on features whose answer is known, against scikit-learn and a slow reference."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.svm import LinearSVC

from stillmotion.__main__ import main
from stillmotion.data.table import Sample, Table
from stillmotion.protocols.feature_file import VideoFeatures, read_features, write_features
from stillmotion.protocols.svm import svm
from stillmotion.results import read_results

CLASSES = "abcd"


def make(spread: float, *, size: int = 40, seed: int = 0) -> tuple[VideoFeatures, Table]:
    """Four clouds of videos in ten dimensions; every third one is for the test; five groups."""
    rng = np.random.default_rng(seed)
    y = np.arange(size) % 4
    x = 4.0 * np.eye(10)[y] + spread * rng.normal(size=(size, 10)) + 1.0
    samples = [
        Sample(
            Path(f"{i}.mp4"),
            f"{i}.mp4",
            {"label": CLASSES[k]},
            "test" if i % 3 == 0 else "train",
            f"g{i // 4 % 5}",
            line=i + 2,
        )
        for i, k in enumerate(y)
    ]
    features = VideoFeatures([s.id for s in samples], {"embedding": x.astype(np.float32)}, source="f.npz")
    return features, Table(tuple(samples), "t.csv")


def arrays(features: VideoFeatures, table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = features.arrays["embedding"].astype(np.float64)
    y = np.array([CLASSES.index(s.targets["label"]) for s in table])
    return x / np.linalg.norm(x, axis=1, keepdims=True), y, np.array([s.split == "test" for s in table])


def test_the_column_protocol_is_one_fit_of_scikit_learn() -> None:
    features, table = make(2.5)
    x, y, test = arrays(features, table)
    model = LinearSVC(C=1.0, random_state=0, max_iter=10_000).fit(x[~test], y[~test])
    scores = model.decision_function(x[test])
    metrics = {name: m["mean"] for name, m in svm(features, table)["metrics"].items()}
    top3 = np.mean([k in row.argsort()[-3:] for k, row in zip(y[test], scores, strict=True)])
    assert 0.3 < metrics["top1"] < 1.0  # type: ignore[operator]
    assert metrics == {
        "top1": pytest.approx(model.score(x[test], y[test])),
        "top3": pytest.approx(top3),
        "mean_class": pytest.approx(np.mean([(scores.argmax(1) == y[test])[y[test] == k].mean() for k in range(4)])),
        "mAP": pytest.approx(average_precision_score(np.eye(4)[y[test]], scores), abs=1e-6),
    }


def test_leave_one_out_is_that_of_scikit_learn() -> None:
    features, table = make(2.5, size=24)
    x, y, _ = arrays(features, table)
    guess = cross_val_predict(LinearSVC(C=1.0, random_state=0, max_iter=10_000), x, y, cv=LeaveOneOut())
    metrics = svm(features, table, protocol="leave-one-out")["metrics"]
    assert metrics["top1"]["mean"] == pytest.approx((guess == y).mean())
    assert "mAP" not in metrics


@pytest.mark.parametrize(("protocol", "folds"), [("folds:3", 3), ("leave-one-group-out", 5)])
def test_every_video_is_tested_once_and_never_with_its_group(protocol: str, folds: int, tmp_path: Path) -> None:
    features, table = make(0.1)
    row = svm(features, table, protocol=protocol, output=tmp_path)
    assert row["metrics"]["top1"]["mean"] == 1.0
    data = json.loads((tmp_path / "results.json").read_text())
    assert len(data["folds"]) == folds
    assert sum(fold["test"] for fold in data["folds"]) == 40
    with (tmp_path / "predictions.csv").open() as file:
        assert sorted(r["id"] for r in csv.DictReader(file)) == sorted(features.ids)


def test_groups_are_kept_together() -> None:
    """Labels that only the group tells: with the group held out nothing is left to learn."""
    rng = np.random.default_rng(0)
    group, y = np.arange(40) // 4, (np.arange(40) // 4) % 2
    x = 10.0 * np.eye(10)[group] + 0.01 * rng.normal(size=(40, 10))
    samples = tuple(
        Sample(Path(f"{i}"), f"{i}", {"label": CLASSES[k]}, None, f"g{g}")
        for i, (g, k) in enumerate(zip(group, y, strict=True))
    )
    features = VideoFeatures([s.id for s in samples], {"embedding": x.astype(np.float32)})
    table = Table(samples)
    assert svm(features, table, protocol="leave-one-out")["metrics"]["top1"]["mean"] == 1.0
    assert svm(features, table, protocol="leave-one-group-out")["metrics"]["top1"]["mean"] < 0.75  # type: ignore[operator]


def test_two_classes_and_clips(tmp_path: Path) -> None:
    features, table = make(1.0)
    two = table.select(lambda s: s.targets["label"] in "ab")
    halves = np.stack([features.arrays["embedding"] - 1.0, features.arrays["embedding"] + 1.0], 1).reshape(80, 10)
    clips = VideoFeatures(
        [i for i in features.ids for _ in range(2)], {"embedding": halves}, np.tile([0, 1], 40), source="c"
    )
    assert svm(clips, two)["metrics"] == svm(features, two)["metrics"]


def test_command_files_and_missing_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, table = make(0.1)
    table.write(tmp_path / "t.csv", root=Path())
    lacking = [i for i, name in enumerate(features.ids) if name not in ("3.mp4", "4.mp4")]
    kept = replace(
        features, ids=[features.ids[i] for i in lacking], arrays={"embedding": features.arrays["embedding"][lacking]}
    )
    write_features(tmp_path / "f.parquet", kept)
    arguments = ["svm", str(tmp_path / "f.parquet"), str(tmp_path / "t.csv"), "--output", str(tmp_path / "o")]
    assert main(arguments) == 1
    assert "| f/embedding | 100.0 |" in capsys.readouterr().out
    (row,) = read_results(tmp_path / "o")
    assert row["metrics"]["unreadable"]["mean"] == 2.0
    assert row["cost"]["params"] == 44
    assert "4.mp4,no features in" in (tmp_path / "o" / "broken.csv").read_text()
    assert (tmp_path / "o" / "per_class.csv").exists()


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    features, table = make(1.0)
    with pytest.raises(
        ValueError, match="protocol='loo': choose one of column, leave-one-out, leave-one-group-out, folds:K"
    ):
        svm(features, table, protocol="loo")
    with pytest.raises(ValueError, match=r"f\.npz: tap=layer9: choose one of embedding"):
        svm(features, table, tap="layer9")
    with pytest.raises(ValueError, match=r"has features of none of the samples of t\.csv, such as 0\.mp4"):
        svm(VideoFeatures(["x"], {"embedding": np.ones((1, 2), np.float32)}), table)
    with pytest.raises(ValueError, match="no sample in split 'train'"):
        svm(features, table.select("test"))
    one = table.select(lambda s: s.targets["label"] == "a" or s.id == "1.mp4")
    with pytest.raises(ValueError, match="only the class 'a' is left to train on"):
        svm(features, one, protocol="leave-one-out")


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
@pytest.mark.parametrize("clips", [False, True])
def test_files_come_back_as_they_were(tmp_path: Path, suffix: str, clips: bool) -> None:
    rng = np.random.default_rng(0)
    given = VideoFeatures(
        ["a/1.mp4", "a/1.mp4", "b.mp4[0:5]"],
        {"layer4.2": rng.normal(size=(3, 5)).astype(np.float32), "prob": rng.random((3, 2)).astype(np.float32)},
        np.array([0, 1, 0]) if clips else None,
        {"model": "m"},
    )
    write_features(tmp_path / f"f{suffix}", given)
    found = read_features(tmp_path / f"f{suffix}")
    assert (found.ids, found.info) == (given.ids, given.info)
    assert (found.clips is None) == (given.clips is None)
    assert list(found.arrays) == list(given.arrays)
    assert all(np.array_equal(found.arrays[tap], given.arrays[tap]) for tap in given.arrays)


def test_wrong_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"f\.npz: no such file; `stillmotion features` writes one"):
        read_features(tmp_path / "f.npz")
    for name in ("f.npz", "f.parquet"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match="not a file of features") as error:
            read_features(tmp_path / name)
        assert "\n" not in str(error.value)
    np.savez(tmp_path / "g.npz", id=np.array(["a"]), x=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="no features with one row for each id"):
        read_features(tmp_path / "g.npz")
    with pytest.raises(ValueError, match=r"output=f\.csv: give a name that ends in \.parquet or \.npz"):
        write_features(Path("f.csv"), VideoFeatures([], {"x": np.zeros((0, 1), np.float32)}))
