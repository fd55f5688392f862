"""Two streams, appearance and motion, with dense cross connections: STDDCN (Hao & Zhang, Pattern Recognition 92, 2019).

No code, tables or operators of the paper could be found; what is read into it stands in METHODS 5 and `docs/stddcn.md`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.models.chain import Chain
from stillmotion.models.checkpoint import WeightsReport
from stillmotion.models.encoder import Encoder, check_choice, check_dropout
from stillmotion.models.fusion import STREAMS

Connect = Literal["none", "sum", "concat", "mul"]
Direction = Literal["m2a", "a2m", "both"]
Density = Literal["adjacent", "dense"]

RECEIVERS = {"m2a": ("appearance",), "a2m": ("motion",), "both": STREAMS}
FUSION = "fusion"


class TwoStream(Encoder):
    """Two 2D CNNs that hand each other their maps, and classifiers of each and of both (METHODS 5.2, 5.3).

    x_s^k are the maps of stage k = 1, 2, ... of stream s, o the other stream. Stage k + 1, or behind the last stage the
    head, sees instead

        x_s^k + sum over j of BN(W_jk Pool(x_o^j))      `sum`
        U_k x_s^k + the same sum                        `concat`: a 1x1 convolution of both, taken apart
        x_s^k * (1 + the same sum)                      `mul`

    where W and U are 1x1 convolutions and Pool averages to the size of x_s^k. The scale of each BN starts at 0 and U as
    identity, so that the network starts as the two streams it is made of. `embedding` is [g_a, g_m], the streams'
    embeddings behind their heads; `logits` are read from both, `logits_appearance` and `logits_motion` from one, and
    `logits_mean` is the mean of these two.

    Args:
        appearance, motion: 2D CNNs of timm or torchvision, taken over. Their classifiers become those of the streams
            if they were trained for as many classes. The motion stream sees flow, or a stack of frames or
            differences (`stack`).
        num_classes: Width of the logits; 0 for none.
        connect: Operator; `none` leaves the streams unconnected, and joins them behind their heads only.
        direction: Who receives: `m2a` the appearance stream, `a2m` the motion stream, `both`.
        density: `dense` from all stages j <= k, `adjacent` from j = k alone.
        stages: Those that take part, as source and as receiver; None: all.
        dropout: Of g_a and g_m before the classifiers. If it is not 0, it stands for all dropout of the streams' heads.

    Raises:
        ValueError: A setting, or streams that do not fit together.
    """

    further_logits = ("logits_appearance", "logits_motion", "logits_mean")

    def __init__(
        self,
        appearance: Encoder,
        motion: Encoder,
        *,
        num_classes: int,
        connect: Connect = "sum",
        direction: Direction = "both",
        density: Density = "dense",
        stages: Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("connect", connect, Connect)
        check_choice("direction", direction, Direction)
        check_choice("density", density, Density)
        check_dropout(dropout)
        self.appearance, self.motion = appearance, motion
        self.chains = {"appearance": Chain(appearance), "motion": Chain(motion)}
        _check_fit(self.chains)
        self.connect, self.dropout = connect, nn.Dropout(dropout)
        self.stages = _check_stages(stages, len(self.chains["appearance"].stages))
        self.connections, self.own = nn.ModuleDict(), nn.ModuleDict()
        if connect != "none":
            for receiver in RECEIVERS[direction]:
                self._connect(receiver, density)
        self.views = {name: next(iter(chain.encoder.views.values())) for name, chain in self.chains.items()}
        self.taps = tuple(f"{name}.{tap}" for name, chain in self.chains.items() for tap in chain.encoder.taps)
        self.embedding_dim, self.num_classes = appearance.embedding_dim + motion.embedding_dim, num_classes
        self.weights_report = _report(appearance, motion)
        self.classifiers = nn.ModuleDict()
        self._start_classifiers(num_classes)
        if dropout:
            for chain in self.chains.values():
                chain.drop_nothing()
        streams = {name: chain.encoder.config for name, chain in self.chains.items()}
        settings = {"connect": connect, "direction": direction, "density": density, "stages": list(self.stages)}
        self.config = {"name": "two_stream", "num_classes": num_classes, **streams, **settings, "dropout": dropout}

    def _connect(self, receiver: str, density: Density) -> None:
        other = _other(receiver)
        given, taken = self.chains[other].widths, self.chains[receiver].widths
        pairs = [(j, k) for k in self.stages for j in self.stages if (j == k if density == "adjacent" else j <= k)]
        self.connections[receiver] = nn.ModuleDict(
            {f"{j}_{k}": _connection(given[j - 1], taken[k - 1]) for j, k in pairs}
        )
        if self.connect == "concat":
            self.own[receiver] = nn.ModuleDict({str(k): _identity(taken[k - 1]) for k in self.stages})

    def _start_classifiers(self, num_classes: int) -> None:
        """New classifiers, those of the streams from their own; theirs are dropped."""
        learnt = {name: _classifier_of(chain.encoder, num_classes) for name, chain in self.chains.items()}
        self.new_classifier(num_classes)
        for name, chain in self.chains.items():
            if (state := learnt[name]) is not None:
                self.classifiers[name].load_state_dict(state)
            if chain.encoder.num_classes:
                chain.encoder.reset_classifier(0)

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        x = {name: frames.flatten(1, 2) for name, frames in zip(STREAMS, inputs, strict=True)}
        seen: dict[str, list[Tensor]] = {name: [] for name in STREAMS}
        for number in range(len(self.chains["appearance"].stages)):
            for name, chain in self.chains.items():
                seen[name].append(chain.stage(number, x[name]))
            x = {name: self._receive(name, seen[name][-1], seen[_other(name)]) for name in STREAMS}
        features = {name: chain.embed(x[name]) for name, chain in self.chains.items()}
        outputs = {"embedding": torch.cat(list(features.values()), 1)}
        for name, chain in self.chains.items():
            outputs |= {f"{name}.{tap}": maps for tap, maps in chain.encoder.watched().items()}
        return outputs | self._classify(features) if self.num_classes else outputs

    def _receive(self, name: str, own: Tensor, others: Sequence[Tensor]) -> Tensor:
        """What follows stage k of a stream sees: its maps x_s^k, and what comes from x_o^1 to x_o^k."""
        stage = len(others)
        if name not in self.connections or stage not in self.stages:
            return own
        paths: nn.ModuleDict = self.connections[name]  # type: ignore[assignment]
        given = [(paths[f"{j}_{stage}"], x) for j, x in enumerate(others, 1) if f"{j}_{stage}" in paths]
        parts = [path(F.adaptive_avg_pool2d(x, (own.shape[2], own.shape[3]))) for path, x in given]
        total = torch.stack(parts).sum(0)
        if self.connect == "mul":
            return own * (1.0 + total)
        if self.connect == "concat":
            own = self.own[name].get_submodule(str(stage))(own)
        return own + total

    def _classify(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        features = {name: self.dropout(x) for name, x in features.items()}
        appearance, motion = (self.classifiers[name](features[name]) for name in STREAMS)
        return {
            "logits": self.classifiers[FUSION](torch.cat(list(features.values()), 1)),
            "logits_appearance": appearance,
            "logits_motion": motion,
            "logits_mean": (appearance + motion) / 2.0,
        }

    def part_of(self, view: str) -> nn.Module:
        return self.chains[view].encoder

    def new_classifier(self, num_classes: int) -> None:
        device = next(self.parameters()).device
        widths = {"appearance": self.appearance.embedding_dim, "motion": self.motion.embedding_dim}
        widths[FUSION] = self.embedding_dim
        new = {name: nn.Linear(width, num_classes, device=device) for name, width in widths.items() if num_classes}
        self.classifiers = nn.ModuleDict(new)

    def classifier_names(self) -> set[str]:
        return {name for name in self.state_dict() if name.startswith("classifiers.")}


def _other(stream: str) -> str:
    return STREAMS[stream == STREAMS[0]]


def _connection(given: int, taken: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(taken)
    nn.init.zeros_(norm.weight)
    return nn.Sequential(nn.Conv2d(given, taken, 1, bias=False), norm)


def _identity(width: int) -> nn.Conv2d:
    conv = nn.Conv2d(width, width, 1, bias=False)
    nn.init.dirac_(conv.weight)
    return conv


def _classifier_of(stream: Encoder, num_classes: int) -> dict[str, Tensor] | None:
    """Weight and bias of a stream's trained classifier; None if it has none for so many classes."""
    names, report = stream.classifier_names(), stream.weights_report
    if stream.num_classes != num_classes or not names or report is None or not names <= set(report.copied):
        return None
    state = {name.rpartition(".")[2]: tensor.flatten(1 if tensor.ndim > 1 else 0)
             for name, tensor in stream.state_dict().items() if name in names}  # fmt: skip
    fits = state.keys() == {"weight", "bias"} and state["weight"].shape == (num_classes, stream.embedding_dim)
    return {name: tensor.clone() for name, tensor in state.items()} if fits else None


def _report(appearance: Encoder, motion: Encoder) -> WeightsReport | None:
    """What the streams brought; None if both are random."""
    streams = {"appearance": appearance.weights_report, "motion": motion.weights_report}
    known = {name: report for name, report in streams.items() if report is not None}
    if not known:
        return None
    copied = tuple(f"{name}.{tensor}" for name, report in known.items() for tensor in report.copied)
    source = " + ".join(report.source for report in known.values())
    return WeightsReport(source=source, copied=copied, left_out={}, classifier="the fusion of the streams is new")


def _check_stages(stages: Sequence[int] | None, count: int) -> tuple[int, ...]:
    known = list(range(1, count + 1))
    if stages is None:
        return tuple(known)
    if not stages or len(set(stages)) < len(stages) or not set(stages) <= set(known):
        raise ValueError(f"stages={list(stages)}: give some of {known}, each once; connect=none connects none")
    return tuple(sorted(stages))


def _check_fit(chains: dict[str, Chain]) -> None:
    """Refuses streams that cannot run side by side.

    Raises:
        ValueError: They see different moments, or their stages have maps of different sizes.
    """
    (one, first), (two, second) = chains.items()
    views = [next(iter(chain.encoder.views.values())) for chain in (first, second)]
    for setting in ("num_moments", "num_crops"):
        a, b = (getattr(view, setting) for view in views)
        if a != b:
            raise ValueError(f"the {one} stream has view.{setting}={a}, the {two} stream {b}: give both the same")
    sizes = [chain.sizes() for chain in (first, second)]
    if sizes[0] != sizes[1]:
        a, b = (", ".join("x".join(map(str, size)) for size in own) for own in sizes)
        raise ValueError(f"the maps of the {one} stream are {a}, those of the {two} stream {b}: give both views the "
                         "same size, and take networks with equal reductions")  # fmt: skip
