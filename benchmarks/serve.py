"""The service under more than it can do, and what it adds to a prediction from a file.

    python benchmarks/serve.py --data ../shared/data [--seconds 120] [--clients 32] [--output FILE.json]

Everything runs on loopback; the network is an exported MobileNet with random weights. First one client takes turns with
the same Predictor in this process, file by file. Then many clients send good, broken, huge, slow uploads and such of
another kind at once; every answer is compared with the Predictor's. Memory is that of the service and its readers.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stillmotion.data import decode
from stillmotion.export import export
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.predict import Predictor
from stillmotion.run import environment
from stillmotion.serve.run import PREFIX
from stillmotion.tasks import Classification

CLIPS = ("samples/basketball.mp4", "ucf101_mini/ApplyEyeMakeup/test.avi", "kth_sample/boxing")
TASK = Classification(tuple(f"class{i:03}" for i in range(101)))
MIB = 2**20
MAX_MIB = 20
STALL = 2.0
MIX = {"good": 12, "broken": 2, "wrong": 2, "huge": 1, "slow": 1}
"""Kinds of uploads and how often they come."""
CODES = {"good": {200}, "broken": {422}, "wrong": {415}, "huge": {413}, "slow": {408}}
"""How each is to be answered; or with 429, come again."""


def form(content: bytes) -> bytes:
    """A file as a form."""
    return b'--x\r\nContent-Disposition: form-data; name="file"; filename="clip"\r\n\r\n' + content + b"\r\n--x--\r\n"


class Client:
    """One connection at a time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Sends a form; the status and what is said."""
        self.connection = self.connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            self.connection.request("POST", "/predict", body, {"Content-Type": "multipart/form-data; boundary=x"})
            return self._read()
        except OSError:
            self.connection = None
            raise

    def post_slowly(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Sends half of a form, and waits."""
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        self.connection.putrequest("POST", "/predict")
        self.connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        self.connection.putheader("Content-Length", str(len(body)))
        self.connection.endheaders(body[: len(body) // 2])
        return self._read()

    def _read(self) -> tuple[int, dict[str, Any]]:
        assert self.connection is not None
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.will_close:
            self.connection.close()
            self.connection = None
        return answer.status, json.loads(text)


class Service:
    """`stillmotion serve` in a process of its own, with a folder for its files."""

    def __init__(self, model: Path, folder: Path, requests: int) -> None:
        self.folder = folder
        folder.mkdir()
        command = [sys.executable, "-u", "-m", "stillmotion", "serve", str(model), "--port", "0", "--threads", "1",
                   "--limits.max_mib", str(MAX_MIB), "--limits.stall_seconds", str(STALL),
                   "--limits.requests", str(requests)]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(folder)}
        )
        assert self.process.stdout is not None
        found = re.search(r":(\d+)/", self.process.stdout.readline())
        assert found
        self.port = int(found[1])
        self.get("/ready")

    def get(self, path: str) -> str:
        """What a path says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", path)
        answer = connection.getresponse().read().decode()
        connection.close()
        return answer

    def memory(self) -> list[float]:
        """Resident MiB of the service, and of each of its readers."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            mine = int(entry.parent.name) == self.process.pid
            if mine or int(fields[1]) == self.process.pid:
                size = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / MIB
                found.insert(0, size) if mine else found.append(size)
        return found

    def files(self) -> int:
        """Files that lie in its folder."""
        return sum(1 for p in self.folder.glob(f"{PREFIX}*/*") if p.name != "lock")

    def stop(self) -> float:
        """Asks it to stop; seconds until it has."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0
        return time.monotonic() - began


@dataclass
class Load:
    """What clients send, and what came back."""

    port: int
    good: list[tuple[bytes, dict[str, float]]]
    others: dict[str, list[bytes]]
    codes: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: int = 0
    cut: int = 0

    def client(self, seed: int, end: float) -> None:
        """One client, until a time."""
        rng, client = random.Random(seed), Client(self.port)
        while time.monotonic() < end:
            kind = rng.choices([*MIX], [*MIX.values()])[0]
            body, expected = rng.choice(self.good) if kind in ("good", "slow") else (rng.choice(self.others[kind]), {})
            began = time.monotonic()
            try:
                status, data = client.post_slowly(body) if kind == "slow" else client.post(body)
            except (OSError, http.client.HTTPException):
                self.cut += 1  # closed before the answer was read
                client.connection = None
                continue
            self.codes[kind][status] += 1
            if status == 429:
                time.sleep(rng.random() * 0.3)
                continue
            self.seconds[kind].append(time.monotonic() - began)
            if status == 200:
                found = {row["label"]: row["probability"] for row in data["labels"]}
                self.wrong += found.keys() != expected.keys() or any(abs(found[n] - expected[n]) > 1e-4 for n in found)


def added(service: Service, predictor: Predictor, files: list[Path], rounds: int) -> dict[str, float]:
    """Median milliseconds of a prediction here and by the service, in turns."""
    client = Client(service.port)
    here: list[float] = []
    there: list[float] = []
    for number in range(rounds + 1):
        for file in files:
            body = form(file.read_bytes())
            decode.forget()
            begin = time.perf_counter()
            predictor(file)
            middle = time.perf_counter()
            status, _ = client.post(body)
            end = time.perf_counter()
            assert status == 200
            if number:  # the first round warms up
                here.append(1e3 * (middle - begin))
                there.append(1e3 * (end - middle))
    differences = [b - a for a, b in zip(here, there, strict=True)]
    return {"predictor_ms": statistics.median(here), "service_ms": statistics.median(there),
            "added_ms": statistics.median(differences)}  # fmt: skip


def mixed(files: list[Path], predictor: Predictor) -> dict[str, Any]:
    """Uploads of every kind."""
    good = [(form(f.read_bytes()), dict(predictor(f).labels)) for f in files]
    content, rng = files[0].read_bytes(), np.random.default_rng(0)
    noise = rng.integers(0, 256, 300_000, np.uint8).tobytes()
    broken = [
        b"\0\0\0\x20ftypisom" + noise,
        content[:3000],
        b"\x89PNG\r\n\x1a\n" + noise[:1000],
        b"RIFF....AVI " + noise,
    ]
    wrong = [b"#EXTM3U\nhttp://127.0.0.1/\n", b"<html></html>" * 100, noise[:5000].replace(b"\xff", b"a"), b""]
    huge = [b"\0\0\0\x20ftypisom" + bytes((MAX_MIB + 5) * MIB)]
    others = {"broken": broken, "wrong": wrong, "huge": huge}
    return {"good": good, "others": {kind: [form(x) for x in each] for kind, each in others.items()}}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared videos")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=8, help="that the service takes at once")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    found = [args.data / clip for clip in CLIPS]
    files = [next(iter(sorted(p.iterdir()))) if p.is_dir() else p for p in found]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = create_model("timm/mobilenetv3_small_100", num_classes=101, view={"size": 112})
        model = export(str(save_pretrained(encoder.eval(), TASK, folder / "run")), str(folder / "student.onnx"))
        predictor = Predictor.load(model, threads=1)
        service = Service(model, folder / "uploads", args.requests)
        result: dict[str, Any] = {"added": {f.name: added(service, predictor, [f], args.rounds) for f in files}}
        for clip, row in result["added"].items():
            print(clip.ljust(24), "  ".join(f"{key} {value:7.1f}" for key, value in row.items()), flush=True)
        load = Load(service.port, **mixed(files, predictor))
        end = time.monotonic() + args.seconds
        threads = [threading.Thread(target=load.client, args=(i, end), daemon=True) for i in range(args.clients)]
        for thread in threads:
            thread.start()
        rows: list[dict[str, Any]] = []
        while time.monotonic() < end:
            time.sleep(args.seconds / 12.0)
            rows.append({"seconds": round(time.monotonic() - end + args.seconds, 1), "mib": service.memory(),
                         "files": service.files()})  # fmt: skip
            print(f"{rows[-1]['seconds']:6.1f} s   MiB {' + '.join(f'{m:.0f}' for m in rows[-1]['mib'])}   "
                  f"files {rows[-1]['files']}", flush=True)  # fmt: skip
        for thread in threads:
            thread.join()
        result |= summary(load, args.seconds) | {"memory": rows, "files_left": service.files()}
        metrics = service.get("/metrics")
        result["readers_lost"] = sum(
            float(x) for x in re.findall(r"^stillmotion_readers_lost_total (\S+)", metrics, re.M)
        )
        result["stopped_in_s"] = service.stop()
        result["folders_left"] = len(list(service.folder.glob(f"{PREFIX}*")))
    for kind, row in result["kinds"].items():
        print(kind.ljust(8), row)
    keys = ("answered", "answered_per_s", "wrong_answers", "unexpected_codes", "cut", "readers_lost", "files_left",
            "folders_left", "stopped_in_s")  # fmt: skip
    print("  ".join(f"{key} {result[key]:g}" for key in keys))
    if args.output:
        args.output.write_text(json.dumps({**result, "environment": environment()}, indent=1))


def summary(load: Load, seconds: float) -> dict[str, Any]:
    """Codes and latencies by kind; what should not have been."""
    kinds = {}
    for kind, codes in load.codes.items():
        took = np.array(load.seconds[kind] or [np.nan]) * 1e3
        p50, p95, p99 = (round(float(np.percentile(took, p)), 1) for p in (50, 95, 99))
        kinds[kind] = {"codes": dict(sorted(codes.items())), "ms_p50": p50, "ms_p95": p95, "ms_p99": p99}
    answered = load.codes["good"][200]
    strange = sum(
        n for kind, codes in load.codes.items() for code, n in codes.items() if code not in CODES[kind] | {429}
    )
    return {"kinds": kinds, "answered": answered, "answered_per_s": round(answered / seconds, 2),
            "wrong_answers": load.wrong, "unexpected_codes": strange, "cut": load.cut}  # fmt: skip


if __name__ == "__main__":
    main()
