"""INT8 after training: weights and activations in 8 bits, their ranges from frames of the training (onnxruntime)."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stillmotion.export.formats import Arrays

HEAVY = ("Conv", "Gemm", "MatMul")
"""Operators with weights, in whose order `float_layers` counts."""


def quantise(content: bytes, calibration: Sequence[Arrays], *, float_layers: int) -> bytes:
    """A float model with quantised convolutions and linear layers (QDQ, weights per channel).

    Weights are unsigned around 128, not signed: x86 CPUs without VNNI add two products of unsigned and signed bytes in
    16 bits, which overflow. The same file would say something else there than on other machines, and 7 bits, which do
    not overflow, lose more than they are worth (`docs/export.md`). The outputs of linear layers, and so the logits, are
    not rounded.

    Args:
        content: ONNX, with bytes as inputs.
        calibration: Inputs whose values give the ranges of the activations.
        float_layers: So many first convolutions or linear layers stay float32.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    assert calibration
    with tempfile.TemporaryDirectory() as name:
        given, folded, result = (Path(name) / f"{part}.onnx" for part in ("given", "folded", "result"))
        given.write_bytes(content)
        quant_pre_process(str(given), str(folded), skip_symbolic_shape=True)  # folds batch norms into convolutions
        heavy = [node.name for node in onnx.load(str(folded)).graph.node if node.op_type in HEAVY]
        quantize_static(
            str(folded),
            str(result),
            _Frames(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            nodes_to_exclude=heavy[:float_layers],
        )
        model = onnx.load(str(result))
    _make_unsigned(model.graph)
    unsigned: bytes = model.SerializeToString()
    return unsigned


def _make_unsigned(graph: Any) -> None:
    """Moves signed weights and their zero points up by 128."""
    from onnx import TensorProto, numpy_helper

    signed = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}
    read = [node.input for node in graph.node if node.op_type == "DequantizeLinear"]
    wanted = {name for inputs in read for name in (inputs[0], inputs[2])}
    for name in wanted & signed.keys():
        values = numpy_helper.to_array(signed[name]).astype("int16") + 128
        signed[name].CopyFrom(numpy_helper.from_array(values.astype("uint8"), name))


class _Frames:
    """What `CalibrationDataReader` asks for."""

    def __init__(self, inputs: Sequence[Arrays]) -> None:
        self._rows: Iterator[Any] = iter(inputs)

    def get_next(self) -> Any:
        row = next(self._rows, None)
        return dict(row) if row is not None else None
