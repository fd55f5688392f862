"""One training on several processes, as `torchrun` starts them, over gloo: the curve and weights of one process."""

import contextlib
import csv
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import nn

from stillmotion import callbacks
from stillmotion.__main__ import main
from stillmotion.compare import PRELOAD
from stillmotion.config import OptimConfig, TrainerConfig
from stillmotion.data.loader import EpochBatches
from stillmotion.jobs import Job
from stillmotion.methods.supervised import Supervised
from stillmotion.models.factory import create_model
from stillmotion.norms import join_norms, own_norms
from stillmotion.parts import Part, check_devices, groups
from stillmotion.processes import Peers, launched, num_devices, placement
from stillmotion.tasks import Classification
from tests.conftest import MakeVideo, write_table

CURVE = ("lr", "loss", "task_loss", "hallucination_loss", "top1")


@pytest.fixture
def videos(tmp_path: Path, make_video: MakeVideo) -> Path:
    """11 training videos, of which one cannot be read, and 2 to test on: a rest of 3 in batches of 4."""
    table = write_table(tmp_path, make_video, train=11, test=2, num_frames=8)
    (tmp_path / "3.mp4").write_bytes(b"no video")
    return table


def command(table: Path, output: Path, *more: str, teacher: bool = False) -> list[str]:
    """A training without dropout and with fixed batch norms."""
    words = f"""train {table} --output {output} --student timm/test_efficientnet --student.view.size 32
        --student.options.drop_rate 0 --optim.epochs 3 --optim.batch_size 4 --optim.lr 0.05 --optim.optimiser sgd
        --optim.fixed_norms ["*"] --optim.clip_norm 5 --data.workers 0 --trainer.accelerator cpu
        --trainer.checkpoint_every 1 --trainer.timeout 120""".split()
    if teacher:
        words += [
            "--teacher",
            "resnet3d_10",
            "--teacher.options.width",
            "4",
            "--teacher.view",
            '{"size":16,"num_frames":4}',
            "--method.name",
            "hallucinate",
            "--method.options.weight",
            "5",
        ]
    return [*words, *more]


def _enter(
    rank: int, world: int, port: int, log: Path, arguments: Sequence[str], before: Callable[[int], None]
) -> None:
    """Runs the command as `torchrun` starts it. Exit code and output are those of the command."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
                   "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    file = log.open("w", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file  # pytest has put others in their place
    before(rank)
    with contextlib.suppress(SystemExit):
        code = main(arguments)
        file.flush()
        os._exit(code)
    os._exit(99)


def nothing(rank: int) -> None:
    """As it is."""


def die_at_step_5(rank: int) -> None:
    """The second process is killed."""
    original: Any = callbacks.RunWriter.on_train_batch_end

    def killed(self: Any, trainer: Any, engine: Any, *rest: Any) -> None:
        if rank == 1 and engine.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, trainer, engine, *rest)

    callbacks.RunWriter.on_train_batch_end = killed  # type: ignore[method-assign]


def together(
    arguments: Sequence[str], folder: Path, before: Callable[[int], None] = nothing, world: int = 2
) -> list[tuple[int | None, str]]:
    """Exit code and output of each process; they share what their server has imported, so that they start at once."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    logs = [folder / f"rank{rank}.log" for rank in range(world)]
    context = multiprocessing.get_context("forkserver")  # torch refuses to train in forks of what has trained
    context.set_forkserver_preload(list(PRELOAD))  # as comparisons, whose server it is
    workers = [context.Process(target=_enter, args=(rank, world, port, log, arguments, before))
               for rank, log in enumerate(logs)]  # fmt: skip
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
    hanging = [worker for worker in workers if worker.is_alive()]
    for worker in hanging:
        worker.kill()
    ended = [(worker.exitcode, log.read_text()) for worker, log in zip(workers, logs, strict=True)]
    assert not hanging, ended
    return ended


def assert_same_run(one: Path, other: Path) -> None:
    """Loss curves and weights, within rounding."""
    curves = []
    for run in (one, other):
        with (run / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        curves.append([[float(row[name]) for name in CURVE if name in row] for row in rows])
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-4, atol=1e-6)
    a, b = (load_file(run / "model.safetensors") for run in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_two_processes_give_the_curve_and_the_weights_of_one(videos: Path, tmp_path: Path) -> None:
    assert main(command(videos, tmp_path / "one", teacher=True)) == 0
    ended = together(command(videos, tmp_path / "two", teacher=True), tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert "3.mp4" in (tmp_path / "two" / "broken.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_process_ends_the_others_and_one_process_goes_on(videos: Path, tmp_path: Path, strategy: str) -> None:
    sharing = ("--trainer.strategy", strategy)
    assert main(command(videos, tmp_path / "whole")) == 0
    (left, said), (killed, _) = together(command(videos, tmp_path / "run", *sharing), tmp_path, die_at_step_5)
    assert killed == -signal.SIGKILL
    assert left == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("stillmotion: error")]
    assert "another process of this training is gone" in line
    assert "the last checkpoint is of step 4; run the same command to go on, on any number of processes" in line
    assert not (tmp_path / "run" / "results.json").exists()
    assert main(command(videos, tmp_path / "run")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_divided_weights_train_validate_and_resume_as_whole_ones(videos: Path, tmp_path: Path) -> None:
    """Adam, whose state is divided too; stopped on two processes, resumed on two."""
    adam = ("--optim.optimiser", "adam", "--optim.lr", "1e-4", "--data.val", "test", "--data.test", "null",
            "--trainer.select", "best")  # fmt: skip
    sharded = (*adam, "--trainer.strategy", "fsdp")
    assert main(command(videos, tmp_path / "one", *adam, teacher=True)) == 0
    together(command(videos, tmp_path / "two", *sharded, teacher=True), tmp_path, die_at_step_5)
    ended = together(command(videos, tmp_path / "two", *sharded, teacher=True), tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_rest_goes_to_as_many_processes_as_it_is_enough_for() -> None:
    def last(size: int, batch: int, world: int) -> list[int]:
        return [len(list(EpochBatches(size, batch, rank=rank, world=world))[-1]) for rank in range(world)]

    assert last(8 + 3, 8, 4) == [3, 0, 0, 0]
    assert last(8 + 5, 8, 4) == [3, 2, 0, 0]
    assert last(8 + 7, 8, 4) == [3, 2, 2, 0]
    assert last(8 + 1, 8, 2) == [1, 0]
    assert last(4 + 3, 4, 4) == [1, 1, 1, 0]  # a full batch has one for each


def test_what_the_launcher_says_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainerConfig(accelerator="cpu")
    assert launched() is None
    assert placement(config) == {"devices": "auto", "num_nodes": 1, "strategy": "auto"}
    assert [num_devices(TrainerConfig(devices=d)) for d in (2, "3", "0,", "1,3")] == [2, 3, 1, 2]
    assert type(placement(TrainerConfig(devices=2, strategy="fsdp"))["strategy"]).__name__ == "Sharded"
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    placed = placement(config)
    assert (placed["devices"], placed["num_nodes"]) == (4, 2)
    assert type(placed["strategy"]).__name__ == "Replicated"


def test_joined_norms_come_back_as_they_were() -> None:
    network = create_model("timm/test_efficientnet", num_classes=3, view={"size": 32})
    method = Supervised({"student": network}, Classification(("a", "b", "c")))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert any(isinstance(m, BatchNormAct2d) for m in norms), "one that is fused with its activation"
    method.fixed_norms = norms[:1]
    x = torch.randint(0, 256, (2, 1, 3, 32, 32), dtype=torch.uint8)
    before = network.eval()(x)["logits"]
    join_norms(method)
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m is not norms[0]]
    assert any(m is norms[0] for m in network.modules()), "fixed norms stay"
    torch.testing.assert_close(network(x)["logits"], before)
    joined = [m for m in network.modules() if isinstance(m, nn.SyncBatchNorm)]
    for module in joined:
        module.running_mean.add_(1.0)
    learned = network(x)["logits"]
    own_norms(network)
    assert [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)] == norms
    torch.testing.assert_close(network(x)["logits"], learned)
    assert not torch.allclose(learned, before)


def test_learning_rates_follow_the_batch() -> None:
    assert OptimConfig(optimiser="adam", lr=1.0, lr_batch_size=4, batch_size=16).step_lr == 2.0
    assert OptimConfig(optimiser="sgd", lr=1.0, lr_batch_size=4, batch_size=16).step_lr == 4.0
    assert OptimConfig(lr=1.0, batch_size=16).step_lr == 1.0
    with pytest.raises(ValueError, match=r"optim\.lr_batch_size=0: must be at least 1"):
        OptimConfig(lr_batch_size=0)


def test_one_process_needs_nobody() -> None:
    peers, batch = Peers.join(1, 1.0), {"target": torch.zeros(2)}
    assert peers.gather("a") == ["a"]
    assert peers.complete(batch) == (batch, 1.0)
    alone = {"target": torch.zeros(1)}
    assert peers.complete(alone) == (alone, 1.0)
    assert peers.complete(alone, holed=True) == (None, 1.0)
    assert peers.complete({"target": torch.zeros(0)}) == (None, 1.0)
    peers.wait()


def test_a_comparison_is_shared_out_in_groups_that_need_nobody() -> None:
    def job(name: str, *after: str, lock: str = "") -> Job:
        return Job(name, print, {"number": 0}, after, lock)

    jobs = [job("t0"), job("t1"), job("f0", "t0"), job("f1", "t1"), job("s0", "f0"), job("s1", "f1"), job("p"),
            job("b1", lock="baselines"), job("b2", lock="baselines")]  # fmt: skip
    shares = [Part(number, 2, number, 2).share(jobs) for number in range(2)]
    assert [[j.name for j in share] for share in shares] == [["t0", "f0", "s0", "p"], ["t1", "f1", "s1", "b1", "b2"]]
    devices = [[j.arguments["number"] for j in share] for share in shares]
    assert devices == [[0, 2, 4, 6], [1, 3, 5, 7, 9]]  # never the same of two GPUs
    assert Part().share(jobs) == [j for g in groups(jobs) for j in g]
    for devices_asked in (2, "2", "0,1"):
        with pytest.raises(ValueError, match="a comparison gives every training one device"):
            check_devices(TrainerConfig(devices=devices_asked))
    for devices_asked in ("auto", 1, "0,"):
        check_devices(TrainerConfig(devices=devices_asked))


@pytest.mark.slow
def test_two_processes_make_one_comparison(videos: Path, tmp_path: Path) -> None:
    config = tmp_path / "compare.yaml"
    config.write_text(
        "seeds: [0, 1]\nrows: {plain: {student: {name: timm/test_efficientnet, view: {size: 32}}}}\n"
        "data: {workers: 0}\noptim: {epochs: 1, batch_size: 4}\ntrainer: {accelerator: cpu}\n"
    )
    arguments = ["compare", str(videos), "--config", str(config), "--output"]
    ended = together([*arguments, str(tmp_path / "two")], tmp_path)
    assert [code for code, _ in ended] == [0, 0], ended
    assert ["seed0" in said for _, said in ended] == [True, False], "each trains one seed"
    assert main([*arguments, str(tmp_path / "one")]) == 0
    found = [json.loads((tmp_path / name / "results.json").read_text())["rows"][0] for name in ("one", "two")]
    assert found[0]["metrics"] == found[1]["metrics"]
