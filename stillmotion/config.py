"""Settings of a run as plain typed data: they are the command line, the YAML files and `config.json`."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from stillmotion.data.faults import TIMEOUT_SECONDS
from stillmotion.view import Augment

Optimiser = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "step", "cosine", "plateau"]
Criterion = Literal["mse", "mse_l1", "usdl"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network by name, or a trained one by its run folder.

    Args:
        name: `timm/<name>`, `torchvision/<name>`, one of ours (`stillmotion list models`), a run folder, or `sequence`:
            several frames, each seen by the network that `options.backbone` names.
        weights: Local checkpoint or safetensors file; `default` for the library's own pretrained weights (a download);
            None starts at random (or, for a run folder, takes its weights; `random` keeps them out: a control).
        options: Further arguments of the network.
        view: Settings of `View` that differ from the network's own (size, num_frames, num_moments, moment, ...).

    Environment variables in `name` and `weights` ($STILLMOTION_DATA/...) are replaced.
    """

    name: str
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    view: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", os.path.expandvars(self.name))
        if self.weights is not None:
            object.__setattr__(self, "weights", os.path.expandvars(self.weights))


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A method by name, with its own settings (`stillmotion list methods`).

    Args:
        name: supervised, hallucinate, logits, mars, mers, d3d, relation, fusion, stddcn, im2flow.
        options: Its settings; unknown ones are refused.
    """

    name: str = "supervised"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How the scores among the targets are learned.

    Args:
        loss: mse; mse_l1 (mean squared and mean absolute error, as MTL-AQA's code); usdl (a distribution over bins).
        offset, scale: The network learns (score - offset) / scale. Default: mean and standard deviation of the scores
            of the training split (MTL-AQA's code: 0 and 17).
        low, high: Lowest and highest score there can be, for R-l2 and the bins. Default: those of the whole table.
        bins: Of usdl, spread evenly from low to high.
        sigma: Of usdl: standard deviation of the distribution that is learned, in bins.
    """

    loss: Criterion = "mse"
    offset: float | None = None
    scale: float | None = None
    low: float | None = None
    high: float | None = None
    bins: int = 101
    sigma: float = 5.0

    def __post_init__(self) -> None:
        if self.scale is not None and not self.scale > 0.0:
            raise ValueError(f"score.scale={self.scale}: must be above 0")
        if self.bins < 2:
            raise ValueError(f"score.bins={self.bins}: give 2 or more")
        if not self.sigma > 0.0:
            raise ValueError(f"score.sigma={self.sigma}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How samples are read and drawn.

    Args:
        targets: Columns of the table that are learned: `COLUMN` holds one class, `COLUMN:multilabel` several
            (`run|jump`), `COLUMN:score` a number. On the command line `--targets A B C:score` will do.
        score: How the scores among them are learned.
        target_weights: Of the losses of several targets, by column (default: 1 each).
        train: Split that is trained on.
        val: Split for selection and early stop; None holds out `val_fraction` of the training groups if needed.
        test: Split that is evaluated at the end; None evaluates none.
        val_fraction: Share of the training groups that is held out for validation.
        label_fraction: Share of the training samples, by class, that keep their label; the others stay, unlabelled.
        augment: What is random about a draw.
        num_draws: Distinct draws a sample; epoch e shows draw e modulo this. None: a new draw every epoch.
        short_side: Reduce frames to this shorter side while decoding, before any view's geometry (None: full size).
        packed: Frame store that `stillmotion pack` wrote from this table; frames come from there.
        flow: Flow store that views of flow read from (`stillmotion flow`); what it lacks is computed and added. None
            computes flow from the frames every time.
        geometry: `device`: training frames get box, flip and size of their draw where the network computes, which
            relieves the loader and moves pixels by at most one level of 255 (None: all in the loader). Views with a
            geometry of their own, or of flow, get it in the loader.
        workers: Loader processes.
        timeout: Seconds after which a sample is given up and listed as unreadable; needs a worker. Flow that is added
            to a store has a day.
    """

    targets: list[str] = field(default_factory=lambda: ["label"])
    score: ScoreConfig = field(default_factory=ScoreConfig)
    target_weights: dict[str, float] = field(default_factory=dict)
    train: str = "train"
    val: str | None = None
    test: str | None = "test"
    val_fraction: float = 0.1
    label_fraction: float = 1.0
    augment: Augment = field(default_factory=Augment)
    num_draws: int | None = None
    short_side: int | None = None
    packed: str | None = None
    flow: str | None = None
    geometry: Literal["device"] | None = None
    workers: int = 1
    timeout: float = TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        if not self.timeout > 0.0:
            raise ValueError(f"data.timeout={self.timeout}: give seconds, more than 0")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule. Defaults: HalluciNet action recognition on the whole set.

    Args:
        optimiser: adam, adamw or sgd.
        lr: Learning rate at `batch_size`, or, where `lr_batch_size` is given, at that.
        lr_batch_size: Batch size that `lr` was chosen for. With another `batch_size` it is scaled: in proportion for
            sgd (Goyal et al., arXiv:1706.02677), by the square root for adam and adamw (Malladi et al.,
            arXiv:2205.10287). The number of processes does not matter: `batch_size` is that of all.
        weight_decay: L2 penalty (adam, sgd) or decoupled decay (adamw).
        momentum, dampening: For sgd.
        epochs: Passes over the training samples.
        min_steps: Least number of optimiser steps; where `epochs` gives fewer, epochs are added. So rows that learn
            from fewer samples (without the unlabelled ones, say) get the same budget.
        steps_per_epoch: Cut every epoch after so many steps (None: the whole set).
        batch_size: Samples a step, over all processes.
        accumulate: Parts in which a batch is computed, to save memory.
        schedule: constant; step: times `gamma` every `step_epochs`, or, where this is a list, after each of these
            numbers of epochs; cosine to 0; plateau: times `gamma` after `patience` epochs without a better validation
            loss.
        gamma, step_epochs, patience: See `schedule`.
        warmup_steps: Linear warm-up from 0.
        clip_norm: Largest gradient norm (None: no clipping).
        trainable: Patterns (`fnmatch`) of the student's parameters that are updated; others get lr 0, their
            batch norms still move. Empty: all.
        lr_factors: Learning rate factor by pattern of parameter names (`{"backbone.*": 0.1}`).
        fixed_norms: Patterns of the student's batch norms that use the statistics they start with and keep them; for
            small batches and pretrained networks (`["*"]`: all). Their scale and shift still learn.
    """

    optimiser: Optimiser = "adam"
    lr: float = 1e-4
    lr_batch_size: int | None = None
    weight_decay: float = 0.0
    momentum: float = 0.9
    dampening: float = 0.0
    epochs: int = 50
    min_steps: int = 0
    steps_per_epoch: int | None = None
    batch_size: int = 25
    accumulate: int = 1
    schedule: Schedule = "step"
    gamma: float = 0.1
    step_epochs: int | list[int] = 30
    patience: int = 10
    warmup_steps: int = 0
    clip_norm: float | None = None
    trainable: list[str] = field(default_factory=list)
    lr_factors: dict[str, float] = field(default_factory=dict)
    fixed_norms: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.lr_batch_size is not None and self.lr_batch_size < 1:
            raise ValueError(f"optim.lr_batch_size={self.lr_batch_size}: must be at least 1")

    @property
    def step_lr(self) -> float:
        """Learning rate at `batch_size`.

        Example:
            >>> OptimConfig(optimiser="sgd", lr=0.1, lr_batch_size=256, batch_size=1024).step_lr
            0.4
        """
        if self.lr_batch_size is None:
            return self.lr
        ratio = self.batch_size / self.lr_batch_size
        return self.lr * (ratio if self.optimiser == "sgd" else ratio**0.5)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Where and how the training runs.

    Args:
        accelerator: Lightning's: auto, cpu, gpu, mps.
        devices: Number of devices of this machine, or auto. Under `torchrun` and SLURM these say it.
        strategy: auto and ddp: every process holds all weights; fsdp: a part of them each, for networks that are too
            large for one device; or another of Lightning's.
        sync_batchnorm: Batch norms see the batch of all processes (None: where these are on GPUs).
        timeout: Seconds that one of several processes waits for another before it takes it for lost.
        precision: 32-true, bf16-mixed, 16-mixed.
        checkpoint_every: Steps between two `last.ckpt`.
        select: `last` epoch, or the epoch that is `best` on validation groups.
        early_stop: Stop after so many epochs without a better validation metric (None: never).
        channels_last: Memory format of the weights.
        compile: `torch.compile` the student; `reduce-overhead` also records CUDA graphs, `max-autotune` also tries
            kernels out.
    """

    accelerator: str = "auto"
    devices: str | int = "auto"
    strategy: str = "auto"
    sync_batchnorm: bool | None = None
    timeout: float = 1800.0
    precision: str = "32-true"
    checkpoint_every: int = 200
    select: Literal["last", "best"] = "last"
    early_stop: int | None = None
    channels_last: bool = True
    compile: bool | Literal["reduce-overhead", "max-autotune"] = False

    @property
    def num_devices(self) -> int | None:
        """How many `devices` name; None for all that there are (auto, -1).

        Example:
            >>> [TrainerConfig(devices=text).num_devices for text in ("auto", 2, "0,", "0,3")]
            [None, 2, 1, 2]
        """
        text = str(self.devices)
        if text in ("auto", "-1"):
            return None
        return int(text) if text.isdecimal() else len([part for part in text.split(",") if part.strip()])


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """One row of a comparison: what is trained, and how.

    A name `row:NAME`, also of a network within `options`, means the run of that row with the same split (and seed).

    Args:
        student: The network that is trained.
        method: How it is trained.
        teacher: Name, run folder, or `row:NAME`.
        teacher_seed: `same` takes the teacher row's run of the same seed, `first` shares one teacher a split.
        cache: Extract the teacher's features once for each split and seed instead of running it live.
        optim: Settings of the optimiser that differ from the comparison's; the table names them.
        table: Train on this table and not on the comparison's: a stage before, once a seed, on all labels of the
            table's own train split. Its run serves other rows (`row:NAME`); its results have a section of their own.
        data: Settings of `data` that differ for such a row (`targets`, `test`, ...).
    """

    student: ModelConfig
    method: MethodConfig = field(default_factory=MethodConfig)
    teacher: ModelConfig | None = None
    teacher_seed: Literal["same", "first"] = "same"
    cache: bool = True
    optim: dict[str, Any] = field(default_factory=dict)
    table: str | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """How cameras and streams are watched.

    Args:
        interval: Frames between two decisions. Default: the distance of the moments, if the view has one, or as many
            as a clip spans; at least 8.
        max_frames: Stop after so many frames.
        late: Frames that come while the network is still busy: `drop` those that no decision needs any more, or `wait`,
            which holds up the source. `auto` drops where a source has no end.
        reconnect: Seconds for which a lost source is looked for, with growing pauses.
        smooth: Seconds over which probabilities are averaged (exponentially); 0: not at all.
        enter: An event begins when the probability of its class reaches this,
        leave: and ends when it falls below this.
        min_seconds: Shorter ones do not count.
        gap: Seconds without a frame after which events end where they were last seen, and the average starts anew.
        classes: Classes that make events; none named: all.
        show: Open a window; needs a display, and an OpenCV with windows. Esc or q closes it and stops.
    """

    interval: int | None = None
    max_frames: int | None = None
    late: Literal["auto", "drop", "wait"] = "auto"
    reconnect: float = 300.0
    smooth: float = 0.5
    enter: float = 0.6
    leave: float = 0.4
    min_seconds: float = 0.5
    gap: float = 2.0
    classes: list[str] = field(default_factory=list)
    show: bool = False

    def __post_init__(self) -> None:
        for name in ("interval", "max_frames"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"live.{name}={getattr(self, name)}: must be at least 1")
        for name in ("reconnect", "smooth", "min_seconds"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"live.{name}={getattr(self, name)}: must be at least 0")
        if not self.gap > 0.0:
            raise ValueError(f"live.gap={self.gap}: must be above 0")
        if not 0.0 < self.leave <= self.enter <= 1.0:
            raise ValueError(f"live.enter={self.enter}, live.leave={self.leave}: 0 < leave <= enter <= 1 is wanted")


@dataclass(frozen=True, kw_only=True)
class LimitConfig:
    """What a service takes, and how long it waits.

    Args:
        max_mib: Size of an upload.
        max_seconds: Length of a video.
        requests: At once, uploads included; further ones are told to come again (429).
        stall_seconds: Without a byte of an upload.
        upload_seconds: For a whole upload.
        answer_seconds: From the end of the upload to the answer.
        readers: Processes that decode.
        reader_seconds: For decoding one upload; then its process is ended.
        reader_mib: Memory of such a process beyond what it starts with.
        batch: Uploads that go through the network together, at most.
        batch_ms: For which one waits for others that are being read. Alone it never waits.
        stop_seconds: For what was accepted, after SIGTERM.
    """

    max_mib: float = 100.0
    max_seconds: float = 600.0
    requests: int = 16
    stall_seconds: float = 10.0
    upload_seconds: float = 60.0
    answer_seconds: float = 30.0
    readers: int = 2
    reader_seconds: float = 20.0
    reader_mib: int = 1024
    batch: int = 8
    batch_ms: float = 2.0
    stop_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("requests", "readers", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"limits.{name}={getattr(self, name)}: must be at least 1")
        if not self.batch_ms >= 0.0:
            raise ValueError(f"limits.batch_ms={self.batch_ms}: must be at least 0")
        for name in ("max_mib", "max_seconds", "stall_seconds", "upload_seconds", "answer_seconds", "reader_seconds",
                     "reader_mib", "stop_seconds"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"limits.{name}={getattr(self, name)}: must be above 0")
