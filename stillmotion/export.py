"""Export of a student to one ONNX file that needs no torch: frames in, logits out, classes and views inside."""

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillmotion.models.encoder import Encoder
from stillmotion.networks import METADATA
from stillmotion.results import write_atomic

OPSET = 20
BATCH_SIZES = (1, 2, 5)
TOLERANCE = 1e-3


class _Graph(nn.Module):
    """The network alone: clips (B, T, 3, H, W) uint8, or sequences (B, N, T, 3, H, W) -> logits (B, K)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.encoder(*inputs)["logits"]
        return logits.float()


def export(run: str, output: str, *, view: Mapping[str, Any] | None = None) -> Path:
    """Writes a student as ONNX; the entry of `stillmotion export`.

    The batch size is free, normalisation is inside, and `stillmotion predict FILE.onnx ...` needs nothing else.

    Args:
        run: Run folder, or a name on the Hugging Face Hub.
        output: Where the `.onnx` goes.
        view: Settings of `View` that differ from training.

    Returns:
        The file.

    Raises:
        ValueError: The network cannot be exported, or the file would not give the network's logits at every batch
            size; then nothing is written.
    """
    from stillmotion.models.pretrained import load_pretrained

    target = Path(output)
    if target.suffix.lower() != ".onnx":
        raise ValueError(f"output={output}: give a name that ends in .onnx")
    encoder, task, config = load_pretrained(run, view=view)
    encoder = encoder.eval().float()
    if not encoder.num_classes:
        raise ValueError(f"{run}: gives no logits; export a trained student")
    if odd := [v.kind for v in encoder.views.values() if v.kind not in ("rgb", "difference")]:
        raise ValueError(f"{run}: sees {odd[0]}; only networks that see RGB or its differences are exported")
    facts = {
        "format": 1,
        "task": task.to_dict(),
        "views": {name: v.to_dict() for name, v in encoder.views.items()},
        "short_side": encoder.short_side,
        "model": config["model"],
    }
    content = _to_onnx(encoder, facts)
    if worst := _disagreement(encoder, content):
        raise ValueError(f"{run}: not exported, {worst}")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, content)
    return target


def example_inputs(encoder: Encoder, batch_size: int) -> list[Tensor]:
    """Random frames, the same at every call, uint8, for each view."""
    generator, shapes = torch.Generator().manual_seed(batch_size), encoder.input_shapes(batch_size)
    return [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for shape in shapes]


def _to_onnx(encoder: Encoder, facts: Mapping[str, Any]) -> bytes:
    import onnx

    # Names of the inputs are those of the views, for `networks.py`.
    batch = torch.export.Dim("batch", min=1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)  # two views share the axis
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            _Graph(encoder).eval(),
            tuple(example_inputs(encoder, 2)),
            str(path),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=list(encoder.views),
            output_names=["logits"],
            dynamic_shapes={"inputs": tuple({0: batch} for _ in encoder.views)},
            verbose=False,
        )
        model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA: json.dumps(facts)})
    content: bytes = model.SerializeToString()
    return content


def _disagreement(encoder: Encoder, content: bytes) -> str | None:
    """Compares with torch at three batch sizes; None if all logits agree."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    graph = _Graph(encoder)
    for size in BATCH_SIZES:
        inputs = example_inputs(encoder, size)
        with torch.inference_mode():
            expected = graph(*inputs).numpy()
        names = list(encoder.views)
        (given,) = session.run(["logits"], {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
        error = float(np.abs(given - expected).max()) if given.shape == expected.shape else float("inf")
        if not error <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            return f"as its logits differ from the network's by {error:.2g} at batch size {size}"
    return None
