"""The service over HTTP: answers are those of the Predictor, every mistake has its code, nothing is left behind."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from stillmotion.__main__ import main
from stillmotion.data.table import Sample
from stillmotion.predict import Predictor, Sight
from stillmotion.serve import batcher, reader
from stillmotion.serve.batcher import Batcher, run_batch
from stillmotion.serve.counters import Counters
from stillmotion.serve.kinds import suffix_of
from stillmotion.serve.reader import Order, Reader
from stillmotion.serve.run import PREFIX, upload_folder
from stillmotion.serve.service import timeline
from stillmotion.tasks import Classification
from tests.conftest import DATA, MakeVideo, needs_data
from tests.serve.conftest import WAIT, Running, answer_of, make_run, moving, running, slow_upload, still


def labels(answer: dict[str, object]) -> dict[str, float]:
    return {row["label"]: row["probability"] for row in answer["labels"]}  # type: ignore[attr-defined]


def metric(service: Running, name: str) -> float:
    lines = httpx.get(f"{service.url}/metrics", timeout=WAIT).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_answers_are_those_of_the_predictor(service: Running, exported: Path, video: Path) -> None:
    answer = service.post(video.read_bytes(), "walk.mp4")
    assert answer.status_code == 200, answer.text
    data, expected = answer.json(), Predictor.load(exported)(video)
    assert labels(data) == pytest.approx(dict(expected.labels), abs=1e-5)
    assert (data["path"], data["text"], data["frames"]) == ("walk.mp4", expected.text, 1)
    assert (data["bytes"], data["num_frames"], data["fps"]) == (video.stat().st_size, 40, 10.0)
    cost = data["cost"]
    assert cost["decode_ms"] > 0
    assert cost["preprocess_ms"] > 0
    assert cost["network_ms"] > 0
    assert cost["gmacs"] > 0
    assert not {"timeline", "looked_at", "teacher", "notes"} & data.keys()
    assert service.left() == []


def test_what_opening_takes_is_part_of_the_cost(exported: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.load(exported)
    opened = Reader([Sight.of(predictor)], max_seconds=60.0, seconds=60.0, mib=1024)
    opened._predictors = [predictor]  # without the limits of a process of its own
    find = reader.timeline
    monkeypatch.setattr(reader, "timeline", lambda path: time.sleep(0.05) or find(path))
    seen = opened._read(Order(video), video).seen[0]
    assert seen.seconds > seen.decoding >= 0.05


def test_timeline_is_what_is_said_of_parts_of_the_video(
    service: Running, exported: Path, tmp_path: Path, make_video: MakeVideo, video: Path
) -> None:
    (series,) = service.post(video.read_bytes(), timeline=4, pictures=3, heat=True).json()["timeline"]
    assert series["times"] == [0.5, 1.5, 2.5, 3.5], "middles of four parts of ten frames"
    predictor = Predictor.load(exported)
    for k in range(4):
        expected = dict(predictor(Sample(video, "x", start=10 * k, end=10 * k + 10)).labels)
        given = {name: row[k] for name, row in zip(series["names"], series["values"], strict=True)}
        assert given == pytest.approx(expected, abs=2e-4)


def test_pictures_and_why_there_is_no_heat(service: Running, video: Path) -> None:
    data = service.post(video.read_bytes(), pictures=3, heat=True).json()
    (looked,) = data["looked_at"]
    assert looked["time"] == 2.0, "frame 20 of 40, ten a second"
    assert looked["image"].startswith("data:image/jpeg;base64,/9j/")
    assert "heat" not in looked
    assert data["notes"] == ["student.onnx: an exported file has no Grad-CAM: serve its run folder"]


def test_a_still(service: Running) -> None:
    data = service.post(still(), "photo.png", timeline=8).json()
    assert data["num_frames"] == 1
    assert "fps" not in data


def test_batches_give_the_same_answers(service: Running, exported: Path, tmp_path: Path, make_video: MakeVideo) -> None:
    files = [make_video(tmp_path / f"{i}.mp4", moving(12 + i, i)) for i in range(6)]
    predictor = Predictor.load(exported)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda f: service.post(f.read_bytes()), files * 4))
    assert {a.status_code for a in answers} == {200}
    for file, answer in zip(files * 4, answers, strict=True):
        assert labels(answer.json()) == pytest.approx(dict(predictor(file).labels), abs=1e-5)


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_what_waits_goes_through_together(kind: str, request: pytest.FixtureRequest) -> None:
    predictor = Predictor.load(request.getfixturevalue(kind))
    rng = np.random.default_rng(0)
    samples = [{"frames": rng.integers(0, 256, (1, 1, 3, 64, 64), np.uint8)} for _ in range(5)]
    samples.append({"frames": rng.integers(0, 256, (2, 1, 3, 64, 64), np.uint8)})

    async def ask() -> list[batcher.Ran]:
        shared = Batcher(predictor, 4, 0.0, Counters())
        try:
            return await asyncio.gather(*(shared(s) for s in samples))
        finally:
            shared.close()

    found = asyncio.run(ask())
    assert [ran.batch for ran in found] == [4, 4, 4, 4, 1, 1], "four at most; other shapes by themselves"
    for sample, ran in zip(samples, found, strict=True):
        np.testing.assert_allclose(ran.logits, predictor.logits(sample), atol=1e-5)


def test_one_waits_for_others_that_are_coming(run: Path) -> None:
    predictor = Predictor.load(run)
    sample = {"frames": np.zeros((1, 1, 3, 64, 64), np.uint8)}

    async def ask() -> list[batcher.Ran]:
        shared = Batcher(predictor, 4, 60.0, Counters())
        shared.coming = 1
        first = asyncio.ensure_future(shared(sample))
        await asyncio.sleep(0.05)
        assert not first.done()
        shared.coming = 0
        second = asyncio.ensure_future(shared(sample))
        try:
            return await asyncio.gather(first, second)
        finally:
            shared.close()

    assert [ran.batch for ran in asyncio.run(ask())] == [2, 2]


def test_a_network_that_fails_does_not_stop_the_next(run: Path) -> None:
    predictor = Predictor.load(run)
    good, bad = np.zeros((1, 1, 3, 64, 64), np.uint8), np.zeros((1, 1, 5, 64, 64), np.uint8)

    async def ask() -> None:
        shared = Batcher(predictor, 1, 0.0, Counters())
        try:
            with pytest.raises(RuntimeError):
                await shared({"frames": bad})
            await shared({"frames": good})
        finally:
            shared.close()

    asyncio.run(ask())


def test_moments_are_joined_or_averaged_in_batches(tmp_path: Path) -> None:
    predictor = Predictor.load(make_run(tmp_path / "run", num_moments=3, moment="uniform"))
    rng = np.random.default_rng(0)
    samples = [{"frames": rng.integers(0, 256, (3, 1, 3, 64, 64), np.uint8)} for _ in range(2)]
    each = np.stack([predictor.logits(s) for s in samples])
    np.testing.assert_allclose(run_batch(predictor, samples), each, atol=1e-5)
    one = [{"frames": s["frames"][k : k + 1]} for s in samples for k in range(3)]
    np.testing.assert_allclose(run_batch(predictor, one).reshape(2, 3, 3).mean(1), each, atol=1e-5)


def boxed(payload: bytes) -> bytes:
    return b"\0\0\0\x20ftypisom" + payload


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"", 415, "the file is empty"),
        (b"#EXTM3U\n/etc/passwd\n", 415, "neither a video nor a still"),
        (b"<html>not found</html>", 415, "taken are MP4, MOV"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", 415, "neither a video nor a still"),
        (boxed(bytes(3000)), 422, "the file cannot be read"),
        (b"\xff\xd8\xff" + bytes(100), 422, "the file cannot be read"),
        (boxed(bytes(2**20)), 413, "at most 1 MiB"),
        (boxed(bytes(3 * 2**20)), 413, "at most 1 MiB"),
    ],
    ids=["empty", "playlist", "html", "concat", "broken", "broken-still", "large", "declared-large"],
)  # fmt: skip
def test_uploads_that_are_refused(service: Running, content: bytes, code: int, says: str) -> None:
    answer = service.post(content)
    assert (answer.status_code, says in answer.json()["detail"]) == (code, True), answer.text
    assert "/" not in answer.json()["detail"].replace("MP4, MOV", ""), "no path of the service is told"
    assert service.left() == []


def test_size_is_checked_while_reading(service: Running) -> None:
    sent, before = 0, metric(service, 'stillmotion_requests_total{code="413"')

    def endless() -> object:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n' + boxed(b"")
        while sent < 64 * 2**20:  # the rest is thrown away for two seconds, and then the line is cut
            time.sleep(0.01)
            sent += 2**16
            yield bytes(2**16)

    head = {"Content-Type": "multipart/form-data; boundary=x"}
    with suppress(httpx.TransportError):  # a client may notice that the connection is closed before it reads why
        answer = httpx.post(f"{service.url}/predict", content=endless(), headers=head, timeout=WAIT)  # type: ignore[arg-type]
        assert answer.status_code == 413
    assert sent < 64 * 2**20
    assert metric(service, 'stillmotion_requests_total{code="413"') > before
    assert service.left() == []


def test_a_video_that_is_too_long(service: Running, tmp_path: Path, make_video: MakeVideo) -> None:
    long = make_video(tmp_path / "long.mp4", moving(50, side=2), fps=2)
    answer = service.post(long.read_bytes())
    assert (answer.status_code, answer.json()["detail"]) == (413, "the video is 25 s long; at most 20 s are taken")


def test_other_forms(service: Running) -> None:
    post, url = httpx.post, f"{service.url}/predict"
    assert post(url, content=b"x", timeout=WAIT).status_code == 415
    assert post(url, files={"clip": ("a.mp4", b"x")}, timeout=WAIT).json() == {
        "detail": "the form has no file in the field 'file'"}  # fmt: skip
    head = {"Content-Type": "multipart/form-data; boundary=x"}
    assert post(url, content=b"--y\r\n", headers=head, timeout=WAIT).status_code == 400
    assert post(url, content=b"--x\r\n", headers=head, timeout=WAIT).json()["detail"] == "the form ends too early"
    answer = service.post(b"x", timeline=1000)
    assert (answer.status_code, answer.json()["detail"].split(":")[0]) == (422, "timeline")
    assert httpx.get(url, timeout=WAIT).status_code == 405
    assert httpx.get(f"{service.url}/nothing", timeout=WAIT).status_code == 404


def test_slow_uploads(service: Running) -> None:
    connection = slow_upload(service.url)
    answer = answer_of(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"nothing came for 1.5 s" in answer
    connection = slow_upload(service.url)
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.5):
            connection.sendall(b"x")

    threading.Thread(target=drip, daemon=True).start()
    try:
        answer = connection.recv(4096)
    finally:
        stop.set()
        connection.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert service.left() == []


def test_a_client_that_goes_away(service: Running) -> None:
    connection = slow_upload(service.url)
    end = time.monotonic() + 1.0
    while not service.left() and time.monotonic() < end:
        time.sleep(0.01)
    connection.close()
    end = time.monotonic() + WAIT
    while (service.left() or metric(service, "stillmotion_requests_open")) and time.monotonic() < end:
        time.sleep(0.05)
    assert service.left() == []


def test_too_many_at_once(service: Running, video: Path) -> None:
    waiting = [slow_upload(service.url) for _ in range(6)]
    end = time.monotonic() + 1.2
    while metric(service, "stillmotion_requests_open") < 6 and time.monotonic() < end:
        time.sleep(0.02)
    answer = service.post(video.read_bytes())
    for connection in waiting:
        connection.close()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    end = time.monotonic() + WAIT
    while (again := service.post(video.read_bytes())).status_code == 429 and time.monotonic() < end:
        time.sleep(0.1)
    assert again.status_code == 200


def test_counters(service: Running, video: Path) -> None:
    good = 'stillmotion_requests_total{code="200",path="/predict"}'
    wrong = 'stillmotion_requests_total{code="415",path="/predict"}'
    before = metric(service, good), metric(service, wrong), metric(service, "stillmotion_uploaded_bytes_total")
    service.post(video.read_bytes())
    service.post(b"text")
    after = metric(service, good), metric(service, wrong), metric(service, "stillmotion_uploaded_bytes_total")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, video.stat().st_size]
    assert metric(service, 'stillmotion_seconds_count{stage="total"}') >= 1
    assert metric(service, "process_resident_memory_bytes") > 0


def test_page_and_description(service: Running) -> None:
    page = httpx.get(f"{service.url}/", timeout=WAIT)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "/*STYLE*/" not in page.text
    assert "<title>stillmotion</title>" in page.text
    told = httpx.get(f"{service.url}/openapi.json", timeout=WAIT).json()
    assert set(told["paths"]) == {"/predict", "/model", "/metrics", "/health", "/ready"}
    codes = set(told["paths"]["/predict"]["post"]["responses"])
    assert {"200", "400", "401", "408", "413", "415", "422", "429", "504"} <= codes
    model = httpx.get(f"{service.url}/model", timeout=WAIT).json()
    assert (model["student"]["name"], model["student"]["grad_cam"], model["live"]) == ("student.onnx", False, "frame")
    assert model["classes"] == ["blue", "green", "red"]
    assert httpx.get(f"{service.url}/health", timeout=WAIT).json() == {"status": "alive"}


def test_teacher_heat_key_and_origin(
    run: Path, teacher: Path, video: Path, tmp_path: Path
) -> None:  # fmt: skip
    with running(run, tmp_path / "up", "--teacher", str(teacher), "--cors", "https://a.example", key="secret") as own:
        assert own.post(video.read_bytes()).status_code == 401
        assert httpx.get(f"{own.url}/metrics", timeout=WAIT).status_code == 401
        files, head = {"file": video.read_bytes()}, {"X-API-Key": "secret", "Origin": "https://a.example"}
        answer = httpx.post(f"{own.url}/predict", files=files, headers=head, params={"pictures": 4, "heat": True},
                            timeout=WAIT)  # fmt: skip
        data = answer.json()
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert labels(data) == pytest.approx(dict(Predictor.load(run)(video).labels), abs=1e-5)
        assert labels(data["teacher"]) == pytest.approx(dict(Predictor.load(teacher)(video).labels), abs=1e-5)
        assert [f["time"] for f in data["teacher"]["looked_at"]] == [2.0, 2.1, 2.2]
        assert all(f["heat"] != f["image"] for f in [*data["looked_at"], *data["teacher"]["looked_at"]])
        assert data["teacher"]["cost"]["gmacs"] == pytest.approx(3 * data["cost"]["gmacs"], rel=0.01)
        bearer = {"Authorization": "Bearer secret"}
        alone = httpx.post(f"{own.url}/predict?teacher=false", files=files, headers=bearer, timeout=WAIT).json()
        assert "teacher" not in alone
        preflight = {"Origin": "https://b.example", "Access-Control-Request-Method": "POST"}
        other = httpx.options(f"{own.url}/predict", headers=preflight, timeout=WAIT)
        assert "access-control-allow-origin" not in other.headers


def test_sigterm_finishes_what_was_accepted(exported: Path, video: Path, tmp_path: Path) -> None:
    content = video.read_bytes()
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n' + content + b"\r\n--x--\r\n"
    with running(exported, tmp_path / "up") as own:
        host, port = own.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=WAIT)
        head = (f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\n\r\n")  # fmt: skip
        connection.sendall(head.encode() + body[:2000])
        end = time.monotonic() + WAIT
        while metric(own, "stillmotion_requests_open") < 1 and time.monotonic() < end:
            time.sleep(0.02)
        own.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert own.process.poll() is None, "it waits"
        connection.sendall(body[2000:])
        answer = answer_of(connection)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"labels"' in answer
        assert own.process.wait(WAIT) == 0
        assert not list(own.uploads.glob(f"{PREFIX}*")), "its folder is gone"


def test_a_reader_that_is_lost_is_replaced(exported: Path, video: Path, tmp_path: Path) -> None:
    with running(exported, tmp_path / "up", "--limits.readers", "1") as own:
        children = Path(f"/proc/{own.process.pid}/task/{own.process.pid}/children")
        if not children.exists():
            pytest.skip("needs /proc")
        (reader,) = [int(c) for p in children.parent.parent.glob("*/children") for c in p.read_text().split()
                     if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]  # fmt: skip
        os.kill(reader, signal.SIGKILL)
        codes = []
        end = time.monotonic() + WAIT
        while (not codes or codes[-1] != 200) and time.monotonic() < end:
            codes.append(own.post(video.read_bytes()).status_code)
        assert codes[0] == 422
        assert codes[-1] == 200
        assert metric(own, "stillmotion_readers_lost_total") == 1
        assert own.left() == []


def test_readers_have_limits(exported: Path, tmp_path: Path, make_video: MakeVideo) -> None:
    large = make_video(tmp_path / "large.mp4", np.zeros((2, 4096, 4096, 3), np.uint8))
    with running(exported, tmp_path / "up", "--limits.reader_mib", "24") as own:
        answer = own.post(large.read_bytes())
        assert answer.status_code == 422, answer.text
        assert own.post(still(), "a.png").status_code == 200
    with running(exported, tmp_path / "up", "--limits.reader_seconds", "0.001") as own:
        answer = own.post(large.read_bytes())
        assert (answer.status_code, "could not be read within" in answer.text) == (504, True)


def test_folders_of_killed_services_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = tmp_path / f"{PREFIX}dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "upload.mp4").touch()
    with upload_folder() as first, upload_folder() as second:
        assert not dead.exists()
        assert first.exists()
        assert second.exists()
        assert first != second
    assert not list(tmp_path.iterdir())


def test_without_torch(exported: Path, video: Path, tmp_path: Path) -> None:
    """An exported file needs the core install and the extra only."""
    script = tmp_path / "blocked.py"
    script.write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision', 'timm', 'cv2', 'jinja2', 'scipy', 'sklearn'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "if __name__ == '__main__':\n"
        "    from stillmotion.__main__ import main\n"
        "    sys.exit(main())\n"
    )
    command = [sys.executable, "-u", str(script), "serve", str(exported), "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split(" on ")[1].split("/ ")[0]
        files = {"file": video.read_bytes()}
        answer = httpx.post(f"{url}/predict?timeline=4&pictures=2", files=files, timeout=WAIT)
        assert answer.status_code == 200, answer.text
        assert answer.json()["timeline"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@needs_data
def test_every_broken_and_awkward_file(exported: Path, tmp_path: Path) -> None:
    assert DATA is not None
    with running(exported, tmp_path / "up") as own:
        for file in sorted((DATA / "broken").iterdir()):
            answer = own.post(file.read_bytes(), file.name)
            assert answer.status_code in (200, 415, 422), (file.name, answer.text)
            assert "\n" not in json.dumps(answer.json().get("detail", ""))
        predictor = Predictor.load(exported)
        for file in sorted((DATA / "quirks").iterdir()):
            answer = own.post(file.read_bytes(), file.name)
            assert answer.status_code == 200, (file.name, answer.text)
            assert labels(answer.json()) == pytest.approx(dict(predictor(file).labels), abs=1e-5), file.name
        assert own.left() == []
        assert metric(own, "stillmotion_readers_lost_total") == 0


def test_timeline_keeps_the_highest_peaks() -> None:
    task = Classification(tuple("abcdefg"))
    logits = np.zeros((2, 7), np.float32)
    logits[1, 6], logits[0, 2] = 8.0, 4.0
    (series,) = timeline(task, [0.25, 0.75], logits)
    assert series.names[:2] == ["g", "c"]
    assert len(series.names) == 5
    by_hand = np.exp(4.0) / (np.exp(4.0) + 6)
    assert series.values[1] == pytest.approx([by_hand, 1 / (6 + np.exp(8.0))], abs=1e-4)


def test_kinds() -> None:
    assert suffix_of(b"RIFF\0\0\0\0AVI LIST") == ".avi"
    assert suffix_of(b"G" + bytes(187) + b"G") == ".ts"
    assert suffix_of(bytes(4) + b"G" + bytes(191) + b"G") == ".m2ts"
    assert suffix_of(b"GIF89a") == ".gif"
    assert suffix_of(b"v=0\r\nc=IN IP4 10.0.0.1\r\n") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.onnx"], "nothing.onnx: no such file"),
        (["MODEL", "--limits.readers", "0"], "limits.readers=0: must be at least 1"),
        (["MODEL", "--host", "192.0.2.1"], "cannot listen there"),
    ],
)
def test_mistakes_are_told_in_one_line(
    exported: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["serve", *[str(exported) if a == "MODEL" else a for a in arguments]])
    except SystemExit as stop:
        code = int(stop.code or 0)
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()[-1:]) == 1
