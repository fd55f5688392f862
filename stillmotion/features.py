"""Stored features: what decides them (their key), and serving them only where a live teacher would give the same."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stillmotion.config import DataConfig
from stillmotion.data.flow_store import open_flow
from stillmotion.data.remote import place_of
from stillmotion.data.store import EXTRACT_AGAIN, FeatureStore, FrameStore, file_size
from stillmotion.data.table import Table
from stillmotion.files import write_atomic
from stillmotion.methods.base import has_logits
from stillmotion.methods.hallucinate import feature_dim
from stillmotion.models.encoder import Encoder, StoredFeatures
from stillmotion.view import Augment, View

FILES = "files.json"


def open_features(
    folder: str | Path, *, table: Table, data: DataConfig, seed: int, teacher: Encoder | None = None
) -> StoredFeatures:
    """Stored features as the teacher of a training, refused unless they are what the live teacher would give.

    Args:
        folder: What `extract` wrote.
        table: The samples; those of other splits than `data` names may be missing in the store.
        data: Settings of the training.
        seed: Of the training.
        teacher: The network that they must come from. None takes whichever the store came from. Where only its
            classifier differs, the logits are not served.

    Raises:
        ValueError: The features do not match; in one line what differs.
    """
    store = FeatureStore(folder)
    views = teacher.views if teacher is not None else {n: View.from_dict(v) for n, v in store.key["views"].items()}
    key = {**store.key, **_drawn_from(views, data, seed)}
    fields = dict(store.fields)
    if teacher is not None:
        key |= _made_by(teacher)
        if key["classifier"] != store.key["classifier"]:
            key["classifier"] = store.key["classifier"]
            fields.pop("logits", None)
    FeatureStore(folder, key)
    _check_sizes(folder, read_sizes(folder), table)
    return StoredFeatures(
        str(folder),
        embedding_dim=fields["embedding"][-1],
        num_classes=fields["logits"][-1] if "logits" in fields else 0,
        view=next(iter(views.values())),
        taps={name: shape[-1] for name, shape in fields.items() if name not in ("embedding", "logits")},
    )


def make_key(teacher: Encoder, data: DataConfig, seed: int) -> dict[str, Any]:
    """All that decides the features of a sample and draw, as JSON data."""
    return {**_made_by(teacher), **_drawn_from(teacher.views, data, seed)}


def _made_by(teacher: Encoder) -> dict[str, Any]:
    """The network: its classifier apart, because an untrained one does not matter to the embedding."""
    last = teacher.classifier_names()
    options = {k: v for k, v in teacher.config.items() if k not in ("view", "taps", "num_classes")}
    return {
        "weights": weights_hash(teacher, [name for name in teacher.state_dict() if name not in last]),
        "classifier": weights_hash(teacher, sorted(last)) if has_logits(teacher) else None,
        "model": options,
        "views": {name: view.to_dict() for name, view in teacher.views.items()},
    }


def _drawn_from(views: Mapping[str, View], data: DataConfig, seed: int) -> dict[str, Any]:
    """The frames and stored flow, and what is random about them.

    Seed and augmentation do not matter to views that see no draw.
    """
    frames: dict[str, Any] = {"short_side": data.short_side, "codec": "raw"}
    if data.packed is not None:
        packed = FrameStore(data.packed)
        frames = {"short_side": packed.short_side, "codec": packed.codec}
        frames |= {"quality": packed.header.get("quality")} if packed.codec != "raw" else {}
    flow = open_flow(data.flow, views, frames["short_side"])
    augment = {"min_area": data.augment.min_area, "max_ratio": data.augment.max_ratio, "flip": data.augment.flip}
    frames |= {"flow": asdict(flow.settings)} if flow is not None else {}
    return {"frames": frames, "draws": None if is_still(views, data.augment) else {"seed": seed, **augment}}


def is_still(views: Mapping[str, View], augment: Augment) -> bool:
    """Whether views look the same in every draw."""
    return not any(
        view.moment == "random"
        or (view.moment == "spaced" and view.jitter > 0)
        or view.interpolation == "random"
        or (view.resize is None and augment != Augment())
        for view in views.values()
    )


def weights_hash(encoder: Encoder, names: Sequence[str]) -> str:
    """SHA-256 of some tensors of a network: their names, types, shapes and values."""
    state, result = encoder.state_dict(), hashlib.sha256()
    for name in sorted(names):
        tensor = state[name].detach().cpu().contiguous()
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return result.hexdigest()


def feature_fields(teacher: Encoder) -> dict[str, tuple[int, int]]:
    """What is stored of a teacher: shape (N, D) by name."""
    moments = {view.num_shown for view in teacher.views.values()}
    assert len(moments) == 1, "the views of a network see the same moments"
    names = ["embedding", *(["logits"] if has_logits(teacher) else []), *teacher.taps]
    return {name: (max(moments), feature_dim(teacher, name)) for name in names}


def read_sizes(folder: str | Path) -> dict[str, int | None]:
    """Size of the file of every sample when its features were extracted, by sample."""
    path = place_of(folder) / FILES
    sizes: dict[str, int | None] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return sizes


def note_sizes(folder: Path, table: Table) -> None:
    """Adds the sizes of files from which features will be extracted.

    Raises:
        ValueError: A file has changed since it was noted.
    """
    sizes = read_sizes(folder)
    _check_sizes(folder, sizes, table)
    sizes |= {sample.id: file_size(sample.path) for sample in table}
    write_atomic(folder / FILES, json.dumps(sizes, indent=0, ensure_ascii=False) + "\n")


def _check_sizes(folder: str | Path, sizes: Mapping[str, int | None], table: Table) -> None:
    for sample in table:
        size = file_size(sample.path)
        if size != sizes.get(sample.id, size):
            raise ValueError(
                f"{folder}: {sample.path} has {size} bytes and had {sizes[sample.id]} when its features were "
                f"extracted; {EXTRACT_AGAIN}"
            )
