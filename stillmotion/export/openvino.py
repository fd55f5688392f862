"""OpenVINO's IR: `.xml` with the weights in a `.bin` beside it, as OpenVINO's own tools read it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.faults import one_line
from stillmotion.export.formats import METADATA, Arrays, Run

if TYPE_CHECKING:
    from stillmotion.export.deliver import Settings
    from stillmotion.export.graph import Network

WEIGHTS = "weights"
"""Name of the hash of the `.bin` beside the facts: the pair is written one after the other, and may be torn apart."""


def write(path: Path, network: "Network", facts: Mapping[str, Any], settings: "Settings") -> None:
    """As `Backend.write`: OpenVINO reads the ONNX model, with whatever precision it has."""
    from stillmotion.export.onnx import to_onnx

    openvino = _openvino()
    model = openvino.Core().read_model(to_onnx(network, settings))
    model.set_rt_info(json.dumps(facts), [METADATA, "facts"])
    openvino.save_model(model, path, compress_to_fp16=settings.precision == "float16")
    # Only when the weights are written is their hash known.
    model = openvino.Core().read_model(path)
    model.set_rt_info(_hash(path.with_suffix(".bin")), [METADATA, WEIGHTS])
    final = path.with_name("final.xml")
    openvino.serialize(model, final, final.with_suffix(".bin"))
    for suffix in (".xml", ".bin"):
        final.with_suffix(suffix).replace(path.with_suffix(suffix))


def load(path: Path, device: str, threads: int | None) -> tuple[Run, str | None]:
    """As `Backend.load`."""
    openvino = _openvino()
    if device == "cuda":
        raise ValueError("OpenVINO does not run on cuda; use device auto or cpu")
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ValueError(f"its weights, {weights.name}, do not lie beside it")
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        known = ElementTree.parse(path).find(f"rt_info/{METADATA}")
        marks = {mark.tag: mark.get("value") for mark in known} if known is not None else {}
        if marks.get(WEIGHTS, _hash(weights)) != _hash(weights):
            raise ValueError(f"{weights.name} beside it belongs to another model; copy both files, or export it again")
        compiled = openvino.Core().compile_model(path, "CPU", options)
    except (RuntimeError, ElementTree.ParseError) as error:
        raise ValueError(f"not a model that OpenVINO reads ({one_line(error)[:120]})") from None

    def run(inputs: Arrays) -> NDArray[np.float32]:
        return np.asarray(compiled(dict(inputs))["logits"], np.float32).copy()

    return run, marks.get("facts")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _openvino() -> Any:
    try:
        import openvino
    except ModuleNotFoundError:
        raise ValueError("needs OpenVINO; pip install 'stillmotion[openvino]'") from None
    return openvino
