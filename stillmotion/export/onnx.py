"""ONNX: one file that onnxruntime, and so the core install, runs."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.faults import one_line
from stillmotion.export.formats import METADATA, Arrays, Run

if TYPE_CHECKING:
    from stillmotion.export.deliver import Settings
    from stillmotion.export.graph import Network

OPSET = 20
SMALL = 256
"""Tensors of fewer values keep their precision: biases, scales."""


def write(path: Path, network: "Network", facts: Mapping[str, Any], settings: "Settings") -> None:
    """As `Backend.write`."""
    path.write_bytes(with_facts(to_onnx(network, settings), facts))


def to_onnx(network: "Network", settings: "Settings") -> bytes:
    """The graph in the precision that is asked for.

    Raises:
        ValueError: torch cannot export it, or not with a free number of frames.
    """
    from stillmotion.export.quantise import quantise

    content = _exported(network)
    if settings.precision == "int8":
        return quantise(content, settings.calibration, float_layers=settings.float_layers)
    if settings.precision != "float32":
        return _narrowed(content, settings.precision)
    return content


def with_facts(content: bytes, facts: Mapping[str, Any]) -> bytes:
    """The same model with metadata."""
    import onnx

    model = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(model, {METADATA: json.dumps(facts)})
    result: bytes = model.SerializeToString()
    return result


def _exported(network: "Network") -> bytes:
    import torch

    from stillmotion.export.graph import reason

    program = network.trace(any_count=True)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(
                program,
                f=str(path),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=network.names,  # for `stillmotion.networks`
                output_names=["logits"],
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(f"torch cannot export it: {reason(error)}") from error
        return path.read_bytes()


def _narrowed(content: bytes, precision: str) -> bytes:
    """Weights in 16 bits, which a cast widens when the model is loaded: half the file, and computed in float32.

    CPUs without arithmetic of 16 bits, as most are, would compute in it several times slower.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.FLOAT16 if precision == "float16" else TensorProto.BFLOAT16
    model = onnx.load_model_from_string(content)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALL:
            continue
        wide, narrow = tensor.name, f"{tensor.name}.{precision}"
        values = numpy_helper.to_array(tensor)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if precision == "float16" and np.abs(values).max() > np.finfo(np.float16).max:
            continue
        tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), narrow))
        casts.append(helper.make_node("Cast", [narrow], [wide], name=f"widen.{wide}", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    result: bytes = model.SerializeToString()
    return result


def load(path: Path, device: str, threads: int | None) -> tuple[Run, str | None]:
    """As `Backend.load`."""
    import onnxruntime

    wanted = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # Idle threads sleep: spinning doubles the processor's time, which decoding needs (`docs/export.md`).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own classes, without a common base that it exports
        raise ValueError(f"not an ONNX model ({one_line(error)[:120]})") from None

    def run(inputs: Arrays) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], dict(inputs))[0]
        return logits

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA)
