"""Im2Flow: guess the flow that follows from one frame, and let a motion network look at it (Gao et al., CVPR 2018).

The rival that HalluciNet compares itself with: a whole picture of motion instead of a feature. METHODS 6.6.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillmotion.models.chain import Chain
from stillmotion.models.encoder import Encoder, check_moment_wise


class FlowDecoder(nn.Module):
    """From the maps of a 2D network to fields of flow: upwards step by step, each with the maps of its size beside.

    Args:
        widths: Channels of the maps, largest maps first.
        num_fields: Of flow.
        width: Channels inside, of the largest maps; twice as many for each smaller size, up to four times.
    """

    def __init__(self, widths: Sequence[int], num_fields: int, width: int = 32) -> None:
        super().__init__()
        inner = [width * min(4, 2**k) for k in range(len(widths))]
        beside = [*inner[1:], 0]
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(own + deeper, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
            for own, deeper, out in zip(widths, beside, inner, strict=True)
        )
        self.last = nn.Conv2d(width, 2 * num_fields, 3, padding=1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps, largest first -> (B, num_fields, 2, *size), in units of the view's bound, -1 to 1."""
        x: Tensor | None = None
        for own, step in reversed(list(zip(maps, self.steps, strict=True))):
            if x is not None:
                own = torch.cat([own, F.interpolate(x, own.shape[2:], mode="bilinear")], 1)
            x = step(own)
        assert x is not None
        flow = torch.tanh(self.last(F.interpolate(x, size, mode="bilinear")))
        return flow.reshape(flow.shape[0], -1, 2, *size)


class Im2Flow(Encoder):
    """Sees one frame; guesses the flow that its motion network wants to see, and classifies by that alone.

    Args:
        appearance: A 2D CNN of timm or torchvision that sees one frame; its classifier is dropped.
        motion: A network that sees flow, one moment at a time.
        width: Of the decoder, see `FlowDecoder`.

    Gives `flow` (B, T, 2, H, W), normalised as the motion network takes it, beside what the motion network gives.

    Raises:
        ValueError: The networks are not such.
    """

    def __init__(self, appearance: Encoder, motion: Encoder, *, num_classes: int, width: int = 32) -> None:
        super().__init__()
        check_moment_wise(motion)
        name = motion.config.get("name")
        if len(motion.views) != 1 or next(iter(motion.views.values())).kind != "flow":
            raise ValueError(f"im2flow guesses what a network of flow sees; {name} sees something else")
        if motion.num_classes != num_classes:
            raise ValueError(f"im2flow: {name} knows {motion.num_classes} classes, and {num_classes} are asked for")
        if appearance.num_classes:
            appearance.reset_classifier(0)
        (self.flow_view,) = motion.views.values()
        self.chain = Chain(appearance)
        self.appearance, self.motion = appearance, motion
        self.decoder = FlowDecoder(self.chain.widths, self.flow_view.num_frames, width)
        self.views = dict(appearance.views)
        self.embedding_dim, self.num_classes = motion.embedding_dim, num_classes
        self.short_side = appearance.short_side
        self.config = {"name": "im2flow", "num_classes": num_classes, "appearance": appearance.config,
                       "motion": motion.config, "width": width}  # fmt: skip

    def forward_views(self, *inputs: Tensor) -> dict[str, Tensor]:
        (frames,) = inputs
        x, maps = frames.flatten(1, 2), []
        for number in range(len(self.chain.stages)):
            x = self.chain.stage(number, x)
            maps.append(x)
        flow = self.decoder(maps, self.flow_view.size)
        mean, std = (
            torch.tensor(v[:2], device=flow.device).view(2, 1, 1) for v in (self.flow_view.mean, self.flow_view.std)
        )
        flow = (flow - mean) / std
        outputs: dict[str, Tensor] = self.motion.forward_views(flow)
        return {**outputs, "flow": flow}

    def new_classifier(self, num_classes: int) -> None:
        self.motion.reset_classifier(num_classes)

    def classifier_names(self) -> set[str]:
        return {f"motion.{name}" for name in self.motion.classifier_names()}
