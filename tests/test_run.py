"""The run folder: whose it is, and what it says when it is not as it should be."""

import json
from pathlib import Path

import pytest
import torch

from stillmotion.data.table import Sample, Table
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.results import make_row
from stillmotion.run import Run, environment, fingerprint, flatten
from stillmotion.tasks import Classification

SETTINGS = {
    "table": "a.csv", "table_hash": "1f", "student": {"name": "timm/resnet18", "options": {}},
    "optim": {"lr": 0.001}, "data": {"workers": 1}, "teacher": None,
}  # fmt: skip


def begun(folder: Path) -> Run:
    run = Run(folder)
    run.begin(SETTINGS)
    torch.save({"stillmotion": {"position": [0, 1, 1]}}, run.checkpoint)
    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"lr": 0.01}}, "begun with optim.lr=0.001, now 0.01; repeat the settings to resume"),
        ({"table_hash": "2e"}, "begun with table_hash=1f, now 2e"),
        ({"teacher": {"name": "runs/t"}}, "begun with teacher.name=none, now runs/t"),
        ({"student": {"name": "timm/resnet18", "options": {"drop": 0.1}}}, "student.options.drop=none, now 0.1"),
    ],
)  # fmt: skip
def test_a_folder_belongs_to_one_training(tmp_path: Path, change: dict[str, object], message: str) -> None:
    run = begun(tmp_path / "run")
    run.compare(SETTINGS)
    with pytest.raises(ValueError, match="begun with") as error:
        run.compare({**SETTINGS, **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_does_not_decide_the_weights_may_change(tmp_path: Path) -> None:
    begun(tmp_path / "run").compare({**SETTINGS, "table": "moved/a.csv", "data": {"workers": 4}})


def test_a_training_that_saved_nothing_has_no_claim(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.begin(SETTINGS)
    other = {**SETTINGS, "optim": {"lr": 1.0}}
    run.compare(other)
    run.begin(other)
    assert run.settings["optim"]["lr"] == 1.0


def test_tuples_and_empty_settings_compare_as_json_has_them() -> None:
    assert flatten({"a": {"b": {}, "c": (1, 2)}, "d": None}) == {"a.b": None, "a.c": (1, 2), "d": None}


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder"):
        Run.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder as --output"):
        Run(tmp_path / "file").begin(SETTINGS)
    run = begun(tmp_path / "run")
    with pytest.raises(ValueError, match=r"no model\.safetensors; the training has not ended"):
        Run.open(run.path).load()
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"last\.ckpt: not readable .*; remove it to train from the start"):
        run.read_checkpoint()


def test_the_network_comes_back(tmp_path: Path) -> None:
    task = Classification(("a", "b"))
    encoder = create_model("resnet3d_10", num_classes=2, width=4, view={"size": 16, "num_frames": 4}).eval()
    save_pretrained(encoder, task, tmp_path)
    again, its_task = Run.open(tmp_path).load()
    x = torch.randint(0, 256, (1, 4, 3, 16, 16), dtype=torch.uint8)
    assert its_task == task
    assert torch.equal(again(x)["logits"], encoder(x)["logits"])
    # The file counts, not the name.
    assert fingerprint(str(tmp_path), None) == fingerprint("timm/resnet18", str(tmp_path / "model.safetensors"))
    assert fingerprint("timm/resnet18", None) is None


def test_results_and_broken_samples_are_written(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_results([make_row("x", {"top1": [0.5]})])
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["metrics"]["top1"]["mean"] == 0.5
    assert run.results()[0]["name"] == "x"
    table = Table((Sample(Path("a.mp4"), "a.mp4", line=2), Sample(Path("b.mp4"), "b.mp4", line=3)))
    run.write_broken(table, {}, {})
    assert not (tmp_path / "broken.csv").exists()
    run.write_broken(table, {"b.mp4": "no video"}, {"a.mp4": "cut off, after 3 frames"})
    lines = (tmp_path / "broken.csv").read_text().splitlines()
    assert lines == ["line,file,reason,used", '2,a.mp4,"cut off, after 3 frames",in part', "3,b.mp4,no video,no"]
    run.write_broken(table, {}, {})  # mended since
    assert not (tmp_path / "broken.csv").exists()


def test_environment_names_versions_and_hardware() -> None:
    found = environment()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["cpus"] >= 1
