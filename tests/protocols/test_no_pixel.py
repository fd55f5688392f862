"""Guesses without a pixel: the published annotations, and a release small enough to compute by hand."""

import json
from pathlib import Path

import pytest

from stillmotion.__main__ import main
from stillmotion.data.table import Sample, Table
from stillmotion.protocols.no_pixel import majority, mean_of_alike, no_pixel
from tests.conftest import needs_data
from tests.data.test_sets_dives import DIVE, OFFICIAL, save


@needs_data
def test_mtl_aqa_numbers() -> None:
    found = no_pixel("mtl-aqa", str(OFFICIAL))
    assert {name: round(g["spearman"], 4) for name, g in found["guesses"].items()} == {
        "difficulty": 0.5763,
        "attributes": 0.5963,
        "attributes + difficulty": 0.6129,
        "event": 0.6369,
        "event + difficulty": 0.6675,
    }
    assert {name: round(100 * m["accuracy"], 1) for name, m in found["majority"].items()} == {
        "position": 48.7,
        "armstand": 89.2,
        "rotation_type": 40.5,
        "ss_no": 44.2,
        "tw_no": 73.4,
    }
    assert found["samples"] == {"train": 1059, "test": 353}
    assert found["overlap"]["UNLV_Dive_split_4"] == {"samples": 279, "in_test": 80}


def table(rows: list[tuple[str, str, float]], split: str) -> Table:
    samples = [
        Sample(Path(f"{split}{i}"), f"{split}{i}", {"kind": kind, "points": str(points)}, split, group)
        for i, (group, kind, points) in enumerate(rows)
    ]
    return Table(tuple(samples))


def test_guesses_by_hand() -> None:
    train = table([("a", "x", 10), ("a", "y", 20), ("b", "x", 60)], "train")
    test = table([("a", "x", 0), ("b", "y", 0), ("c", "x", 0)], "test")
    assert mean_of_alike(train, test, "points", ["group"]).tolist() == [15, 60, 30]
    assert mean_of_alike(train, test, "points", ["kind"]).tolist() == [35, 20, 35]
    assert mean_of_alike(train, test, "points", ["group", "kind"]).tolist() == [10, 30, 30]
    assert majority(train, test, "kind") == {"value": "x", "accuracy": 2 / 3}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores 40, 60 (event 1) and 90 (event 2) in training: the event guesses 50 and 90, true are 30, 80 and 100.

    One guess for all is 190 / 3: squared errors 1111.1, 277.8 and 1344.4.
    """
    folder = tmp_path / "MTL-AQA_split_0_data"
    scores = {(1, 1): 40.0, (1, 2): 60.0, (2, 1): 90.0, (1, 3): 30.0, (2, 2): 80.0, (2, 3): 100.0}
    save(folder / "final_annotations_dict.pkl", {key: DIVE | {"final_score": score} for key, score in scores.items()})
    save(folder / "train_split_0.pkl", [(1, 1), (1, 2), (2, 1)])
    save(folder / "test_split_0.pkl", [(1, 3), (2, 2), (2, 3)])
    save(tmp_path / "smaller_training_sets/size_140/train_split_0.pkl", [(1, 1), (2, 3)])
    written = tmp_path / "found.json"
    assert main(["baselines", "mtl-aqa", "--root", str(tmp_path), "--json", str(written)]) == 0
    found = json.loads(written.read_text())
    # Ranks 1, 2.5, 2.5 against 1, 2, 3: sqrt(3) / 2. Errors 20, 10, 10 of 104.5.
    assert found["guesses"]["event"]["spearman"] == pytest.approx(3**0.5 / 2)
    assert found["guesses"]["event"]["relative_l2"] == pytest.approx(100 * 600 / 3 / 104.5**2)
    assert found["guesses"]["difficulty"]["spearman"] is None  # one guess for all
    assert found["score_range"] == [0, 104.5]
    lines = capsys.readouterr().out.splitlines()
    assert "score by event\t0.8660 Spearman\t1.831 R-l2 x100 (0-104.5)" in lines
    assert "score by difficulty\tno ranking\t8.343 R-l2 x100 (0-104.5)" in lines
    assert "majority of position\t100.0 %\tpike" in lines
    assert "training set size_140\t1 of 2 are in the test split\tleave them out" in lines


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baselines", "ucf101", "--root", str(tmp_path)]) == 2
    assert main(["baselines", "mtl-aqa", "--root", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "stillmotion: error: no baselines of 'ucf101'; known: mtl-aqa, unlv-dive"
    assert "no final_annotations_dict.pkl here; pass annotations=" in errors[1]
