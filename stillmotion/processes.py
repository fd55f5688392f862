"""One training on several processes: how they start, how they share a batch, how they learn that one of them is gone.

`torchrun` and SLURM say how many there are; without them `trainer.devices` says it, and Lightning starts the others.
What they tell each other beside gradients goes over the processor's network (gloo), also on GPUs: no step has to wait
for the device, and a connection that breaks is noticed at the next step.
"""

import os
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from stillmotion.config import TrainerConfig
from stillmotion.models.encoder import Batch

PATIENCE = 30
"""Seconds after which processes that do not notice the end of another are ended."""
WAITING = timedelta(days=30)
UNIT = 1_000_000
"""Parameters from which on a block of a network is gathered by itself."""
SIGNS = ("gloo", "nccl", "connection", "timed out", "store", "peer")


class LostError(ValueError):
    """A process of the training is gone; the message is the line for the user."""


def launched() -> tuple[int, int] | None:
    """Processes on this machine, and machines, as `torchrun` or SLURM started them; None without these."""
    if TorchElasticEnvironment.detect():
        local, world = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ["WORLD_SIZE"])
        return local, world // local
    if SLURMEnvironment.detect() and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return None


def num_devices(config: TrainerConfig) -> int:
    """Devices of this machine that the settings ask for."""
    if config.num_devices is not None:
        return config.num_devices
    return torch.cuda.device_count() if config.accelerator != "cpu" and torch.cuda.is_available() else 1


def placement(config: TrainerConfig) -> dict[str, Any]:
    """Devices, machines and strategy, as Lightning's trainer takes them."""
    local, nodes = launched() or (num_devices(config), 1)
    devices = local if launched() else config.devices
    if local * nodes == 1 or config.strategy not in ("auto", "ddp", "fsdp"):
        strategy: Any = "auto" if config.strategy in ("ddp", "fsdp") else config.strategy
        return {"devices": devices, "num_nodes": nodes, "strategy": strategy}
    timeout = timedelta(seconds=config.timeout)
    if config.strategy == "fsdp":
        return {"devices": devices, "num_nodes": nodes, "strategy": Sharded(timeout=timeout)}
    return {"devices": devices, "num_nodes": nodes, "strategy": Replicated(timeout=timeout)}


class _Launcher(_SubprocessScriptLauncher):
    """Lightning's ends this process, too, when another has ended, before it can say so; here it gets time for that."""

    def launch(self, function: Any, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            _ChildProcessObserver(os.getpid(), self.procs, sleep_period=PATIENCE).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


class Replicated(DDPStrategy):
    """Every process holds the whole method; gradients are averaged (DDP)."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


class Sharded(Replicated):
    """Every process holds a part of all weights, gradients and of the optimiser's state (FSDP).

    A checkpoint holds them whole, as without it, so that any number of processes resumes from it, sharded or not.
    """

    def configure_ddp(self) -> None:
        assert self.lightning_module is not None
        shard(self.lightning_module.method, self.root_device.type)  # type: ignore[arg-type]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return {name: whole(value) for name, value in self.lightning_module.state_dict().items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = tree_map(whole, optimizer.state_dict())
        return state


def shard(method: nn.Module, device: str) -> None:
    """Divides the weights of a method among all processes (torch's `fully_shard`).

    Large blocks are gathered one at a time as they are used, everything else for the whole step.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in method.parameters():
        parameter.data = parameter.data.contiguous()  # it knows no other layout
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    taken: set[nn.Module] = set()
    for module in method.modules():
        if isinstance(module, nn.Sequential | nn.ModuleList) and module not in taken:
            for block in module.children():
                if sum(p.numel() for p in block.parameters()) >= UNIT and block not in taken:
                    taken |= set(block.modules())
                    fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether the weights of a module are divided among processes."""
    return any(hasattr(p, "full_tensor") for p in module.parameters())


def whole(value: Any) -> Any:
    """A tensor that is divided among processes, put together on the CPU; all processes ask at once."""
    return value.full_tensor().cpu() if hasattr(value, "full_tensor") else value


def divided(state: dict[str, Any], optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimiser, its tensors divided as its parameters are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    parts: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        like = parameters[number]
        parts[number] = {
            name: distribute_tensor(value.contiguous().to(like.device), like.device_mesh, like.placements)
            if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape
            else value
            for name, value in values.items()
        }
    return {**state, "state": parts}


class Peers:
    """The processes of a training, as one of them sees them.

    Args:
        world: Their number.
        groups: Over which they talk, and over which they wait for each other at the end; None of one process.
    """

    def __init__(self, world: int = 1, groups: tuple[Any, Any] = (None, None)) -> None:
        self.world, (self.group, self._last) = world, groups

    @classmethod
    def join(cls, world: int, timeout: float) -> Self:
        """Meets the others.

        Args:
            world: Number of processes.
            timeout: Seconds that one waits for another.
        """
        spans = (timedelta(seconds=timeout), WAITING)
        groups = [dist.new_group(backend="gloo", timeout=span) if world > 1 else None for span in spans]
        return cls(world, (groups[0], groups[1]))

    def gather(self, item: Any) -> list[Any]:
        """The item of every process."""
        if self.world == 1:
            return [item]
        items = [None] * self.world
        dist.all_gather_object(items, item, group=self.group)
        return items

    def complete(self, batch: Batch, *, holed: bool = False) -> tuple[Batch | None, float]:
        """What this process runs its networks on, and the weight of that.

        Means over unequal parts are weighted, so that their mean over the processes is that over the batch. Whoever has
        no sample runs the networks on two of another, with weight 0: the others wait for its part of their sums.

        Args:
            batch: Samples of this process.
            holed: Whether some could not be read.

        Returns:
            None if no process has any, or one alone is left of more, from which batch norm cannot learn.
        """
        count = len(batch["target"])
        if self.world == 1:
            return (batch if count >= 1 + holed else None), 1.0
        told = torch.zeros(self.world + 1, dtype=torch.int64)
        told[dist.get_rank()], told[-1] = count, holed
        dist.all_reduce(told, group=self.group)
        counts, total = told[:-1], int(told[:-1].sum())
        if total < 1 + bool(told[-1]):
            return None, 0.0
        if int(counts.min()) == 0:
            source = int(counts.argmax())
            mine = {k: v[:2].cpu() for k, v in batch.items() if isinstance(v, Tensor)} if count else None
            lent = [mine]
            dist.broadcast_object_list(lent, src=source, group=self.group)
            if not count and lent[0] is not None:
                batch = {k: v.to(batch["target"].device) for k, v in lent[0].items()}
        return batch, count * self.world / total

    def wait(self) -> None:
        """Until all have come here, however long that takes."""
        if self.world > 1:
            dist.barrier(group=self._last)


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    if not isinstance(error, RuntimeError) or not dist.is_initialized() or dist.get_world_size() == 1:
        return False
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in SIGNS)
