"""Networks that are ready to run: out of a run folder, in torch, or exported, without torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.device import pick_device
from stillmotion.export.formats import VERSION, Run, format_of

if TYPE_CHECKING:
    from stillmotion.models.encoder import Encoder

Inputs = dict[str, NDArray[np.uint8]]
Network = Callable[[Inputs], NDArray[np.float32]]

FREE = ("moment", "num_moments", "spacing", "lead", "jitter", "outside", "stride", "fps", "clip", "end", "resize",
        "num_crops", "interpolation")  # fmt: skip
"""Settings of a view that are no part of an exported graph."""
GEOMETRY = ("resize", "num_crops", "interpolation")
"""Those that are, where the graph resizes frames itself."""


def load_network(
    model: str, *, device: str, view: Mapping[str, Any], threads: int | None = None
) -> tuple[Network, dict[str, Any]]:
    """Loads a network and what is needed to feed and to read it.

    Args:
        model: Run folder, name on the Hugging Face Hub, or exported file.
        device: auto, cpu or cuda.
        view: Settings of `View` that differ from training.
        threads: For computing on the CPU; None leaves it to the library.

    Returns:
        A function from frames (N, T, C, H, W) by view to logits (K,); and `task`, `views`, `short_side`, `preprocess`
        (whether frames are given whole) as JSON data.

    Raises:
        ValueError: In one line: the file, and what is wrong with it.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device}: choose one of auto, cpu, cuda")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: must be at least 1")
    if format_of(model) is not None:
        return _load_exported(model, device, view, threads)
    return _load_run(model, device, view, threads)


def open_exported(model: str, *, device: str, threads: int | None = None) -> tuple[Run, dict[str, Any]]:
    """Opens an exported network as it is: a function of batches, and its facts.

    Raises:
        ValueError: As `load_network`.
    """
    kind, path = format_of(model), Path(model)
    assert kind is not None
    if not path.is_file():
        raise ValueError(f"{model}: no such file; `stillmotion export` writes one from a run folder")
    try:
        run, text = kind.backend.load(path, device, threads)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None
    if text is None:
        raise ValueError(f"{model}: not exported by stillmotion (no classes inside); use `stillmotion export`")
    facts: dict[str, Any] = json.loads(text)
    if facts.get("format") != VERSION:
        raise ValueError(f"{model}: format {facts.get('format')!r}, this version reads {VERSION}; export it again")
    return run, facts


def _load_exported(
    model: str, device: str, view: Mapping[str, Any], threads: int | None
) -> tuple[Network, dict[str, Any]]:
    """An exported network, whose metadata says what it sees and what its logits mean."""
    network, config = open_exported(model, device=device, threads=threads)
    free = set(FREE) - set(GEOMETRY if config["preprocess"] else ())
    # A network that joins the moments of a video has an axis for them, whose size is fixed unless it was left free.
    joins = config["joins_moments"]
    if joins:
        free -= {"num_crops"} if config["dynamic_frames"] else {"num_moments", "num_crops"}
    elif config["dynamic_frames"]:
        free |= {"num_frames"}
    if fixed := [key for key in view if key not in free]:
        raise ValueError(f"{model}: view.{fixed[0]} is fixed in this model; export it again, or predict from the run")
    config["views"] = {name: {**data, **view} for name, data in config["views"].items()}
    if any(data["kind"] == "flow" for data in config["views"].values()) and find_spec("cv2") is None:
        raise ValueError(f"{model}: sees optical flow, which OpenCV computes; pip install 'stillmotion[flow]'")

    return ExportedNetwork(network, joins, config.get("gmacs")), config


class ExportedNetwork:
    """A network of an exported file: frames (N, T, C, H, W) by view -> logits (K,).

    Args:
        run: The graph, a function of batches.
        joins: Whether it joins the moments of a sample, and has an axis for them.
        gmacs: As in `models.cost.Cost`; None of files that do not tell.
    """

    def __init__(self, run: Run, joins: bool, gmacs: float | None = None) -> None:
        self.run, self.joins, self.gmacs = run, joins, gmacs

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.batch([inputs])[0]
        return logits

    def batch(self, samples: Sequence[Inputs]) -> NDArray[np.float32]:
        """Logits (B, K) of samples whose frames have the same shapes."""
        join = np.stack if self.joins else np.concatenate
        logits = self.run({name: join([inputs[name] for inputs in samples]) for name in samples[0]})
        mean: NDArray[np.float32] = logits.reshape(len(samples), -1, logits.shape[-1]).mean(axis=1, dtype=np.float32)
        return mean


def _load_run(model: str, device: str, view: Mapping[str, Any], threads: int | None) -> tuple[Network, dict[str, Any]]:
    """A run folder: the network in torch."""
    from stillmotion.models.pretrained import load_pretrained

    encoder, task, _ = load_pretrained(model, view=view)
    where = set_up_torch(device, threads)
    views = {name: seen.to_dict() for name, seen in encoder.views.items()}
    facts = {"task": task.to_dict(), "views": views, "short_side": encoder.short_side, "preprocess": False}
    return TorchNetwork(encoder.eval().to(where), where), facts


def set_up_torch(device: str, threads: int | None) -> str:
    """Where torch computes, see `pick_device`; with so many threads."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    return pick_device(device)


class TorchNetwork:
    """A network of a run folder: frames (N, T, C, H, W) by view -> logits (K,).

    Args:
        encoder: The network, in `eval()` and on the device.
        device: Where it is.
    """

    def __init__(self, encoder: "Encoder", device: str) -> None:
        self.encoder, self.device = encoder, device

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.batch([inputs])[0]
        return logits

    def batch(self, samples: Sequence[Inputs]) -> NDArray[np.float32]:
        """Logits (B, K) of samples whose frames have the same shapes."""
        import torch

        stacked = {f"student/{name}": np.stack([inputs[name] for inputs in samples]) for name in samples[0]}
        with torch.inference_mode():
            batch = {name: torch.from_numpy(x).to(self.device) for name, x in stacked.items()}
            logits: NDArray[np.float32] = self.encoder.from_batch(batch, "student")["logits"].float().cpu().numpy()
        return logits

    @cached_property
    def gmacs(self) -> float:
        """As in `models.cost.Cost`."""
        from stillmotion.models.cost import count_cost

        return count_cost(self.encoder).gmacs
