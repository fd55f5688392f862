"""Stored flow: as live flow within the storage error; killed, damaged, odd and foreign folders."""

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from stillmotion.__main__ import main
from stillmotion.data import flow as flow_module
from stillmotion.data.compute_flow import compute_flow
from stillmotion.data.dataset import VideoDataset
from stillmotion.data.flow import flow_of_pairs, from_bytes, grey_frames
from stillmotion.data.flow_store import FlowSettings, FlowStore, LayoutName, open_flow
from stillmotion.data.source import Videos, show
from stillmotion.data.table import Sample, Table, read_table
from stillmotion.view import NO_DRAW, Augment, Draw, FlowConfig, FlowMethod, View
from tests.conftest import DATA, MakeVideo, needs_data
from tests.data.test_flow import moved, rgb, texture

LAYOUTS: tuple[LayoutName, ...] = ("video", "mars", "two-stream")
FRAMES = 9


def clip(height: int = 64, width: int = 96, seed: int = 0, count: int = FRAMES) -> NDArray[np.uint8]:
    """The texture moves 1.5 pixels to the right and 0.5 up from frame to frame."""
    first = texture(height, width, seed)
    return rgb(*(moved(first, 1.5 * t, -0.5 * t) for t in range(count)))


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Landscape, portrait (with a range), tiny, of one frame, and one that is no video."""
    for name, frames in (
        ("a/wide.mp4", clip()),
        ("a/high.mp4", clip(96, 64, seed=1)),
        ("b/tiny.mp4", clip(12, 20)),
        ("b/one.mp4", clip(count=1)),
    ):
        make_video(tmp_path / name, frames, options={"crf": "10", "g": "4"})
    (tmp_path / "b/broken.mp4").write_bytes(b"no video")
    rows = ["a/wide.mp4,a,,", "a/high.mp4,a,2,8", "b/tiny.mp4,b,,", "b/one.mp4,b,,", "b/broken.mp4,b,,"]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,start_frame,end_frame", *rows]))
    return tmp_path / "table.csv"


def live(sample: Sample, pairs: NDArray[np.int64], **config: Any) -> NDArray[np.float32]:
    frames = Videos().read(sample, pairs.ravel())
    return np.stack(flow_of_pairs(frames, FlowConfig(**config)))


def end_point_error(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(a - b, axis=-1).mean())


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".parts" not in path.parts
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("step", [1, 2])
def test_what_goes_in_comes_out(table: Path, tmp_path: Path, layout: LayoutName, step: int) -> None:
    settings = FlowSettings(layout=layout, step=step)
    report = compute_flow(table, tmp_path / "store", settings, workers=0, progress=False)
    assert (report.samples, report.added, list(report.errors)) == (5, 4, ["b/broken.mp4"])
    store = pickle.loads(pickle.dumps(FlowStore(tmp_path / "store")))
    for sample, count, size in zip(
        read_table(table), (9, 6, 9, 1), ((64, 96), (96, 64), (12, 20), (64, 96)), strict=False
    ):
        extent = store.extent(sample)
        assert (extent.num_frames, extent.fps, extent.fault) == (count, 25.0, None)
        pairs, _ = store.fields(sample)
        assert len(pairs) == max(1, count - step)
        found = np.stack(store.read(sample, pairs))
        assert found.shape == (len(pairs), *size, 2)
        if min(size) < 16 or count == 1:
            # 128 is the nearest byte to no motion in the layout that rounds; the others have it exactly.
            assert np.abs(found).max() <= (20 / 255 + 1e-5 if layout == "two-stream" else 0.0)
            continue
        truth = live(sample, pairs)
        assert truth[..., 8:-8, 8:-8, 0].mean() == pytest.approx(1.5 * step, abs=0.1)
        # Half a level of rounding is 0.078 pixels with the papers' bound, and 0.4 % of the largest motion with our own.
        assert end_point_error(found, truth) < (0.04 if layout == "video" else 0.09)
    with pytest.raises(ValueError, match="not a video: plain text"):
        store.read(read_table(table)[4], np.array([[0, 1]]))


@pytest.mark.parametrize("method", flow_module.METHODS)
def test_every_method_finds_the_known_motion(tmp_path: Path, make_video: MakeVideo, method: FlowMethod) -> None:
    path = make_video(tmp_path / "a.mp4", clip(count=4), options={"crf": "10"})
    store, sample = FlowStore.create(tmp_path / "store", FlowSettings(method=method)), Sample(path, "a.mp4")
    inner = np.stack(store.read(sample, np.array([[0, 1], [2, 3]])))[:, 16:-16, 16:-16]
    truth = np.broadcast_to(np.array([1.5, -0.5], np.float32), inner.shape)
    assert end_point_error(inner, truth) < 0.2


def test_papers_layouts_are_theirs(table: Path, tmp_path: Path) -> None:
    """Names and bytes as the papers' tools write them, read here with Pillow and their formula."""
    sample = read_table(table)[0]
    truth = np.clip(live(sample, np.array([[3, 4]]))[0], -20, 20)
    for layout, u, v, shift in (
        ("mars", "a/wide/TVL1jpg_x_00004.jpg", "a/wide/TVL1jpg_y_00004.jpg", 0.5),
        ("two-stream", "u/wide/frame000004.jpg", "v/wide/frame000004.jpg", 0.0),
    ):
        compute_flow(table, tmp_path / layout, FlowSettings(layout=layout), workers=0, progress=False)  # type: ignore[arg-type]
        for name, k in ((u, 0), (v, 1)):
            with Image.open(tmp_path / layout / name) as picture:
                assert picture.mode == "L"
                coded = np.asarray(picture, np.float32)
            expected = (truth[..., k] + 20) / 40 * 255 - shift
            assert np.abs(coded - expected).mean() < 0.7
        # Nine frames have eight fields. No motion is byte 127 where fractions are cut off, 128 where they are rounded.
        last, none = (
            Path(u.replace("4.jpg", f"{k}.jpg").replace("a/wide", "b/tiny").replace("wide", "tiny")) for k in "89"
        )
        assert not (tmp_path / layout / none).exists()
        with Image.open(tmp_path / layout / last) as picture:
            assert (np.asarray(picture) == (127 if layout == "mars" else 128)).all()


VIEWS = {
    "centre": View(kind="flow", size=(40, 50), num_frames=3, flow=FlowConfig(bound=4.0)),
    "end": View(kind="flow", size=(64, 96), num_frames=4, moment="last", end="shift", flow=FlowConfig(bound=4.0)),
    "still": View(kind="flow", size=(16, 16), num_frames=2, stride=0, flow=FlowConfig(bound=4.0)),
    "own": View(kind="flow", size=(48, 48), resize=56, num_crops=10, num_moments=2, moment="uniform",
                flow=FlowConfig(bound=4.0)),
    "random": View(kind="flow", size=(32, 32), num_frames=2, stride=2, moment="random", flow=FlowConfig(bound=4.0)),
}  # fmt: skip


def test_views_see_what_they_see_live(table: Path, tmp_path: Path) -> None:
    compute_flow(table, tmp_path / "store", workers=0, progress=False)
    store, augment = FlowStore(tmp_path / "store"), Augment(min_area=0.4, max_ratio=1.3, flip=0.5)
    flips = set()
    for sample in read_table(table).samples[:4]:
        for draw in (NO_DRAW, *(Draw.of(0, sample.id, k, augment) for k in range(4))):
            flips.add(draw.flip)
            views = dict(VIEWS) if sample.name != "b/tiny.mp4" else {"still": VIEWS["still"], "end": VIEWS["end"]}
            expected, found = (show(Videos(), sample, views, draw, flow) for flow in (None, store))
            for name in views:
                difference = np.abs(found[name].astype(int) - expected[name].astype(int))
                assert found[name].shape == expected[name].shape
                # A level is 0.03 pixels of the view.
                assert difference.mean() < 1.0, (sample.id, name, difference.mean())
                assert difference.max() <= 16
                if name == "still":
                    assert difference.max() == 0
    assert flips == {False, True}


def test_no_frame_is_decoded_for_stored_flow(table: Path, tmp_path: Path) -> None:
    compute_flow(table, tmp_path / "store", workers=0, progress=False)
    sample, store, reads = read_table(table)[0], FlowStore(tmp_path / "store"), []

    class Counting(Videos):
        def read(self, sample: Sample, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
            reads.append(indices.tolist())
            return super().read(sample, indices)

    show(Counting(), sample, {"a": VIEWS["centre"], "b": VIEWS["end"]}, NO_DRAW, store)
    assert reads == []
    show(Counting(), sample, {"a": VIEWS["centre"], "b": View(size=(8, 8)), "c": View(size=(8, 8))}, NO_DRAW, store)
    assert reads == [[4]]
    show(Counting(), sample, {"a": VIEWS["centre"], "b": View(size=(8, 8))}, NO_DRAW)
    assert reads[1:] == [[4, 5, 6, 7]], "live, one decode serves both"


def test_a_frame_that_two_fields_share_is_turned_to_grey_once(monkeypatch: pytest.MonkeyPatch) -> None:
    turned: list[int] = []
    plain = flow_module.to_grey
    monkeypatch.setattr(flow_module, "to_grey", lambda frame: turned.append(id(frame)) or plain(frame))
    a, b, c = clip(count=3)
    assert len(grey_frames([a, b, b, c], stretch=False)) == 4
    assert len(turned) == 3
    found, expected = (grey_frames(frames, stretch=True) for frames in ([a, b, b, c], np.stack([a, b, b, c])))
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


def test_rates_and_stretching(table: Path, tmp_path: Path) -> None:
    settings = FlowSettings(fps=12.5, stretch=True, short_side=48)
    compute_flow(table, tmp_path / "store", settings, workers=0, progress=False)
    store, sample = FlowStore(tmp_path / "store"), read_table(table)[0]
    extent = store.extent(sample)
    assert (extent.num_frames, extent.fps) == (4, 12.5)  # 9 frames at 25 a second
    pairs, frames = store.fields(sample)
    assert (pairs.tolist(), frames.tolist()) == ([[0, 1], [1, 2], [2, 3]], [0, 2, 4])
    found = np.stack(store.read(sample, pairs))
    assert found.shape == (3, 48, 72, 2)
    assert found[:, 8:-8, 8:-8].mean((0, 1, 2)) == pytest.approx([2 * 1.5 * 0.75, -2 * 0.5 * 0.75], abs=0.15)


def test_settings_that_do_not_agree_are_refused(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    FlowStore.create(folder, FlowSettings(step=2, short_side=48))
    with pytest.raises(ValueError, match="step is 2 in the store and 1 here; repeat the settings, or name another"):
        compute_flow(table, folder, workers=0, progress=False)
    view = View(kind="flow", flow=FlowConfig(step=2))
    assert open_flow(None, {"clip": view}, None) is None
    assert open_flow(folder, {"frames": View()}, None) is None
    assert open_flow(folder, {"clip": view}, None) is not None
    assert open_flow(folder, {"clip": view}, 48) is not None
    for other, side, words in (
        (FlowConfig(), 48, "step is 2 in the store and 1 here"),
        (FlowConfig(step=2, method="tvl1"), 48, 'method is "dis" in the store and "tvl1" here'),
        (FlowConfig(step=2, stretch=True), 48, "stretch is false in the store and true here"),
        (FlowConfig(step=2), 56, "short_side is 48 in the store and 56 here"),
    ):
        with pytest.raises(ValueError, match=words):
            VideoDataset(read_table(table), None, {"clip": View(kind="flow", flow=other)}, short_side=side, flow=folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("not a store")
    with pytest.raises(ValueError, match=r"full: not a flow store \(no readable header.json\); run `stillmotion flow`"):
        open_flow(tmp_path / "full", {"clip": view}, None)
    with pytest.raises(ValueError, match="layout='tar': choose one of video, mars, two-stream"):
        FlowSettings(layout="tar")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bound=-1\.0: must be above 0"):
        FlowSettings(bound=-1.0)
    two = Table((Sample(tmp_path / "a/x.mp4", "a/x.mp4"), Sample(tmp_path / "b/x.mp4", "b/x.mp4")))
    with pytest.raises(ValueError, match=r"a/x\.mp4 and b/x\.mp4 would lie in the same place in layout two-stream"):
        FlowStore.create(tmp_path / "flat", FlowSettings(layout="two-stream")).check(two)


def test_what_a_killed_call_knew_of_its_samples_is_listed(tmp_path: Path, make_video: MakeVideo) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    data = make_video(tmp_path / "whole.avi", frames, codec="mpeg4").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    (tmp_path / "table.csv").write_text("path,label\nwhole.avi,a\ncut.avi,b\n")
    folder = tmp_path / "store"
    command = ["flow", str(tmp_path / "table.csv"), "--output", str(folder), "--workers", "0"]
    assert main(command) == 1
    listed = (folder / "broken.csv").read_text()
    assert "cut.avi" in listed
    assert "in part" in listed
    (folder / "broken.csv").unlink()  # a killed call has not written it
    assert main(command) == 1
    assert (folder / "broken.csv").read_text() == listed
    whole = read_table(tmp_path / "table.csv")[0]
    FlowStore(folder).layout.place(whole).write_bytes(b"damaged")
    assert main(command) == 1
    with (folder / "broken.csv").open() as file:
        assert [(row["file"], row["used"]) for row in csv.DictReader(file)] == [
            ("whole.avi", "no"),
            ("cut.avi", "in part"),
        ]


def test_command_lists_what_is_broken_and_goes_on(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "store"
    command = ["flow", str(table), "--output", str(folder), "--workers", "2"]
    assert main([*command, "--preview", "2"]) == 1
    first = capsys.readouterr().out
    assert "4 samples, 4 of them new" in first
    assert "1 unreadable or only in part, listed in" in first
    with (folder / "broken.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["line"], row["file"], row["used"]) == ("6", "b/broken.mp4", "no")
    assert "plain text" in row["reason"]
    previews = sorted((folder / "preview").rglob("*.mp4"))
    assert len(previews) == 2
    before = content(folder)
    assert main(command) == 1
    assert "4 samples, 0 of them new" in capsys.readouterr().out
    assert content(folder) == before
    (tmp_path / "b/broken.mp4").write_bytes((tmp_path / "b/tiny.mp4").read_bytes())
    assert main(command) == 0
    assert not (folder / "broken.csv").exists()
    assert main([*command, "--method", "tvl1"]) == 2
    error = capsys.readouterr().err.strip()
    assert 'method is "dis" in the store and "tvl1" here' in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("layout", ["video", "two-stream"])
def test_killed_it_goes_on_to_the_same_bytes(tmp_path: Path, make_video: MakeVideo, layout: LayoutName) -> None:
    lines = ["path,label"]
    for k in range(6):
        make_video(tmp_path / f"{k}.mp4", clip(32, 40, seed=k, count=8), options={"crf": "10"})
        lines.append(f"{k}.mp4,a")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines))
    folder, settings = tmp_path / "killed", FlowSettings(method="tvl1", layout=layout)
    command = [sys.executable, "-m", "stillmotion", "flow", str(table), "--output", str(folder), "--method", "tvl1",
               "--layout", layout]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    whole = "*.zip" if layout == "video" else "headers/*.json"
    end = time.monotonic() + 120.0
    while time.monotonic() < end and not list(folder.glob(whole)):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    store = FlowStore(folder)
    samples = read_table(table).samples
    done = [sample for sample in samples if store.has(sample)]
    assert 1 <= len(done) < len(samples)
    for sample in done:
        assert len(store.read(sample, store.fields(sample)[0])) == 7
    report = compute_flow(table, folder, settings, workers=2, progress=False)
    assert report.added == len(samples) - len(done)
    compute_flow(table, tmp_path / "whole", settings, workers=0, progress=False)
    assert content(folder) == content(tmp_path / "whole")


@pytest.mark.parametrize(("layout", "file"), [("video", "a/wide.mp4.zip"), ("mars", "a/wide/TVL1jpg_y_00002.jpg")])
def test_damage_is_found(table: Path, tmp_path: Path, layout: LayoutName, file: str) -> None:
    compute_flow(table, tmp_path / "store", FlowSettings(layout=layout), workers=0, progress=False)
    path, sample = tmp_path / "store" / file, read_table(table)[0]
    data = bytearray(path.read_bytes())
    place = data.find(b"000002.jpg") + 100 if layout == "video" else len(data) // 2
    data[place] ^= 0x10
    path.write_bytes(data)
    store = FlowStore(tmp_path / "store")
    store.read(sample, np.array([[0, 1]]))
    with pytest.raises(ValueError, match=r"damaged.*run `stillmotion flow` again"):
        store.read(sample, np.array([[0, 1], [1, 2]]))
    if layout == "video":
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=r"wide\.mp4\.zip: damaged"):
            FlowStore(tmp_path / "store").read(sample, np.array([[0, 1]]))
    # A video that has changed since.
    other = read_table(table)[2]
    other.path.write_bytes(other.path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"tiny\.mp4 has \d+ bytes and had \d+ when its flow was computed"):
        FlowStore(tmp_path / "store").extent(other)


def write_foreign(folder: Path, layout: str, name: str, flow: NDArray[np.float32]) -> None:
    """As the papers' tools do it (`flow` is (F, H, W, 2)), with Pillow."""
    for number, field in enumerate(flow, 1):
        coded = (np.clip(field, -20, 20) + 20) / 40 * 255
        coded = (coded if layout == "mars" else np.rint(coded)).astype(np.uint8)
        for k in range(2):
            path = folder / name / f"TVL1jpg_{'xy'[k]}_{number:05d}.jpg"
            if layout != "mars":
                path = folder / "uv"[k] / Path(name).name / f"frame{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coded[..., k]).save(path, quality=95)


@pytest.mark.parametrize("layout", ["mars", "two-stream"])
def test_folders_of_the_papers_tools_are_read(
    table: Path, tmp_path: Path, layout: LayoutName, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "theirs"
    smooth = np.full((8, 30, 40, 2), (2.0, -7.0), np.float32) + rng.normal(0, 0.01, (8, 1, 1, 2)).astype(np.float32)
    smooth[5] = (25.0, -25.0)
    write_foreign(folder, layout, "a/wide", smooth)
    write_foreign(folder, layout, "b/tiny", smooth[:7])
    text = table.read_text().splitlines()
    table.write_text("\n".join([text[0], text[1], text[3], text[4]]))  # wide, tiny, one
    before = content(folder)
    command = ["flow", str(table), "--output", str(folder), "--layout", layout, "--method", "tvl1", "--workers", "0"]
    assert main(command) == 1
    assert "2 samples, 2 of them new" in capsys.readouterr().out
    after = content(folder)
    assert before.items() <= after.items()
    assert not [name for name in after.keys() - before.keys() if name.endswith(".jpg")], "nothing was computed"
    with (folder / "broken.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["file"] == "b/tiny.mp4"
    assert "7 and 7 pictures of u and v, and 8 fields between the 9 frames of b/tiny.mp4" in row["reason"]
    view = View(kind="flow", size=(32, 48), num_frames=8, moment="first", flow=FlowConfig(method="tvl1"))
    shown = VideoDataset(read_table(table), None, {"student/clip": view}, flow=folder)
    item = shown[0]["student/clip"].numpy()
    # 40 pixels across become 48, 30 down 32; what was cut off at 20 stays so.
    found = from_bytes(item, 20.0)[0].mean((2, 3))
    expected = np.clip(smooth[:, 0, 0], -20, 20) * (48 / 40, 32 / 30)
    np.testing.assert_allclose(found, np.clip(expected, -20, 20), atol=0.25)
    assert (shown[2]["student/clip"] == 128).all(), "one frame has no pictures"


def test_what_is_missing_is_computed_when_it_is_read(table: Path, tmp_path: Path) -> None:
    view = View(kind="flow", size=(32, 32), num_frames=2, flow=FlowConfig(bound=4.0, method="farneback"))
    dataset = VideoDataset(read_table(table), None, {"clip": view}, short_side=40, flow=tmp_path / "cache")
    header = json.loads((tmp_path / "cache/header.json").read_text())
    assert (header["method"], header["short_side"], header["layout"]) == ("farneback", 40, "video")
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)  # type: ignore[arg-type]
    items = list(loader)
    assert "no video" not in items[4]["error"]
    assert "plain text" in items[4]["error"]
    compute_flow(table, tmp_path / "ahead", FlowSettings(method="farneback", short_side=40), workers=0, progress=False)
    ahead = {name: data for name, data in content(tmp_path / "ahead").items() if name != "broken.csv"}
    assert content(tmp_path / "cache") == ahead
    again = VideoDataset(read_table(table), None, {"clip": view}, short_side=40, flow=tmp_path / "ahead")
    for row in range(4):
        torch.testing.assert_close(again[row]["clip"], items[row]["clip"])


def test_training_and_evaluation_read_the_store(tiny_table: Path, tmp_path: Path) -> None:
    """Through the command line, from a store that the training itself fills."""
    folder, run = tmp_path / "flow", tmp_path / "run"
    view = '{"kind": "flow", "size": 16, "num_frames": 4, "flow": {"bound": 4}}'
    options = ["--data.workers", "0", "--data.flow", str(folder), "--trainer.accelerator", "cpu"]
    train = ["train", str(tiny_table), "--output", str(run), "--student", "resnet3d_10", "--student.options.width", "2",
             "--student.view", view, "--optim.epochs", "1", "--optim.batch_size", "4", *options]  # fmt: skip
    assert main(train) == 0
    store = FlowStore(folder)
    assert sum(store.has(sample) for sample in read_table(tiny_table)) >= 6, "a batch of one is left out"
    assert (
        main(["evaluate", str(run), str(tiny_table), "--flow", str(folder), "--device", "cpu", "--workers", "0"]) == 0
    )
    assert main(["evaluate", str(run), str(tiny_table), "--flow", str(folder), "--device", "cpu", "--workers", "0",
                 "--view", '{"flow": {"step": 2}}']) == 2  # fmt: skip
    stored = tmp_path / "features.npz"
    assert main(["features", str(run), str(tiny_table), "--output", str(stored), "--num_clips", "2", "--flow",
                 str(folder), "--device", "cpu", "--workers", "0"]) == 0  # fmt: skip
    assert np.load(stored)["embedding"].shape[0] == 7


def test_stored_features_know_where_their_flow_came_from(tiny_table: Path, tmp_path: Path) -> None:
    from stillmotion.config import DataConfig
    from stillmotion.extract import extract
    from stillmotion.features import open_features
    from stillmotion.models.factory import create_model

    view = {"kind": "flow", "size": 16, "num_frames": 4}
    teacher = create_model("resnet3d_10", num_classes=2, width=2, view=view)
    data = {"num_draws": 1, "workers": 0}
    stored, live = DataConfig(**data, flow=str(tmp_path / "flow")), DataConfig(**data)
    compute_flow(tiny_table, tmp_path / "rough", FlowSettings(quality=20), workers=0, progress=False)
    table = read_table(tiny_table)
    extract(table, teacher, tmp_path / "features", data=stored, device="cpu")
    assert open_features(tmp_path / "features", table=table, data=stored, seed=0, teacher=teacher)
    with pytest.raises(ValueError, match=r"frames\.flow is .* in the store and null here"):
        open_features(tmp_path / "features", table=table, data=live, seed=0, teacher=teacher)
    rough = DataConfig(**data, flow=str(tmp_path / "rough"))
    with pytest.raises(ValueError, match=r"frames\.flow\.quality is 75 in the store and 20 here"):
        open_features(tmp_path / "features", table=table, data=rough, seed=0, teacher=teacher)


def test_raft(tmp_path: Path, make_video: MakeVideo, capsys: pytest.CaptureFixture[str]) -> None:
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    network = raft_small().eval()
    torch.save(network.state_dict(), tmp_path / "raft.pt")
    frames = clip(128, 136, count=3)
    make_video(tmp_path / "a.mp4", frames, options={"crf": "10"})
    (tmp_path / "table.csv").write_text("path,label\na.mp4,a")
    command = ["flow", str(tmp_path / "table.csv"), "--output", str(tmp_path / "store"), "--method", "raft_small",
               "--device", "cpu", "--workers", "0", "--quality", "95"]  # fmt: skip
    assert main([*command, "--weights", str(tmp_path / "raft.pt")]) == 0
    sample = read_table(tmp_path / "table.csv")[0]
    seen = torch.from_numpy(Videos().read(sample, np.arange(3)).transpose(0, 3, 1, 2).copy()) / 127.5 - 1
    with torch.inference_mode():
        expected = network(seen[:2], seen[1:])[-1].permute(0, 2, 3, 1).numpy()
    store = FlowStore(tmp_path / "store")
    found = np.stack(store.read(sample, np.array([[0, 1], [1, 2]])))
    assert end_point_error(found, expected) < 0.05 * np.linalg.norm(expected, axis=-1).max()
    view = View(kind="flow", flow=FlowConfig(method="raft_small"))
    assert open_flow(tmp_path / "store", {"clip": view}, None) is not None
    with pytest.raises(ValueError, match="'raft_small' is read from a store only: run `stillmotion flow --method raft"):
        open_flow(None, {"clip": view}, None)
    capsys.readouterr()
    for weights, words in (
        ([], "needs --weights"),
        (["--weights", str(tmp_path / "no.pt")], "no.pt: no such file of RAFT weights"),
        (["--weights", str(tmp_path / "a.mp4")], "these are not torchvision's weights of raft_small"),
    ):
        assert main([*command, *weights]) == 2
        assert words in capsys.readouterr().err


@needs_data
def test_damaged_and_turned_videos(tmp_path: Path) -> None:
    assert DATA is not None
    names = {"broken/derived_zeroed_header.avi": None, "quirks/video_90.mov": None}
    lines = [f"{name},a" for name in names]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *lines]))
    settings = FlowSettings(short_side=32, method="farneback")
    report = compute_flow(tmp_path / "table.csv", tmp_path / "store", settings, root=DATA, workers=0, progress=False)
    assert list(report.faults) == ["broken/derived_zeroed_header.avi"]
    store, (damaged, turned) = FlowStore(tmp_path / "store"), read_table(tmp_path / "table.csv", root=DATA).samples
    pairs, _ = store.fields(damaged)
    whole = [number for number in range(22) if number not in _damaged(damaged)]
    expected = [number for number in range(21) if number in whole and number + 1 in whole]
    assert pairs[:, 0].tolist() == expected
    assert len(expected) < 21
    assert len(store.read(damaged, pairs)) == len(expected)
    lost = min(set(range(21)) - set(expected))
    with pytest.raises(ValueError, match=r"is damaged in the video; the \.avi header is lost"):
        store.read(damaged, np.array([[lost, lost + 1]]))
    again = compute_flow(tmp_path / "table.csv", tmp_path / "store", settings, root=DATA, workers=0, progress=False)
    assert (again.added, again.faults) == (0, report.faults)
    upright = Videos(32).read(turned, np.array([0])).shape[1:3]
    assert upright[0] > upright[1]
    assert store.read(turned, store.fields(turned)[0])[0].shape[:2] == upright


def _damaged(sample: Sample) -> set[int]:
    """One frame at a time, the slow way."""
    videos, damaged = Videos(), set()
    for number in range(22):
        try:
            videos.read(sample, np.array([number]))
        except ValueError:
            damaged.add(number)
    return damaged
