"""The contract of every network here: `Encoder`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillmotion.view import View

Batch = Mapping[str, Any]


class Encoder(nn.Module):
    """A network with named views, a width and a dict of outputs.

    Subclasses set the attributes and write `forward_views`. An input of dtype uint8 is normalised here, by the view's
    own mean and std, and differenced if the view asks for it; a floating input is taken as already normalised.

    Attributes:
        views: What the network sees, by name, in the order of `forward`'s arguments.
        embedding_dim: Width of `embedding`.
        num_classes: Width of `logits`; 0 if the network gives none.
        taps: Names of further layers (`named_modules`) whose output the result carries too.
    """

    views: dict[str, View]
    embedding_dim: int
    num_classes: int
    taps: tuple[str, ...] = ()

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
            The same with `logits` (B, num_classes) and `moment_logits` (B, N, num_classes).
        """
        if "logits" not in outputs:
            return outputs
        return {**outputs, "moment_logits": outputs["logits"], "logits": outputs["logits"].mean(1)}

    def from_batch(self, batch: Batch, role: str) -> dict[str, Tensor]:
        """Takes the views of one role out of a batch, whose tensors are (B, N, ...), and runs the network.

        Returns:
            `logits` (B, num_classes); everything else (B, N, ...).
        """
        inputs: Sequence[Tensor] = [batch[f"{role}/{name}"] for name in self.views]
        size, moments = inputs[0].shape[:2]
        outputs = self(*(x.flatten(0, 1) for x in inputs))
        return self.aggregate({k: v.unflatten(0, (size, moments)) for k, v in outputs.items()})


def prepare(x: Tensor, view: View) -> Tensor:
    """Normalises uint8 frames as the view says, and takes differences if it asks for them.

    Args:
        x: (B, T, 3, H, W) uint8, or anything floating, which passes unchanged.
        view: With mean and std in units of 0..1.

    Returns:
        Floats (B, T, 3, H, W); (B, T - 1, 3, H, W) for `difference`.
    """
    if x.dtype != torch.uint8:
        return x
    values = x.float() / 255.0
    if view.gamma != 1.0:
        values = values**view.gamma
    std = torch.tensor(view.std, device=x.device).view(3, 1, 1)
    if view.kind == "difference":
        return values.diff(dim=1) / std
    mean = torch.tensor(view.mean, device=x.device).view(3, 1, 1)
    return (values - mean) / std


class StoredFeatures(Encoder):
    """A teacher whose outputs were computed before: its views are stored rows that the loader puts into the batch.

    Args:
        source: Folder that `stillmotion extract` wrote.
        embedding_dim: Width of the stored embedding.
        num_classes: Width of the stored logits, 0 if none are stored.
    """

    def __init__(self, source: str, *, embedding_dim: int, num_classes: int = 0, num_moments: int = 1) -> None:
        super().__init__()
        fields = ["embedding"] + (["logits"] if num_classes else [])
        self.views = {f: View(kind="feature", source=source, field=f, num_moments=num_moments) for f in fields}
        self.embedding_dim, self.num_classes = embedding_dim, num_classes

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.views, inputs, strict=True))
