"""Streams that break off and come back, what is decided of them, and students of several frames moment by moment."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import av
import cv2
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch

from benchmarks.live import NAMES, Camera
from stillmotion import stream
from stillmotion.__main__ import main
from stillmotion.config import LiveConfig
from stillmotion.data.sampling import frame_indices
from stillmotion.events import Event, EventList, event_writer
from stillmotion.export.formats import METADATA, VERSION
from stillmotion.incremental import MomentCache, moment_cache
from stillmotion.live import Smooth, open_window, watch
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.models.sequence import FrameSequence
from stillmotion.networks import TorchNetwork
from stillmotion.predict import Predictor
from stillmotion.tasks import Classification
from stillmotion.view import NO_DRAW, View
from stillmotion.window import Window, live_view
from tests.conftest import MakeVideo

TASK = Classification(NAMES)
PLAIN: dict[str, Any] = {"smooth": 0.0, "min_seconds": 0.0}


def by_colour(inputs: dict[str, Any]) -> Any:
    """Logits (3,) that say which channel is the brightest."""
    return (inputs["frames"].mean((0, 1, 3, 4)) / 8.0).astype(np.float32)


def watcher(**view: Any) -> Predictor:
    return Predictor(by_colour, TASK, {"frames": View(size=(16, 16), **view)})


def colour_model(path: Path, task: Classification = TASK) -> Path:
    """The same as an exported file, made by hand."""
    make, axes = onnx.helper, onnx.numpy_helper.from_array(np.array([1, 3, 4]), "axes")
    nodes = [
        make.make_node("Cast", ["frames"], ["floats"], to=onnx.TensorProto.FLOAT),
        make.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        make.make_node("Div", ["means", "eight"], ["logits"]),
    ]
    eight = onnx.numpy_helper.from_array(np.array(8.0, np.float32), "eight")
    frames = make.make_tensor_value_info("frames", onnx.TensorProto.UINT8, ["batch", 1, 3, 16, 16])
    logits = make.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])
    graph = make.make_graph(nodes, "colour", [frames], [logits], [axes, eight])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    views = {"frames": View(size=(16, 16)).to_dict()}
    facts = {"format": VERSION, "task": task.to_dict(), "views": views, "short_side": None, "preprocess": False,
             "joins_moments": False, "dynamic_frames": False}  # fmt: skip
    make.set_model_props(model, {METADATA: json.dumps(facts)})
    onnx.save(model, str(path))
    return path


def coloured(colours: str, frames: int) -> np.ndarray:
    """Each of the colours r, g, b for so many frames."""
    values = {"r": (200, 40, 40), "g": (40, 200, 40), "b": (40, 40, 200)}
    return np.stack([np.full((32, 48, 3), values[c], np.uint8) for c in colours for _ in range(frames)])


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[Camera]:
    monkeypatch.setattr(stream, "FIRST_DELAY", 0.05)
    with Camera(seconds=100.0, fps=25, size=(48, 32)) as server:
        yield server


def test_hysteresis_by_hand() -> None:
    events = EventList("s", ("a", "b"), LiveConfig(enter=0.6, leave=0.4, min_seconds=1.0))
    found: list[Event] = []
    #  a rises at 1, is told at 2, dips to 0.5 (stays), falls at 4; b is up for half a second only: not told.
    for at, a, b in ((0, 0.1, 0.1), (1, 0.6, 0.1), (2, 0.5, 0.7), (2.5, 0.9, 0.3), (4, 0.39, 0.6), (5, 0.1, 0.8)):
        found += events.update(np.array([a, b]), at, 100.0 + at)
    assert [(e.state, e.id, e.label, e.start, e.end, e.peak) for e in found] == [
        ("start", 1, "a", 1, None, 0.6), ("stop", 1, "a", 1, 4, 0.9), ("start", 2, "b", 4, None, 0.8)]  # fmt: skip
    assert found[0].clock == "1970-01-01T00:01:41.000Z", "when it began, not when that was told"
    assert events.active == ("b",)
    # The stream is lost: what lasted ended where it was last seen, and starts anew.
    (cut,) = events.close()
    assert (cut.state, cut.label, cut.end, cut.cut) == ("stop", "b", 5, True)
    assert events.update(np.array([0.1, 0.9]), 9.0, 109.0) == []
    (again,) = events.update(np.array([0.1, 0.9]), 10.0, 110.0)
    assert (again.id, again.start) == (3, 9.0)
    assert [e.end for e in events.close()] == [10.0]
    assert events.close() == []


@pytest.mark.parametrize("name", ["events.csv", "events.jsonl"])
def test_a_watch_that_starts_again_adds_to_its_events(name: str, tmp_path: Path) -> None:
    ended = Event("stop", 1, "s", "a", 1.0, "2026-01-01T00:00:00Z", 2.0, 0.9)
    for _ in range(2):
        with event_writer(str(tmp_path / name)) as write:
            write(ended)
    lines = (tmp_path / name).read_text().splitlines()
    assert len(lines) == 2 + (name == "events.csv")
    assert lines[-1] == lines[-2]


def test_only_named_classes_make_events() -> None:
    events = EventList("s", ("a", "b"), LiveConfig(classes=["b"], min_seconds=0.0))
    assert [e.label for e in events.update(np.array([0.9, 0.9]), 0.0, 0.0)] == ["b"]
    with pytest.raises(ValueError, match=r"live\.classes: the model knows no 'c'; classes: a, b"):
        EventList("s", ("a", "b"), LiveConfig(classes=["c"]))


def test_event_files(tmp_path: Path) -> None:
    start = Event("start", 1, "cam", "a", 1.0, "then", peak=0.7)
    stop = replace(start, state="stop", end=3.5)
    for name in ("e.csv", "e.jsonl"):
        with event_writer(str(tmp_path / name)) as write:
            write(start)
            write(stop)
    (row,) = csv.DictReader((tmp_path / "e.csv").open())
    assert (row["label"], row["start"], row["end"], row["seconds"], row["cut"]) == ("a", "1.0", "3.5", "2.5", "False")
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "stop"]
    assert "end" not in lines[0]
    with pytest.raises(ValueError, match=r"events=e\.txt: give a name that ends in .jsonl or .csv"):
        event_writer("e.txt").__enter__()


def test_smoothing_is_the_exponential_average_of_probabilities() -> None:
    smooth = Smooth(TASK, 2.0)
    given = np.log(np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]], np.float32))
    found = [TASK.scores(smooth(row, at)) for row, at in zip(given[:2], (0.0, 1.0), strict=True)]
    smooth.clear()
    found.append(TASK.scores(smooth(given[2], 1.5)))
    old = np.exp(-0.5)
    np.testing.assert_allclose(found[1], old * np.exp(given[0]) + (1 - old) * np.exp(given[1]), rtol=1e-5)
    np.testing.assert_allclose(found[2], np.exp(given[2]), rtol=1e-5)


def test_a_file_as_a_stream_has_every_decision_and_every_event(tmp_path: Path, make_video: MakeVideo) -> None:
    video = make_video(tmp_path / "v.mp4", coloured("rgbr", 20), fps=10)
    events: list[Event] = []
    found = list(watch(f"file://{video}", watcher(), LiveConfig(interval=2, **PLAIN), on_event=events.append))
    assert [p.time for p in found] == [round(0.2 * k, 1) for k in range(40)]
    assert [p.labels[0][0] for p in found] == ["red"] * 10 + ["green"] * 10 + ["blue"] * 10 + ["red"] * 10
    told = [(e.label, e.start, e.end, e.cut) for e in events if e.state == "stop"]
    assert told == [("red", 0.0, 2.0, False), ("green", 2.0, 4.0, False), ("blue", 4.0, 6.0, False),
                    ("red", 6.0, 7.8, True)]  # fmt: skip
    assert found[-1].to_dict()["active"] == ["red"]
    (short,) = watch(f"file://{video}", watcher(num_frames=9), LiveConfig(max_frames=3))
    assert (short.time, short.frames) == (0.2, 3), "one decision even of what is shorter than a clip"


def test_late_frames_are_dropped_and_the_newest_are_looked_at(tmp_path: Path, make_video: MakeVideo) -> None:
    video = make_video(tmp_path / "v.mp4", coloured("r" * 30, 10), fps=10)
    seen: list[float] = []

    def slow(inputs: dict[str, Any]) -> Any:
        time.sleep(0.3)
        return by_colour(inputs)

    predictor = Predictor(slow, TASK, {"frames": View(size=(16, 16), num_frames=3)})
    for prediction in watch(f"file://{video}", predictor, LiveConfig(late="drop", **PLAIN)):
        seen.append(prediction.time or 0.0)
        last = prediction
    assert 1 <= len(seen) < 10, "of 37 that were due"
    assert last.dropped is not None
    assert last.dropped > 200
    assert seen == sorted(seen)
    assert seen[-1] > 29.0, "and the end is reached"
    every = list(watch(f"file://{video}", watcher(num_frames=3), LiveConfig(late="wait", **PLAIN)))
    assert (len(every), every[-1].dropped) == (38, None)


def test_a_stream_that_is_cut_off_is_found_again(camera: Camera, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []
    stop, times, cut = threading.Event(), [], 0.0
    config = LiveConfig(gap=0.3, **PLAIN)
    for prediction in watch(camera.url, watcher(), config, on_event=events.append, stop=stop):
        times.append(prediction.time or 0.0)
        if len(times) == 4:
            camera.disconnect(0.6)
            cut = times[-1]
        elif camera.clients == 2 and times[-1] > cut + 1.0:
            stop.set()
    assert times == sorted(times)
    assert [e.state for e in events] == ["start", "stop", "start", "stop"]
    assert cut - 0.001 <= (events[1].end or 0.0) < cut + 3.0
    assert events[2].start > (events[1].end or 0.0) + 0.3
    error = capsys.readouterr().err
    assert "connecting again" in error
    assert "connected again after" in error


def test_a_stream_that_stays_away_is_an_error(camera: Camera) -> None:
    found = []
    for prediction in watch(camera.url, watcher(), LiveConfig(reconnect=0.3)):
        found.append(prediction)
        if len(found) == 2:
            camera.disconnect(60.0)
    assert "lost, and not there again within 0.3 s (live.reconnect)" in str(found[-1].error)
    assert [p.error for p in found[:-1]] == [None] * (len(found) - 1)


def test_memory_stays_within_what_decisions_need() -> None:
    views = {"frames": View(num_moments=4, moment="spaced", spacing=16)}
    window = Window([views], [None], 25.0, None)
    assert (window.first, window.interval, window.length) == (49, 16, 49)
    most = 0
    for number in range(1, 1000):
        window.add(stream.StreamFrame(number, 1, 0.0, 0.0, av.VideoFrame(16, 16, "rgb24")))
        if window.is_due(number):
            seen = window.numbers(0, number)["frames"].ravel().tolist()
            assert seen == [number - 48, number - 32, number - 16, number]
            assert set(seen) <= set(window._frames)
            most = max(most, len(window._frames) if number > 100 else 0)
    assert most == 4, "of 49"


def test_nothing_reaches_back_to_frames_that_were_dropped() -> None:
    views = {"frames": View(num_moments=3, moment="uniform")}
    window = Window([views], [None], 25.0, 10)
    assert (window.first, window.length) == (1, 21)

    def take(first: int, last: int) -> None:
        window.begin(first)
        for number in range(first, last + 1):
            window.add(stream.StreamFrame(number, 1, 0.0, 0.0, av.VideoFrame(16, 16, "rgb24")))

    take(1, 12)
    assert window.numbers(0, 11)["frames"].ravel().tolist() == [1, 1, 11]
    take(35, 50)
    assert [n for n in range(35, 51) if window.is_due(n)] == [41]
    assert window.numbers(0, 41)["frames"].ravel().tolist() == [35, 35, 41]
    assert {35, 41} <= set(window._frames)


def test_moments_anywhere_lie_an_interval_apart() -> None:
    view = live_view(View(num_moments=3, moment="uniform", num_frames=2), 10, 25.0)
    assert frame_indices(view, 60, 25.0, NO_DRAW).tolist() == [[38, 39], [48, 49], [58, 59]]
    assert frame_indices(view, 12, 25.0, NO_DRAW).tolist() == [[0, 1], [0, 1], [10, 11]]


def sequence(**options: Any) -> FrameSequence:
    torch.manual_seed(0)
    network = create_model("sequence", num_classes=3, backbone={"name": "timm/test_resnet"}, view={
        "size": 32, "num_moments": 3, "moment": "spaced", "spacing": 8}, **options)  # fmt: skip
    assert isinstance(network, FrameSequence)
    if options.get("aggregate") == "attention":
        torch.nn.init.normal_(network.aggregate_moments.weigh.weight)  # type: ignore[arg-type, union-attr]
    return network.eval()


def moving_pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 3, 32, 32), np.uint8)


@pytest.mark.parametrize("aggregate", ["mean", "lstm", "attention"])
def test_kept_moments_give_what_the_whole_network_gives(aggregate: str) -> None:
    network, frames = sequence(aggregate=aggregate), moving_pictures(6)
    whole = TorchNetwork(network, "cpu")
    cache = moment_cache(whole)
    assert cache is not None
    for last in range(2, 6):
        places = [last - 2, last - 1, last]
        given = cache([(n,) for n in places], lambda picked, p=places: {"frames": frames[[p[i] for i in picked]]})
        np.testing.assert_allclose(given, whole({"frames": frames[places]}), atol=1e-5)
    assert cache.computed == 6, "three at the beginning, one for every decision after it"


@pytest.mark.parametrize("interval", [1, 2])
def test_a_kept_shift_is_that_of_the_whole_stream(interval: int) -> None:
    """Interval 2: two chains of moments, decided in turn."""
    network, frames = sequence(aggregate="mean", shift="past"), moving_pictures(10)
    cache = moment_cache(TorchNetwork(network, "cpu"))
    assert isinstance(cache, MomentCache)
    chains: dict[int, list[int]] = {}
    for last in range(2 * interval, 10):
        places = [last - 2 * interval, last - interval, last]
        chain = chains.setdefault(last % interval, places[:2])
        chain.append(last)
        given = cache([(n,) for n in places], lambda picked, p=places: {"frames": frames[[p[i] for i in picked]]})
        # The whole network over all that came so far; its mean over the last three moments.
        network._shown = (len(chain), 1)
        with torch.inference_mode():
            vectors = network.backbone(torch.from_numpy(frames[chain]))["embedding"]
            expected = network.join(vectors[None, -3:])[0].numpy()
        np.testing.assert_allclose(given, expected, atol=1e-5)
    assert cache.computed == 3 * interval + (10 - 3 * interval)
    lost = cache([(20,), (21,), (22,)], lambda picked: {"frames": frames[picked]})  # nothing before is known
    whole = TorchNetwork(network, "cpu")({"frames": frames[:3]})
    np.testing.assert_allclose(lost, whole, atol=1e-5)


def test_a_student_of_several_frames_live(tmp_path: Path, make_video: MakeVideo) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 8, 8, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    video = make_video(tmp_path / "v.mp4", noise)
    run = save_pretrained(sequence(aggregate="lstm"), TASK, tmp_path / "run")
    predictor = Predictor.load(run)
    assert isinstance(predictor.network, TorchNetwork)
    found = list(watch(f"file://{video}", predictor, LiveConfig(smooth=0.0)))
    assert [p.time for p in found] == [0.64, 0.96, 1.28, 1.6, 1.92, 2.24]  # frames 17, 25, 33, ...
    whole = Predictor(predictor.network.__call__, predictor.task, predictor.views)  # not known to be a sequence
    again = list(watch(f"file://{video}", whole, LiveConfig(smooth=0.0)))
    for a, b in zip(found, again, strict=True):
        assert dict(a.labels) == pytest.approx(dict(b.labels), abs=1e-5)
    assert len({p.labels[0][1] for p in found}) == 6
    assert moment_cache(TorchNetwork(sequence(shift="both"), "cpu")) is None


def test_the_teacher_answers_live_where_the_student_is_not_sure(tmp_path: Path, make_video: MakeVideo) -> None:
    video = make_video(tmp_path / "v.mp4", coloured("rg", 20), fps=10)
    asked: list[tuple[int, ...]] = []

    def of_clips(inputs: dict[str, Any]) -> Any:
        asked.append(inputs["clip"].shape)
        return np.array([0.0, 0.0, 9.0], np.float32)

    def timid(inputs: dict[str, Any]) -> Any:
        logits = by_colour(inputs)
        return logits if logits[0] > logits[1] else logits / 1000.0

    teacher = Predictor(of_clips, TASK, {"clip": View(size=(24, 24), num_frames=4)})
    student = Predictor(timid, TASK, {"frames": View(size=(16, 16))}, teacher=teacher, threshold=0.5, reject=0.99)
    found = list(watch(f"file://{video}", student, LiveConfig(interval=4, **PLAIN)))
    assert [p.by for p in found] == ["student"] * 5 + ["teacher"] * 5
    assert [p.labels[0][0] for p in found] == ["red"] * 5 + ["blue"] * 5
    assert asked == [(1, 4, 3, 24, 24)] * 5
    assert found[-1].frames == 4


def test_an_exported_file_has_its_temperature(tmp_path: Path, make_video: MakeVideo) -> None:
    video = make_video(tmp_path / "v.mp4", coloured("g", 5))
    odds = []
    for temperature in (1.0, 4.0):
        model = colour_model(tmp_path / f"{temperature}.onnx", replace(TASK, temperature=temperature))
        (decision,) = watch(f"file://{video}", Predictor.load(model))
        chances = dict(decision.labels)
        odds.append(np.log(chances["green"] / chances["red"]))
    assert odds[1] == pytest.approx(odds[0] / 4.0, rel=1e-3)


def test_stopping_by_signal_writes_everything(tmp_path: Path, camera: Camera) -> None:
    model = colour_model(tmp_path / "colour.onnx")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        out, events, film = (tmp_path / f"{code}{s}" for s in (".jsonl", "e.csv", ".mp4"))
        command = [sys.executable, "-m", "stillmotion", "predict", str(model), camera.url, "--output", str(out),
                   "--events", str(events), "--overlay", str(film)]  # fmt: skip
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
        deadline = time.time() + 60.0
        while time.time() < deadline and not (out.exists() and out.read_text().count("\n") >= 5):
            time.sleep(0.1)
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
        assert process.returncode == code, error
        assert "Traceback" not in error
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(lines) >= 5
        assert lines[-1]["active"] == ["red"]
        assert [(r["label"], r["cut"]) for r in csv.DictReader(events.open())] == [("red", "True")]
        with av.open(str(film)) as container:
            assert sum(1 for _ in container.decode(video=0)) >= 25


def test_mistakes_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ValueError, match=r"live\.show: there is no display here; leave live.show out, or"):
        open_window()
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setattr(cv2, "namedWindow", Mock(side_effect=cv2.error("no windows")))
    with pytest.raises(ValueError, match=r"live\.show: .* \(headless\)"):
        open_window()
    for settings, message in (
        ({"enter": 0.3}, "live.enter=0.3, live.leave=0.4: 0 < leave <= enter <= 1 is wanted"),
        ({"interval": 0}, "live.interval=0: must be at least 1"),
        ({"smooth": -1.0}, "live.smooth=-1.0: must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            LiveConfig(**settings)
    with pytest.raises(ValueError, match="threshold is missing: a cascade has a teacher and a threshold"):
        Predictor(by_colour, TASK, {}, teacher=watcher())
    with pytest.raises(ValueError, match=r"reject=1\.5: a probability, from 0 to 1, is wanted"):
        Predictor(by_colour, TASK, {}, reject=1.5)
    other = Predictor(by_colour, Classification(("x", "y", "z")), {})
    with pytest.raises(ValueError, match="teacher: its targets or classes are not those of the student"):
        Predictor(by_colour, TASK, {}, teacher=other, threshold=0.5)
    assert main(["predict", "nothing.onnx", "0", "--threshold", "0.5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing.onnx: no such file" in line
