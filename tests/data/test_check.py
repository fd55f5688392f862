"""The check names exactly the broken files and what is wrong with tables, and outlives its workers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stillmotion.data.check import CheckReport, check, check_table, look
from stillmotion.data.examine import Examination
from stillmotion.data.pool import Failure, run_apart
from stillmotion.data.table import Sample, Table, read_table
from tests.conftest import DATA, MakeVideo, needs_data

VIDEOS = (".avi", ".mp4", ".mkv", ".mov", ".mpg")
PATTERNS = (
    "samples/*", "quirks/*", "broken/*", "kth_sample/*/*", "ucf101_mini/*/*",
    "ut_interaction/set1/*4_?_?.avi", "ut_interaction/set2/*4_1?_?.avi", "arid6/train/*/*_10_2.mp4",
    "arid6/val/*1.mp4", "fight_surv/*/*00[1-4].mp4", "originals/*/J*/*", "originals/*/S*/*",
)  # fmt: skip


def noise(seed: int, num_frames: int = 12) -> NDArray[np.uint8]:
    """Frames that differ between seeds."""
    return np.random.default_rng(seed).integers(0, 255, (num_frames, 32, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def report() -> CheckReport:
    """The check over a part of every folder of real videos."""
    assert DATA
    paths = [path for pattern in PATTERNS for path in sorted(DATA.glob(pattern)) if path.suffix in VIDEOS]
    samples = [
        Sample(path, path.relative_to(DATA).as_posix(), {"label": path.relative_to(DATA).parts[0]}, line=line)
        for line, path in enumerate(paths, 2)
    ]
    assert len({sample.targets["label"] for sample in samples}) == 9
    return check_table(Table(tuple(samples)), progress=False)


@needs_data
def test_exactly_the_broken_files_are_reported(report: CheckReport) -> None:
    assert DATA
    assert {p.path for p in report.problems} == {f"broken/{path.name}" for path in (DATA / "broken").iterdir()}
    assert report.exit_code == 1
    said = {problem.path.removeprefix("broken/"): (problem.kind, problem.message) for problem in report.problems}
    assert said["derived_truncated_half.avi"] == (
        "partly readable",
        "ends after 61 of 110 frames (149504 of 298916 bytes are there)",
    )
    assert said["derived_bitflips.avi"] == ("partly readable", "98 of 150 frames are damaged")
    assert said["derived_jpeg_named.mp4"] == ("partly readable", "a still image (JPEG) named .mp4")
    assert said["derived_html_error_page.avi"] == ("unreadable", "not a video: HTML text")
    assert said["derived_audio_only.mp4"] == ("unreadable", "no video stream (it holds: audio)")
    assert said["derived_zeroed_header.avi"][1].startswith("the .avi header is lost: read as a raw mpeg4 stream")


@needs_data
def test_what_is_odd_is_explained_and_no_fault(report: CheckReport) -> None:
    notes = report.notes
    assert notes["quirks/derived_stream_copy_cut.mp4"] == ("edit list: 58 of 87 frames are shown",)
    assert notes["quirks/derived_h264_bframes_in_avi.avi"] == ("the header counts fields (120); it has 60 frames",)
    assert notes["ut_interaction/set1/4_1_0.avi"] == (
        "the header counts 185 frames, 183 can be decoded",
        "packed B-frames: timestamps are out of order, frames are counted instead",
    )
    assert "quirks/derived_one_frame.mp4" not in notes
    facts = report.to_dict()
    assert (facts["num_unreadable"], facts["num_partly_readable"]) == (6, 6)
    assert facts["num_readable"] == facts["num_files"] - 12
    assert facts["counts"]["samples"] == {"all": 6}
    assert facts["files"]["quirks/derived_1fps.mp4"]["fps"] == 1.0
    json.dumps(facts)


def _table(tmp_path: Path, rows: str) -> Path:
    path = tmp_path / "videos.csv"
    path.write_text("path,label,split,group,start_frame,end_frame\n" + rows)
    return path


def test_good_table_gives_zero_and_its_facts(
    tmp_path: Path, make_video: MakeVideo, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate("abc"):
        make_video(tmp_path / f"{name}.mp4", noise(seed), fps=24)
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.fromarray(noise(9)[number]).save(tmp_path / "images" / f"{number}.png")
    table = _table(tmp_path, "a.mp4,x,train,,,\nb.mp4,y,train,,,\nc.mp4,y,test,,2,8\nimages,x,test,,,\n")
    assert check(str(table), json=str(tmp_path / "out.json"), workers=2) == 0
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["counts"] == {"x": {"train": 1, "test": 1}, "y": {"train": 1, "test": 1}}
    assert facts["frames"] == {"min": 3, "median": 12, "max": 12, "total": 39}
    assert facts["seconds"] == {"min": 0.5, "median": 0.5, "max": 0.5, "total": 1.5}
    assert facts["fps"] == {"24": 3, "none": 1}
    assert facts["sizes"] == {"48x32": 4}
    assert facts["problems"] == []
    assert "4 of 4 files readable" in capsys.readouterr().out


def test_problems_of_the_table_itself_give_two(
    tmp_path: Path, make_video: MakeVideo, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make_video(tmp_path / "a.mp4", noise(0))
    make_video(tmp_path / "b.mp4", noise(1))
    (tmp_path / "copy.mp4").write_bytes(a.read_bytes())
    (tmp_path / "bad.mp4").write_bytes(b"")
    table = _table(
        tmp_path,
        "a.mp4,x,train,one,,\nb.mp4,y,train,two,0,20\nb.mp4,y,test,two,12,20\n"
        "copy.mp4,x,test,three,,\nbad.mp4,x,train,,,\ngone.mp4,x,train,,,\n",
    )
    report = check_table(read_table(table, check_files=False), progress=False, workers=2)
    said = [(p.kind, p.path, p.line) for p in report.problems]
    assert said == [
        ("missing", "gone.mp4", 7),
        ("empty range", "b.mp4", 4),
        ("leak", "b.mp4", 4),
        ("leak", "copy.mp4", 5),
        ("unreadable", "bad.mp4", 6),
        ("long range", "b.mp4", 3),
    ]
    assert report.exit_code == 2
    messages = {(p.kind, p.path): p.message for p in report.problems}
    assert "group 'two' is in train (1 rows, such as b.mp4) and test" in messages["leak", "b.mp4"]
    assert "equal those of a.mp4 (line 2), which is in another split" in messages["leak", "copy.mp4"]
    assert messages["long range", "b.mp4"] == "the range ends at frame 20, the video has 12 frames; it is cut there"
    assert check(str(table), workers=1) == 2
    shown = capsys.readouterr().out
    assert "missing: gone.mp4 (line 7): not found at" in shown
    (tmp_path / "wrong.csv").write_text("file,label\na.mp4,x\n")
    assert check(str(tmp_path / "wrong.csv")) == 2
    assert "no column `path`" in capsys.readouterr().out


def test_one_unreadable_file_gives_one_and_the_others_are_counted(tmp_path: Path, make_video: MakeVideo) -> None:
    for seed in range(3):
        make_video(tmp_path / "x" / f"{seed}.mp4", noise(seed))
    (tmp_path / "x" / "page.mp4").write_text("<html>404</html>")
    report = check_table(read_table(tmp_path, check_files=False), progress=False)
    assert [(p.kind, p.path, p.message) for p in report.problems] == [
        ("unreadable", "x/page.mp4", "not a video: HTML text")
    ]
    assert report.exit_code == 1
    assert report.to_dict()["num_readable"] == 3


def test_folder_with_a_damaged_image_is_readable_in_part(tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(noise(9)[number]).save(tmp_path / f"{number}.png")
    whole = look(str(tmp_path))
    assert isinstance(whole, Examination)
    assert (whole.num_frames, whole.size, whole.fault) == (4, (48, 32), None)
    data = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[: len(data) // 2])
    part = look(str(tmp_path))
    assert isinstance(part, Examination)
    assert (part.num_frames, part.damaged) == (4, (2,))
    assert (part.fault or "").startswith("1 of 4 images cannot be read, first 2.png: an image that cannot be read (")
    assert part.digest != whole.digest


def test_same_frames_in_another_container_are_found(tmp_path: Path, make_video: MakeVideo) -> None:
    source = make_video(tmp_path / "a.mp4", noise(0))
    other = look(str(make_video(tmp_path / "b.mp4", noise(1))))
    with av.open(str(source)) as old, av.open(str(tmp_path / "a.mkv"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    first, second = look(str(source)), look(str(tmp_path / "a.mkv"))
    assert isinstance(first, Examination)
    assert isinstance(second, Examination)
    assert isinstance(other, Examination)
    assert first.digest == second.digest != other.digest


def _work(item: str) -> str:
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "hang":
        time.sleep(60.0)
    if item == "raise":
        raise LookupError("no such\nthing")
    return item.upper()


def test_workers_that_die_or_hang_cost_only_their_item() -> None:
    items = ["a", "die", "b", "hang", "c", "d", "raise"]
    results = dict(run_apart(_work, items, workers=2, timeout=1.0))
    assert [results[i] for i in (0, 2, 4, 5)] == ["A", "B", "C", "D"]
    assert results[1] == Failure("its reader died (signal SIGKILL)")
    assert results[3] == Failure("no answer within 1 s")
    assert results[6] == Failure("LookupError: no such thing")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc")
def test_workers_end_with_a_killed_program() -> None:
    """At once, not when the item at hand is done: with slow flow that is a day."""
    script = (
        "import os, sys\nfrom stillmotion.data.pool import Process\nfrom tests.data.test_check import _work\n"
        "if __name__ == '__main__':\n"
        "    process = Process(_work)\n    process.line.send(('hang', 3600.0))\n"
        "    print(process.process.pid, flush=True)\n    sys.stdin.read()\n"
    )
    program = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    worker = int(program.stdout.readline())
    program.kill()
    program.wait()
    until = time.monotonic() + 20.0
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
