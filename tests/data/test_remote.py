"""Stores on object storage: the bytes of the local ones, and one clear line where something is missing or broken."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillmotion.__main__ import main
from stillmotion.data import remote
from stillmotion.data.dataset import VideoDataset
from stillmotion.data.flow_store import FlowSettings, FlowStore
from stillmotion.data.loader import EpochBatches, make_loader
from stillmotion.data.pack import pack
from stillmotion.data.remote import RemoteData, RemoteError, RemotePath, place_of
from stillmotion.data.store import FeatureStore, FrameStore
from stillmotion.data.table import Table, read_table
from stillmotion.features import read_sizes
from stillmotion.view import View

moto_server = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")
boto3 = pytest.importorskip("boto3")


class Bucket:
    """A bucket of a server on this machine."""

    def __init__(self, server: Any, address: str) -> None:
        self.server = server
        self.client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
        self.client.create_bucket(Bucket="films")

    def upload(self, folder: Path) -> str:
        """Copies a folder; returns its address."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.client.upload_file(str(path), "films", f"{folder.name}/{path.relative_to(folder)}")
        return f"s3://films/{folder.name}"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1",
                        "AWS_ENDPOINT_URL": address}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield Bucket(server, address)
    server.stop()


@pytest.fixture
def packed(tiny_table: Path, tmp_path: Path) -> tuple[Table, Path]:
    """A table and its frame store."""
    table = read_table(tiny_table)
    pack(table, tmp_path / "packed", codec="raw", workers=0, progress=False)
    return table, tmp_path / "packed"


def batches(table: Table, folder: str | Path, workers: int) -> list[dict[str, Any]]:
    """Two epochs, of random moments and boxes."""
    views = {"student/frames": View(size=16, num_frames=4, moment="random")}
    dataset = VideoDataset(table, None, views, random=True, packed=folder)
    order = EpochBatches(len(table), 3)
    loader = make_loader(dataset, order, workers=workers)
    found: list[dict[str, Any]] = []
    for epoch in range(2):
        order.set_epoch(epoch)
        found += loader
    return found


def test_loader_processes_read_a_packed_store_from_a_bucket(packed: tuple[Table, Path], bucket: Bucket) -> None:
    table, folder = packed
    address = bucket.upload(folder)
    (folder / "data.bin").rename(folder / "gone")  # so that nothing can come from here
    found = batches(table, address, workers=2)
    (folder / "gone").rename(folder / "data.bin")
    expected = batches(table, folder, workers=0)
    assert not any(batch["errors"] for batch in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one["student/frames"], other["student/frames"], rtol=0, atol=0)


def test_only_what_is_asked_for_is_fetched(
    packed: tuple[Table, Path], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, folder = packed
    here, there = FrameStore(folder), FrameStore(bucket.upload(folder))
    spans: list[tuple[int, int]] = []
    fetch = RemotePath.read_ranges
    monkeypatch.setattr(RemotePath, "read_ranges", lambda self, asked: spans.extend(asked) or fetch(self, asked))
    sample, size = table[3], 48 * 64 * 3
    wanted = np.array([9, 2, 10])
    np.testing.assert_array_equal(there.read(sample, wanted), here.read(sample, wanted))
    begin, head = there.rows[sample.id]["at"], 20 * 8  # size and checksum of 20 frames
    frames = begin + head
    # Frames 2 to 10 are 83 KB: near enough to each other that one request is cheaper than three, were they nearer than
    # 64 KiB; between 2 and 9 lie 6 frames of 9 KiB.
    assert spans == [(begin, frames), (frames + 2 * size, frames + 11 * size)]
    monkeypatch.setattr(remote, "GAP", 10 * 1024)
    spans.clear()
    np.testing.assert_array_equal(there.read(sample, wanted), here.read(sample, wanted))
    assert spans[1:] == [(frames + 2 * size, frames + 3 * size), (frames + 9 * size, frames + 11 * size)]


def test_blocks_of_a_file_are_fetched_once(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").mkdir()
    content = np.random.default_rng(0).integers(0, 256, 1000, np.uint8).tobytes()
    (tmp_path / "f" / "data.bin").write_bytes(content)
    monkeypatch.setattr(remote, "BLOCK", 64)
    monkeypatch.setattr(remote, "BLOCKS", 3)
    calls: list[int] = []
    fetch = RemotePath.read_ranges
    monkeypatch.setattr(RemotePath, "read_ranges", lambda self, asked: calls.append(len(asked)) or fetch(self, asked))
    data = RemoteData(RemotePath(bucket.upload(tmp_path / "f") + "/data.bin"))
    assert data[70:120] == content[70:120]
    assert data[64:65] == content[64:65]
    assert data[100:200] == content[100:200]
    assert calls == [1, 0, 2]
    assert data[960:1000] == content[960:1000]  # the last block is shorter
    assert data[64:100] == content[64:100]  # three blocks are kept, this is not among them any more
    assert calls == [1, 0, 2, 1, 1]


def test_features_and_flow_come_from_a_bucket(tmp_path: Path, packed: tuple[Table, Path], bucket: Bucket) -> None:
    table, _ = packed
    rows = np.random.default_rng(0).normal(size=(7, 1, 5)).astype(np.float32)
    with FeatureStore.create(tmp_path / "features", {"made": "here"}, {"embedding": (1, 5)}) as store:
        store.add((sample.id, 0, {"embedding": row}) for sample, row in zip(table, rows, strict=True))
    address = bucket.upload(tmp_path / "features")
    there = FeatureStore(address, {"made": "here"})
    for sample, row in zip(table, rows, strict=True):
        np.testing.assert_array_equal(there.get(sample.id, 0), row)
    assert read_sizes(address) == {}
    with pytest.raises(ValueError, match='made is "here" in the store'):
        FeatureStore(address, {"made": "elsewhere"})

    flow = FlowStore.create(tmp_path / "flow", FlowSettings(method="farneback"))
    flow.add(table[0])
    far = FlowStore(bucket.upload(tmp_path / "flow"))
    pairs = np.array([[3, 4], [0, 1]])
    for one, other in zip(far.read(table[0], pairs), flow.read(table[0], pairs), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(RemoteError, match=r"s3://films/flow: no flow of 1\.mp4; run `stillmotion flow` on this table"):
        far.extent(table[1])


def test_what_is_missing_is_said_in_one_line(
    packed: tuple[Table, Path], bucket: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, folder = packed
    words = ["train", table.source, "--student", "timm/test_efficientnet", "--data.packed"]
    for address in ("s3://nothing/packed", "s3://films/none"):
        assert main([*words, address, "--output", str(folder.parent / "run")]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line == f"stillmotion: error: {address}/header.json: there is no such bucket or file; check the address"
    with pytest.raises(ValueError, match="s3://films/new: stores are written to a local folder; name one"):
        pack(table, "s3://films/new")
    with pytest.raises(RemoteError, match=r"what://x/header\.json: Protocol not known: what"):
        FrameStore("what://x")
    with pytest.raises(RemoteError, match=r"gs://x/header\.json: .*gcsfs.*; pip install 'stillmotion\[remote\]'"):
        FrameStore("gs://x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(RemoteError, match=r"fsspec is not installed; pip install 'stillmotion\[remote\]'"):
        FrameStore("s3://films/none")


class Broken:
    """A file system whose connection breaks, but for some tries."""

    def __init__(self, *good: int) -> None:
        self.good, self.tries = good, 0

    def cat_ranges(self, paths: Any, firsts: Any, ends: Any, on_error: str) -> list[bytes]:
        self.tries += 1
        if self.tries in self.good:
            return [b"abc"]
        raise OSError("Connection reset\nby peer")


def test_a_broken_connection_ends_after_some_tries_and_blames_no_sample(
    packed: tuple[Table, Path], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, folder = packed
    address, here, system = bucket.upload(folder), os.getpid(), remote._system
    broken = Broken(2)
    path = RemotePath(f"{address}/data.bin")
    path._opened = here, broken
    assert path.read_ranges([(0, 3)]) == [b"abc"], "the second try counts"
    with pytest.raises(
        RemoteError, match=r"cannot be reached \(Connection reset by peer\), 3 tries; check the network"
    ):
        path.read_ranges([(0, 3)])
    assert broken.tries == 5
    # In a loader's process, whose traceback the user does not see.
    monkeypatch.setattr(remote, "_system", lambda url: system(url) if os.getpid() == here else Broken())
    with pytest.raises(RemoteError) as said:
        batches(table, address, workers=1)
    assert str(said.value).startswith("s3://films/packed/data.bin: cannot be reached (Connection reset by peer)")


def test_local_folders_stay_paths(tmp_path: Path) -> None:
    assert place_of(tmp_path) == tmp_path
    assert place_of(str(tmp_path)) == tmp_path
    assert str(place_of("memory://a/") / "b") == "memory://a/b"
