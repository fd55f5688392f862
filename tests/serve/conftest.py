"""A model that tells colours apart, its service, and uploads for it."""

import io
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from stillmotion.export import export
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.serve.run import KEY, PREFIX
from stillmotion.tasks import Classification
from tests.conftest import MakeVideo

TASK = Classification(("blue", "green", "red"))
WAIT = 120.0
"""Seconds; the machine may be busy with other tests."""


def make_run(folder: Path, *, seed: int = 0, **view: object) -> Path:
    torch.manual_seed(seed)
    encoder = create_model("timm/test_resnet", num_classes=3, view={"size": 64, **view})
    return save_pretrained(encoder, TASK, folder)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("models") / "teacher", seed=1, num_frames=3)


@pytest.fixture(scope="session")
def exported(run: Path) -> Path:
    return export(str(run), str(run.with_suffix(".onnx")))


def moving(num_frames: int, seed: int = 0, *, side: int = 12) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(side, 0).repeat(side, 1)
    return np.stack([np.roll(base, 3 * t, axis=1) for t in range(num_frames)])


@pytest.fixture
def video(tmp_path: Path, make_video: MakeVideo) -> Path:
    return make_video(tmp_path / "walk.mp4", moving(40), fps=10)


def still() -> bytes:
    out = io.BytesIO()
    Image.fromarray(moving(1)[0]).save(out, "png")
    return out.getvalue()


class Running:
    """A service in a process of its own.

    Attributes:
        url: Where it is.
        uploads: Folder in which its folder of uploads lies.
    """

    def __init__(self, process: "subprocess.Popen[str]", url: str, uploads: Path) -> None:
        self.process, self.url, self.uploads = process, url, uploads

    def post(self, content: bytes, name: str = "a.mp4", **query: object) -> httpx.Response:
        return httpx.post(f"{self.url}/predict", files={"file": (name, content)}, params=query, timeout=WAIT)  # type: ignore[arg-type]

    def left(self) -> list[Path]:
        """Uploads that still lie there."""
        return [p for p in self.uploads.glob(f"{PREFIX}*/*") if p.name != "lock"]


@contextmanager
def running(
    model: Path, uploads: Path, *arguments: str, key: str | None = None, start: str = "stillmotion"
) -> Iterator[Running]:
    """`stillmotion serve` on a free port; what it prints to the terminal is shown if a test fails."""
    uploads.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-u", "-m", start, "serve", str(model), "--port", "0", "--threads", "1", *arguments]
    env = {**os.environ, "TMPDIR": str(uploads), **({KEY: key} if key else {})}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+(?=/ )", process.stdout.readline())
        assert found, "it did not start"
        httpx.get(f"{found[0]}/ready", timeout=WAIT).raise_for_status()
        yield Running(process, found[0], uploads)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def service(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = ("--limits.max_mib", "1", "--limits.max_seconds", "20", "--limits.stall_seconds", "1.5",
              "--limits.requests", "6", "--limits.upload_seconds", "4")  # fmt: skip
    with running(exported, tmp_path_factory.mktemp("uploads"), *limits) as found:
        yield found


def slow_upload(url: str, *, length: int = 10_000) -> socket.socket:
    """A connection over which an upload has begun and does not go on."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=WAIT)
    head = (f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            '--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n')  # fmt: skip
    connection.sendall(head.encode() + b"\0\0\0\x20ftypisom" + bytes(500))
    return connection


def answer_of(connection: socket.socket) -> bytes:
    """All that comes back."""
    with closing(connection):
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
        return found
