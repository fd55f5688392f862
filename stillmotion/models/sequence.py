"""Networks that look at several moments of a video together: mean, LSTM, attention, convolution, relations, shift.

The moments of the view are the frames of the sequence (or its clips, where the backbone sees clips).
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from math import comb
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillmotion.models.adapters import ImageEncoder
from stillmotion.models.encoder import Encoder, check_choice, check_dropout, check_moment_wise, prepare
from stillmotion.models.student import HallucinatingStudent
from stillmotion.models.temporal import Shift, shift_moments

Aggregate = Literal["mean", "lstm", "attention", "convolution", "relation"]
Past = dict[nn.Module, Tensor]
"""By shifted layer: the channels (crops, C', H, W) that the next moment sees."""
NEW_CLASSIFIER = "the classifier of the sequence is new"
KERNELS = (2, 3, 4)
SUBSETS = 3


class MeanPooling(nn.Module):
    """Mean over the moments, in whatever order."""

    def __init__(self, dim: int, hidden_dim: int, largest: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        return x.mean(1)


class LastState(nn.Module):
    """The last hidden state of an LSTM of one layer (METHODS 2.2)."""

    def __init__(self, dim: int, hidden_dim: int, largest: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, hidden_dim, batch_first=True)
        self.out_dim = hidden_dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, hidden_dim)."""
        states: Tensor = self.lstm(x)[0]
        return states[:, -1]


class AttentionPooling(nn.Module):
    """Weighted mean over the moments, in whatever order (Ilse et al., arXiv:1802.04712).

    The weights are softmax over N of Linear(tanh(Linear(x))); all alike before training.
    """

    def __init__(self, dim: int, hidden_dim: int, largest: int) -> None:
        super().__init__()
        self.hidden, self.weigh = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, 1, bias=False)
        nn.init.zeros_(self.weigh.weight)
        self.out_dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        weights: Tensor = self.weigh(self.hidden(x).tanh()).softmax(1)
        return (weights * x).sum(1)


class Convolutions(nn.Module):
    """Patterns of 2, 3 and 4 moments in a row, each where it is strongest (METHODS 4.5; Kim, arXiv:1408.5882).

    `hidden_dim` filters of each width over the moments, with zeros around them; ReLU, maximum over time.
    """

    def __init__(self, dim: int, hidden_dim: int, largest: int) -> None:
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv1d(dim, hidden_dim, k, padding=k - 1) for k in KERNELS)
        self.out_dim = len(KERNELS) * hidden_dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, 3 * hidden_dim)."""
        over_time = x.transpose(1, 2)
        return torch.cat([convolve(over_time).relu().amax(2) for convolve in self.filters], 1)


class Relations(nn.Module):
    """What 2, 3, ... `largest` moments in their order say together (TRN, Zhou et al., arXiv:1711.08496).

    For each size k: ReLU(Linear(ReLU(the k vectors, one behind the other))), summed over three subsets of the moments.
    The classifier behind reads all sizes, which is the sum of the paper's classifiers of each. The subsets are always
    the same, where the paper draws them anew; sizes above N give zeros.
    """

    def __init__(self, dim: int, hidden_dim: int, largest: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(k * dim, hidden_dim) for k in range(2, largest + 1))
        self.out_dim = hidden_dim * len(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, (largest - 1) * hidden_dim)."""
        sizes = []
        for k, layer in enumerate(self.layers, 2):
            told = [layer(x[:, list(chosen)].flatten(1).relu()).relu() for chosen in ordered_subsets(x.shape[1], k)]
            sizes.append(sum(told) if told else x.new_zeros(len(x), self.out_dim // len(self.layers)))
        return torch.cat(sizes, 1)


def ordered_subsets(moments: int, size: int) -> list[tuple[int, ...]]:
    """Up to three different ordered choices of so many moments; always the same.

    >>> ordered_subsets(3, 2)
    [(0, 1), (0, 2), (1, 2)]
    >>> ordered_subsets(3, 4)
    []
    """
    generator = random.Random(0)  # not all combinations: there are millions of them
    chosen: set[tuple[int, ...]] = set()
    while len(chosen) < min(SUBSETS, comb(moments, size)):
        chosen.add(tuple(sorted(generator.sample(range(moments), size))))
    return sorted(chosen)


AGGREGATES: dict[str, type[MeanPooling | LastState | AttentionPooling | Convolutions | Relations]] = {
    "mean": MeanPooling,
    "lstm": LastState,
    "attention": AttentionPooling,
    "convolution": Convolutions,
    "relation": Relations,
}
"""From what the backbone makes of each moment to what the classes are read from."""


class FrameSequence(Encoder):
    """A network of single frames (or clips) that classifies all N moments of a sample at once.

    The backbone sees each moment; the vector that its classes would be read from (of a student with a branch
    [x, hallucinated], of such a VGG the hidden layer; METHODS 2.2) is joined over the moments, and one linear layer
    tells the classes. N may be another one in use than in training.

    `embedding`, `hallucinated` and the taps are the backbone's, moment by moment, (B, N, ...). `logits` (B, K) are
    those of the sequence, `moment_logits` (B, N, K) those of the sequence that a moment belongs to: several crops
    of a frame belong to several sequences, whose logits are averaged.

    Args:
        backbone: Taken over, its classifier dropped.
        num_classes: Width of the logits; 0 for none.
        aggregate: How the vectors are joined: their `mean`; the last state of an `lstm`; `attention`; `convolution`
            over time; `relation`s of several moments.
        hidden_dim: Of all but `mean`; of `convolution` and `relation` for each size.
        relation_size: Moments in the largest `relation`.
        dropout: Before the classifier.
        shift: Let the residual branches of a 2D backbone see a share of their channels at the moments beside (TSM, Lin
            et al., arXiv:1811.08383): of the next and the previous one (`both`), or of the previous one alone (`past`),
            so that a moment needs none that follows. TSM itself is this with `aggregate="mean"`.
        shift_share: Share of the channels that come from each side.

    Raises:
        ValueError: A setting, or a backbone whose branches are not known.

    Example:
        >>> import torch
        >>> from stillmotion.models.factory import create_model
        >>> student = create_model("sequence", num_classes=4, backbone={"name": "timm/test_resnet"},
        ...                        aggregate="lstm", view={"size": 32, "num_moments": 6})
        >>> student(torch.zeros(2, 6, 1, 3, 32, 32, dtype=torch.uint8))["logits"].shape
        torch.Size([2, 4])
    """

    joins_moments = True
    classifier_layer = "classifier"

    def __init__(
        self,
        backbone: Encoder,
        *,
        num_classes: int,
        aggregate: Aggregate = "mean",
        hidden_dim: int = 256,
        relation_size: int = 4,
        dropout: float = 0.0,
        shift: Shift = "none",
        shift_share: float = 0.125,
    ) -> None:
        super().__init__()
        check_moment_wise(backbone)
        check_choice("aggregate", aggregate, Aggregate)
        check_choice("shift", shift, Shift)
        check_dropout(dropout)
        if relation_size < 2:
            raise ValueError(f"relation_size={relation_size}: a relation has at least 2 moments")
        if not 0.0 <= shift_share <= 0.5:
            raise ValueError(f"shift_share={shift_share}: must be from 0 to 0.5")
        report = backbone.weights_report
        if backbone.num_classes:
            backbone.reset_classifier(0)
        self.backbone = backbone
        self.views, self.taps, self.embedding_dim = backbone.views, backbone.taps, backbone.embedding_dim
        self.short_side, self.num_classes = backbone.short_side, num_classes
        self.weights_report = replace(report, classifier=NEW_CLASSIFIER) if report is not None else None
        width = backbone.class_dim if isinstance(backbone, HallucinatingStudent) else backbone.embedding_dim
        self.aggregate_moments = AGGREGATES[aggregate](width, hidden_dim, relation_size)
        self.dropout = nn.Dropout(dropout)
        self.class_dim = self.aggregate_moments.out_dim
        self.classifier: nn.Linear | None = None
        self.new_classifier(num_classes)
        self.settings: dict[str, Any] = {"aggregate": aggregate, "hidden_dim": hidden_dim,
                                         "relation_size": relation_size, "dropout": dropout,
                                         "shift": shift, "shift_share": shift_share}  # fmt: skip
        inner = {**backbone.config, "num_classes": 0}
        self.config = {"name": "sequence", "num_classes": num_classes, "backbone": inner, **self.settings}
        self._shown = (1, 1)  # moments and crops of what it sees just now
        self._past: Past | None = None
        self._hooks = [layer.register_forward_pre_hook(self._shift_input) for layer in self._branches()]

    def around(self, backbone: Encoder) -> "FrameSequence":
        """The same around another backbone, which may contain this one's; the layers behind it start anew."""
        for hook in self._hooks:
            hook.remove()
        other = FrameSequence(backbone, num_classes=self.num_classes, **self.settings)
        other.views, other.short_side = self.views, self.short_side
        return other

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        shown = inputs[0].shape[1]
        crops = next(iter(self.views.values())).num_crops
        moments = shown // crops
        self._shown = (moments, crops)
        outputs = self.backbone.forward_views(*(x.flatten(0, 1) for x in inputs))
        result = {name: x.reshape(-1, shown, *x.shape[1:]) for name, x in outputs.items()}
        if self.classifier is None:
            return result
        vectors = self._vectors(outputs)
        # Crop by crop a sequence; a reshape, as an unflatten before an LSTM does not export with a free batch size.
        rows = vectors.reshape(-1, moments, crops, vectors.shape[1]).transpose(1, 2)
        rows = rows.reshape(-1, moments, vectors.shape[1])
        logits = self.join(rows).reshape(-1, crops, self.num_classes)
        return {**result, "logits": logits.mean(1), "moment_logits": logits.repeat(1, moments, 1)}

    def encode(self, *inputs: Tensor, past: Past) -> Tensor:
        """Vectors of successive moments of one stream, without the classes: for live use, moment after moment.

        Args:
            inputs: One for each view, (N * crops, T, C, H, W) uint8, moment by moment.
            past: What shifted layers saw at the moment before; empty at the beginning. It becomes what they saw at the
                last moment of these.

        Returns:
            (N, crops, D).
        """
        crops = next(iter(self.views.values())).num_crops
        self._shown, self._past = (len(inputs[0]) // crops, crops), past
        prepared = [prepare(x, view) for x, view in zip(inputs, self.views.values(), strict=True)]
        try:
            vectors = self._vectors(self.backbone.forward_views(*prepared))
        finally:
            self._past = None
        return vectors.reshape(-1, crops, vectors.shape[1])

    def join(self, rows: Tensor) -> Tensor:
        """Vectors of moments (B, N, D) -> logits (B, num_classes)."""
        assert self.classifier is not None
        logits: Tensor = self.classifier(self.dropout(self.aggregate_moments(rows)))
        return logits

    def _vectors(self, outputs: dict[str, Tensor]) -> Tensor:
        """What the classes are read from, of every moment."""
        if isinstance(self.backbone, HallucinatingStudent):
            return self.backbone.class_features(outputs)
        return outputs["embedding"]

    def _shift_input(self, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Before the first layer of a residual branch."""
        x, shift = args[0], self.settings["shift"]
        channels = int(self.settings["shift_share"] * x.shape[1])
        shifted = shift_moments(x, *self._shown, channels, shift)
        if self._past is not None and channels:  # live: the moment before the first one is known
            assert shift == "past"
            crops = self._shown[1]
            if layer in self._past:
                shifted[:crops, :channels] = self._past[layer]
            self._past[layer] = x[-crops:, :channels].clone()
        return (shifted, *args[1:])

    def _branches(self) -> list[nn.Module]:
        """Layers whose input is shifted."""
        if self.settings["shift"] == "none":
            return []
        name = self.backbone.config.get("name")
        networks = [module for module in self.backbone.modules() if isinstance(module, ImageEncoder)]
        layers = list(residual_branches(self.backbone))
        if len(networks) != 1 or not layers:
            raise ValueError(f"{name}: no residual branches in which a shift is known to work; take a ResNet, "
                             "MobileNet or EfficientNet of timm or torchvision, or shift=none")  # fmt: skip
        (network,) = networks
        (view,) = self.views.values()
        if view.num_frames - (view.kind == "difference") > 1 and not (network.stack or view.kind == "flow"):
            raise ValueError(f"{name}: sees {view.num_frames} frames of each moment one by one; a shift needs one "
                             "picture a moment: set view.num_frames=1")  # fmt: skip
        return layers

    def part_of(self, view: str) -> nn.Module:
        return self.backbone.part_of(view)


def residual_branches(network: nn.Module) -> Iterator[nn.Module]:
    """First layers of the residual branches of ResNets and of inverted-residual networks, timm's and torchvision's.

    They see what the block sees. Blocks without a way past them, and those that do not widen first, are left out.
    """
    for block in network.modules():
        match type(block).__name__:
            case "BasicBlock" | "Bottleneck" if isinstance(getattr(block, "conv1", None), nn.Module):
                yield block.get_submodule("conv1")
            case "InvertedResidual" | "EdgeResidual" | "MBConv" | "FusedMBConv":
                first = next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
                passes = getattr(block, "has_skip", False) or getattr(block, "use_res_connect", False)
                if passes and first.groups == 1:
                    yield first
