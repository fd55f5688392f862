"""One-frame students of video transformers: the tiny recipe is the full one made small, and runs."""

from pathlib import Path

import pytest

from stillmotion.__main__ import main
from stillmotion.models.hf import FAMILIES
from stillmotion.results import read_results

pytest.importorskip("transformers")
from tests.recipes import CONFIGS, settings_of

FOLDER = CONFIGS / "modern"


def test_the_tiny_recipe_differs_in_sizes_only() -> None:
    full, tiny = settings_of(FOLDER / "ucf_static.yaml"), settings_of(FOLDER / "ucf_static_tiny.yaml")
    assert full["rows"].keys() == tiny["rows"].keys()
    for name, row in full["rows"].items():
        small = tiny["rows"][name]
        assert row.get("method") == small.get("method")
        if "teacher" in row:
            assert row["teacher"]["name"] == small["teacher"]["name"]
            assert row["teacher"]["name"] in FAMILIES
            assert row["teacher"]["weights"] == "default"
            for key in ("clip", "end", "moment"):
                assert row["teacher"]["view"][key] == small["teacher"]["view"][key]
    same = ("optimiser", "lr", "weight_decay", "schedule", "lr_factors")
    assert [full["optim"][k] for k in same] == [tiny["optim"][k] for k in same]
    assert full["baselines"] == tiny["baselines"]
    assert "dinov2" in full["probe"]["name"]


@pytest.mark.slow
def test_tiny_size_runs(tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    run = tmp_path / "run"
    arguments = ["compare", "--config", "configs/modern/ucf_static_tiny.yaml", str(tiny_table), "--output", str(run)]
    assert main(arguments) == 0
    rows = {row["name"]: row["metrics"] for row in read_results(run)}
    expected = settings_of(FOLDER / "ucf_static.yaml")
    assert rows.keys() == {*expected["rows"], *expected["baselines"]}
    assert "hallucinated_r2" in rows["vjepa2"]
