"""Reads weights without running anything that a file holds, and says what was taken from it."""

import logging
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillmotion.models.adapters import ImageEncoder, spread_colours
from stillmotion.models.encoder import Encoder

log = logging.getLogger(__name__)

CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "student")
"""Keys under which training scripts put the weights."""
PREFIXES = ("module.", "_orig_mod.", "model.", "state_dict.", "method.", "encoders.", "student.", "backbone.", "net.")
"""What wrappers put before the names of a network: DataParallel, torch.compile, Lightning, our methods and students."""


class WeightsError(ValueError):
    """A weights file that cannot be used: one line with file, what is wrong, and what to do."""


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """What became of the tensors of a weights file.

    Args:
        source: The file, or `default`.
        copied: Names in the network that now hold the file's values.
        left_out: Names in the file that were not taken, with the reason.
        classifier: Why the file's classifier was left out; empty if it fits. The network's own starts at random.
        missing: Further names in the network that the file does not give; they keep their random values.
        initialised: Names that no file of the network it starts from has, such as temporal convolutions.
    """

    source: str
    copied: tuple[str, ...]
    left_out: dict[str, str]
    missing: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    classifier: str = ""

    def summary(self) -> str:
        """One line.

        Example:
            >>> report = WeightsReport(source="a.pth", copied=("conv1.weight",), left_out={}, missing=("fc.weight",))
            >>> report.summary()
            'a.pth: 1 tensor copied; 1 missing (fc.weight)'
        """
        parts = [f"{len(self.copied)} tensor{'s' * (len(self.copied) != 1)} copied"]
        if self.classifier:
            parts.append(f"{self.classifier}: left out")
        if other := {k: v for k, v in self.left_out.items() if v != self.classifier}:
            parts.append(f"{len(other)} not taken ({_first([f'{k}: {v}' for k, v in other.items()])})")
        if self.initialised:
            parts.append(f"{len(self.initialised)} initialised ({_first(self.initialised)})")
        if self.missing:
            parts.append(f"{len(self.missing)} missing ({_first(self.missing)})")
        return f"{self.source}: {'; '.join(parts)}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a `.safetensors`, `.npz` or PyTorch file (`.pt`, `.pth`, `.pth.tar`, `.ckpt`).

    A checkpoint is a pickle, which can hold code; only tensors and plain data are read, anything else is refused.

    Raises:
        WeightsError: No such file, damaged, holds code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; give a .safetensors or PyTorch checkpoint")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on newer pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from None
    except PermissionError:
        raise WeightsError(f"{path}: no permission to read it") from None
    except Exception as error:  # a damaged file can fail in any way: zip, pickle, tensor storage
        raise WeightsError(f"{path}: damaged or no PyTorch checkpoint ({_line(error)}); copy it again") from None
    while isinstance(content, Mapping):
        inner = next((content[k] for k in CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise WeightsError(f"{path}: holds no weights (no tensor by name in it)")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged or no safetensors file ({_line(error)}); copy it again") from None
    if not state:
        raise WeightsError(f"{path}: holds no weights")
    return state


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as content:
            state = {name: torch.from_numpy(np.ascontiguousarray(content[name])) for name in content.files}
    except Exception as error:  # a damaged file can fail in any way: zip, its compression, NumPy's header
        if "pickle" in str(error):
            raise WeightsError(f"{path}: holds code (Python objects), refused; save plain arrays") from None
        raise WeightsError(f"{path}: damaged or no .npz file ({_line(error)}); copy it again") from None
    if not state:
        raise WeightsError(f"{path}: holds no weights")
    return state


def _refusal(path: Path, error: Exception) -> WeightsError:
    """Tells code, or objects that only code can build, from noise that is no pickle at all."""
    found = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error).partition("trusted source.")[2])
    with path.open("rb") as file:
        is_pickle = file.read(4)[:1] in (b"\x80", b"P")  # a pickle's protocol, or a zip
    if found is None and not is_pickle:
        return WeightsError(f"{path}: damaged or no PyTorch checkpoint; copy it again")
    what = f" ({found[1]})" if found else ""
    return WeightsError(f"{path}: holds code{what}, refused; save only the state dict, best as .safetensors")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def load_weights(encoder: Encoder, path: str | Path) -> WeightsReport:
    """Copies into a network what fits from a weights file.

    Args:
        encoder: Changed in place; `encoder.weights_report` is set.
        path: As in `read_weights`; names as published or as `save_pretrained` wrote them, `PREFIXES` before them.

    Returns:
        What was copied, left out and missing. A summary is logged as a warning if anything was left out or missing.

    Raises:
        WeightsError: Nothing fits, or the file cannot be used.
    """
    return copy_weights(encoder, read_weights(path), str(path))


def copy_weights(encoder: Encoder, state: Mapping[str, Tensor], source: str) -> WeightsReport:
    """As `load_weights`, from tensors in memory."""
    names, own, of_classes = encoder.published_names(), encoder.state_dict(), encoder.classifier_names()
    state, view = encoder.adapt_state(state), next(iter(encoder.views.values()))
    stacked = view.kind == "flow" or any(isinstance(m, ImageEncoder) and m.stack for m in encoder.modules())
    fitting: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    dropped: dict[str, str] = {}
    # The shortest name first, so that `conv1` wins over `student.conv1` if a file holds both.
    for name, tensor in sorted(state.items(), key=lambda item: len(item[0])):
        target = names.get(_strip(name, names))
        if target is None:
            left_out[name] = "not in this network"
        elif target in fitting:
            left_out[name] = "found twice"
        elif _shape(tensor) == _shape(own[target]):
            fitting[target] = tensor.reshape(own[target].shape)
        elif _of_colours(tensor, own[target]) and stacked:
            # As `take_input` does it with the network's own first convolution.
            colours = tensor.reshape(len(tensor), 3, *own[target].shape[2:])
            fitting[target] = spread_colours(colours, own[target].shape[1], view)
        elif target in of_classes and tensor.shape[1:] == own[target].shape[1:]:
            left_out[name] = f"classifier of {tensor.shape[0]} classes, here {own[target].shape[0]}"
            dropped[target] = left_out[name]
        else:
            left_out[name] = f"shape {list(tensor.shape)}, here {list(own[target].shape)}"
    if not any(own[name].ndim for name in fitting):
        example = max(own.items(), key=lambda item: item[1].ndim)
        raise WeightsError(f"{source}: nothing fits {encoder.config['name']}; {_why(state, names, *example)}")
    # Files older than 2018 lack batch norm's counter, and nothing depends on it.
    absent = set(own) - set(fitting) - set(dropped)
    absent = {name for name in absent if not name.endswith("num_batches_tracked")}
    fresh = encoder.initialised_names()
    report = WeightsReport(
        source=source,
        copied=tuple(name for name in own if name in fitting),
        left_out=left_out,
        missing=tuple(name for name in own if name in absent and name not in fresh),
        initialised=tuple(name for name in own if name in absent and name in fresh),
        classifier=next(iter(dropped.values()), ""),
    )
    encoder.load_state_dict(fitting, strict=False)
    if dropped:
        # Some libraries start it so large (timm's MobileNets and EfficientNets: by the number of classes) that a few
        # classes begin with logits of size 10.
        encoder.reset_classifier(encoder.num_classes)
    encoder.weights_report = report
    if report.left_out or report.missing:
        log.warning("%s", report.summary())
    return report


def _of_colours(given: Tensor, own: Tensor) -> bool:
    """Whether a convolution sees three colours where the network's sees something else."""
    if min(given.ndim, own.ndim) < 4 or given.shape[1] != 3 or own.shape[1] == 3 or len(given) != len(own):
        return False
    return _shape(given[:, 0]) == _shape(own[:, 0])


def _shape(tensor: Tensor) -> list[int]:
    """Without axes of size 1: a 1x3x3 convolution in 3D is a 3x3 one in 2D."""
    return [size for size in tensor.shape if size != 1]


def _why(state: Mapping[str, Tensor], names: Mapping[str, str], wanted: str, tensor: Tensor) -> str:
    """Something to compare: a convolution of the file and one of the network."""
    given = max(state.items(), key=lambda item: item[1].ndim)
    published = next(name for name, own in names.items() if own == wanted)
    return (
        f"another architecture? The file has {given[0]} {list(given[1].shape)}, "
        f"the network {published} {list(tensor.shape)}"
    )


def _strip(name: str, known: Mapping[str, Any]) -> str:
    """Takes known prefixes off until the name is one of the network's."""
    while name not in known:
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if prefix is None:
            break
        name = name.removeprefix(prefix)
    return name
