"""The formats of exported networks. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

FormatName = Literal["onnx", "openvino", "torch-export"]
Precision = Literal["float32", "float16", "bfloat16", "int8"]
METADATA = "stillmotion"
"""Under this name a file carries its facts, as JSON."""
VERSION = 2
"""Of the facts."""

Arrays = Mapping[str, NDArray[np.uint8]]
Run = Callable[[Arrays], NDArray[np.float32]]
"""From bytes (B, ...) by the names of the views to logits (B, K)."""


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        suffix: Of its name.
        module: Has `write(path, network, facts, settings)` and `load(path, device, threads)`.
        precisions: That it can have.
        beside: Suffixes of further files that belong to it.
    """

    suffix: str
    module: str
    precisions: tuple[str, ...] = get_args(Precision)
    beside: tuple[str, ...] = ()

    @property
    def backend(self) -> "Backend":
        """Its module."""
        module: Any = import_module(self.module)
        backend: Backend = module
        return backend


class Backend(Protocol):
    """What a format's module has."""

    def write(self, path: Path, network: Any, facts: Mapping[str, Any], settings: Any) -> None:
        """Writes a network (`graph.Network`) with its facts, as `Settings` asks for it.

        Raises:
            ValueError: It cannot be written so.
        """
        ...

    def load(self, path: Path, device: str, threads: int | None) -> tuple[Run, str | None]:
        """Reads what `write` wrote: how it runs, and its facts; None where there are none.

        Raises:
            ValueError: It cannot be read; without the file's name, which the caller knows.
        """
        ...


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", "stillmotion.export.onnx"),
    "openvino": Format(".xml", "stillmotion.export.openvino", beside=(".bin",)),
    "torch-export": Format(".pt2", "stillmotion.export.torch_export", precisions=("float32",)),
}
"""By the name that `--format` takes."""


def format_of(path: str | Path) -> Format | None:
    """The format of a file, by its suffix; None if it is none of an exported network."""
    return next((f for f in FORMATS.values() if f.suffix == Path(path).suffix.lower()), None)


def choose_format(output: Path, name: str | None) -> Format:
    """The format that is asked for.

    Raises:
        ValueError: There is none of this name, or the file is called otherwise.
    """
    suffixes = ", ".join(f"{f.suffix} ({name})" for name, f in FORMATS.items())
    if name is not None and name not in FORMATS:
        raise ValueError(f"format={name!r}: choose one of {', '.join(FORMATS)}")
    found = format_of(output)
    if found is None or (name is not None and found is not FORMATS[name]):
        wanted = FORMATS[name].suffix if name is not None else f"one of {suffixes}"
        raise ValueError(f"output={output}: give a name that ends in {wanted}")
    return found
