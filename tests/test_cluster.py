"""`--cluster`: what Ray brings back, in which order, and after which losses; on Ray itself the bytes of one machine."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stillmotion.__main__ import main
from stillmotion.data import cluster as clusters
from stillmotion.data.cluster import AHEAD, LOSSES, map_items
from stillmotion.data.journal import Journal
from stillmotion.data.pack import Packer, Record, pack
from stillmotion.data.pool import Apart, Failure
from stillmotion.data.table import Sample
from tests.conftest import MakeVideo, write_table
from tests.faults.commands import STUDENT, result


class FakeRay:
    """Ray as the driver sees it, in this process: workers finish in any order, and die when `fate` says so."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, cores: int, fate: Callable[[Any], bool] = lambda item: False) -> None:
        self.cores, self.fate, self.rng = cores, fate, random.Random(0)
        self.most = 0
        self.hangs: Any = None
        self.tired = 0
        """Looks after which the item that hangs is given up."""

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cores}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **shares: float) -> Any:
        return lambda cls: FakeActorClass(self)

    def wait(self, orders: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        held: dict[Any, list[Any]] = {}
        for order in orders:
            held.setdefault(order.worker, []).append(order)
        assert max(map(len, held.values())) <= 2
        self.most = max(self.most, len(orders))
        ready = [mine[0] for mine in held.values()]  # a worker does one after the other
        moving = [order for order in ready if order.item is None or order.item != self.hangs]
        if not moving and self.tired:
            self.tired -= 1
            return [], orders
        order = self.rng.choice(moving or ready)
        order.worker.dead |= order.item is not None and self.fate(order.item)
        return [order], [other for other in orders if other is not order]

    def get(self, order: Any) -> Any:
        if order.worker.dead:
            raise self.exceptions.RayError("gone")
        return None if order.item is None else order.worker.function(order.item)

    def kill(self, worker: Any) -> None:
        worker.dead = True


class FakeActorClass:
    def __init__(self, ray: FakeRay) -> None:
        self.ray = ray

    def remote(self, make: Callable[[], Any], folder: str) -> Any:
        return FakeWorker(make())


class FakeWorker:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function, self.dead = function, False

    @property
    def ready(self) -> Any:
        return self

    @property
    def answer(self) -> Any:
        return self

    def remote(self, item: Any = None) -> Any:
        return FakeOrder(self, item)


class FakeOrder:
    def __init__(self, worker: FakeWorker, item: Any) -> None:
        self.worker, self.item = worker, item


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeRay], None]:
    monkeypatch.setattr(clusters, "LOOK_SECONDS", 0.0)

    def install(ray: FakeRay) -> None:
        monkeypatch.setattr(clusters, "connected", lambda address: contextlib.nullcontext(ray))

    return install


def upper() -> Callable[[str], str]:
    return str.upper


def test_results_come_in_order_and_not_far_ahead(fake: Callable[[FakeRay], None]) -> None:
    ray = FakeRay(3)
    fake(ray)
    handed: list[int] = []
    items = [f"item {k}" for k in range(60)]
    crew = clusters._Crew(ray, upper, items, gpu=False)
    for position, answer in crew.answers():
        assert answer == f"ITEM {position}"
        handed.append(crew.handed - position)
    assert len(handed) == 60
    assert max(handed) <= AHEAD * 3 + 1
    assert 3 < ray.most <= 6, "each has one at hand and one behind it"
    assert list(map_items("local", upper, [])) == []


def test_without_an_order_one_that_hangs_holds_no_others_up(
    fake: Callable[[FakeRay], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay(3)
    fake(ray)
    ray.hangs = "item 5"
    crew = clusters._Crew(ray, upper, [f"item {k}" for k in range(60)], gpu=False, ordered=False)
    answers, found = crew.answers(), list[int]()
    for position, answer in answers:
        assert answer == f"ITEM {position}"
        found.append(position)
        assert crew.handed - len(found) <= AHEAD * 3 + 1
        if len(found) == 58:
            break
    assert 5 not in found, "and one waits behind it"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(clusters, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(ray, "tired", 20)
    found += [position for position, _ in answers]
    assert sorted(found) == list(range(60))
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("stillmotion: 58 of 60, ")
    assert len(said) >= 20, "also while nothing gets done"


def test_what_a_lost_worker_had_is_done_by_others_and_what_kills_all_is_given_up(
    fake: Callable[[FakeRay], None],
) -> None:
    rng, tries = random.Random(1), []

    def fate(item: str) -> bool:
        tries.append(item)
        return item == "poison" or rng.random() < 0.2

    fake(FakeRay(4, fate))
    items = ["poison" if k in (0, 17, 39) else f"item {k}" for k in range(40)]
    found = list(map_items("local", upper, items))
    assert [position for position, _ in found] == list(range(40))
    lost = Failure(f"its worker was lost {LOSSES} times")
    assert [answer for _, answer in found] == [lost if i == "poison" else i.upper() for i in items]
    assert tries.count("poison") == 3 * LOSSES


def test_workers_are_started_where_a_cluster_grows(fake: Callable[[FakeRay], None]) -> None:
    ray = FakeRay(1)
    fake(ray)
    answers = map_items("local", upper, ["a"] * 30)
    for _ in range(5):
        next(answers)
    assert ray.most <= 2
    ray.cores = 4
    assert len(list(answers)) == 25
    assert ray.most > 4


def test_that_no_core_is_free_is_said_once(
    fake: Callable[[FakeRay], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay(0)
    fake(ray)
    monkeypatch.setattr(clusters, "WAIT_SECONDS", 0.0)
    looks: list[int] = []

    def resources() -> dict[str, float]:
        looks.append(0)
        return {"CPU": int(len(looks) > 20)}

    monkeypatch.setattr(ray, "cluster_resources", resources)
    assert len(list(map_items("local", upper, ["a"] * 5))) == 5
    assert capsys.readouterr().err == "stillmotion: no free core in the cluster yet; waiting\n"


def test_an_error_of_the_work_itself_ends_it_in_one_line(fake: Callable[[FakeRay], None]) -> None:
    fake(FakeRay(2))
    broken = clusters._Broken("ValueError: no such weights")
    with pytest.raises(ValueError, match=r"^on a machine of the cluster: ValueError: no such weights$"):
        list(map_items("local", lambda: lambda item: broken, ["a"]))


def _hurt(log: Path, item: str) -> str:
    with log.open("a") as file:
        file.write(f"{item}\n")
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "hang":
        time.sleep(60.0)
    return item.upper()


def test_an_item_that_kills_its_process_has_a_second_try_and_one_that_hangs_has_none(tmp_path: Path) -> None:
    apart = Apart(partial(_hurt, tmp_path / "log"), 5.0)
    assert apart("a") == "A"
    assert apart("die") == Failure("its reader died (signal SIGKILL)")
    apart.timeout = 1.0
    assert apart("hang") == Failure("no answer within 1 s")
    apart.timeout = 20.0
    assert apart("b") == "B"
    apart.end()
    assert (tmp_path / "log").read_text().split() == ["a", "die", "die", "hang", "b"]


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token of Ray in the environment, neither before nor after a test."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class FakeModule:
    """The module `ray` when it is asked to connect."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.options, self.environment = error, dict[str, Any](), dict[str, str]()
        self.is_on = False

    def is_initialized(self) -> bool:
        return self.is_on

    def init(self, address: str, **options: Any) -> None:
        self.options, self.environment = options, dict(os.environ)
        if self.error is not None:
            raise self.error
        self.is_on = True

    def shutdown(self) -> None:
        self.is_on = False


@pytest.mark.usefixtures("no_token")
def test_a_ray_of_this_machine_has_a_token_of_its_own_and_others_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeModule()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(clusters, "_check_answers", lambda address: None)
    with clusters.connected("head:6379"):
        assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & ray.environment.keys()
    with clusters.connected("local"):
        assert len(ray.environment["RAY_AUTH_TOKEN"]) == 64
        assert "RAY_AUTH_MODE" not in ray.environment, "that was read when Ray was imported"
    monkeypatch.delitem(sys.modules, "ray")
    clusters._take_own_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    clusters._take_own_token()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_sigterm_stops_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeModule()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(clusters, "_check_answers", lambda address: None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), clusters.connected("head:6379"):
        signal.raise_signal(signal.SIGTERM)
    assert not ray.is_on
    assert signal.getsignal(signal.SIGTERM) == before
    ray.error = SystemExit(15)  # of Ray's own handler, while it starts
    with pytest.raises(KeyboardInterrupt), clusters.connected("head:6379"):
        pass
    ray.error = None
    with ThreadPoolExecutor(1) as elsewhere:  # where no handler can be set

        def connect() -> bool:
            with clusters.connected("head:6379"):
                return ray.is_on

        assert elsewhere.submit(connect).result()


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.usefixtures("no_token")
def test_what_ray_writes_is_gone_afterwards(failing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeModule(RuntimeError("no") if failing else None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as parent:
        monkeypatch.setattr(tempfile, "tempdir", parent)
        with contextlib.suppress(KeyboardInterrupt, ValueError), clusters.connected("local"):
            folder = Path(ray.options["_temp_dir"])
            (folder / "session").mkdir()
            raise KeyboardInterrupt
        assert Path(ray.options["_temp_dir"]).parent == Path(parent)
        assert list(Path(parent).iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", f"/tmp/{'long' * 10}")
    with contextlib.suppress(ValueError), clusters.connected("local"):
        pass
    assert "_temp_dir" not in ray.options, "sockets in it would have names that are too long"


@pytest.mark.parametrize("error", [ConnectionError("Failed to\nconnect"), Exception("raylet did not start")])
@pytest.mark.parametrize("address", ["local", "head:6379"])
@pytest.mark.usefixtures("no_token")
def test_where_ray_does_not_answer_one_line_says_so_and_that_a_cluster_may_want_a_token(
    address: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeModule(error)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(clusters, "_check_answers", lambda address: None)
    with (
        pytest.raises(ValueError, match=f"^cluster={address}: Ray does not answer") as raised,
        clusters.connected(address),
    ):
        pass
    assert ("RAY_AUTH_MODE=token" in str(raised.value)) == (address != "local")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("address", ["local", "head:6379", "ray://head:10001", "head"])
@pytest.mark.usefixtures("no_token")
def test_without_ray_or_an_address_one_line_says_what_to_do(
    address: str, tiny_table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["--output", str(tiny_table.parent / "out"), "--cluster", address]
    assert main(["pack", str(tiny_table), *arguments]) == 2
    said = capsys.readouterr().err
    assert said == f"stillmotion: error: cluster={address}: Ray is not installed; pip install 'stillmotion[cluster]'\n"


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1:9", "nothing answers there"), ("ray://h:1", "give local, or HOST:PORT"), ("h", "give local")],
)
def test_a_cluster_that_does_not_answer_is_told_in_one_line(address: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^cluster={address}: {reason}"):
        clusters._check_answers(address)


# On Ray itself: a cluster of processes on this machine.

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}


def _add_node(cluster: Any) -> Any:
    """Ray waits half a minute for a machine; on a busy one that is not always enough."""
    for _ in range(2):
        with contextlib.suppress(Exception):
            return cluster.add_node(**NODE)
    return cluster.add_node(**NODE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines with one core each; the second may be killed, and is then replaced."""
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'stillmotion[cluster]'")
    from ray.cluster_utils import Cluster

    here = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", here)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # A machine that is gone is missed within seconds, not within half a minute.
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "5")
        made = Cluster(initialize_head=True, head_node_args=NODE)
        made.second = _add_node(made)
        yield made
        made.shutdown()


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Seven readable videos and a page of text."""
    path = write_table(tmp_path / "videos", make_video, train=5, test=2, num_frames=12)
    (path.parent / "page.mp4").write_text("<html>404</html>")
    path.write_text(path.read_text() + "\npage.mp4,a,train\n")
    return path


def _predicted(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_command_gives_on_a_cluster_what_it_gives_here(
    cluster: Any, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_predict import make_run

    there = ["--cluster", cluster.address]
    monkeypatch.chdir(tmp_path)  # relative paths hold on the workers
    teacher = [a.replace("student", "teacher") for a in STUDENT]
    commands = {
        "pack": ["pack", "videos/table.csv"],
        "flow": ["flow", "videos/table.csv"],
        "extract": ["extract", "videos/table.csv", *teacher, "--data.num_draws", "2", "--batch_size", "3"],
    }
    for name, command in commands.items():
        assert main([*command, "--output", f"{name}.here"]) == 1
        assert main([*command, "--output", f"{name}.there", *there]) == 1
        assert result(name, Path(f"{name}.here")) == result(name, Path(f"{name}.there")), name
        before = result(name, Path(f"{name}.there"))
        assert main([*command, "--output", f"{name}.there", *there]) == 1, "nothing is left to do"
        assert result(name, Path(f"{name}.there")) == before
    assert main(["data", "check", "videos/table.csv", "--json", "here.json"]) == 1
    assert main(["data", "check", "videos/table.csv", "--json", "there.json", *there]) == 1
    assert Path("here.json").read_bytes() == Path("there.json").read_bytes()
    run = make_run(tmp_path / "run")
    for place in ([], there):
        assert main(["predict", str(run), "videos/table.csv", "--output", f"{len(place)}.jsonl", *place]) == 1
    assert _predicted(Path("0.jsonl")) == _predicted(Path("2.jsonl"))
    assert len(_predicted(Path("0.jsonl"))) == 8


class SlowPacker(Packer):
    """Takes its time, so that there is something to kill."""

    def __call__(self, sample: Sample) -> Record:
        time.sleep(0.4)
        return super().__call__(sample)


class PoisonPacker(Packer):
    """Dies of one of the videos, and counts."""

    def __call__(self, sample: Sample) -> Record:
        if sample.name == "3.mp4":
            with sample.path.with_suffix(".tries").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(sample)


@pytest.mark.slow
def test_a_driver_that_is_killed_is_followed_by_the_same_command(cluster: Any, table: Path, tmp_path: Path) -> None:
    pack(table, tmp_path / "here", workers=0)
    script = (
        "from stillmotion.data import pack; from tests.test_cluster import SlowPacker; pack.Packer = SlowPacker; "
        f"pack.pack({str(table)!r}, {str(tmp_path / 'there')!r}, cluster={cluster.address!r})"
    )
    index = tmp_path / "there" / "index.jsonl"
    with subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1]) as driver:
        deadline = time.monotonic() + 180.0
        while not (index.exists() and index.stat().st_size) and time.monotonic() < deadline:
            assert driver.poll() is None
            time.sleep(0.05)
        driver.kill()
    assert 0 < len(index.read_text().splitlines()) < 8
    done = pack(table, tmp_path / "there", cluster=cluster.address)
    assert list(done.errors) == ["page.mp4"]
    assert result("pack", tmp_path / "here") == result("pack", tmp_path / "there")


@pytest.mark.slow
def test_a_file_that_kills_its_reader_is_listed_and_the_others_are_there(
    cluster: Any, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pack(table, tmp_path / "whole", workers=0)
    monkeypatch.setattr("stillmotion.data.pack.Packer", PoisonPacker)
    done = pack(table, tmp_path / "there", cluster=cluster.address)
    assert (table.parent / "3.tries").read_text() == "xx"
    assert done.errors == {"3.mp4": "its reader died (signal SIGKILL)", **whole.errors}
    assert (done.samples, done.frames) == (whole.samples, whole.frames - 12)
    again = pack(table, tmp_path / "there", cluster=cluster.address)
    assert replace(again, size=done.size) == done
    assert (table.parent / "3.tries").read_text() == "xx", "it is not tried again"


@pytest.mark.slow
def test_a_machine_that_is_killed_costs_nothing(
    cluster: Any, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(table, tmp_path / "here", workers=0)
    monkeypatch.setattr("stillmotion.data.pack.Packer", SlowPacker)
    hand_out, append, seen = clusters._Crew._hand_out, Journal.append, []

    def both_at_work(crew: Any, position: int) -> None:
        seen.append(len(crew.busy))
        if max(seen) == 2:
            hand_out(crew, position)

    def then_one_is_killed(journal: Journal, records: Any) -> Any:
        if len(journal.entries) == 2:
            cluster.remove_node(cluster.second, allow_graceful=False)
        return append(journal, records)

    monkeypatch.setattr(clusters._Crew, "_hand_out", both_at_work)
    monkeypatch.setattr(Journal, "append", then_one_is_killed)
    done = pack(table, tmp_path / "there", cluster=cluster.address)
    assert min(seen[seen.index(2) :]) == 1, "a worker was lost"
    assert list(done.errors) == ["page.mp4"]
    assert result("pack", tmp_path / "here") == result("pack", tmp_path / "there")
    cluster.second = _add_node(cluster)


def _left(mark: str) -> list[str]:
    """Processes that have a variable of the environment from the command."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("no_token")
def test_a_command_that_is_stopped_leaves_nothing_and_goes_on(
    number: signal.Signals, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'stillmotion[cluster]'")
    pack(table, tmp_path / "here", workers=0)
    out, mark = tmp_path / "there", f"STILLMOTION_TEST={tmp_path}"
    monkeypatch.setenv(*mark.split("="))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    command = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from stillmotion.data import pack; from tests.test_cluster import SlowPacker; pack.Packer = SlowPacker; "
        "from stillmotion.__main__ import main; "
        f"sys.exit(main(['pack', {str(table)!r}, '--output', {str(out)!r}, '--cluster', 'local']))"
    )
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as parent:
        monkeypatch.setenv("TMPDIR", parent)
        with subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.PIPE, text=True) as driver:
            deadline = time.monotonic() + 180.0
            while not ((out / "index.jsonl").exists() and (out / "index.jsonl").stat().st_size):
                assert driver.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            driver.send_signal(number)
            said = driver.communicate(timeout=60.0)[1]
        assert driver.returncode == 130
        assert said == "stillmotion: interrupted; what was finished is kept, run the same command to go on\n"
        assert 0 < len((out / "index.jsonl").read_text().splitlines()) < 8
        deadline = time.monotonic() + 10.0
        while _left(mark) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert _left(mark) == []
        assert list(Path(parent).iterdir()) == []
        assert subprocess.run([sys.executable, "-c", command], timeout=300.0).returncode == 1, "page.mp4 is a page"
        assert list(Path(parent).iterdir()) == []
    assert result("pack", tmp_path / "here") == result("pack", out)
