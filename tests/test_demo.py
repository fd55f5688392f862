"""The demo: its rows are what the README says; a small one runs from end to end, and again without work (slow)."""

import json
from pathlib import Path

import pytest

from stillmotion import demo as demo_module
from stillmotion.config import OptimConfig
from stillmotion.data.render import actions
from stillmotion.methods import method_options
from stillmotion.results import read_results

ROWS = ["teacher", "plain", "plain_with_branch", "hallucinet", "hallucinet_no_fusion", "shuffled"]


def test_rows_differ_in_what_their_names_say() -> None:
    rows = demo_module.rows()
    assert list(rows) == ROWS
    assert len({repr(r.student) for n, r in rows.items() if n != "teacher"}) == 1
    options = {n: r.method.options for n, r in rows.items()}
    assert options["plain_with_branch"]["weight"] == 0.0
    assert options["hallucinet"] == {"weight": demo_module.WEIGHT}
    assert options["hallucinet_no_fusion"] == {**options["hallucinet"], "fuse": "none"}
    assert options["shuffled"] == {**options["hallucinet"], "control": "shuffled"}
    assert set().union(*options.values()) <= set(method_options("hallucinate"))


def test_every_row_takes_the_same_number_of_steps() -> None:
    """144 labelled, 288 unlabelled videos; rows without a teacher's targets see the labelled ones only."""
    steps = {}
    for name, row in demo_module.rows().items():
        optim = OptimConfig(
            batch_size=24, epochs=demo_module.EPOCHS, **{k: v for k, v in row.optim.items() if k == "lr"}
        )
        epochs = row.optim.get("epochs", optim.epochs)
        videos = 144 if row.teacher is None or row.method.options.get("weight") == 0.0 else 432
        steps[name] = epochs * videos // 24
    del steps["teacher"]
    assert set(steps.values()) == {540}


@pytest.mark.slow
def test_hallucinating_beats_the_same_student_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo_module.demo(tmp_path, seeds=[50], workers=2) == 0
    found = {row["name"]: row["metrics"] for row in read_results(tmp_path)}
    assert list(found) == ROWS
    for control in ("plain", "plain_with_branch", "shuffled"):
        gain = found["hallucinet"]["top1_no_shortcut"]["mean"] - found[control]["top1_no_shortcut"]["mean"]
        assert gain > 0.05, control
    for name in ("curves.png", "results.png", "samples_train.png", "confusion/hallucinet.png", "prediction.mp4"):
        assert (tmp_path / name).stat().st_size > 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["labels"][0]["label"] in actions.PLACE_OF
