"""What is exported: a network between frames as bytes and logits, and the shapes that it is free in."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillmotion.export.resample import Resample
from stillmotion.models.encoder import Encoder

MARGIN = (24, 40)
"""By how much the frames of an example are larger than what they are resized to."""
TRACED_FRAMES = 36
"""Along a free axis: enough that 3D networks do not reduce it to 1, which is recorded as if it were always so."""


def reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__


class Network(nn.Module):
    """An encoder as a graph: (B, T, C, H, W) or, if it joins moments, (B, N, T, C, H, W) bytes -> logits (B, K).

    Args:
        encoder: In `eval()`, with logits.
        preprocess: Take frames of any size, and resize and crop them inside.
        dynamic_frames: Leave the number of frames free (of moments, where it joins them).

    Raises:
        ValueError: The encoder cannot be exported so.
    """

    def __init__(self, encoder: Encoder, *, preprocess: bool = False, dynamic_frames: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        views = list(encoder.views.values())
        self.names = list(encoder.views)
        self.resamplers = nn.ModuleList([Resample(view) for view in views] if preprocess else [])
        self.axis: int | None = None
        if dynamic_frames:
            self.axis = 1
            counts = [v.num_moments if encoder.joins_moments else v.num_frames for v in views]
            if len(views) > 1 or min(counts) < 2:
                raise ValueError(
                    "dynamic_frames: sees one frame, or several views; the number is free where one view has several "
                    "frames (a clip), or several moments that are joined"
                )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Bytes by view, in the order of `names`."""
        if len(self.resamplers):
            inputs = tuple(resample(x) for resample, x in zip(self.resamplers, inputs, strict=True))
        logits: Tensor = self.encoder(*inputs)["logits"]
        return logits.float()

    def trace(self, *, any_count: bool) -> Any:
        """The graph as `torch.export` records it, an `ExportedProgram`.

        Args:
            any_count: Leave out what the recorder takes for granted of a free number of frames: that layers do not
                reduce it to 1, which changes no value. torch itself insists on it; other runtimes do not know of it.

        Raises:
            ValueError: torch cannot record it, or not with a free number of frames.
        """
        inputs = tuple(self.example(2, TRACED_FRAMES if self.axis is not None else None))
        logging.disable(logging.ERROR)  # torch writes tracebacks of what is told in one line below
        with torch.no_grad():
            try:
                return torch.export.export(
                    self,
                    inputs,
                    dynamic_shapes=self.dynamic_shapes(),
                    prefer_deferred_runtime_asserts_over_guards=any_count,
                )
            except (RuntimeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
                fixed = (
                    "only a fixed number of frames fits it, leave dynamic_frames out; " if self.axis is not None else ""
                )
                raise ValueError(f"{fixed}torch cannot export it: {reason(error)}") from error
            finally:
                logging.disable(logging.NOTSET)

    def example(self, batch_size: int, count: int | None = None) -> list[Tensor]:
        """Random frames, the same at every call, bytes, for each view; `count` along the free axis."""
        generator = torch.Generator().manual_seed(batch_size)
        shapes = [list(shape) for shape in self.encoder.input_shapes(batch_size)]
        if self.axis is not None and count is not None:
            shapes[0][self.axis] = count
        if len(self.resamplers):
            for shape, view in zip(shapes, self.encoder.views.values(), strict=True):
                least = max(*view.size, view.resize if isinstance(view.resize, int) else 0)
                shape[-2:] = [least + extra for extra in MARGIN]
        return [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for shape in shapes]

    def dynamic_shapes(self) -> dict[str, Any]:
        """Axes that are free, for `torch.export`."""
        batch, frames = torch.export.Dim("batch", min=1), torch.export.Dim("frames", min=2)
        shapes = []
        for name, shape in zip(self.names, self.encoder.input_shapes(1), strict=True):
            free = {0: batch}
            if self.axis is not None:
                free[self.axis] = frames
            if len(self.resamplers):
                for axis, side in ((len(shape) - 2, "height"), (len(shape) - 1, "width")):
                    free[axis] = torch.export.Dim(f"{name}_{side}", min=2)
            shapes.append(free)
        return {"inputs": tuple(shapes)}

    def counts(self) -> Sequence[int]:
        """Numbers of frames that a file is tried with: the own one, its double and one and a half of it."""
        if self.axis is None:
            return ()
        own = self.encoder.input_shapes(1)[0][self.axis]
        return (own, 2 * own, own + max(1, own // 2))
