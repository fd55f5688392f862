"""The shareable form of a network: a folder with `model.safetensors` and `config.json`, local or on the Hub."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stillmotion.data.faults import one_line
from stillmotion.files import write_atomic
from stillmotion.models.checkpoint import WeightsReport, read_weights
from stillmotion.models.encoder import Encoder
from stillmotion.tasks import Task, task_from_dict
from stillmotion.view import View

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SHARED = [CONFIG, WEIGHTS, "results.json", "README.md"]


class PretrainedError(ValueError):
    """A folder or Hub name that holds no network of ours: one line."""


def is_run(name: str | Path) -> bool:
    """Whether a name is a folder that `save_pretrained` wrote."""
    return (Path(name) / CONFIG).is_file()


def save_pretrained(encoder: Encoder, task: Task, folder: str | Path, extra: Mapping[str, Any] | None = None) -> Path:
    """Writes `model.safetensors` and `config.json`; each file is complete or not there.

    Args:
        encoder: The network.
        task: Says what its logits mean; holds the class names.
        folder: Made if need be; other files in it stay.
        extra: Further JSON data for `config.json`.

    Returns:
        The folder.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    config = {
        "format": FORMAT,
        "model": encoder.config,
        "task": task.to_dict(),
        "views": {name: view.to_dict() for name, view in encoder.views.items()},
        **(extra or {}),
    }
    write_atomic(folder / WEIGHTS, save(state, {"format": "pt"}))
    write_atomic(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return folder


def load_pretrained(
    source: str | Path,
    *,
    weights: bool = True,
    view: Mapping[str, Any] | None = None,
    taps: Sequence[str] = (),
) -> tuple[Encoder, Task, dict[str, Any]]:
    """Reads what `save_pretrained` wrote, and draws no random numbers unless `weights` is off.

    Args:
        source: Folder, or a name on the Hugging Face Hub (`owner/name`), which is downloaded.
        weights: False gives the architecture with random weights.
        view: Settings of the view to change.
        taps: Layers to give as well.

    Returns:
        The network in `eval()`, its task, and the content of `config.json`.

    Raises:
        PretrainedError: Nothing there, or in another format.
    """
    from stillmotion.models.factory import create_model

    folder = find_pretrained(source)
    config = read_config(folder)
    model = {**config["model"], "view": {**config["model"].get("view", {}), **(view or {})}}
    model["taps"] = list(taps) or model.get("taps", [])
    # Random values that are overwritten must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[], enabled=weights), _told(folder / CONFIG):
        task = task_from_dict(config["task"])
        encoder = create_model(**model)
        encoder.views = {k: View.from_dict({**v, **(view or {})}) for k, v in config["views"].items()}
    if weights:
        try:
            encoder.load_state_dict(state := read_weights(folder / WEIGHTS), strict=True)
        except RuntimeError as error:
            reason = one_line(error)[:200]
            raise PretrainedError(f"{folder / WEIGHTS}: does not fit {folder / CONFIG} ({reason})") from None
        encoder.weights_report = WeightsReport(source=str(source), copied=tuple(state), left_out={})
    encoder.short_side = config.get("trained", {}).get("short_side")
    return encoder.eval(), task, config


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Says which file a setting that is missing, or of another type, stands in."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise PretrainedError(f"{path}: damaged or of another version ({one_line(error)[:160]})") from None


def _outside(value: Any, key: str = "") -> str | None:
    """A file or folder that the settings of a network name; what is shared needs none."""
    if isinstance(value, Mapping):
        return next((found for k, v in value.items() if (found := _outside(v, str(k)))), None)
    if isinstance(value, str) and (
        (key == "weights" and value not in ("default", "random"))
        or (key == "name" and (Path(value).is_absolute() or ".." in Path(value).parts or value.startswith("~")))
    ):
        return value
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """Reads and checks `config.json`.

    Raises:
        PretrainedError: Not JSON, not ours, or of another format.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PretrainedError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(config, dict) or "format" not in config:
        raise PretrainedError(f"{path}: no network of stillmotion (no 'format' in it)")
    if config["format"] != FORMAT:
        raise PretrainedError(f"{path}: format {config['format']!r}, this version reads {FORMAT}; update stillmotion")
    if missing := [key for key in ("model", "task", "views") if not isinstance(config.get(key), dict)]:
        raise PretrainedError(f"{path}: {missing[0]!r} is missing; save the network again")
    if other := _outside(config["model"]):
        raise PretrainedError(f"{path}: names {other!r}, outside of its folder, refused; save the network again")
    return config


def find_pretrained(source: str | Path) -> Path:
    """The folder itself, or the Hub's copy of it.

    Raises:
        PretrainedError: There is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        if not is_run(folder):
            raise PretrainedError(f"{folder}: no {CONFIG} in it; give the folder of a finished run")
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise PretrainedError(f"{source}: no such folder, and no Hub name (owner/name)")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=SHARED))
    except (OSError, ValueError) as error:  # the Hub's and the network's errors are OSErrors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PretrainedError(f"{source}: no such folder, and not found on the Hub ({reason[:160]})") from None


def push_to_hub(
    encoder: Encoder, task: Task, repo_id: str, *, private: bool = False, extra: Mapping[str, Any] | None = None
) -> str:
    """Uploads a network to the Hugging Face Hub; log in first (`hf auth login`).

    Args:
        encoder, task, extra: As in `save_pretrained`.
        repo_id: `owner/name`; made if need be.
        private: Whether a new repository is private.

    Returns:
        Its address.

    Raises:
        PretrainedError: The Hub refused, or cannot be reached.
    """
    import huggingface_hub

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(encoder, task, folder, extra)
        try:
            huggingface_hub.create_repo(repo_id, private=private, exist_ok=True)
            huggingface_hub.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=SHARED)
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise PretrainedError(f"{repo_id}: not uploaded ({reason[:160]})") from None
    return f"https://huggingface.co/{repo_id}"
