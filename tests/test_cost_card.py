"""The way from file to prediction, part by part, and the cost card: against clocks, packets and files made by hand."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from stillmotion.__main__ import main
from stillmotion.cost_card import Card, Costs, cost_card, median_trip, percentiles
from stillmotion.data import decode, transforms
from stillmotion.data.packets import decoded_bytes, sample_bytes
from stillmotion.data.source import Videos
from stillmotion.data.table import Sample
from stillmotion.energy import Meter
from stillmotion.export import export
from stillmotion.journey import PARTS, Seen, Trip, look, travel
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.predict import Predictor
from stillmotion.report.cost import card_path, card_section, plot_card, resource_rows, time_rows, write_card_files
from stillmotion.stopwatch import Stopwatch
from stillmotion.tasks import Classification
from stillmotion.view import View
from tests.conftest import MakeVideo


class Clock:
    """Stands still until somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def works(self, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which takes so long."""

        def slow(*args: Any, **settings: Any) -> Any:
            self.now += seconds
            return function(*args, **settings)

        return slow


def noise(num_frames: int, side: int = 32) -> Any:
    return np.random.default_rng(0).integers(0, 256, (num_frames, side, side, 3), np.uint8)


def test_the_parts_are_told_apart_and_add_up(tmp_path: Path, make_video: MakeVideo, monkeypatch: Any) -> None:
    video = make_video(tmp_path / "v.mp4", noise(6))
    clock, sample = Clock(), Sample(video, "v.mp4")
    monkeypatch.setattr(Videos, "extent", clock.works(1.0, Videos.extent))
    monkeypatch.setattr(Videos, "read", clock.works(2.0, Videos.read))
    monkeypatch.setattr(transforms, "flow_of_pairs", clock.works(4.0, transforms.flow_of_pairs))
    monkeypatch.setattr(transforms, "_shown", clock.works(8.0, transforms._shown))
    views = {"frames": View(size=(16, 16)), "flow": View(kind="flow", size=(16, 16), num_frames=2)}
    answer = clock.works(16.0, lambda inputs: None)
    trip, seen = travel(lambda watch: look(Videos(), sample, views, watch), answer, sample, clock)
    assert (trip.decode, trip.flow, trip.network) == (1.0 + 2.0, 4.0, 16.0)
    # One picture of colours, u and v of two fields are resampled; and the extent is asked for again behind reading.
    assert trip.preprocess == 5 * 8.0 + 1.0
    assert trip.total == clock.now
    assert seen.frames.tolist() == [3, 4, 5]


def test_every_trip_reads_the_file_as_if_for_the_first_time(
    tmp_path: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make_video(tmp_path / "v.mp4", noise(6))
    scanned: list[object] = []
    build = decode.build_index
    monkeypatch.setattr(decode, "build_index", lambda *args: scanned.append(args) or build(*args))
    sample, views = Sample(video, "v.mp4"), {"frames": View(size=(16, 16))}
    for _ in range(2):
        look(Videos(), sample, views)
    assert len(scanned) == 1
    for _ in range(2):
        travel(lambda watch: look(Videos(), sample, views, watch), lambda inputs: None, sample)
    assert len(scanned) == 3


def test_bytes_are_those_of_the_packets_that_a_view_needs(tmp_path: Path, make_video: MakeVideo) -> None:
    options = {"g": "4", "bf": "0", "sc_threshold": "0"}
    video = make_video(tmp_path / "v.mp4", noise(12), options=options)
    sizes = packet_sizes(video)
    assert len(sizes) == 12
    whole, part = Sample(video, "v.mp4"), Sample(video, "v.mp4", start=4, end=12)
    assert sample_bytes(whole, [View()]) == sum(sizes[4:7])  # frame 6, from the keyframe 4 on
    assert sample_bytes(whole, [View(moment="first")]) == sizes[0]
    assert sample_bytes(whole, [View(moment="first"), View(moment="last")]) == sizes[0] + sum(sizes[8:12])
    assert sample_bytes(whole, [View(num_frames=6, moment="first")]) == sum(sizes[:6])
    assert sample_bytes(part, [View(moment="first")]) == sizes[4]
    # Nothing proves where frames lie in a transport stream: it is decoded from its start.
    stream = make_video(tmp_path / "v.ts", noise(12), codec="mpeg2video", options=options)
    sizes = packet_sizes(stream)
    assert decoded_bytes(stream, np.array([9, 2])) == sum(sizes[:10])
    still = tmp_path / "still.png"
    from PIL import Image

    Image.fromarray(noise(1)[0]).save(still)
    assert sample_bytes(Sample(still, "still.png"), [View(num_frames=4)]) == still.stat().st_size


def packet_sizes(video: Path) -> list[int]:
    with av.open(str(video)) as container:
        return [p.size for p in container.demux(video=0) if p.size]


def test_b_frames_need_what_they_refer_to(tmp_path: Path, make_video: MakeVideo) -> None:
    options = {"g": "12", "bf": "2", "sc_threshold": "0", "b-adapt": "0", "x264-params": "b-pyramid=none"}
    video = make_video(tmp_path / "v.mp4", noise(12), options=options)
    with av.open(str(video)) as container:
        packets = [(p.pts, p.size) for p in container.demux(video=0) if p.size]
    times = [pts for pts, _ in packets]
    assert times != sorted(times)
    place = times.index(sorted(times)[2])
    assert decoded_bytes(video, np.array([2])) == sum(size for _, size in packets[: place + 1])


@pytest.mark.parametrize("values", [[3.0], [5.0, 1.0], [0.1, 9.0, 2.5, 2.5, 7.0, 4.0]])
def test_percentiles_by_hand(values: list[float]) -> None:
    ordered = sorted(values)
    for share, found in percentiles(values).items():
        place = share / 100 * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        assert found == pytest.approx(low + (high - low) * (place - math.floor(place)))


def test_the_median_trip_is_one_that_was_made() -> None:
    trips = [Trip(decode=d, flow=0.0, preprocess=0.0, network=n) for d, n in ((9, 0), (1, 4), (0, 1), (3, 3))]
    assert median_trip(trips) == trips[1]  # of totals 1, 5, 6, 9
    assert median_trip(trips[:1]) == trips[0]


def test_energy_of_all_packages_over_the_end_of_a_counter(tmp_path: Path) -> None:
    def zone(name: str, kind: str, count: int) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for file, text in (("name", kind), ("energy_uj", count), ("max_energy_range_uj", 10_000_000)):
            (folder / file).write_text(f"{text}\n")
        return folder

    assert Meter.find(tmp_path) is None
    zone("intel-rapl:0", "package-0", 9_000_000)
    zone("intel-rapl:1", "package-1", 1_000_000)
    zone("intel-rapl:0:0", "core", 5)
    meter = Meter.find(tmp_path)
    assert meter is not None
    before = meter.read()
    zone("intel-rapl:0", "package-0", 500_000)
    zone("intel-rapl:1", "package-1", 3_000_000)
    zone("intel-rapl:0:0", "core", 999)
    assert meter.joules(before, meter.read()) == pytest.approx(1.5 + 2.0)


TASK = Classification(("red", "blue"))


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run folder of a one-frame student, and the same exported."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    student = save_pretrained(
        create_model("timm/test_resnet", num_classes=2, view={"size": 32}), TASK, folder / "student"
    )
    return student, export(str(student), str(folder / "student.onnx"))


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Three videos with labels, and a file that is none."""
    lines = ["path,label,split"]
    for i, label in enumerate(("red", "blue", "blue")):
        make_video(tmp_path / f"{i}.mp4", np.roll(noise(8), i, 0), options={"g": "4", "bf": "0", "sc_threshold": "0"})
        lines.append(f"{i}.mp4,{label},test")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "table.csv").write_text("\n".join([*lines, "bad.mp4,red,broken"]) + "\n")
    return tmp_path / "table.csv"


def test_the_command_measures_a_student_its_export_and_a_teacher(
    networks: tuple[Path, Path], table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, exported = networks
    clip = json.dumps({"name": "resnet3d_10", "options": {"width": 4}, "view": {"size": 32, "num_frames": 4}})
    out = tmp_path / "out"
    command = ["benchmark", str(student), str(exported), "--videos", str(table), "--rounds", "2", "--output", str(out)]
    assert main([*command[:3], clip, *command[3:]]) == 1, "one file is no video"
    said = capsys.readouterr()
    assert "bad.mp4: " in said.err
    assert [line.split("\t")[0] for line in said.out.splitlines()[1:4]] == ["student", "student.onnx", "resnet3d_10"]

    card = json.loads((out / "cost_card.json").read_text())
    assert card["videos"] == ["0.mp4", "1.mp4", "2.mp4"]
    assert list(card["broken"]) == ["bad.mp4"]
    assert (out / "cost_card.broken.csv").read_text().splitlines()[1].endswith(",no")
    assert (out / "cost_card.png").read_bytes().startswith(b"\x89PNG")
    eager, onnx, teacher = card["models"]
    rows = list(csv.DictReader((out / "cost_card.csv").open()))
    assert [float(row["total_ms"]) for row in rows] == [m["total_ms"] for m in card["models"]]
    for model in card["models"]:
        assert sum(model["ms"].values()) == pytest.approx(model["total_ms"])
        of_videos = [sum(parts.values()) for parts in model["videos"].values()]
        assert model["total_ms"] == pytest.approx(np.mean(of_videos))
        assert min(model["ms"][part] for part in ("decode", "preprocess", "network")) > 0
        assert model["ms"]["flow"] == 0
        assert model["percentiles"]["50"] <= model["percentiles"]["90"] <= model["percentiles"]["99"]
        assert model["videos_per_s"] > 0
    assert (eager["kind"], onnx["kind"], teacher["kind"]) == ("torch", "onnx float32", "torch")
    assert (eager["frames"], onnx["frames"], teacher["frames"]) == (1, 1, 4)
    assert eager["params"] == onnx["params"]
    assert eager["gmacs"] == onnx["gmacs"] > 0
    by_hand = [sum(packet_sizes(tmp_path / name)[4:5]) for name in card["videos"]]  # frame 4 of 8, a keyframe
    assert eager["kilobytes"] == onnx["kilobytes"] == pytest.approx(np.mean(by_hand) / 1024)
    assert teacher["kilobytes"] > eager["kilobytes"]
    assert onnx["memory_mib"] < eager["memory_mib"], "torch is not loaded there"
    predictor = Predictor.load(student)
    right = [predictor(tmp_path / f"{i}.mp4").labels[0][0] == label for i, label in enumerate(("red", "blue", "blue"))]
    assert (eager["metric"], eager["accuracy"], eager["accuracy_on"]) == (
        "top1",
        pytest.approx(np.mean(right)),
        "videos",
    )
    assert onnx["accuracy"] == eager["accuracy"]
    assert teacher["accuracy"] is None, "random weights"


def test_one_video_without_a_label(networks: tuple[Path, Path], table: Path) -> None:
    from stillmotion.config import ModelConfig

    _, exported = networks
    models = [ModelConfig(name=str(exported))]
    card = cost_card(models, [str(table.parent / "1.mp4")], rounds=1, clock="cpu")
    (costs,) = card.models
    assert costs.percentiles == {p: pytest.approx(costs.total_ms) for p in (50, 90, 99)}
    assert (costs.accuracy, costs.accuracy_on) == (None, None)
    report = exported.with_name("student.onnx.report.json")
    before = report.read_text()
    report.write_text(json.dumps({**json.loads(before), "accuracy": {"file": {"top1": 0.75}}}))
    try:
        (costs,) = cost_card(models, [str(table.parent / "1.mp4")], rounds=1).models
        assert (costs.accuracy, costs.accuracy_on) == (0.75, "export")
    finally:
        report.write_text(before)


def test_mistakes_are_told_in_one_line(
    networks: tuple[Path, Path], table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported, video = str(networks[1]), str(tmp_path / "0.mp4")
    good = ["benchmark", exported, "--videos", str(table)]
    for command, words in (
        ([*good, "--rounds", "0"], "rounds=0: must be at least 1"),
        ([*good, "--max_samples", "0"], "max_samples=0: must be at least 1"),
        ([*good, "--split", "exam"], "no sample in split 'exam'"),
        ([*good, "--clock", "cpu", "--device", "cuda"], "clock=cpu: does not see what device=cuda does"),
        ([*good, "--output", "card.txt"], "output=card.txt: give a folder, or a name that ends in .json"),
        (["benchmark", exported, "--videos", "rtsp://camera/1"], "a stream is never the same twice"),
        (["benchmark", exported, "--videos", str(tmp_path / "no.csv")], "no.csv"),
        (["benchmark", "timm/test_resnet", "--clock", "cpu"], "belong to --videos"),
        (["benchmark", '{"nam": 1}', "--videos", video], "not the settings of a network"),
        (["benchmark", str(tmp_path / "gone.onnx"), "--videos", video], "gone.onnx: no such file"),
        ([*good, "--split", "broken"], "none of 1 videos can be read; the first: bad.mp4: "),
    ):
        assert main(command) == 2, command
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line, line
    table.write_text(table.read_text().replace("1.mp4,blue", "1.mp4,green"))
    assert main(good) == 2
    assert f"student.onnx: {table} line 3: unknown label 'green'" in capsys.readouterr().err


def costs(name: str, total: float, **other: Any) -> Costs:
    plain = Costs(name=name, model=name, kind="torch", ms=dict.fromkeys(PARTS, total / 4), total_ms=total,
                  percentiles={50: total, 90: total, 99: total}, videos_per_s=1e3 / total, frames=1.0, kilobytes=9.5,
                  memory_mib=None, joules=None, params=2_500_000, gmacs=0.06, megabytes=10.0, accuracy=None,
                  metric=None, accuracy_on=None, videos={})  # fmt: skip
    return replace(plain, **other)


def make_card(*models: Costs) -> Card:
    return Card(models=list(models), videos=["a.mp4", "b.mp4"], file_kilobytes=90.0, broken={}, faults={},
                settings={"rounds": 3, "threads": 1, "device": "cpu", "clock": "wall"},
                environment={"processor": "a CPU"})  # fmt: skip


def test_tables_say_what_was_not_measured(tmp_path: Path) -> None:
    known = {"accuracy": 0.5, "metric": "top1", "accuracy_on": "results"}
    card = make_card(costs("student", 10.0, **known), costs("teacher", 250.0, gmacs=40.0, joules=3.0))
    heads, rows = time_rows(card)
    assert [dict(zip(heads, row, strict=True))["times"] for row in rows] == ["1.00x", "25.00x"]
    heads, rows = resource_rows(card)
    cells = [dict(zip(heads, row, strict=True)) for row in rows]
    assert [c["J"] for c in cells] == ["not measured", "3.00"]
    assert [c["accuracy"] for c in cells] == ["top1 50.0 % (results)", "–"]
    assert plot_card(card, tmp_path / "gmacs.png").is_file()
    both = make_card(costs("student", 10.0, **known), costs("teacher", 250.0, **{**known, "accuracy": 0.75}))
    assert plot_card(both, tmp_path / "accuracy.png").is_file()


def test_the_model_card_shows_a_cost_card_that_lies_in_the_run(tmp_path: Path) -> None:
    assert card_section(tmp_path) == []
    assert card_path(tmp_path / "x.json") == tmp_path / "x.json"
    write_card_files(make_card(costs("student", 10.0), costs("teacher", 250.0)), tmp_path)
    lines = card_section(tmp_path)
    assert "| student | 1 | 0.06 | 2.50 | 2.50 | 2.50 | 2.50 | 10.0 | 1.00 |" in lines
    assert "| teacher | 1 | 0.06 | 62.5 | 62.5 | 62.5 | 62.5 | 250 | 25.00 |" in lines
    assert lines[-1] == "![What it costs](cost_card.png)"
    assert not (tmp_path / "cost_card.broken.csv").exists()


def test_seen_and_stopwatch_are_what_predict_uses(networks: tuple[Path, Path], table: Path) -> None:
    watch = Stopwatch()
    seen = Predictor.load(networks[1]).see(Sample(table.parent / "0.mp4", "0.mp4"), watch)
    assert isinstance(seen, Seen)
    assert set(watch.seconds) == {"decode"}
    assert 0 < watch.seconds["decode"] <= seen.seconds + 1e-3
