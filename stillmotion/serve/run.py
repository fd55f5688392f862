"""The entry of `stillmotion serve`."""

import fcntl
import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillmotion.config import LimitConfig
from stillmotion.predict import Predictor, stop_signal

PREFIX = "stillmotion-serve-"
KEY = "STILLMOTION_API_KEY"
CONNECTIONS = 16
"""For each request that is worked on, so many connections may be open; more are turned away (503)."""


def serve(
    model: str,
    *,
    teacher: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    cors: Sequence[str] = (),
    view: Mapping[str, Any] | None = None,
    top: int = 5,
    device: str = "auto",
    threads: int | None = None,
    limits: LimitConfig | None = None,
) -> int:
    """Serves a model over HTTP until SIGTERM or Ctrl-C; what was accepted is finished then.

    Args:
        model: Run folder, or exported file.
        teacher: Another, whose answer stands beside that of the model.
        host: Address to listen on.
        port: 0: any that is free.
        api_key: See `make_app`; None: that of the environment variable STILLMOTION_API_KEY, if it is set.
        cors: See `make_app`.
        view: Settings of `View` that differ from training.
        top: Classes that an answer names.
        device: auto, cpu or cuda.
        threads: For computing on the CPU; None leaves it to the library.
        limits: What is taken, and how long the service waits.

    Returns:
        0.

    Raises:
        ValueError: The model or a setting is wrong, or the address is in use.
    """
    import uvicorn

    from stillmotion.serve.app import make_app
    from stillmotion.serve.service import Service, name_of

    limits, key = limits or LimitConfig(), api_key or os.environ.get(KEY) or None
    student = Predictor.load(model, view=view, device=device, top=top, threads=threads)
    other = Predictor.load(teacher, device=device, top=top, threads=threads) if teacher else None
    names = (name_of(model), name_of(teacher) if teacher else None)
    if key is None and not _is_loopback(host):
        print(f"warning: whoever reaches {host} may use this service; set {KEY} to ask for a key", file=sys.stderr)
    with _listen(host, port) as listener, upload_folder() as folder, stop_signal():
        app = make_app(Service(student, other, names, limits), folder, api_key=key, cors=cors)
        settings = uvicorn.Config(
            app, ws="none", lifespan="on", log_level="warning", access_log=False, server_header=False,
            limit_concurrency=CONNECTIONS * limits.requests, timeout_graceful_shutdown=int(limits.stop_seconds + 0.5),
        )  # fmt: skip
        shown, number = f"[{host}]" if ":" in host else host, listener.getsockname()[1]
        print(f"{names[0]} on http://{shown}:{number}/ (Ctrl-C stops)", flush=True)
        server = uvicorn.Server(settings)
        server.run(sockets=[listener])
        if not server.started:
            raise ValueError("the service could not start; the reason stands above")
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; the system keeps connections until the service is ready.

    Raises:
        ValueError: Not possible.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise ValueError(f"host={host}, port={port}: cannot listen there ({error}); choose another --port") from None
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def upload_folder() -> Iterator[Path]:
    """A folder for uploads, which is removed at the end; those of services that were killed are removed first."""
    root = Path(tempfile.gettempdir())
    for old in root.glob(f"{PREFIX}*"):
        try:
            with (old / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
        except OSError:  # another service uses it, or it is another user's
            continue
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        folder = Path(name)
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
