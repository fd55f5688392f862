"""Prediction of files, folders, tables and streams; equal to evaluation; broken files; without torch."""

import csv
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from stillmotion.config import LiveConfig
from stillmotion.data import decode
from stillmotion.data.dataset import VideoDataset, collate
from stillmotion.data.table import Sample, read_table
from stillmotion.export import export
from stillmotion.inputs import find_samples
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import load_pretrained, save_pretrained
from stillmotion.overlay import draw_overlay, overlay_paths
from stillmotion.predict import Predictor, predict
from stillmotion.prediction import Prediction
from stillmotion.tasks import Classification
from tests.conftest import DATA, MakeVideo, needs_data

TASK = Classification(("jump", "run", "sit"))


def make_run(folder: Path, **view: object) -> Path:
    torch.manual_seed(0)
    encoder = create_model("timm/test_resnet", num_classes=3, view={"size": 64, **view})
    return save_pretrained(encoder, TASK, folder)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def moving(num_frames: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
    return np.stack([np.roll(base, 3 * t, axis=1) for t in range(num_frames)])


@pytest.fixture
def videos(tmp_path: Path, make_video: MakeVideo) -> Path:
    folder = tmp_path / "videos"
    for i in range(4):
        make_video(folder / f"{i}.mp4", moving(12 + i, i))
    (folder / "more").mkdir()
    Image.fromarray(moving(1, 9)[0]).save(folder / "more" / "still.png")
    for i in range(3):
        (folder / "frames").mkdir(exist_ok=True)
        Image.fromarray(moving(3, 8)[i]).save(folder / "frames" / f"img_{i}.png")
    (folder / "notes.txt").write_text("no video")
    return folder


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_same_logits_as_the_data_of_evaluation(tmp_path: Path, videos: Path) -> None:
    run = make_run(tmp_path / "run2", num_moments=3, moment="uniform", num_frames=2)
    (tmp_path / "table.csv").write_text("path,label,start_frame,end_frame\nvideos/1.mp4,run,,\nvideos/2.mp4,sit,2,9\n")
    table = read_table(tmp_path / "table.csv")
    encoder, _, _ = load_pretrained(run)
    views = {f"student/{name}": view for name, view in encoder.views.items()}
    dataset = VideoDataset(table, TASK, views)
    with torch.inference_mode():
        expected = encoder.from_batch(collate([dataset[0], dataset[1]]), "student")["logits"].softmax(1)
    predictor = Predictor.load(run)
    for sample, probabilities in zip(table, expected, strict=True):
        labels = dict(predictor(sample).labels)
        given = torch.tensor([labels[name] for name in TASK.class_names])
        torch.testing.assert_close(given, probabilities, atol=1e-6, rtol=1e-5, check_dtype=False)


def test_networks_that_see_flow(tmp_path: Path, videos: Path, make_video: MakeVideo, address: str) -> None:
    run = make_run(tmp_path / "flow", kind="flow", num_frames=3, flow={"bound": 4.0}, end="shift")
    (found,) = Predictor.load(run).many([s for s in find_samples([str(videos)]) if s.name.endswith("0.mp4")])
    assert (len(found.labels), found.frames) == (3, 4), "four frames make three fields"
    still = Predictor.load(run)(videos / "more" / "still.png")
    assert (len(still.labels), still.frames) == (3, 1)
    make_video(videos / "long.mp4", moving(20), fps=10)
    out = tmp_path / "live.jsonl"
    assert predict(str(run), [f"{address}/long.mp4"], output=str(out), live=LiveConfig(interval=10)) == 0
    assert [(r["time"], r["frames"]) for r in rows_of(out)] == [(0.3, 4), (1.3, 4)]
    exported = Predictor.load(export(str(run), str(tmp_path / "flow.onnx")))(videos / "0.mp4")
    assert dict(exported.labels) == pytest.approx(dict(found.labels), abs=1e-4)


def test_files_folders_and_stills(run: Path, videos: Path, tmp_path: Path) -> None:
    names = [s.name for s in find_samples([str(videos)])]
    assert [Path(n).relative_to(videos).as_posix() for n in names] == [
        "0.mp4", "1.mp4", "2.mp4", "3.mp4", "frames", "more/still.png"]  # fmt: skip
    out = tmp_path / "out.jsonl"
    assert predict(str(run), [str(videos)], output=str(out), top=2, workers=3) == 0
    rows = rows_of(out)
    assert [r["path"] for r in rows] == names
    assert all(len(r["labels"]) == 2 and r["frames"] == 1 and r["seconds"] > 0 for r in rows)  # type: ignore[arg-type, operator]
    assert predict(str(run), [str(videos / "frames")], output=str(out)) == 0
    assert len(rows_of(out)) == 1


def test_order_does_not_depend_on_workers(run: Path, videos: Path) -> None:
    samples = find_samples([str(videos)]) * 8
    predictor = Predictor.load(run)
    one, many = ([(p.path, p.labels) for p in predictor.many(samples, workers=n)] for n in (1, 8))
    assert one == many
    assert not {key[0] for key in decode._known} & {str(s.path) for s in samples}, "nothing stays of a long corpus"


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_interrupted_call_is_taken_up(
    run: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    (videos / "1.mp4").write_text("no video")
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    assert predict(str(run), [str(videos)], output=str(whole)) == 1
    answer, asked = Predictor.answer, []

    def stopped(self: Predictor, sample: Sample, see: object) -> Prediction:
        asked.append(sample.name)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return answer(self, sample, see)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "answer", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict(str(run), [str(videos)], output=str(out))
    with out.open("a") as file:
        file.write('{"path": "cut')
    assert predict(str(run), [str(videos)], output=str(out)) == 1, "the file that could not be read still counts"
    assert len(asked) == 4 + 3, "six inputs, of which three were done"

    def without_seconds(path: Path) -> list[dict[str, object]]:
        with path.open(newline="") as file:
            rows = [dict(r) for r in csv.DictReader(file)] if suffix == "csv" else rows_of(path)
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    assert without_seconds(out) == without_seconds(whole)
    assert sorted(p.name for p in tmp_path.glob("*.unfinished")) == []
    assert predict(str(run), [str(videos)], output=str(out)) == 1
    assert len(asked) == 4 + 3 + 6, "a whole file is made anew"
    monkeypatch.setattr(Predictor, "answer", answer)
    Path(f"{out}.unfinished").write_text("another call's")
    assert predict(str(run), [str(videos)], output=str(out), top=2) == 1
    assert len(without_seconds(out)) == 6


def test_rows_of_another_call_are_not_taken_up(
    run: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    assert predict(str(run), [str(videos)], output=str(out), top=3) == 0

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stillmotion.predict.prediction_writer", stopped)  # after its mark, before its first row
    with pytest.raises(KeyboardInterrupt):
        predict(str(run), [str(videos)], output=str(out), top=2)
    monkeypatch.undo()
    assert predict(str(run), [str(videos)], output=str(out), top=2) == 0
    assert all(len(row["labels"]) == 2 for row in rows_of(out))  # type: ignore[arg-type]


def test_a_cluster_takes_files_alone(run: Path, videos: Path, tmp_path: Path) -> None:
    for inputs, overlay in ((["rtsp://camera"], None), ([str(videos)], str(tmp_path / "seen"))):
        with pytest.raises(ValueError, match=r"^cluster: files alone, without overlay, are predicted there"):
            predict(str(run), inputs, overlay=overlay, cluster="local")


def test_broken_files_give_rows_and_the_rest_goes_on(
    run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    inputs = [str(tmp_path / "bad.mp4"), str(videos / "0.mp4"), str(tmp_path / "missing.mp4")]
    assert predict(str(run), inputs, output=str(tmp_path / "out.csv"), top=2) == 1
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [r["path"] for r in rows] == inputs
    assert [bool(r["error"]) for r in rows] == [True, False, True]
    assert rows[1]["label1"] in TASK.class_names
    assert float(rows[1]["probability1"]) >= float(rows[1]["probability2"])
    assert "3 inputs: 2 could not be read, 0 only in part" in capsys.readouterr().err


@needs_data
def test_every_broken_and_awkward_file_is_named(run: Path, tmp_path: Path) -> None:
    assert DATA is not None
    inputs = [str(DATA / "broken"), str(DATA / "quirks")]
    out = tmp_path / "out.jsonl"
    predict(str(run), inputs, output=str(out))
    rows = rows_of(out)
    assert len(rows) == len(find_samples(inputs)) >= 28
    assert all(r.get("error") or len(r["labels"]) == 3 for r in rows)  # type: ignore[arg-type]
    awkward = [r for r in rows if "quirks" in str(r["path"])]
    assert not [r for r in awkward if "error" in r or "fault" in r]
    assert all("\n" not in str(r.get("error", "")) for r in rows)


def test_view_overrides(run: Path, videos: Path) -> None:
    several = Predictor.load(run, view={"num_moments": 4, "moment": "uniform"})
    assert several(videos / "3.mp4").frames == 4
    key = Predictor.load(run, view={"moment": "keyframe"}).see(find_samples([str(videos / "3.mp4")])[0])
    assert key.frames.tolist() == [0]
    with pytest.raises(ValueError, match="unknown view setting 'momnt'"):
        Predictor.load(run, view={"momnt": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "x.txt"}, r"output=x.txt: give a name that ends in .jsonl or .csv"),
        ({"overlay": "x.avi"}, r"overlay=x.avi: give a name that ends in .mp4, or a folder"),
        ({"inputs": ["a.mp4", "b.mp4"], "overlay": "x.mp4"}, "one file for 2 inputs"),
        ({"model": "nothing.onnx"}, "nothing.onnx: no such file"),
        ({"model": "nothing/at/all"}, "nothing/at/all: no such folder"),
        ({"device": "tpu"}, "choose one of auto, cpu, cuda"),
    ],
)
def test_mistakes_are_named(run: Path, arguments: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"model": str(run), "inputs": ["a.mp4"], **arguments}
    with pytest.raises(ValueError, match=message):
        predict(**given)  # type: ignore[arg-type]


def test_folder_without_videos(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no video and no image in this folder"):
        find_samples([str(tmp_path)])


def test_overlay_keeps_every_frame_and_draws_labels(run: Path, videos: Path, tmp_path: Path) -> None:
    target = tmp_path / "o" / "out.mp4"
    assert predict(str(run), [str(videos / "2.mp4")], output=str(tmp_path / "o.jsonl"), overlay=str(target)) == 0
    with av.open(str(target)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        shown = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    with av.open(str(videos / "2.mp4")) as container:
        plain = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(shown) == len(plain) == 14
    difference = np.abs(shown[5].astype(int) - plain[5]).mean(axis=2)
    assert difference[:20, :60].mean() > 25  # the panel of labels
    assert difference[46:64].mean() < 6  # nothing but compression


def test_overlay_names() -> None:
    names = ["a/x.avi", "b/x.avi", "0", "rtsp://host/live"]
    assert [p.name for p in overlay_paths("out", names).values()] == ["x.mp4", "x_2.mp4", "0.mp4", "live.mp4"]
    assert overlay_paths(None, names) == {}


def test_draw_overlay_marks_the_time_line() -> None:
    frame = np.full((90, 160, 3), 100, np.uint8)
    drawn = draw_overlay(frame, [("a very long name of a class that does not fit", 0.75)], [0.5], now=1.0)
    assert drawn.shape == frame.shape
    assert drawn[-1, 80].tolist() == [86, 180, 233]
    assert drawn[-1, 20].tolist() != [86, 180, 233]
    assert (drawn[40:80] == 100).all()


@pytest.fixture
def address(videos: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0),
        lambda *a: Quiet(*a, directory=str(videos)),  # type: ignore[arg-type]
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_stream_is_predicted_every_few_frames(
    tmp_path: Path, videos: Path, address: str, make_video: MakeVideo
) -> None:
    run = make_run(tmp_path / "clip", num_frames=4, stride=2)  # spans 7 frames
    make_video(videos / "long.mp4", moving(40), fps=10)
    out, film = tmp_path / "live.jsonl", tmp_path / "live.mp4"
    url = f"{address}/long.mp4"
    assert predict(str(run), [url], output=str(out), live=LiveConfig(interval=10, smooth=0.0), overlay=str(film)) == 0
    rows = rows_of(out)
    assert [r["time"] for r in rows] == [0.6, 1.6, 2.6, 3.6]  # frames 7, 17, 27, 37 at ten a second
    assert all(r["frames"] == 4 and r["path"] == url for r in rows)
    with av.open(str(film)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 40
    # The last clip of the first seven frames is what a file of these frames shows from its start.
    make_video(videos / "short.mp4", moving(7), fps=10)
    predictor = Predictor.load(run, view={"moment": "first"})
    expected = {k: round(v, 2) for k, v in predictor(videos / "short.mp4").labels}
    first = rows[0]["labels"]
    assert {r["label"]: round(r["probability"], 2) for r in first} == expected  # type: ignore[attr-defined]
    assert predict(str(run), [url], output=str(out), live=LiveConfig(interval=10, max_frames=20)) == 0
    assert len(rows_of(out)) == 4 + 2, "a watch that is started again keeps what was written"


def test_stream_that_is_not_there(run: Path, tmp_path: Path, address: str) -> None:
    out = tmp_path / "live.jsonl"
    assert predict(str(run), [f"{address}/none.mp4"], output=str(out)) == 1
    assert "none.mp4" in str(rows_of(out)[0]["error"])


def test_exported_student_predicts_without_torch(run: Path, videos: Path, tmp_path: Path) -> None:
    model = export(str(run), str(tmp_path / "student.onnx"))
    predictor = Predictor.load(run, view={"num_moments": 3, "moment": "uniform"})
    expected = [predictor(videos / f"{i}.mp4").labels for i in range(4)]
    code = (
        "import sys, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in 'torch torchvision timm lightning cv2 sklearn matplotlib onnx'.split():\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from stillmotion.predict import predict\n"
        f"sys.exit(predict({str(model)!r}, [{str(videos)!r}], overlay={str(tmp_path / 'film')!r},\n"
        "    view={'num_moments': 3, 'moment': 'uniform'}))\n"
    )
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 6
    for row, labels in zip(rows, expected, strict=False):
        given = {r["label"]: r["probability"] for r in row["labels"]}
        assert given == pytest.approx(dict(labels), abs=1e-4)
    assert (tmp_path / "film" / "still.mp4").exists()
