"""Frame and feature stores: what goes in comes out, damage shows, a killed writer goes on."""

import json
import os
import pickle
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillmotion.data import journal
from stillmotion.data.dataset import VideoDataset
from stillmotion.data.journal import Journal, StoreError
from stillmotion.data.pack import pack
from stillmotion.data.source import Videos
from stillmotion.data.store import Codec, FeatureStore, FrameStore
from stillmotion.data.table import Sample, Table
from stillmotion.view import Augment, View
from tests.conftest import DATA, MakeVideo, needs_data

VIEWS = {
    "student/frames": View(size=(20, 20), moment="random"),
    "teacher/clip": View(size=(16, 16), moment="keyframe", num_frames=4),
}
KEY = {"weights": "3f", "views": {"clip": {"size": [112, 112], "num_frames": 16}}, "table": "ab"}
FIELDS = {"embedding": (1, 4), "logits": (1, 3)}


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Table:
    rng = np.random.default_rng(0)
    samples = []
    for k in range(4):
        frames = np.repeat(np.repeat(rng.integers(0, 256, (9 + k, 8, 10, 3), np.uint8), 6, axis=1), 6, axis=2)
        path = make_video(tmp_path / f"{k}.mp4", frames, options={"g": "4"})
        samples.append(Sample(path, path.name, {"label": "a"}, start=2 if k == 1 else None, line=k + 2))
    (tmp_path / "text.mp4").write_text("no video")
    samples.insert(2, Sample(tmp_path / "text.mp4", "text.mp4", {"label": "a"}, line=9))
    return Table(tuple(samples), "videos.csv")


def datasets(table: Table, folder: Path, short_side: int | None) -> tuple[VideoDataset, VideoDataset]:
    def make(**options: Any) -> VideoDataset:
        augment = Augment(min_area=0.5, flip=0.5)
        return VideoDataset(table, None, VIEWS, random=True, augment=augment, short_side=short_side, **options)

    return make(), make(packed=folder)


def read_all(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("header.json", "index.jsonl", "data.bin")}


@pytest.mark.parametrize("short_side", [24, None])
def test_raw_frames_are_those_of_the_videos(table: Table, tmp_path: Path, short_side: int | None) -> None:
    report = pack(table, tmp_path / "store", short_side=short_side, codec="raw", workers=0, progress=False)
    assert (report.samples, report.frames) == (5, 9 + 8 + 11 + 12)
    live, packed = datasets(table, tmp_path / "store", short_side)
    for row in (0, 1, 3, 4):
        for epoch in range(4):
            first, second = live[(epoch, row)], packed[(epoch, row)]
            assert first.keys() == second.keys()
            for key in VIEWS:
                assert torch.equal(first[key], second[key])
    assert packed[2] == live[2]
    assert "text.mp4" in report.errors["text.mp4"]
    assert report.errors == FrameStore(tmp_path / "store").errors


def test_jpeg_frames_are_close(table: Table, tmp_path: Path) -> None:
    raw = pack(table, tmp_path / "raw", short_side=None, codec="raw", workers=0, progress=False)
    report = pack(table, tmp_path / "store", short_side=None, codec="jpeg", workers=0, progress=False)
    assert report.size < raw.size
    store, videos = FrameStore(tmp_path / "store"), Videos()
    indices = np.array([7, 0, 3])
    error = store.read(table[0], indices).astype(int) - videos.read(table[0], indices)
    assert np.abs(error).mean() < 4
    assert store.extent(table[0]) == videos.extent(table[0])


@needs_data
def test_jpeg_frames_of_real_videos_are_close(tmp_path: Path) -> None:
    assert DATA is not None
    path = DATA / "samples" / "flipping_a_pancake.mkv"
    table = Table((Sample(path, path.name, start=100, end=130),))
    pack(table, tmp_path / "store", short_side=128, codec="jpeg", workers=0, progress=False)
    store, videos = FrameStore(tmp_path / "store"), Videos(128)
    indices = np.arange(0, 30, 5)
    error = store.read(table[0], indices).astype(int) - videos.read(table[0], indices)
    assert np.abs(error).mean() < 2


def test_packing_with_processes_gives_the_same_bytes(table: Table, tmp_path: Path) -> None:
    for workers in (0, 2):
        pack(table, tmp_path / str(workers), codec="raw", workers=workers, progress=False)
    assert read_all(tmp_path / "0") == read_all(tmp_path / "2")


def killed_in_fsync(number: int, work: Callable[[], object]) -> None:
    """Runs `work` in a process that is killed when it is about to flush a file for the `number`-th time."""

    def run() -> None:
        calls = iter(range(number))

        def fsync(fd: Any) -> None:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = fsync
        work()

    process = get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


# Flushes: header, then data and index of each sample. 3 is killed with data and no line, 4 with a whole record.
@pytest.mark.parametrize("number", [0, 1, 3, 4, 5, 8])
def test_killed_packing_goes_on(table: Table, tmp_path: Path, number: int) -> None:
    def work() -> object:
        return pack(table, tmp_path / "killed", codec="raw", workers=0, progress=False)

    killed_in_fsync(number, work)
    work()
    pack(table, tmp_path / "whole", codec="raw", workers=0, progress=False)
    assert read_all(tmp_path / "killed") == read_all(tmp_path / "whole")


def test_packing_again_does_nothing(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pack(table, tmp_path / "store", workers=0, progress=False)
    monkeypatch.setattr("stillmotion.data.pack._encode", None)
    assert pack(table, tmp_path / "store", workers=0, progress=False) == first


def test_store_must_match(table: Table, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    pack(Table(table.samples[:3]), folder, short_side=24, workers=0, progress=False)
    with pytest.raises(ValueError, match="packed with short_side 24, not 32; set short_side to 24"):
        VideoDataset(Table(table.samples[:3]), None, VIEWS, packed=folder, short_side=32)
    with pytest.raises(ValueError, match=r"2 of the 5 samples of videos\.csv are not packed, first 2\.mp4"):
        VideoDataset(table, None, VIEWS, packed=folder)
    with pytest.raises(ValueError, match="short_side is 24 in the store and 32 here; run `stillmotion pack`"):
        pack(table, folder, short_side=32, workers=0, progress=False)
    with pytest.raises(ValueError, match=r"holds other samples than videos\.csv"):
        pack(Table(table.samples[1:], "videos.csv"), folder, short_side=24, workers=0, progress=False)
    with pytest.raises(ValueError, match="not a frames store"):
        VideoDataset(table, None, VIEWS, packed=tmp_path)
    with table[0].path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"0\.mp4 has \d+ bytes and had \d+ when it was packed"):
        VideoDataset(Table(table.samples[:3]), None, VIEWS, packed=folder)


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_damaged_frame_is_told(table: Table, tmp_path: Path, codec: Codec) -> None:
    pack(table, tmp_path / "store", codec=codec, workers=0, progress=False)
    store = FrameStore(tmp_path / "store")
    row = store.rows["0.mp4"]
    with (tmp_path / "store" / "data.bin").open("r+b") as file:
        file.seek(row["at"] + row["size"] - 5)  # in the last frame
        file.write(b"\x00\xff\x00\xff")
    store.read(table[0], np.array([0, 7]))
    with pytest.raises(ValueError, match=r"frame 8 of 0\.mp4 is damaged \(checksum\)"):
        store.read(table[0], np.array([8]))


def rows(count: int, first: int = 0) -> list[tuple[str, int, dict[str, Any]]]:
    return [
        (f"{k}.mp4", -1, {"embedding": np.full((1, 4), k / 3), "logits": np.arange(3.0)[None] + k})
        for k in range(first, first + count)
    ]


def test_features_come_back(tmp_path: Path) -> None:
    with FeatureStore.create(tmp_path, KEY, FIELDS) as store:
        store.add(rows(3))
        assert store.missing(["1.mp4", "3.mp4"], [-1, 0]) == [("1.mp4", 0), ("3.mp4", -1), ("3.mp4", 0)]
        store.add([("1.mp4", 0, {"embedding": np.ones((1, 4)), "logits": np.ones((1, 3))})])
        assert store.get("1.mp4", 0).tolist() == [[1.0] * 4]  # also while writing
    store = pickle.loads(pickle.dumps(FeatureStore.open(tmp_path, KEY)))
    assert len(store) == 4
    np.testing.assert_array_equal(store.get("2.mp4", -1), np.full((1, 4), 2 / 3, np.float32))
    assert store.get("2.mp4", -1, "logits").tolist() == [[2.0, 3.0, 4.0]]
    assert store.has("1.mp4", 0)
    assert not store.has("2.mp4", 0)
    with pytest.raises(ValueError, match=r"no features of 2\.mp4 draw 0; run `stillmotion extract` again"):
        store.get("2.mp4", 0)
    with pytest.raises(ValueError, match="no stored 'pool', only embedding, logits"):
        store.get("2.mp4", -1, "pool")


def test_unreadable_samples_are_remembered(tmp_path: Path) -> None:
    with FeatureStore.create(tmp_path, KEY, FIELDS) as store:
        store.add_errors([("bad.mp4", "bad.mp4: nothing decodes")])
        store.add(rows(1))
    store = FeatureStore(tmp_path)
    assert store.errors == {"bad.mp4": "bad.mp4: nothing decodes"}
    assert store.missing(["bad.mp4", "0.mp4"], [-1]) == []
    with pytest.raises(ValueError, match=r"bad\.mp4: nothing decodes"):
        store.get("bad.mp4", 5)


def test_other_key_is_refused_with_the_part_that_differs(tmp_path: Path) -> None:
    with FeatureStore.create(tmp_path, KEY, FIELDS) as store:
        store.add(rows(1))
    other = json.loads(json.dumps(KEY))
    other["views"]["clip"]["size"] = [128, 128]
    expected = r"views\.clip\.size is \[112, 112\] in the store and \[128, 128\] here; run `stillmotion extract`"
    with pytest.raises(ValueError, match=expected):
        FeatureStore(tmp_path, other)
    with pytest.raises(ValueError, match=expected), FeatureStore.create(tmp_path, other, FIELDS):
        pass
    with pytest.raises(ValueError, match="seed is null in the store and 3 here"):
        FeatureStore(tmp_path, {**KEY, "seed": 3})
    with (
        pytest.raises(ValueError, match=r"fields\.logits is \[1, 3\] in the store and \[1, 5\] here"),
        FeatureStore.create(tmp_path, KEY, {**FIELDS, "logits": (1, 5)}),
    ):
        pass
    FeatureStore(tmp_path, {**KEY, "views": {"clip": {"size": (112, 112), "num_frames": 16}}})  # a tuple is a list
    with pytest.raises(ValueError, match="this is a features store, not a frames store"):
        FrameStore(tmp_path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with FeatureStore.create(tmp_path, KEY, FIELDS) as store:
        with (
            pytest.raises(ValueError, match="another process is writing"),
            FeatureStore.create(tmp_path, KEY, FIELDS),
        ):
            pass
        store.add(rows(1))
    with FeatureStore.create(tmp_path, KEY, FIELDS) as store:
        assert len(store) == 1


@pytest.mark.parametrize(("number", "kept"), [(1, 0), (2, 2), (3, 2), (4, 4)])
def test_killed_extraction_goes_on(tmp_path: Path, number: int, kept: int) -> None:
    def work() -> None:
        with FeatureStore.create(tmp_path / "killed", KEY, FIELDS) as store:
            for first in (0, 2, 4):
                store.add(rows(2, first))

    killed_in_fsync(number, work)
    assert kept <= len(FeatureStore(tmp_path / "killed")) <= kept + 2  # a reader needs no repair
    with FeatureStore.create(tmp_path / "killed", KEY, FIELDS) as store:
        missing = [name for name, _ in store.missing([f"{k}.mp4" for k in range(6)], [-1])]
        store.add([row for row in rows(6) if row[0] in missing])
    with FeatureStore.create(tmp_path / "whole", KEY, FIELDS) as store:
        store.add(rows(6))
    assert read_all(tmp_path / "killed") == read_all(tmp_path / "whole")


def test_a_line_that_is_damaged_in_the_middle_throws_nothing_away(tmp_path: Path) -> None:
    header, index = {"kind": "test"}, tmp_path / "index.jsonl"
    with Journal.open(tmp_path, header, "remedy") as journal:
        journal.append((name.encode(), {"id": name}) for name in "abcd")
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join([lines[0], lines[1].replace("crc", "cbc"), *lines[2:]]))
    with pytest.raises(StoreError, match=r"index\.jsonl line 2: damaged, and whole lines follow"):
        Journal.open(tmp_path, header, "remedy").__enter__()
    assert (tmp_path / "data.bin").read_bytes() == b"abcd"
    index.write_text("".join([lines[0], *lines[2:]]))  # as it says
    with Journal.open(tmp_path, header, "remedy") as journal:
        assert [entry["id"] for entry in journal.entries] == ["a", "c", "d"]
        (again,) = journal.append([(b"b", {"id": "b"})])
    assert (again["at"], (tmp_path / "data.bin").read_bytes()) == (4, b"abcdb")
    index.write_text(index.read_text() + "\0\0\0\n{")  # the end that a killed writer leaves goes without a word
    with Journal.open(tmp_path, header, "remedy") as journal:
        assert len(journal.entries) == 4


@pytest.mark.parametrize("cut", [1, 20, 60])
@pytest.mark.parametrize("name", ["index.jsonl", "data.bin"])
def test_truncated_tail_is_dropped(tmp_path: Path, name: str, cut: int) -> None:
    with FeatureStore.create(tmp_path, KEY, FIELDS) as store:
        store.add(rows(5))
    whole = read_all(tmp_path)
    os.truncate(tmp_path / name, len(whole[name]) - cut)
    store = FeatureStore(tmp_path)
    # A line takes about 60 bytes and a row 28, so 60 bytes cut up to three rows.
    lost = 5 - len(store)
    assert 1 <= lost <= 3
    assert store.get("0.mp4", -1).tolist() == [[0.0] * 4]
    with FeatureStore.create(tmp_path, KEY, FIELDS) as store:
        store.add(rows(lost, 5 - lost))
    assert read_all(tmp_path) == whole


def test_damaged_features_are_told(tmp_path: Path) -> None:
    with FeatureStore.create(tmp_path, KEY, FIELDS) as store:
        store.add(rows(3))
    with (tmp_path / "data.bin").open("r+b") as file:
        file.seek(28 + 9)
        file.write(b"\x55")
    store = FeatureStore(tmp_path)
    store.get("0.mp4", -1)
    store.get("2.mp4", -1)
    with pytest.raises(ValueError, match=r"features of 1\.mp4 are damaged \(checksum\)"):
        store.get("1.mp4", -1, "logits")


def test_names_the_first_difference_only() -> None:
    assert journal.first_difference({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2}}) is None
    assert journal.first_difference({"b": 2}, {"b": 2, "a": 1}) == "a is null in the store and 1 here"


@needs_data
def test_awkward_and_broken_files_are_never_fatal_and_never_lost(tmp_path: Path) -> None:
    assert DATA is not None
    files = [p for folder in ("broken", "quirks") for p in sorted((DATA / folder).iterdir()) if p.suffix != ".md"]
    table = Table(tuple(Sample(p, f"{p.parent.name}/{p.name}") for p in files))
    pack(table, tmp_path / "store", short_side=48, codec="raw", workers=0, progress=False)
    views = {"a/frames": View(size=(32, 32), num_moments=3, moment="uniform", num_frames=2)}
    live = VideoDataset(table, None, views, short_side=48)
    packed = VideoDataset(table, None, views, packed=tmp_path / "store")
    for row, sample in enumerate(table):
        first, second = live[row], packed[row]
        assert ("error" in first) == ("error" in second)
        assert ("error" in first or "fault" in first) == sample.name.startswith("broken/")
        if "error" in first:
            assert Path(sample.name).name in second["error"]
        else:
            assert ("fault" in first) == ("fault" in second)
            assert torch.equal(first["a/frames"], second["a/frames"])
