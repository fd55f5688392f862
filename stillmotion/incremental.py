"""Live use of students of several frames: what was computed of a moment is kept, and only the new one is computed."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stillmotion.networks import Inputs, Network, TorchNetwork

if TYPE_CHECKING:
    from torch import Tensor

    from stillmotion.models.sequence import FrameSequence, Past

Key = tuple[int, ...]
"""Numbers of the frames that a moment shows, of all views."""


def moment_cache(network: Network) -> "MomentCache | None":
    """A cache for a network, None where each decision has to be computed as a whole.

    That is where a network looks at one moment, or at moments by themselves; where its moments see those that follow
    (`shift: both`); and in an exported file, which is one graph.
    """
    if not isinstance(network, TorchNetwork) or not network.encoder.joins_moments:
        return None
    from stillmotion.models.sequence import FrameSequence

    encoder = network.encoder
    if not isinstance(encoder, FrameSequence) or encoder.settings["shift"] == "both":
        return None
    return MomentCache(encoder, network.device)


class MomentCache:
    """Logits of a sequence of moments, of which those are computed that were not seen before.

    With `shift: past` a moment sees a part of the one before it, so the state of the shifted layers is kept as well. It
    goes on from before the sequence, as TSM has it in live use: what is computed is what the whole network makes of
    all moments so far, the last N of which are joined.

    Args:
        network: In `eval()`.
        device: Where it is.
    """

    def __init__(self, network: "FrameSequence", device: str) -> None:
        self.network, self.device = network, device
        self.computed = 0
        self._vectors: dict[Key, Tensor] = {}
        self._states: dict[Key, Past] = {}

    def clear(self) -> None:
        """Forgets all: another stream begins."""
        self._vectors.clear()
        self._states.clear()

    def __call__(self, moments: Sequence[Key], render: Callable[[list[int]], Inputs]) -> NDArray[np.float32]:
        """Logits (K,) of a sequence.

        Args:
            moments: The N moments in their order.
            render: Frames (M * crops, T, C, H, W) by view of some of them, given by their places.
        """
        import torch

        chained, repeats = self.network.settings["shift"] == "past", len(set(moments)) < len(moments)
        if chained and repeats:
            self.clear()  # at the beginning of a stream, whose first frame is repeated
        todo = self._todo(moments, chained=chained)
        with torch.inference_mode():
            fresh: list[Tensor] = []
            if todo:
                state: Past = dict(self._states[moments[todo[0] - 1]]) if chained and todo[0] else {}
                inputs = render(todo)
                views = [torch.from_numpy(inputs[name]).to(self.device) for name in self.network.views]
                fresh = list(self.network.encode(*views, past=state))
                self.computed += len(todo)
                if not (chained and repeats):
                    self._vectors |= {moments[place]: vector for place, vector in zip(todo, fresh, strict=True)}
                    self._states[moments[-1]] = state
            rows = [self._vectors[key] for key in (moments[: todo[0]] if chained and todo else moments)]
            rows += fresh if chained else []
            logits = self.network.join(torch.stack(rows, 1)).mean(0)
        self._forget(min(max(key) for key in moments))
        found: NDArray[np.float32] = logits.float().cpu().numpy()
        return found

    def _todo(self, moments: Sequence[Key], *, chained: bool) -> list[int]:
        """Places of the moments to compute."""
        new = [i for i, key in enumerate(moments) if key not in self._vectors]
        if not chained or not new:
            return new
        # One after the other from the first new one, if the state before it is known, otherwise from the start.
        first = new[0] if new[0] and moments[new[0] - 1] in self._states else 0
        return list(range(first, len(moments)))

    def _forget(self, oldest: int) -> None:
        """Drops what lies before the sequence."""
        self._vectors = {key: vector for key, vector in self._vectors.items() if max(key) >= oldest}
        self._states = {key: state for key, state in self._states.items() if max(key) >= oldest}
