"""The contract of every network here: `Encoder`."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from stillmotion.view import View

if TYPE_CHECKING:
    from stillmotion.models.checkpoint import WeightsReport
    from stillmotion.tasks import Task

Batch = Mapping[str, Any]
MAP = ":map"
"""Behind the name of a layer: its maps are a feature as they are, not averaged."""


class Encoder(nn.Module):
    """A network with named views, a width and a dict of outputs.

    Subclasses set the attributes and write `forward_views`. An input of dtype uint8 is normalised here, by the view's
    own mean and std, and differenced if the view asks for it; a floating input is taken as already normalised.

    Attributes:
        views: What the network sees, by name, in the order of `forward`'s arguments.
        embedding_dim: Width of `embedding`.
        num_classes: Width of `logits`; 0 if the network gives none.
        taps: Names of further layers (`named_modules`) whose output the result carries too.
        further_logits: Names of further outputs that are logits, `logits_<part>`, measured beside `logits`.
        config: JSON data from which `create_model(**config)` rebuilds the architecture, without its weights.
        weights_report: What was taken from a weights file; None for random weights.
        short_side: To which shorter side the frames of its training were reduced before its view; None if not.
        joins_moments: Whether it looks at all moments of a sample together: `forward` then takes (B, N, T, C, H, W),
            and gives what `from_batch` gives.
        classifier_layer: Where it keeps the linear layer that gives the logits, if it does so.
        class_dim: Width of what that layer sees; None: of `embedding`.
    """

    views: dict[str, View]
    embedding_dim: int
    num_classes: int
    taps: tuple[str, ...] = ()
    further_logits: tuple[str, ...] = ()
    config: dict[str, Any]
    weights_report: "WeightsReport | None" = None
    short_side: int | None = None
    joins_moments: bool = False
    classifier_layer: str = "fc"
    class_dim: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.config = {}

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Runs the network.

        Args:
            inputs: One tensor for each view, (B, T, C, H, W); uint8, or normalised floats. Features (B, D).

        Returns:
            `logits` (B, num_classes), `embedding` (B, embedding_dim), and every tap under its name.
        """
        assert len(inputs) == len(self.views), f"{len(self.views)} views expected, {len(inputs)} given"
        prepared = [prepare(x, view) for x, view in zip(inputs, self.views.values(), strict=True)]
        return self.forward_views(*prepared)

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        """As `forward`, on normalised floats."""
        raise NotImplementedError

    def aggregate(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Joins the moments of a sample: mean of the logits; everything else keeps its moments.

        Args:
            outputs: Values of shape (B, N, ...).

        Returns:
            The same with `logits` (B, num_classes) and `moment_logits` (B, N, num_classes); so for `further_logits`.
        """
        names = [name for name in ("logits", *self.further_logits) if name in outputs]
        moments = {f"moment_{name}": outputs[name] for name in names}
        return {**outputs, **moments, **{name: outputs[name].mean(1) for name in names}}

    def from_batch(self, batch: Batch, role: str) -> dict[str, Tensor]:
        """Takes the views of one role out of a batch, whose tensors are (B, N, ...), and runs the network.

        Returns:
            `logits` and `further_logits` (B, num_classes); everything else (B, N, ...).
        """
        inputs: Sequence[Tensor] = [batch[f"{role}/{name}"] for name in self.views]
        if self.joins_moments:
            joined: dict[str, Tensor] = self(*inputs)
            return joined
        size, moments = inputs[0].shape[:2]
        outputs = self(*(x.flatten(0, 1) for x in inputs))
        return self.aggregate({k: v.unflatten(0, (size, moments)) for k, v in outputs.items()})

    def part_of(self, view: str) -> nn.Module:
        """The part of the network that sees a view, where not all of it does; networks of several streams say which."""
        return self

    def input_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        """Shapes of `forward`'s arguments, view by view."""
        return [
            (batch_size, *([v.num_shown] if self.joins_moments else []), v.num_frames, v.channels, *v.size)
            for v in self.views.values()
        ]

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by a new one, at random; 0 removes it, and `logits` with it."""
        self.new_classifier(num_classes)
        self.num_classes = num_classes
        self.config = {**self.config, "num_classes": num_classes}

    def new_classifier(self, num_classes: int) -> None:
        """What `reset_classifier` does to the layers; networks whose last one is not linear write it."""
        dim, device = self.class_dim or self.embedding_dim, next(self.parameters()).device
        layer = nn.Linear(dim, num_classes, device=device) if num_classes else None
        setattr(self, self.classifier_layer, layer)

    def published_names(self) -> dict[str, str]:
        """Names that a weights file may use -> own names of `state_dict`."""
        return {name: name for name in self.state_dict()}

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Renames (and, where its format wants it, rearranges) the tensors of a weights file.

        A format that brings its own normalisation changes `views` and `config` here.
        """
        return dict(state)

    def classifier_names(self) -> set[str]:
        """Those own names of `state_dict` that belong to the classes: left out where the class counts differ."""
        layer = getattr(self, self.classifier_layer, None)
        return set() if layer is None else {f"{self.classifier_layer}.{name}" for name, _ in layer.named_parameters()}

    def initialised_names(self) -> set[str]:
        """Those own names that files of another network, which it starts from, cannot have; no file misses them."""
        return set()

    def watch(self, net: nn.Module, taps: Sequence[str]) -> None:
        """Keeps the output of some layers of `net`, for `watched`.

        Args:
            net: The network, or the part of it whose layers are meant.
            taps: Names of layers; `LAYER:map` for one whose maps become a feature as they are, not averaged.

        Raises:
            ValueError: There is no such layer.
        """
        modules = {name: module for name, module in net.named_modules() if name}
        for tap in taps:
            layer = tap.removesuffix(MAP)
            if layer not in modules:
                close = difflib.get_close_matches(layer, modules, 5, 0.3) or list(modules)[-5:]
                raise ValueError(f"unknown tap {layer!r}; close names: {', '.join(close)}")
            # A partial of a bound method, unlike a closure, follows the module when it is copied.
            modules[layer].register_forward_hook(partial(self._keep, tap))
        self.taps = tuple(taps)
        self._kept: dict[str, Tensor] = {}

    def _keep(self, tap: str, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(f"tap {tap!r}: {type(module).__name__} gives {type(output).__name__}, not one tensor")
        self._kept[tap] = output.clone()  # the next layer may work in place

    def watched(self) -> dict[str, Tensor]:
        """What `watch` kept in the last run, once."""
        if not self.taps:
            return {}
        kept, self._kept = self._kept, {}
        if missing := [tap for tap in self.taps if tap not in kept]:
            raise ValueError(f"tap {missing[0]!r} was not reached when the network ran; choose another layer")
        return kept

    @classmethod
    def from_pretrained(cls, source: str) -> "Encoder":
        """Reads a network from a run folder or from the Hugging Face Hub (`owner/name`)."""
        from stillmotion.models.pretrained import load_pretrained

        return load_pretrained(source)[0]

    def save_pretrained(self, folder: str, *, task: "Task", **extra: Any) -> None:
        """Writes `model.safetensors` and `config.json` into a folder."""
        from stillmotion.models.pretrained import save_pretrained

        save_pretrained(self, task, folder, extra)

    def push_to_hub(self, repo_id: str, *, task: "Task", private: bool = False, **extra: Any) -> str:
        """Saves to the Hugging Face Hub (`owner/name`); returns the address."""
        from stillmotion.models.pretrained import push_to_hub

        return push_to_hub(self, task, repo_id, private=private, extra=extra)


def check_moment_wise(*parts: Encoder) -> None:
    """Refuses parts of a network that look at several moments of a sample together.

    Raises:
        ValueError: One does.
    """
    if joined := [part.config.get("name") for part in parts if part.joins_moments]:
        raise ValueError(f"{joined[0]}: looks at all moments of a video together, so it cannot be part of another "
                         "network; put that one inside it, as its backbone")  # fmt: skip


def check_choice(name: str, value: Any, kind: Any) -> None:
    """Refuses a value that is none of a `Literal`'s.

    Raises:
        ValueError: Naming the setting and what there is.
    """
    if value not in get_args(kind):
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(get_args(kind))}")


def check_dropout(dropout: float) -> None:
    """Refuses what is no share of the units.

    Raises:
        ValueError: It is not in [0, 1).
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout}: must be at least 0 and below 1")


def to_channels_last(module: nn.Module) -> None:
    """Lays out the weights as convolutions on a CPU and on tensor cores read them fastest."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in formats:  # `Module.to` would refuse networks that have both
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


def prepare(x: Tensor, view: View) -> Tensor:
    """Normalises uint8 frames as the view says, and takes differences if it asks for them.

    Bytes of flow (`stillmotion.data.flow.to_bytes`) become motion in units of the view's bound first.

    Args:
        x: (..., T, C, H, W) uint8, C = 3 or, for flow, 2; or anything floating, which passes unchanged.
        view: With mean and std in units of 0..1.

    Returns:
        Floats (..., T, C, H, W); (..., T - 1, C, H, W) for `difference`.
    """
    if x.dtype != torch.uint8:
        return x
    values = x.float() / 255.0 if view.kind != "flow" else (x.float() - 128.0) / 127.0
    if view.gamma != 1.0 and view.kind != "flow":
        values = values**view.gamma
    channels = view.channels
    std = torch.tensor(view.std[:channels], device=x.device).view(channels, 1, 1)
    if view.kind == "difference":
        return values.diff(dim=-4) / std
    mean = torch.tensor(view.mean[:channels], device=x.device).view(channels, 1, 1)
    return (values - mean) / std


class StoredFeatures(Encoder):
    """A teacher whose outputs were computed before: its views are stored rows that the loader puts into the batch.

    Args:
        source: Folder that `stillmotion extract` wrote.
        embedding_dim: Width of the stored embedding.
        num_classes: Width of the stored logits, 0 if none are stored.
        view: What was seen, as far as it matters to a student beside it: which moments.
        taps: Widths of further stored layers.
    """

    def __init__(
        self,
        source: str,
        *,
        embedding_dim: int,
        num_classes: int = 0,
        view: View | None = None,
        taps: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.tap_dims = dict(taps or {})
        self.taps = tuple(self.tap_dims)
        fields = ["embedding", *(["logits"] if num_classes else []), *self.taps]
        seen = view or View()
        self.views = {f: replace(seen, kind="feature", source=source, field=f) for f in fields}
        self.embedding_dim, self.num_classes = embedding_dim, num_classes

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.views, inputs, strict=True))
