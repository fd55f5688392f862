"""Two networks as one: appearance and motion, joined at their scores or at their features (METHODS 4.5)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from stillmotion.models.encoder import Encoder, check_choice, check_moment_wise
from stillmotion.view import View

FusionKind = Literal["mean", "sum", "concat", "gate", "attention"]
STREAMS = ("appearance", "motion")


class ChannelAttention(nn.Module):
    """Two features weighed against each other channel by channel: the light fusion of METHODS 4.5.

    w = softmax over the streams of Linear(ReLU(Linear([a || m]))); w_a * a + w_m * m.

    Args:
        dim: D, width of both features.
        hidden_dim: Between the two layers.

    Example:
        >>> fusion = ChannelAttention(2048)
        >>> sum(p.numel() for p in fusion.parameters())  # "1.05 M extra weights"
        1052800
    """

    def __init__(self, dim: int, hidden_dim: int = 128) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(2 * dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 2 * dim))

    def forward(self, appearance: Tensor, motion: Tensor) -> Tensor:
        """(B, D) and (B, D) -> (B, D)."""
        both = torch.stack([appearance, motion], 1)
        weights = self.weigh(both.flatten(1)).unflatten(1, (2, -1)).softmax(1)
        joined: Tensor = (weights * both).sum(1)
        return joined


class Gate(nn.Module):
    """g * a + (1 - g) * m with one g a sample, the sigmoid of a linear layer of both."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(2 * dim, 1)

    def forward(self, appearance: Tensor, motion: Tensor) -> Tensor:
        """(B, D) and (B, D) -> (B, D)."""
        return torch.lerp(motion, appearance, self.weigh(torch.cat([appearance, motion], 1)).sigmoid())


class FusedStreams(Encoder):
    """Two networks and what joins them. Streams that see the same are shown it once.

    Args:
        appearance, motion: Networks, whatever they see; a fused pair may be one of them.
        num_classes: Width of the logits.
        fusion: `mean` of the streams' logits (nothing is learned); or one linear layer on their features: their `sum`,
            both (`concat`), weighed by one `gate`, or by channels (`attention`).
        hidden_dim: Of `attention`.
        dropout: Before the classifier.
        motion_weight: Of the second stream in the `mean`; the first has 1 less that.

    The result has `logits_appearance` and `logits_motion` too where the streams have classifiers.

    Raises:
        ValueError: The streams do not fit together.
    """

    further_logits = ("logits_appearance", "logits_motion")
    classifier_layer = "classifier"

    def __init__(
        self,
        appearance: Encoder,
        motion: Encoder,
        *,
        num_classes: int,
        fusion: FusionKind = "attention",
        hidden_dim: int = 128,
        dropout: float = 0.0,
        motion_weight: float = 0.5,
    ) -> None:
        super().__init__()
        check_moment_wise(appearance, motion)
        check_choice("fusion", fusion, FusionKind)
        if not 0.0 <= motion_weight <= 1.0:
            raise ValueError(f"motion_weight={motion_weight}: must be in [0, 1]")
        self.streams = nn.ModuleDict({"appearance": appearance, "motion": motion})
        self.fusion, self.motion_weight, self.num_classes = fusion, motion_weight, num_classes
        self._inputs, self.views = join_views({"appearance": appearance.views, "motion": motion.views})
        dims = (appearance.embedding_dim, motion.embedding_dim)
        if fusion == "mean":
            if {appearance.num_classes, motion.num_classes} != {num_classes}:
                raise ValueError(
                    f"fusion=mean joins the logits of networks of the same classes; these have "
                    f"{appearance.num_classes} and {motion.num_classes}, and {num_classes} are asked for"
                )
        elif fusion != "concat" and dims[0] != dims[1]:
            raise ValueError(
                f"fusion={fusion}: the streams' features are {dims[0]} and {dims[1]} wide; take networks of one width, "
                "or fusion concat or mean"
            )
        self.taps = tuple(f"{name}.{tap}" for name in STREAMS for tap in self._stream(name).taps)
        self.embedding_dim = sum(dims) if fusion in ("mean", "concat") else dims[0]
        self.join: nn.Module | None = None
        if fusion == "gate":
            self.join = Gate(dims[0])
        elif fusion == "attention":
            self.join = ChannelAttention(dims[0], hidden_dim)
        self.dropout = nn.Dropout(dropout)
        learned = num_classes and fusion != "mean"
        self.classifier = nn.Linear(self.embedding_dim, num_classes) if learned else None
        self.short_side = appearance.short_side
        self.config = {
            "name": "fused",
            "num_classes": num_classes,
            "appearance": appearance.config,
            "motion": motion.config,
            "fusion": fusion,
            "hidden_dim": hidden_dim,
            "dropout": dropout,
            "motion_weight": motion_weight,
        }

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        given = dict(zip(self.views, inputs, strict=True))
        a, m = (self._stream(s).forward_views(*(given[name] for name in self._inputs[s])) for s in STREAMS)
        result = {f"logits_{s}": out["logits"] for s, out in zip(STREAMS, (a, m), strict=True) if "logits" in out}
        result |= {
            f"{s}.{tap}": out[tap] for s, out in zip(STREAMS, (a, m), strict=True) for tap in self._stream(s).taps
        }
        if self.join is not None:
            embedding = self.join(a["embedding"], m["embedding"])
        elif self.fusion == "sum":
            embedding = a["embedding"] + m["embedding"]
        else:
            embedding = torch.cat([a["embedding"], m["embedding"]], 1)
        result["embedding"] = embedding
        if self.fusion == "mean":
            result["logits"] = torch.lerp(a["logits"], m["logits"], self.motion_weight)
        elif self.classifier is not None:
            result["logits"] = self.classifier(self.dropout(embedding))
        return result

    def _stream(self, name: str) -> Encoder:
        stream = self.streams[name]
        assert isinstance(stream, Encoder)
        return stream

    def part_of(self, view: str) -> nn.Module:
        stream = next(name for name in STREAMS if view in self._inputs[name])
        inner = self._stream(stream)
        return inner.part_of(list(inner.views)[self._inputs[stream].index(view)])

    def new_classifier(self, num_classes: int) -> None:
        if self.fusion == "mean":
            raise ValueError("a mean of two networks has no classifier of its own; fuse networks of the wanted classes")
        super().new_classifier(num_classes)


def join_views(
    streams: Mapping[str, Mapping[str, View]],
) -> tuple[dict[str, list[str]], dict[str, View]]:
    """One set of views for several networks; equal views become one.

    Args:
        streams: Views of each network, by its name.

    Returns:
        Names of the joint views for each network, in its order; and the joint views: the network's name, followed by
        that of the view where it has several.

    Raises:
        ValueError: The networks see different numbers of moments.

    Example:
        >>> same = View(size=(64, 64))
        >>> join_views({"appearance": {"frames": same}, "motion": {"frames": same}})[0]
        {'appearance': ['appearance'], 'motion': ['appearance']}
    """
    inputs: dict[str, list[str]] = {}
    joint: dict[str, View] = {}
    for stream, views in streams.items():
        inputs[stream] = []
        for name, view in views.items():
            known = next((other for other, seen in joint.items() if seen == view), None)
            if known is None:
                known = stream if len(views) == 1 else f"{stream}_{name}"
                joint[known] = view
            inputs[stream].append(known)
    if len(moments := {view.num_shown for view in joint.values()}) > 1:
        raise ValueError(
            f"the streams see {' and '.join(map(str, sorted(moments)))} moments of a video; they are joined one by "
            "one: give their views the same num_moments and num_crops"
        )
    return inputs, joint
