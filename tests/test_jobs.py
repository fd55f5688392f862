"""Jobs: order, failures, side by side. The functions below run in other processes and leave files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillmotion.jobs import Job, _share_threads, run_jobs


def note(folder: Path, name: str, wait: float = 0.0) -> None:
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    (folder / f"{name}.start").write_text(str(time.monotonic()))
    time.sleep(wait)
    print("noted", name)
    (folder / f"{name}.end").write_text(str(time.monotonic()))


def fail(text: str) -> None:
    raise ValueError(text)


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def moment(path: Path) -> float:
    return float(path.read_text())


def test_order_failures_and_logs(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    jobs = [
        Job("last", note, {"folder": tmp_path, "name": "last"}, after=("first",)),
        Job("bad", fail, {"text": "a.mp4 line 3:\nbroken"}),
        Job("after bad", note, {"folder": tmp_path, "name": "never"}, after=("bad",)),
        Job("and on", note, {"folder": tmp_path, "name": "never"}, after=("after bad",)),
        Job("killed", kill_me),
        Job("long", fail, {"text": "x" * 200_000}),
        Job("first", note, {"folder": tmp_path, "name": "first"}),
    ]
    events: list[tuple[str, str]] = []
    failed = run_jobs(jobs, logs=logs, workers=2, report=lambda name, state, reason: events.append((name, state)))
    assert failed == {
        "bad": "a.mp4 line 3: broken",
        "after bad": "not run, as bad failed",
        "and on": "not run, as after bad failed",
        "killed": "killed by SIGKILL (out of memory?)",
        "long": "x" * 2000,  # the rest would not fit into a pipe that is read when the job is over
    }
    assert moment(tmp_path / "first.end") < moment(tmp_path / "last.start")
    assert not (tmp_path / "never.start").exists()
    assert (logs / "first.log").read_text() == "noted first\n"
    assert "Traceback" in (logs / "bad.log").read_text()
    assert [e for e in events if e[0] == "first"] == [("first", "started"), ("first", "done")]


@pytest.mark.parametrize(("cores", "given", "workers", "threads"),
                         [(8, "", 2, 4), (8, "3", 2, 3), (8, "8", 4, 2), (2, "1", 1, 1), (2, "", 4, 1)])  # fmt: skip
def test_threads_are_shared_out(
    cores: int, given: str, workers: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setitem(sys.modules, "torch", None)  # this process keeps its threads
    _share_threads(workers)
    assert os.environ["OMP_NUM_THREADS"] == str(threads)


def test_side_by_side(tmp_path: Path) -> None:
    jobs = [Job(name, note, {"folder": tmp_path, "name": name, "wait": 0.5}) for name in "ab"]
    assert run_jobs(jobs, logs=tmp_path, workers=2) == {}
    assert max(moment(tmp_path / f"{n}.start") for n in "ab") < min(moment(tmp_path / f"{n}.end") for n in "ab")


def test_locked_jobs_run_one_after_the_other(tmp_path: Path) -> None:
    jobs = [Job(n, note, {"folder": tmp_path, "name": n, "wait": 0.2}, lock="one") for n in "ab"]
    assert run_jobs([*jobs, Job("bad", fail, {"text": "x"}, lock="one")], logs=tmp_path, workers=3) == {"bad": "x"}
    first, second = sorted((moment(tmp_path / f"{n}.start"), moment(tmp_path / f"{n}.end")) for n in "ab")
    assert first[1] < second[0]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_jobs_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "from pathlib import Path\nfrom stillmotion.jobs import Job, run_jobs\nfrom tests.test_jobs import note\n"
        f"p = Path({str(tmp_path)!r})\n"
        "if __name__ == '__main__':\n"
        "    run_jobs([Job('slow', note, {'folder': p, 'name': 'slow', 'wait': 60})], logs=p)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, str(script)], cwd=root, env=env, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 20
    while not (tmp_path / "slow.start").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert process.returncode != 0
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in error
    while _alive(int((tmp_path / "slow.pid").read_text())):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not (tmp_path / "slow.end").exists()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
