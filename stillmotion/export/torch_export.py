"""torch-export: a `.pt2` that torch runs without this package's code of the network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillmotion.data.faults import one_line
from stillmotion.export.formats import METADATA, Arrays, Run
from stillmotion.export.screen import screen

if TYPE_CHECKING:
    from stillmotion.export.deliver import Settings
    from stillmotion.export.graph import Network

FACTS = f"{METADATA}.json"


def write(path: Path, network: "Network", facts: Mapping[str, Any], settings: "Settings") -> None:
    """As `Backend.write`."""
    import torch

    program = network.trace(any_count=False)
    torch.export.save(program, path, extra_files={FACTS: json.dumps({**facts, "inputs": network.names})})


def load(path: Path, device: str, threads: int | None) -> tuple[Run, str | None]:
    """As `Backend.load`."""
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError("needs torch; pip install 'stillmotion[train]', or export it as .onnx") from None
    from torch.export.passes import move_to_device_pass

    from stillmotion.networks import set_up_torch

    where = set_up_torch(device, threads)
    extra = {FACTS: ""}
    try:
        screen(path)
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # zip, JSON and torch's own errors
        raise ValueError(f"not a model that torch.export saved ({one_line(error)[:120]})") from None
    module = (move_to_device_pass(program, where) if where != "cpu" else program).module()
    facts = extra[FACTS] or None
    names = json.loads(facts)["inputs"] if facts else []

    @torch.inference_mode()
    def run(inputs: Arrays) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = module(*(torch.from_numpy(inputs[n]).to(where) for n in names)).cpu().numpy()
        return logits

    return run, facts
