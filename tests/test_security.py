"""SECURITY.md, promise by promise: files that hold code, or names that lead elsewhere, are refused in one line."""

import contextlib
import io
import json
import os
import pickle
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from stillmotion.__main__ import main
from stillmotion.data.decode import probe
from stillmotion.data.faults import VideoError
from stillmotion.data.flow_files import MOST_BYTES, OneFile, path_of
from stillmotion.data.pool import Failure, Process
from stillmotion.data.store import FrameStore
from stillmotion.data.table import Sample
from stillmotion.export.screen import screen
from stillmotion.models.checkpoint import read_weights
from stillmotion.models.pretrained import load_pretrained, read_config
from stillmotion.predict import Sight
from stillmotion.predictions import read_predictions
from stillmotion.protocols.feature_file import read_features
from stillmotion.run import Run
from stillmotion.serve.reader import Order, Reader, Unreadable
from stillmotion.view import View
from tests.conftest import MakeVideo


class Evil:
    """What unpickling runs."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def _checkpoint(path: Path, evil: Evil) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "stillmotion": {"x": evil}}, path)


def _array(path: Path, evil: Evil) -> None:
    np.savez(path, id=np.array(["a"]), embedding=np.array([[evil]], object))


HOLDS_CODE: dict[str, tuple[str, Callable[[Path, Evil], None], Callable[[Path], object]]] = {
    "resume": ("last.ckpt", _checkpoint, lambda p: Run(p.parent).read_checkpoint()),
    "weights": ("w.pt", _checkpoint, read_weights),
    "bare pickle": ("w.pth", lambda p, e: p.write_bytes(pickle.dumps(e)) and None, read_weights),
    "weights in npz": ("w.npz", _array, read_weights),
    "features": ("f.npz", _array, read_features),
}


@pytest.mark.parametrize("kind", HOLDS_CODE)
def test_nothing_is_unpickled(kind: str, tmp_path: Path) -> None:
    name, write, read = HOLDS_CODE[kind]
    write(tmp_path / name, Evil(tmp_path / "mark"))
    with pytest.raises(ValueError, match=str(tmp_path)) as refused:
        read(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "mark").exists()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "net.pt2"
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2))
    batch = torch.export.Dim("batch", min=1, max=64)
    traced = torch.export.export(net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(traced, path, extra_files={"stillmotion.json": "{}"})
    return path


def _changed(program: Path, path: Path, change: Callable[[str, bytes], bytes], more: str | None = None) -> Path:
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, change(info.filename, source.read(info)))
        if more is not None:
            target.writestr(more, b"x")
    return path


def _pickled(evil: Evil) -> bytes:
    file = io.BytesIO()
    torch.save(((evil,), {}), file)
    return file.getvalue()


def test_an_exported_program_that_holds_code_is_refused(program: Path, tmp_path: Path) -> None:
    screen(program)
    evil = _pickled(Evil(tmp_path / "mark"))
    changes: dict[str, Callable[[str, bytes], bytes]] = {
        "sample_inputs": lambda n, d: evil if n.endswith("sample_inputs/model.pt") else d,
        "pickled": lambda n, d: d.replace(b'"use_pickle": false', b'"use_pickle": true', 1),
        "torch.os.system": lambda n, d: d.replace(b"torch.ops.aten.linear.default", b"torch.os.system"),
        "__import__": lambda n, d: d.replace(b"Symbol('s", b"__import__('s"),
        "guards": lambda n, d: d.replace(b'"guards_code": []', b'"guards_code": ["open(1)"]'),
    }
    for word, change in changes.items():
        path = _changed(program, tmp_path / "evil.pt2", change)
        with pytest.raises(ValueError, match="refused"):
            screen(path)
        assert main(["predict", str(path), str(tmp_path)]) == 2, word
    assert not (tmp_path / "mark").exists()
    for more in ("net/data/weights/model.pt", "net/../../outside", "net/data/constants/opaque_obj_0"):
        with pytest.raises(ValueError, match="refused"):
            screen(_changed(program, tmp_path / "evil.pt2", lambda n, d: d, more))


def test_torch_would_run_the_code_of_an_exported_program(program: Path, tmp_path: Path) -> None:
    """If this fails, torch has mended it, and `screen` may go."""
    evil = _pickled(Evil(tmp_path / "mark"))
    path = _changed(program, tmp_path / "evil.pt2", lambda n, d: evil if n.endswith("sample_inputs/model.pt") else d)
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "model",
    [
        {"name": "sequence", "backbone": {"name": "../other"}},
        {"name": "hallucinating", "backbone": {"name": "timm/resnet10t", "weights": "/etc/passwd"}},
        {"name": "/etc"},
    ],
)
def test_a_shared_network_names_no_file_outside(model: dict[str, Any], tmp_path: Path) -> None:
    config = {"format": 1, "model": model, "task": {}, "views": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="outside of its folder, refused"):
        read_config(tmp_path)


def test_a_damaged_config_of_a_network_is_one_line(tmp_path: Path) -> None:
    config = {"format": 1, "model": {"name": "resnet3d_10"}, "task": {"kind": "classification"}, "views": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: damaged or of another version \('class_names'\)$"):
        load_pretrained(tmp_path)


def test_a_config_file_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (
        f"table: !!python/object/apply:os.mkdir [{tmp_path / 'mark'}]",
        f"table: {{class_path: os.mkdir, init_args: {{path: {tmp_path / 'mark'}}}}}",
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(SystemExit, match="2"):
            main(["data", "check", "--config", str(tmp_path / "c.yaml")])
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["../../up.mp4", "/etc/up.mp4", "..\\..\\up.mp4", "a/../../up.mp4"])
def test_flow_of_a_table_stays_in_its_store(name: str, tmp_path: Path) -> None:
    place = OneFile(tmp_path / "store", None, 75).place(Sample(tmp_path / "x.mp4", name))
    assert Path(os.path.abspath(place)).is_relative_to(tmp_path / "store")
    assert ".." not in path_of(Sample(tmp_path / "x.mp4", name), suffix=False).parts


def _flow(folder: Path) -> tuple[OneFile, Sample, Path]:
    layout, sample = OneFile(folder, None, 75), Sample(Path("a.mp4"), "a.mp4")
    entry = {"id": "a.mp4", "num_frames": 2, "keyframes": [], "damaged": []}
    layout.write(sample, entry, [(0, np.ones((4, 4, 2), np.float32))])
    return layout, sample, layout.place(sample)


def test_a_flow_file_unpacks_nothing_and_no_bomb(tmp_path: Path) -> None:
    layout, sample, place = _flow(tmp_path / "store")
    layout.open(sample).read(0)
    with zipfile.ZipFile(place, "a") as pack:
        pack.writestr("../../slipped", b"x")
    layout.open(sample).read(0)
    assert not (tmp_path / "slipped").exists()
    assert not list(tmp_path.parent.glob("slipped"))
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as pack, pack.open("flow.json", "w") as file:
        for _ in range(MOST_BYTES // 2**20 + 1):
            file.write(bytes(2**20))
    with pytest.raises(ValueError, match=r"damaged .*too large"):
        layout.open(sample)


@pytest.mark.parametrize("text", ["[]", "{}", '{"id": 1}', "[" * 100_000])
def test_a_flow_file_with_odd_facts_is_one_line(text: str, tmp_path: Path) -> None:
    layout, sample, place = _flow(tmp_path)
    with zipfile.ZipFile(place, "w") as pack:
        pack.writestr("flow.json", text)
    with pytest.raises(ValueError, match=r"^\S+a\.mp4\.zip: damaged \(what it says of its sample\)"):
        layout.open(sample)


@pytest.mark.parametrize(
    ("file", "text"),
    [("header.json", "[]"), ("index.jsonl", '{"id": "a", "at": 0, "size": 0, "crc": 0, "num_frames": -1}\n')],
)
def test_a_store_with_odd_facts_is_one_line(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "header.json").write_text('{"format": 1, "kind": "frames", "codec": "raw", "short_side": null}')
    (tmp_path / "data.bin").touch()
    (tmp_path / "index.jsonl").touch()
    assert not FrameStore(tmp_path).rows
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=r"not a frames store|damaged \(what it says of a\)"):
        FrameStore(tmp_path)


def test_odd_predictions_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "per_class.csv").write_text("class\nx\n")
    (tmp_path / "predictions.csv").write_text("id,label,logits\na\n")
    with pytest.raises(ValueError, match="no predictions of"):
        read_predictions(tmp_path)


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat"])
def test_a_playlist_reads_no_other_file(name: str, tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "secret.ts", np.zeros((5, 32, 32, 3), np.uint8))
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / name).write_text(hls if name.endswith("m3u8") else "ffconcat version 1.0\nfile secret.ts\n")
    with pytest.raises(VideoError, match="not a video but a playlist"):
        probe(tmp_path / name)


def test_every_error_of_ffmpeg_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\x00\x00\x00\x10ftyp" + bytes(100))

    def fail(*_: Any, **__: Any) -> None:
        raise av.error.EOFError(541478725, "End of file")  # neither an OSError nor a ValueError

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(VideoError, match=r"a\.mp4: an MP4 file without an index"):
        probe(tmp_path / "a.mp4")


TASK = {"kind": "classification", "class_names": ["a", "b"], "target": "label", "temperature": 1.0}


class HungryReader(Reader):
    """Has what a decoder might do to it."""

    def _read(self, order: Order, path: Path) -> Any:
        if path.name == "eats":
            hoard = [np.empty(2**24) for _ in range(1000)]  # 128 MiB each
            return len(hoard)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(3600.0)
        return None


def test_an_upload_is_read_apart_within_memory_and_time() -> None:
    """As `Readers` runs it; the test of the service sends such files over HTTP."""
    reader = HungryReader([Sight(TASK, {"x": View()}, None, False)], max_seconds=9.0, seconds=10.0, mib=512)
    process: Process[Order, Any] = Process(reader)
    try:
        assert process.process.pid != os.getpid()
        assert process.call(Order(None), 60.0) is None
        answer = process.call(Order(Path("eats")), 60.0)
        assert isinstance(answer, Unreadable)
        assert answer.reason == "the file cannot be read within 512 MiB of memory"
        assert process.call(Order(Path("hangs")), 60.0) == Failure("its reader died (signal SIGALRM)")
    finally:
        process.end()
    process = Process(reader)
    assert process.call(Order(Path("hangs")), 0.5) == Failure("no answer within 0.5 s")
    assert not process.process.is_alive()


@pytest.mark.parametrize(
    "content", [None, {"stillmotion": {"position": (0, 0, 1)}, "state_dict": {}}, {"state_dict": {}}, []]
)
def test_a_damaged_checkpoint_is_one_line(
    content: Any, tmp_path: Path, tiny_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(tiny_table), "--output", str(tmp_path / "run"), "--student.name", "resnet3d_10",
               "--student.options", '{"width": 1}', "--student.view", '{"size": 32, "num_frames": 4}',
               "--optim.epochs", "1", "--optim.batch_size", "2", "--data.workers", "0"]  # fmt: skip
    run = Run(tmp_path / "run")
    if content is None:
        (tmp_path / "run").mkdir()
        run.checkpoint.write_bytes(b"\x80\x05junk")
    else:
        (tmp_path / "run").mkdir()
        torch.save(content, run.checkpoint)
    run.write_json("settings.json", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "compare", lambda *_: None)
        assert main(command) == 2
    said = capsys.readouterr().err
    assert "last.ckpt" in said
    assert "Traceback" not in said
