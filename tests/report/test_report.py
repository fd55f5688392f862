"""The page and the card of small trainings, evaluations and comparisons; how they look is judged by eye."""

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from stillmotion import evaluate as evaluation
from stillmotion.__main__ import main
from stillmotion.compare import compare
from stillmotion.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RowConfig, TrainerConfig
from stillmotion.jobs import Job
from stillmotion.report import page
from stillmotion.report.card import intervals, model_card, write_card
from stillmotion.report.html import Cell, chart, strip, table
from stillmotion.report.looking import share_on_motion
from stillmotion.report.neighbours import nearest
from stillmotion.report.page import report_safely, write_report
from stillmotion.report.plots import new_figure, save_figure
from stillmotion.report.subject import Limits, Missing, read_subject, spread
from stillmotion.run import Run
from stillmotion.tasks import Classification
from stillmotion.train import train
from tests.conftest import MakeVideo

STUDENT = ModelConfig(name="timm/test_efficientnet", view={"size": 64})
TEACHER = ModelConfig(name="resnet3d_10", options={"width": 4}, view={"size": 32, "num_frames": 4})
LIMITS = Limits(errors=3, clips=2, seconds=60.0, device="cpu")
VOID = {"meta", "link", "img", "br", "path", "use"}


class Reader(HTMLParser):
    """Headings, links to elsewhere, and whether every element that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.elsewhere: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            outside = name in ("src", "href", "xlink:href", "action") and not (value or "").startswith(("data:", "#"))
            self.elsewhere += [value or ""] if outside else []
        self.pictures += tag == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def read(path: Path) -> tuple[Reader, str]:
    text, reader = path.read_text(encoding="utf-8"), Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.elsewhere == []
    assert not re.search(r"@import|url\((?!#|data:)", text)
    return reader, text


def config(**data: Any) -> dict[str, Any]:
    return {
        "optim": OptimConfig(epochs=1, batch_size=4, lr=1e-3),
        "data": DataConfig(workers=0, num_draws=1, **data),
        "trainer": TrainerConfig(accelerator="cpu", devices=1),
    }


@pytest.fixture
def videos(tmp_path: Path, make_video: MakeVideo) -> Path:
    """A bright square that moves to the left or to the right; the last test video is broken."""
    lines = ["path,label,split,points,group"]
    for k in range(18):
        frames = np.full((10, 24, 32, 3), 20 + 5 * k, np.uint8)
        for t in range(10):
            at = 2 * t if k % 2 else 20 - 2 * t
            frames[t, 8:16, at : at + 8] = 230
        make_video(tmp_path / f"{k}.mp4", frames, codec="mpeg4")
        lines.append(f"{k}.mp4,{('left', 'right')[k % 2]},{'train' if k < 12 else 'test'},{k % 7},g{k // 2}")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "table.csv").write_text("\n".join([*lines, "broken.mp4,left,test,1,g"]) + "\n")
    return tmp_path / "table.csv"


def test_a_training_writes_page_and_card_and_the_command_adds_what_costs_time(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = train(videos, output=tmp_path / "teacher", student=TEACHER, **config())
    method = MethodConfig(name="hallucinate", options={"weight": 5.0})
    own = ModelConfig(name=str(teacher.path))
    run = train(videos, output=tmp_path / "student", student=STUDENT, teacher=own, method=method, **config())
    reader, text = read(run.path / "report.html")
    assert [t for t in reader.titles if t != "Not in this report"] == [
        "Results", "Training", "By class", "Confusion", "Data", "Settings", "Environment",
    ]  # fmt: skip
    assert text.count(f"<code>stillmotion report {run.path}</code>") == 3
    assert "broken.mp4" in text
    assert reader.pictures == 0
    assert "warning" not in capsys.readouterr().err.replace("warning: " + str(videos), "")

    assert main(["report", str(run.path), "--clips", "2", "--errors", "2", "--device", "cpu", "--seconds", "60"]) == 0
    assert capsys.readouterr().out.strip() == str(run.path / "report.html")
    reader, text = read(run.path / "report.html")
    assert "Where it looks" in reader.titles
    assert "What it hallucinates" in reader.titles
    assert "teacher, frame by frame" in text
    assert "of 12 training clips" in text
    # Of 2 clips: frame, motion, two networks and a film; the clip and six neighbours. At most 2 errors of 2 pictures.
    assert 2 * 5 + 2 * 7 <= reader.pictures <= 2 * 5 + 2 * 7 + 2 * 2
    card = ModelCard((run.path / "README.md").read_text())
    assert card.data.pipeline_tag == "video-classification"
    assert card.data.tags is not None
    assert "hallucinate" in card.data.tags
    (top1,) = [r for r in card.data.eval_results or [] if r.metric_name == "top1"]
    assert top1.metric_type == "accuracy"
    assert top1.metric_value == pytest.approx(run.results()[0]["metrics"]["top1"]["mean"], abs=1e-5)
    assert "12 samples, 12 of them with a label" in card.text
    assert "It sees one frame" in card.text


def run_here(jobs: Sequence[Job], *rest: object) -> dict[str, str]:
    """Runs the jobs of a comparison in this process, one after the other."""
    for job in jobs:
        job.function(**job.arguments)
    return {}


def test_a_comparison_shows_gains_and_looks(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillmotion.compare.run_all", run_here)
    rows = {
        "teacher": RowConfig(student=TEACHER),
        "plain": RowConfig(student=STUDENT),
        "guess": RowConfig(
            student=STUDENT,
            teacher=ModelConfig(name="row:teacher"),
            method=MethodConfig(name="hallucinate", options={"weight": 5.0}),
        ),
    }
    output = tmp_path / "out"
    assert compare(videos, output=output, rows=rows, seeds=[0], reference=["plain"], **config()) == 0
    subject = read_subject(output)
    assert subject.roles == {"student": "guess", "teacher": "teacher", "plain": "plain"}
    reader, text = read(output / "report.html")
    assert set(page.PARTS) - set(reader.titles) == {"Scores"}
    per_class = json.loads((output / "results.json").read_text())["per_class"]
    gain = 100 * (per_class["guess"]["left"] - per_class["plain"]["left"])
    assert f"{gain:+.1f} ({100 * per_class['plain']['left']:.0f}" in text
    assert "Gain of guess over plain" in text
    for seen in ("plain student:", "student (guess):", "teacher:"):
        assert seen in text
    with pytest.raises(ValueError, match="teacher=nobody: is neither a row"):
        write_report(output, chosen={"teacher": "nobody"})


@pytest.mark.parametrize("targets", [["points:score"], ["label", "points:score"], ["label:multilabel"]])
def test_every_kind_of_target(videos: Path, tmp_path: Path, targets: list[str]) -> None:
    run = train(videos, output=tmp_path / "run", student=STUDENT, **config(targets=targets))
    reader, text = read(write_report(run.path, limits=LIMITS))
    assert ("Scores" in reader.titles) == ("points:score" in targets)
    assert ("By class" in reader.titles) == (targets != ["points:score"])
    assert {"Where it looks", "Confident errors"} <= set(reader.titles)
    assert "could not" not in text
    ModelCard(model_card(run.path))


def test_an_evaluation_writes_a_page(videos: Path, tmp_path: Path) -> None:
    run = train(videos, output=tmp_path / "run", student=STUDENT, **config())
    evaluation.evaluate(run.path, videos, output=tmp_path / "seen", teacher=run.path, workers=0, device="cpu")
    reader, _ = read(tmp_path / "seen" / "report.html")
    assert {"Results", "Confusion", "Where it looks", "Confident errors", "Data", "Settings"} <= set(reader.titles)


def test_a_table_that_is_gone_costs_only_the_parts_that_need_it(videos: Path, tmp_path: Path) -> None:
    run = train(videos, output=tmp_path / "run", student=STUDENT, **config())
    videos.rename(tmp_path / "elsewhere.csv")
    reader, text = read(write_report(run.path, limits=LIMITS))
    assert {"Results", "Training", "Confusion", "Settings"} <= set(reader.titles)
    assert "Data" not in reader.titles
    assert "no such file" in text
    assert f"<code>stillmotion report {run.path} --table TABLE</code>" in text
    reader, _ = read(write_report(run.path, table=str(tmp_path / "elsewhere.csv"), limits=LIMITS))
    assert {"Data", "Confident errors"} <= set(reader.titles)
    assert main(["report", str(run.path), "--table", "nowhere.csv"]) == 2


def test_what_goes_wrong_is_a_line(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(videos, output=tmp_path / "run", student=STUDENT, **config())
    capsys.readouterr()

    def fail(subject: object) -> None:
        raise RuntimeError("no\nluck")

    monkeypatch.setitem(page.PARTS, "Confusion", fail)
    report_safely(run.path)
    assert capsys.readouterr().err == f"warning: {run.path}: report without 'Confusion': no luck\n"
    reader, _ = read(run.path / "report.html")
    assert "Results" in reader.titles
    (run.path / "results.json").write_text("{")
    report_safely(run.path)
    assert write_card(run.path) is None
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"warning: {run.path}: no report: ")
    assert second.startswith(f"warning: {run.path}: no model card: ")
    assert main(["report", str(run.path)]) == 2
    assert main(["report", str(tmp_path / "nothing")]) == 2


def test_roles_pass_over_controls(tmp_path: Path) -> None:
    def row(method: str = "supervised", teacher: str | None = None, student: str = "a", **options: Any) -> Any:
        return {"student": {"name": student}, "method": {"name": method, "options": options},
                "teacher": {"name": teacher} if teacher else None}  # fmt: skip

    rows = {
        "video": row(student="b"),
        "alone": row(),
        "untaught": row("hallucinate", "row:video", weight=0),
        "shuffled": row("hallucinate", "row:video", control="shuffled"),
        "taught": row("hallucinate", "row:video@100%", weight=50),
    }
    metric = {"mean": 0.5, "std": None, "values": [0.5]}
    data = {"rows": [{"name": n, "metrics": {"top1": metric}, "cost": {}} for n in rows], "settings": {"rows": rows}}
    (tmp_path / "results.json").write_text(json.dumps(data))
    assert read_subject(tmp_path).roles == {"student": "taught", "teacher": "video", "plain": "alone"}
    with pytest.raises(Missing, match="the table is not known"):
        _ = read_subject(tmp_path).table


def test_intervals_of_a_card_are_those_of_the_groups(videos: Path, tmp_path: Path) -> None:
    """Two groups, one all right and one all wrong: every resample is 0, 1/2 or 1."""
    run = train(videos, output=tmp_path / "run", student=STUDENT, **config())
    lines = ["id,group,target,predicted,logits"]
    rows = [(0, "x", "left", "1 0"), (1, "x", "left", "1 0"), (2, "y", "right", "0 1"), (3, "y", "right", "0 1")]
    lines += [f"{k}.mp4,{group},left,{said},{logits}" for k, group, said, logits in rows]
    (run.path / "predictions.csv").write_text("\n".join(lines) + "\n")
    assert intervals(read_subject(run.path)) == {"top1": (0.0, 1.0)}


def test_heat_on_motion() -> None:
    speed = np.zeros((10, 10))
    speed[:2] = 1.0
    heat = np.zeros((10, 10), np.float32)
    heat[1:3] = 5.0
    assert share_on_motion(heat, speed) == pytest.approx(0.5)
    assert np.isnan(share_on_motion(np.zeros_like(heat), speed))
    assert np.isnan(share_on_motion(heat, np.zeros_like(speed)))


def test_neighbours_lie_in_the_same_direction_from_the_mean() -> None:
    known = np.array([[10.0, 0.0], [-10.0, 0.0], [0.0, 10.0], [0.0, -10.0]]) + 100.0
    guess = np.array([[101.0, 100.1], [100.0, 99.0]])  # short, as unsure guesses are
    wanted = [sorted(range(4), key=lambda i, q=q: -float((known[i] - 100) @ (q - 100)))[0] for q in guess]
    assert nearest(guess, known, 1)[:, 0].tolist() == wanted == [0, 3]


def test_clips_are_taken_class_by_class(videos: Path) -> None:
    from stillmotion.data.table import read_table

    samples = list(read_table(videos).select("train"))
    task = Classification(("left", "right"))
    assert [s.name for s in spread(samples, 4, task)] == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    assert [s.name for s in spread(samples[::2] + samples[1:2], 3, task)] == ["0.mp4", "1.mp4", "2.mp4"]


def test_pieces_of_a_page() -> None:
    text = table(["row", "<b>"], [["a & b", Cell("1", 1.0, 0.5)]], sortable=True)
    assert "&lt;b&gt;" in text
    assert "a &amp; b" in text
    assert 'data-sort="1.0"' in text
    assert "--share:0.500" in text
    assert 'width="240" height="96"' in strip(np.zeros((2, 40, 50, 3), np.uint8), "two frames")

    def draw(path: Path) -> None:
        figure, (axis,) = new_figure(3, 2)
        axis.plot([0, 1], [0, 1], color="#0072B2")
        save_figure(figure, path)

    svg = chart(draw, "a line")
    assert "var(--c0)" in svg
    assert "#0072b2" not in svg
    assert "<metadata" not in svg
    assert chart(lambda path: None) == ""


def test_a_run_without_a_test_split(videos: Path, tmp_path: Path) -> None:
    run = train(videos, output=tmp_path / "run", student=STUDENT, **config(test=None))
    assert isinstance(run, Run)
    reader, _ = read(write_report(run.path, limits=LIMITS))
    assert "Training" in reader.titles
    assert "Nothing was tested" in (run.path / "README.md").read_text()
