"""The tutorials and the examples of the pages run, block by block, as they are written or with less of everything."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from stillmotion.__main__ import main
from stillmotion.methods import METHODS
from stillmotion.models.own import OWN

from .conftest import MakeVideo

DOCS = Path(__file__).parents[1] / "docs"
# What makes them small enough for every run of the tests; the slow ones run them as they are.
SMALLER = {
    "camera": {"num_labelled=120": "num_labelled=12", "--optim.epochs 15": "--optim.epochs 1"},
    "targets": {"--optim.epochs 5": "--optim.epochs 1"},
}


def run_page(text: str) -> None:
    """Runs the blocks of a page in the current folder; a YAML block is saved under the name that stands before it."""
    for before, language, block in re.findall(r"([^`]*(?:`[^`\n]+`[^`]*)*)```(sh|python|yaml)\n(.*?)```", text, re.S):
        if language == "yaml":
            Path(re.findall(r"Save as `([\w.]+)`", before)[-1]).write_text(block)
        elif language == "python":
            exec(block, {"__name__": "__main__"})
        else:
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["stillmotion"]:
                    assert main(words[1:]) == 0, line
                elif words:
                    subprocess.run(line, shell=True, check=True)


def assert_results(name: str) -> None:
    if name == "camera":
        assert Path("runs/clip/report.html").exists()
        events = Path("events.csv").read_text().splitlines()
        assert events[0].startswith("id,source,label,start,end")
        assert len(Path("decisions.jsonl").read_text().splitlines()) >= 20  # 120 frames, one decision every 4
    elif name == "targets":
        assert Path("out/results.json").exists()
    else:
        text = Path("comparison/results.md").read_text()
        assert all(f"`{row}`" in text for row in ("teacher", "plain", "hallucinet", "shuffled", "majority"))
        assert Path("comparison/report.html").exists()


@pytest.mark.parametrize("name", SMALLER)
def test_tutorial_in_small(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "tutorials" / f"{name}.md").read_text()
    for written, smaller in SMALLER[name].items():
        assert written in text
        text = text.replace(written, smaller)
    monkeypatch.chdir(tmp_path)
    run_page(text)
    assert_results(name)
    if name == "targets":
        printed = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in printed[-3:]] == ["position", "armstand", "final_score"]


def test_own_method_network_and_data_set_work_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_video: MakeVideo
) -> None:
    rng = np.random.default_rng(0)
    for person in range(5):
        for label in ("hop", "sit"):
            frames = rng.integers(0, 256, (8, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
            make_video(tmp_path / "clips" / f"p{person}_{label}_1.mp4", frames)
    monkeypatch.chdir(tmp_path)
    known = [(names, dict(names)) for names in (METHODS, OWN)]
    try:
        run_page((DOCS / "extend.md").read_text())
    finally:
        for names, before in known:
            names.clear()
            names.update(before)
    table = Path("table.csv").read_text().splitlines()
    assert table[0] == "path,label,split,group"
    assert sum(",test,p3" in row or ",test,p4" in row for row in table) == 4
    assert json.loads(Path("runs/student/settings.json").read_text())["method"]["name"] == "direction"
    assert "direction_loss" in Path("runs/student/metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.stem for p in (DOCS / "tutorials").glob("*.md")))
def test_tutorial_as_it_is_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page((DOCS / "tutorials" / f"{name}.md").read_text())
    assert_results(name)
