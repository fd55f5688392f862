"""Optimiser and schedule from settings, and how hard each loss pulls. Rates are functions of the step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stillmotion.config import OptimConfig
from stillmotion.methods.base import Method


def make_optimiser(method: Method, config: OptimConfig, *, fused: bool = True) -> torch.optim.Optimizer:
    """Optimiser over everything of a method that learns; marks the rest as fixed.

    A group's factor of the learning rate stands in its `lr_factor`.

    Args:
        method: Parameters of its student are matched with the patterns of the settings by their names in the student.
        config: `trainable` patterns leave the others fixed (their batch norms still move); `lr_factors` are taken from
            the first pattern that matches.
        fused: Update in one pass over memory where the device can. With fp16 scaling it would rule out clipping.

    Raises:
        ValueError: A pattern that no parameter matches, or nothing is left to train.
    """
    student = list(method.student.named_parameters())
    for pattern in [*config.trainable, *config.lr_factors]:
        if not any(fnmatchcase(name, pattern) for name, _ in student):
            names = ", ".join(name for name, _ in student[:3])
            raise ValueError(f"no parameter of the student matches {pattern!r}; its names are like {names}, ...")
    if config.trainable:
        for name, parameter in student:
            parameter.requires_grad_(_first(name, config.trainable) is not None)
    own = {id(p) for _, p in student}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in [*student, *((n, p) for n, p in method.named_parameters() if id(p) not in own)]:
        if parameter.requires_grad:
            matched = _first(name, config.lr_factors) if id(parameter) in own else None
            groups.setdefault(config.lr_factors[matched] if matched else 1.0, []).append(parameter)
    if not groups:
        raise ValueError("nothing to train: every parameter of the student is fixed; check optim.trainable")
    fused = fused and all(p.device.type in ("cpu", "cuda") for p in chain(*groups.values()))
    return _build(config, [{"params": p, "lr_factor": f} for f, p in groups.items()], fused)


def find_norms(student: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """The batch norms whose names match.

    Raises:
        ValueError: A pattern matches none.
    """
    norms = {name: module for name, module in student.named_modules() if isinstance(module, _BatchNorm)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in norms):
            names = ", ".join(list(norms)[:3]) or "it has none"
            raise ValueError(f"no batch norm of the student matches {pattern!r}; names: {names}, ...")
    return [module for name, module in norms.items() if _first(name, patterns) is not None]


def _first(name: str, patterns: Iterable[str]) -> str | None:
    return next((p for p in patterns if fnmatchcase(name, p)), None)


def _build(config: OptimConfig, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
    match config.optimiser:
        case "adam":
            return torch.optim.Adam(groups, lr=config.step_lr, weight_decay=config.weight_decay, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.step_lr, weight_decay=config.weight_decay, fused=fused)
        case "sgd":
            return torch.optim.SGD(
                groups,
                lr=config.step_lr,
                momentum=config.momentum,
                dampening=config.dampening if config.momentum else 0.0,
                weight_decay=config.weight_decay,
                fused=fused,
            )
    raise ValueError(f"optim.optimiser={config.optimiser!r}: choose one of adam, adamw, sgd")


class Schedule:
    """The learning rate as a factor of `optim.lr`.

    Args:
        config: `schedule` and its settings.
        steps_per_epoch: Optimiser steps.

    Example:
        >>> schedule = Schedule(OptimConfig(schedule="step", step_epochs=2, gamma=0.1, warmup_steps=2), 10)
        >>> [round(schedule.factor(step), 3) for step in (0, 1, 19, 20)]
        [0.5, 1.0, 1.0, 0.1]
    """

    def __init__(self, config: OptimConfig, steps_per_epoch: int) -> None:
        if config.schedule not in ("constant", "step", "cosine", "plateau"):
            raise ValueError(f"optim.schedule={config.schedule!r}: choose one of constant, step, cosine, plateau")
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.best, self.bad_epochs, self.drops = math.inf, 0, 0

    def factor(self, step: int) -> float:
        """Factor at optimiser step `step`, counted from 0. Warm-up reaches 1 with its last step."""
        warm = min(1.0, (step + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        return warm * self._decay(step)

    def _decay(self, step: int) -> float:
        match self.config.schedule:
            case "step":
                epoch, after = step // self.steps_per_epoch, self.config.step_epochs
                drops = sum(epoch >= end for end in after) if isinstance(after, list) else epoch // after
                return float(self.config.gamma**drops)
            case "cosine":
                start, total = self.config.warmup_steps, self.config.epochs * self.steps_per_epoch
                share = (step - start) / max(1, total - start)
                return 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, share))))
            case "plateau":
                return float(self.config.gamma**self.drops)
            case _:
                return 1.0

    def end_epoch(self, val_loss: float | None) -> None:
        """Tells the plateau schedule the validation loss of an epoch. As torch's `ReduceLROnPlateau`: better means
        lower by a ten-thousandth, and the rate drops after more than `patience` epochs without it."""
        if self.config.schedule != "plateau" or val_loss is None:
            return
        if val_loss < self.best * (1.0 - 1e-4):
            self.best, self.bad_epochs = val_loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.config.patience:
            self.drops, self.bad_epochs = self.drops + 1, 0

    def state_dict(self) -> dict[str, float]:
        """For the checkpoint."""
        return {"best": self.best, "bad_epochs": self.bad_epochs, "drops": self.drops}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Reads what `state_dict` gave."""
        self.best, self.bad_epochs, self.drops = state["best"], int(state["bad_epochs"]), int(state["drops"])


def gradient_norms(
    out: Mapping[str, Tensor], weights: Mapping[str, float], parameters: Sequence[nn.Parameter]
) -> dict[str, Any]:
    """How hard each weighted part of the loss pulls at the parameters that all parts share.

    Args:
        out: Result of `Method.forward`, graph intact; it stays usable.
        weights: Result of `Method.weights`. Parts with weight 0, or without a graph, pull at nothing.
        parameters: Of the student.

    Returns:
        `norms` by part, `ratios` to the first part, and `shared_parameters`, their number.
    """
    parts = {name: weight * out[name] for name, weight in weights.items() if weight and out[name].requires_grad}
    learning = [p for p in parameters if p.requires_grad]
    grads = {n: torch.autograd.grad(p, learning, retain_graph=True, allow_unused=True) for n, p in parts.items()}
    shared = [i for i in range(len(learning)) if all(g[i] is not None for g in grads.values())]
    norms = {n: math.sqrt(sum(float(g[i].float().pow(2).sum()) for i in shared)) for n, g in grads.items()}
    first = next(iter(norms.values()), 0.0)
    ratios = {n: v / first for n, v in norms.items()} if first else {}
    return {"norms": norms, "ratios": ratios, "shared_parameters": sum(learning[i].numel() for i in shared)}
