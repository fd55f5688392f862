"""What the README, the configuration files and the docs tell a user to type is understood, and the Python runs."""

import re
import shlex
from pathlib import Path

import pytest

from stillmotion.__main__ import main
from stillmotion.data.render.actions import render_actions

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def commands(text: str) -> list[list[str]]:
    """Every `stillmotion ...` line of the text, continued lines joined, comments left out."""
    text = re.sub(r"\\\n(# *)? *", "", text)
    found = re.findall(r"^(?:# *|.*&& )?(stillmotion (?!:).*)$", text, flags=re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in found]


def understood(command: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--print_config"])
    assert stop.value.code == 0, command


def test_the_readme_has_the_two_commands_that_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for line in ("pip install -e '.[train]' && stillmotion demo", "pip install -e '.[test]' && pytest"):
        assert line in README
        assert line.replace("install -e", "install --quiet -e") in ci


@pytest.mark.parametrize("command", commands("\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))), ids=" ".join)
def test_shell_commands_of_the_readme_are_understood(command: list[str]) -> None:
    understood(command)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_the_command_in_a_configuration_file_is_understood(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    head = "".join(line for line in config.read_text().splitlines(keepends=True) if line.startswith("#"))
    found = commands(re.sub(r"\(.*?\)", "", head))
    assert any(str(config.relative_to(ROOT)) in command for command in found)
    for command in found:
        understood(command)


def test_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On fewer videos and for one epoch."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    training = next(b for b in blocks if "api.train" in b)
    monkeypatch.chdir(tmp_path)
    render_actions(tmp_path / "demo" / "videos", num_labelled=12, num_unlabelled=6, num_test=6, size=32)
    assert "epochs=10" in training
    exec(training.replace("epochs=10", "epochs=1, batch_size=6"), {})
    assert (tmp_path / "runs" / "student" / "model.safetensors").exists()
    reading = next(b for b in blocks if "read_frames" in b)
    names: dict[str, object] = {}
    exec(reading.replace("clip.avi", "demo/videos/videos/test_0018.mp4"), names)
    assert getattr(names["frames"], "shape", None) == (2, 3, 32, 32)
