"""A comparison on several machines: which jobs each process does, and how they meet at the end."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from stillmotion.config import TrainerConfig
from stillmotion.jobs import Job

# A training of a comparison runs on one device; what started the comparison is not its affair.
PREFIXES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_",
            "SLURM_")  # fmt: skip


def check_devices(trainer: TrainerConfig) -> None:
    """Refuses trainings on several devices each.

    Raises:
        ValueError: The settings ask for it.
    """
    if (trainer.num_devices or 1) > 1:
        raise ValueError(
            f"trainer.devices={trainer.devices}: a comparison gives every training one device and trains side by "
            "side; leave it out and say how many at once with --workers"
        )


@dataclass(frozen=True)
class Part:
    """One of the processes that share a comparison.

    Args:
        number, of: Which, of how many.
        local, local_of: The same on its machine.
    """

    number: int = 0
    of: int = 1
    local: int = 0
    local_of: int = 1

    def share(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of this process: whole groups of jobs that need each other, so that no process waits for another.

        Trainings take turns on the GPUs of the machine; processes on one machine take different ones.
        """
        mine = [job for number, group in enumerate(groups(jobs)) if number % self.of == self.number for job in group]
        if self.of == 1:
            return mine
        numbered = [job for job in mine if "number" in job.arguments]
        device = {job.name: self.local + self.local_of * turn for turn, job in enumerate(numbered)}
        return [
            replace(job, arguments={**job.arguments, "number": device[job.name]}) if job.name in device else job
            for job in mine
        ]

    def gather(self, item: Any) -> list[Any]:
        """The item of every process, when all have come here.

        Raises:
            LostError: One is gone.
        """
        if self.of == 1:
            return [item]
        from stillmotion.processes import LostError, Peers, is_lost

        try:
            return Peers(self.of).gather(item)
        except RuntimeError as error:
            if not is_lost(error):
                raise
            raise LostError("another process of this comparison is gone; what is finished is kept, run the same "
                            "command to go on, on any number of processes") from None  # fmt: skip


@contextmanager
def part_of_launch() -> Iterator[Part]:
    """This process among those that `torchrun` or SLURM started; by itself without these."""
    if not {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"} & set(os.environ):  # Lightning and torch take seconds to ask
        yield Part()
        return
    import torch.distributed as dist
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    from stillmotion.processes import WAITING, launched

    started = launched()
    if started is None or started[0] * started[1] == 1:
        yield Part()
        return
    place = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else SLURMEnvironment()
    os.environ |= {"MASTER_ADDR": place.main_address, "MASTER_PORT": str(place.main_port)}
    part = Part(place.global_rank(), place.world_size(), place.local_rank(), started[0])
    dist.init_process_group("gloo", rank=part.number, world_size=part.of, timeout=WAITING)
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(PREFIXES)}
    try:
        yield part
    finally:
        os.environ |= hidden
        dist.destroy_process_group()


def groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that need each other, or may not run side by side, together; each group in the order of the jobs.

    Example:
        >>> found = groups([Job("a", print), Job("b", print), Job("c", print, after=("a",)), Job("d", print, lock="x")])
        >>> [[job.name for job in group] for group in found]
        [['a', 'c'], ['b'], ['d']]
    """
    leader = {job.name: job.name for job in jobs}

    def first(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    locks: dict[str, str] = {}
    for job in jobs:
        locked = [locks.setdefault(job.lock, job.name)] if job.lock else []
        for name in [*(name for name in job.after if name in leader), *locked]:
            leader[first(name)] = first(job.name)
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(first(job.name), []).append(job)
    return list(found.values())
