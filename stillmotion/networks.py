"""Networks that are ready to run: out of a run folder, in torch, or exported to ONNX, without torch."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

Inputs = dict[str, NDArray[np.uint8]]
Network = Callable[[Inputs], NDArray[np.float32]]

if TYPE_CHECKING:
    from stillmotion.models.encoder import Encoder

METADATA = "stillmotion"
# The other settings of a view are part of the exported graph.
FREE_IN_ONNX = ("moment", "num_moments", "spacing", "lead", "jitter", "outside", "stride", "fps", "clip", "end",
                "resize", "num_crops", "interpolation")  # fmt: skip


def load_network(model: str, *, device: str, view: Mapping[str, Any]) -> tuple[Network, dict[str, Any]]:
    """Loads a network and what is needed to feed and to read it.

    Args:
        model: Run folder, name on the Hugging Face Hub, or exported `.onnx`.
        device: auto, cpu or cuda.
        view: Settings of `View` that differ from training.

    Returns:
        A function from frames (N, T, C, H, W) by view to logits (K,); and `task`, `views`, `short_side` as JSON data.

    Raises:
        ValueError: In one line: the file, and what is wrong with it.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device}: choose one of auto, cpu, cuda")
    if Path(model).suffix.lower() == ".onnx":
        return _load_onnx(model, device, view)
    return _load_run(model, device, view)


def _load_onnx(model: str, device: str, view: Mapping[str, Any]) -> tuple[Network, dict[str, Any]]:
    """An exported student, whose metadata says what it sees and what its logits mean."""
    import onnxruntime

    if not Path(model).is_file():
        raise ValueError(f"{model}: no such file; `stillmotion export` writes one from a run folder")
    wanted = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(model, providers=providers)
    except Exception as error:  # onnxruntime's own classes, without a common base that it exports
        raise ValueError(f"{model}: not an ONNX model ({' '.join(str(error).split())[:120]})") from None
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise ValueError(f"{model}: not exported by stillmotion (no classes inside); use `stillmotion export`")
    if fixed := [key for key in view if key not in FREE_IN_ONNX]:
        raise ValueError(
            f"{model}: view.{fixed[0]} is fixed in an exported model; export it again, or predict from the run"
        )
    config: dict[str, Any] = json.loads(text)
    # A network that joins the moments of a video has an axis for them, and their number is fixed.
    joins = len(session.get_inputs()[0].shape) == 6
    if joins and (fixed := [key for key in ("num_moments", "num_crops") if key in view]):
        raise ValueError(f"{model}: view.{fixed[0]} is fixed in this model; export it again, or predict from the run")
    config["views"] = {name: {**data, **view} for name, data in config["views"].items()}

    def run(inputs: Inputs) -> NDArray[np.float32]:
        inputs = {name: x[None] for name, x in inputs.items()} if joins else inputs
        (logits,) = session.run(["logits"], inputs)
        mean: NDArray[np.float32] = logits.mean(axis=0, dtype=np.float32)
        return mean

    return run, config


def _load_run(model: str, device: str, view: Mapping[str, Any]) -> tuple[Network, dict[str, Any]]:
    """A run folder: the network in torch."""
    import torch

    from stillmotion.models.pretrained import load_pretrained

    encoder, task, _ = load_pretrained(model, view=view)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: no CUDA device here; use auto or cpu")
    where = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    encoder = encoder.eval().to(where)

    views = {name: seen.to_dict() for name, seen in encoder.views.items()}
    config = {"task": task.to_dict(), "views": views, "short_side": encoder.short_side}
    return TorchNetwork(encoder, where), config


class TorchNetwork:
    """A network of a run folder: frames (N, T, C, H, W) by view -> logits (K,).

    Args:
        encoder: The network, in `eval()` and on the device.
        device: Where it is.
    """

    def __init__(self, encoder: "Encoder", device: str) -> None:
        self.encoder, self.device = encoder, device

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            batch = {f"student/{name}": torch.from_numpy(x)[None].to(self.device) for name, x in inputs.items()}
            logits: NDArray[np.float32] = self.encoder.from_batch(batch, "student")["logits"][0].float().cpu().numpy()
        return logits
