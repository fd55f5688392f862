"""The pair protocol: similarities by hand, and ten folds whose answer is known."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from sklearn.metrics import roc_auc_score
from sklearn.svm import LinearSVC

from stillmotion.__main__ import main
from stillmotion.data.sets.aslan import read_pairs
from stillmotion.protocols.aslan import SIMILARITIES, aslan, similarities
from stillmotion.protocols.feature_file import VideoFeatures, write_features

FOLDS = 10


def test_similarities_by_hand() -> None:
    a, b = np.array([[0.25, 0.75, 0.0]]), np.array([[0.25, 0.25, 0.5]])
    found = dict(zip(SIMILARITIES, similarities(a, b)[0], strict=True))
    dot, roots = 0.0625 + 0.1875, 0.25 + math.sqrt(0.1875)
    tiny = 1e-12
    by_hand = {
        "dot": dot,
        "root_dot": 0.5,
        "bhattacharyya": roots,
        "root_bhattacharyya": math.sqrt(roots),
        "cosine": dot / (math.sqrt(0.625) * math.sqrt(0.375)),
        "intersection": 0.5,
        "jaccard": 0.5 / 1.5,
        "euclidean": math.sqrt(0.25 + 0.25),
        "hellinger": math.sqrt((math.sqrt(0.75) - 0.5) ** 2 + 0.5),
        "chi_square": 0.25 / 1.0 + 0.25 / 0.5,
        "city_block": 1.0,
        "kullback_leibler": 0.5 * math.log(3.0) + (tiny - 0.5) * math.log(tiny / 0.5),
    }
    assert found == pytest.approx(by_hand)


def test_similarities_are_symmetric_and_survive_zeros() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((20, 6)), rng.random((20, 6))
    np.testing.assert_allclose(similarities(a, b), similarities(b, a))
    a[0] = b[0] = b[1] = 0.0
    assert np.isfinite(similarities(a, b)).all()
    assert not similarities(a[:1], b[:1]).any()
    with pytest.raises(ValueError, match=r"a feature is -0\.5, and the similarities are for histograms; take a layer"):
        similarities(np.array([[1.0, -0.5]]), np.ones((1, 2)))


def make(noise: float, *, per_fold: int = 20) -> tuple[VideoFeatures, list[list[int]]]:
    """Videos 1, 2, ... of actions that stand in one fold each, as histograms; half the pairs show the same action."""
    rng = np.random.default_rng(0)
    actions = rng.dirichlet(np.full(30, 0.2), size=4 * FOLDS)
    rows, pairs = [], []
    for fold in range(FOLDS):
        for i in range(per_fold):
            x, y = rng.choice(4, size=2, replace=False) + 4 * fold
            y = x if i % 2 else y
            pairs.append([len(rows) + 1, len(rows) + 2, i % 2, x + 1, y + 1])
            rows += [(1.0 - noise) * actions[k] + noise * rng.dirichlet(np.full(30, 0.2)) for k in (x, y)]
    values = np.array(rows, np.float32)
    ids = [f"clips/{i + 1:04d}.avi" for i in range(len(rows))]
    return VideoFeatures(ids, {"prob": values, "pool5": values**2}, source="f.npz"), pairs


def write_mat(path: Path, pairs: list[list[int]]) -> Path:
    """The official form: pairs x 5 x splits."""
    savemat(path, {"action_splits_pairs": np.array(pairs, float).reshape(FOLDS, -1, 5).transpose(1, 2, 0)})
    return path


def test_official_pairs(tmp_path: Path) -> None:
    _, given = make(0.0)
    pairs = read_pairs(write_mat(tmp_path / "View2.mat", given))
    assert len(pairs) == 200
    assert [(p.first, p.second, p.same, p.fold) for p in pairs[19:21]] == [
        ("0039", "0040", True, 0),
        ("0041", "0042", False, 1),
    ]


def test_without_noise_everything_is_right(tmp_path: Path) -> None:
    features, pairs = make(0.0)
    metrics = aslan(features, write_mat(tmp_path / "View2.mat", pairs))["metrics"]
    assert {k: m["mean"] for k, m in metrics.items()} == {
        "accuracy": 1.0,
        "accuracy_se": 0.0,
        "auc": 1.0,
        "auc_se": 0.0,
    }


def test_folds_scale_and_standard_error_by_a_slow_reference(tmp_path: Path) -> None:
    features, pairs = make(0.6)
    row = aslan(features, write_mat(tmp_path / "View2.mat", pairs), taps=["prob"], output=tmp_path / "o")
    x = features.arrays["prob"].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    table = np.concatenate([similarities(x[i - 1 : i], x[j - 1 : j]) for i, j, *_ in pairs])
    y = np.array([p[2] for p in pairs], bool)
    accuracies, aucs = [], []
    for fold in range(FOLDS):
        test = np.arange(len(pairs)) // 20 == fold
        mean, std = table[~test].mean(0), table[~test].std(0)  # of the training folds alone
        model = LinearSVC(C=1.0, random_state=0, max_iter=10_000).fit((table[~test] - mean) / std, y[~test])
        scores = model.decision_function((table[test] - mean) / std)
        accuracies.append(np.mean((scores > 0) == y[test]))
        aucs.append(roc_auc_score(y[test], scores))
    metrics = {k: m["mean"] for k, m in row["metrics"].items()}
    assert 0.6 < np.mean(accuracies) < 1.0
    assert metrics["accuracy"] == pytest.approx(np.mean(accuracies), abs=0.011)  # two of 200 pairs on the border
    assert metrics["auc"] == pytest.approx(np.mean(aucs), abs=0.005)
    data = json.loads((tmp_path / "o" / "results.json").read_text())
    per_fold = [fold["accuracy"] for fold in data["folds"]]
    assert metrics["accuracy_se"] == pytest.approx(np.std(per_fold, ddof=1) / math.sqrt(FOLDS))
    with (tmp_path / "o" / "pairs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert np.mean([r["same"] == r["predicted"] for r in lines]) == pytest.approx(metrics["accuracy"])


def test_own_pairs_missing_videos_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, pairs = make(0.0)
    write_features(tmp_path / "f.npz", features)
    lines = ["first,second,same,fold"]
    lines += [f"clips/{i:04d}.avi,{j:04d},{same},{k // 20}" for k, (i, j, same, *_) in enumerate(pairs)]
    (tmp_path / "pairs.csv").write_text("\n".join([*lines, "lost,0001,1,0"]))
    assert main(["aslan", str(tmp_path / "f.npz"), str(tmp_path / "pairs.csv"), "--normalise", "l2"]) == 1
    out = capsys.readouterr().out
    assert "pairs_left_out" in out
    assert "| f/aslan | 100.0 |" in out


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    features, pairs = make(0.0)
    path = write_mat(tmp_path / "View2.mat", pairs)
    with pytest.raises(ValueError, match=r"f\.npz: tap=res5c: choose one of prob, pool5"):
        aslan(features, path, taps=["res5c"])
    negative = VideoFeatures(features.ids, {"prob": features.arrays["prob"] - 1.0}, source="f.npz")
    with pytest.raises(ValueError, match=r"f\.npz: prob: a feature is -"):
        aslan(negative, path)
    with pytest.raises(ValueError, match="normalise='max': choose standard or l2"):
        aslan(features, path, normalise="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has no features of any pair of .*, such as 0001"):
        aslan(VideoFeatures(["x"], {"prob": np.ones((1, 2), np.float32)}), path)
    one = tmp_path / "one.csv"
    one.write_text("first,second,same,fold\n0001,0002,1,0\n0003,0004,0,0\n")
    with pytest.raises(ValueError, match=r"one\.csv: all pairs are in fold 0; give two folds or more"):
        aslan(features, one)
    one.write_text("first,second,same,fold\n0001,0002,1,0\n0003,0004,0,0\n0005,0006,1,1\n")
    with pytest.raises(ValueError, match=r"the pairs outside of fold 0 are all of one kind"):
        aslan(features, one)


def test_wrong_pair_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"View2\.mat: no such file; give View2\.mat, or a CSV with the columns first"):
        read_pairs(tmp_path / "View2.mat")
    savemat(tmp_path / "train_pairs.mat", {"train_pairs": np.ones((1200, 5))})
    with pytest.raises(
        ValueError, match=r"holds 1200 x 5, not pairs x 5 x splits; give View2\.mat, not the pairs of View 1"
    ):
        read_pairs(tmp_path / "train_pairs.mat")
    (tmp_path / "bad.mat").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.mat: not a MATLAB file"):
        read_pairs(tmp_path / "bad.mat")
    (tmp_path / "p.csv").write_text("first,second,same\n")
    with pytest.raises(ValueError, match=r"p\.csv line 1: no column `fold`"):
        read_pairs(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("first,second,same,fold\na,b,1,0\na,b,yes,0\n")
    with pytest.raises(ValueError, match=r"p\.csv line 3: same='yes', fold='0'; give 0 or 1"):
        read_pairs(tmp_path / "p.csv")
