"""What the suite of faults found, each as a small test."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillmotion import __main__ as command
from stillmotion.data import decode
from stillmotion.data.compute_flow import STALE_SECONDS, _clean
from stillmotion.data.decode import decode_frames, forget, read_frames
from stillmotion.data.faults import VideoError
from stillmotion.data.store import file_size
from stillmotion.files import write_atomic
from stillmotion.models.checkpoint import read_weights
from stillmotion.run import Run
from tests.conftest import MakeVideo


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out"), "make room and run the same command to go on"),
        (OSError(errno.EROFS, "Read-only file system", "out"), "Read-only file system: 'out'"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_errors_of_the_system_are_one_line(
    error: BaseException, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(command, "auto_cli", fail)
    monkeypatch.delenv("STILLMOTION_TRACEBACK", raising=False)
    assert command.main(["list", "methods"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


def _from_a_worker(error: RuntimeError) -> RuntimeError:
    return RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\nOriginal ...\nRuntimeError: {error}")


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda: torch.UntypedStorage._new_shared(2**60), "make /dev/shm larger"),  # type: ignore[no-untyped-call]
        (lambda: torch.empty(2**60), "take smaller batches"),
    ],
)
def test_what_the_system_refuses_torch_is_one_line(
    ask: Callable[[], Any], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        try:
            ask()
        except RuntimeError as error:
            raise _from_a_worker(error) from None

    monkeypatch.setattr(command, "auto_cli", fail)
    monkeypatch.delenv("STILLMOTION_TRACEBACK", raising=False)
    assert command.main(["list", "methods"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    monkeypatch.setattr(command, "auto_cli", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"inconsistent|size"):
        command.main(["list", "methods"])


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomic(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "a.json", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_drafts_of_a_killed_training_go(tmp_path: Path) -> None:
    (tmp_path / ".results.json.17.part").write_text("{")
    Run(tmp_path).begin({"seed": 0})
    assert not list(tmp_path.glob(".*.part"))


def test_the_size_of_a_file_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: True)  # it was there a moment ago
    assert file_size(tmp_path / "gone.mp4") is None
    assert file_size(tmp_path) is None


def test_a_video_that_changes_between_two_looks(
    tmp_path: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4", np.zeros((5, 32, 32, 3), np.uint8))
    forget()
    # Neither by seeking nor by counting is frame 3 found, and then it is there.
    monkeypatch.setattr(decode, "_found", lambda *_: False)
    monkeypatch.setattr(decode, "_count", lambda *_: False)
    with pytest.raises(VideoError, match=r"a\.mp4: changed while it was read"):
        decode_frames(path, [3])
    monkeypatch.undo()
    assert read_frames(path, [3]).shape == (1, 3, 32, 32)


def test_a_clock_that_jumps_takes_no_file_from_a_running_process(tmp_path: Path) -> None:
    mine, theirs = tmp_path / f"{os.getpid()}-00000000", tmp_path / "999999999-00000000"
    for path in (mine, theirs):
        path.touch()
        os.utime(path, (time.time() - 2 * STALE_SECONDS,) * 2)
    _clean(tmp_path)
    assert mine.exists()
    assert not theirs.exists()


def test_weights_in_a_zip_that_numpy_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, w=np.ones(2))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 10 : at + 12] = b"\x63\x00"  # a compression that nobody has
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.npz: damaged or no \.npz file"):
        read_weights(path)
