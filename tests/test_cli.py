"""The command line: help, configuration files, one-line errors, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from stillmotion.__main__ import COMMANDS, _expand, main

from .conftest import MakeVideo

HEAVY = ("torch", "torchvision", "timm", "lightning", "sklearn", "matplotlib", "cv2", "pyarrow")


def test_help_imports_nothing_heavy() -> None:
    # Stands for "--help in under 1 s" without a clock: these imports are what would take the seconds.
    code = (
        "import sys\nfrom stillmotion.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "demo" in done.stdout
    assert "train" in done.stdout


def test_only_the_command_that_is_called_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Reading the signatures of all takes longer than a light prediction.
    monkeypatch.setitem(COMMANDS, "train", "jsonargparse refuses what is no function")
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--help"])
    assert stop.value.code == 0
    assert main(["no-such-command"]) == 2, "without a command, all are read"
    assert "Unexpected components" in capsys.readouterr().err


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("data", "render", "list")])
def test_every_command_has_help_with_every_option_described(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert (COMMANDS[command].__doc__ or "").splitlines()[0] in " ".join(text.split())


def test_unknown_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["predict", "model.onnx", "a.mp4", "--bogus", "3"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "--bogus" in error
    assert len(error.splitlines()) == 1


def test_unknown_key_in_a_config_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("table: a.csv\noutput: o\nstudent:\n  name: timm/resnet18\noptim:\n  learning_rate: 3\n")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", str(config)])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert "learning_rate" in error
    assert len(error.splitlines()) == 1


def test_print_config_gives_a_file_that_config_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "a.csv", "--output", "o", "--student", "timm/resnet18", "--optim.lr", "0.5"]
    with pytest.raises(SystemExit):
        main([*arguments, "--print_config"])
    text = capsys.readouterr().out
    assert "name: timm/resnet18" in text
    assert "lr: 0.5" in text
    config = tmp_path / "train.yaml"
    config.write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", str(config), "--print_config"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == text


def test_short_names_expand_but_files_and_json_do_not() -> None:
    assert _expand(["--student", "timm/x", "--seed", "1"]) == ["--student.name", "timm/x", "--seed", "1"]
    assert _expand(["--teacher=runs/a"]) == ["--teacher.name=runs/a"]
    assert _expand(["--student", "a.yaml"]) == ["--student", "a.yaml"]
    assert _expand(["--student", '{"name": "x"}']) == ["--student", '{"name": "x"}']


def test_the_command_line_wins_over_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("table: a.csv\noutput: o\nstudent:\n  name: timm/resnet18\nseed: 1\n")
    with pytest.raises(SystemExit):
        main(["train", "b.csv", "--seed", "2", "--config", str(config), "--print_config"])
    text = capsys.readouterr().out
    assert "table: b.csv" in text
    assert "seed: 2" in text


def test_lists_need_no_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "a.csv", "--output", "o", "--student", "x", "--targets", "a", "b:score", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["data"]["targets"] == ["a", "b:score"]
    words = "compare a.csv --output o --rows {} --seeds 3 4 --label_fractions 0.1 1 --baselines majority --print_config"
    with pytest.raises(SystemExit):
        main(words.split())
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["seeds"], found["label_fractions"], found["baselines"]) == ([3, 4], [0.1, 1.0], ["majority"])


def test_deep_options_join_what_the_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = {"name": "timm/resnet18", "weights": "default"}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"student": {"name": "sequence", "options": {"backbone": backbone}}}))
    command = ["train", "a.csv", "--output", "o", "--config", str(config), "--student.options.backbone.name", "X"]
    with pytest.raises(SystemExit):
        main([*command, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["student"]["options"] == {"backbone": {**backbone, "name": "X"}}
    one = {"student": {"name": "timm/resnet18", "view": {"size": 64}}, "optim": {"lr": 0.003, "epochs": 5}}
    config.write_text(yaml.safe_dump({"rows": {"one": one, "two": {"student": {"name": "timm/resnet34"}}}}))
    command = ["compare", "a.csv", "--output", "o", "--config", str(config)]
    with pytest.raises(SystemExit):
        main([*command, "--rows.one.optim.lr", "1e-3", "--rows.one.student.view.size=48", "--print_config"])
    rows = yaml.safe_load(capsys.readouterr().out)["rows"]
    assert rows["one"]["optim"] == {"lr": 0.001, "epochs": 5}
    assert rows["one"]["student"]["view"] == {"size": 48}
    assert rows["two"]["student"]["name"] == "timm/resnet34"
    assert main([*command, "--rows.on.optim.lr", "1"]) == 2
    assert "there is no row 'on' in --config" in capsys.readouterr().err


def test_prediction_takes_many_inputs() -> None:
    given = ["predict", "--top", "2", "m.onnx", "a b.mp4", "--output=o.csv", "0", "--device", "cpu"]
    rest = ["--output=o.csv", "--device", "cpu"]
    assert _expand(given) == ["predict", "--top", "2", "m.onnx", '["a b.mp4", "0"]', *rest]


def test_a_wrong_table_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "videos.csv"
    table.write_text("path,label\nmissing.mp4,a\n")
    assert main(["train", str(table), "--output", str(tmp_path / "o"), "--student", "timm/resnet10t"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "videos.csv line 2" in error
    assert "missing.mp4" in error


@pytest.mark.parametrize(
    "command",
    [
        "extract {} --teacher resnet3d_10 --output {out} --data.num_draws 1 --data.workers 0 --device cuda:99",
        "features resnet3d_10 {} --output {out}.npz --workers 0 --device cuda:99",
        "evaluate resnet3d_10 {} --workers 0 --device cuda:99",
        "train {} --output {out} --student resnet3d_10 --data.workers 0 --trainer.accelerator mps",
    ],
    ids=lambda c: c.split()[0],
)
def test_a_device_that_is_not_here_is_one_line_and_exit_code_2(
    command: str, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.format(tiny_table, out=tmp_path / "out").split()) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "device=cuda:99: not here" in error or "trainer.accelerator=mps: " in error


def test_data_check_tells_by_its_exit_code(
    tmp_path: Path, make_video: MakeVideo, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = np.full((5, 32, 32, 3), 90, np.uint8)
    make_video(tmp_path / "a" / "1.mp4", frames)
    make_video(tmp_path / "b" / "1.mp4", frames + 90)
    assert main(["data", "check", str(tmp_path), "--workers", "1"]) == 0
    (tmp_path / "b" / "2.mp4").write_bytes(b"nothing")
    assert main(["data", "check", str(tmp_path), "--workers", "1"]) == 1
    assert "2.mp4" in capsys.readouterr().out
    os.mkfifo(tmp_path / "a" / "hangs.mp4")
    table = tmp_path / "table.csv"
    table.write_text("path,label\na/1.mp4,a\na/hangs.mp4,a\n")
    assert main(["data", "check", str(table), "--workers", "1", "--timeout", "2"]) == 1
    assert "unreadable: a/hangs.mp4 (line 3): no answer within 2 s" in capsys.readouterr().out


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "models", "--pattern", "resnext3d"]) == 0
    assert "resnext3d_101\tvideo" in capsys.readouterr().out
    assert main(["list", "methods"]) == 0
    assert "weight=50.0" in capsys.readouterr().out
    assert main(["list", "sets"]) == 0
    assert "ucf101" in capsys.readouterr().out
    assert main(["list", "models", "--pattern", "nosuchnetwork"]) == 2


def test_the_public_names_are_there_and_load_late() -> None:
    code = f"import stillmotion, sys\nprint([m for m in {HEAVY!r} if m in sys.modules])\n"
    code += "print([n for n in stillmotion.__all__ if not callable(getattr(stillmotion, n))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]
