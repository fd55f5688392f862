"""The order of work of an export: load, write aside, check, and only then deliver."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from stillmotion.export.formats import VERSION, Arrays, Format, FormatName, Precision, choose_format
from stillmotion.files import write_atomic

if TYPE_CHECKING:
    from stillmotion.models.encoder import Encoder
    from stillmotion.tasks import Task

REPORT = ".report.json"
"""Behind the file's name."""
FLOAT_LAYERS = 4
"""First layers that int8 spares: few weights, and the widest ranges (measured with MobileNetV2, `docs/export.md`)."""


class NotDelivered(ValueError):
    """A file was made and does not give the network's answers: one line."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network is written.

    Args:
        precision: Of weights (16 bits) or of weights and activations (int8).
        preprocess: Resize and crop inside.
        dynamic_frames: Leave the number of frames free.
        float_layers: Of int8: so many first convolutions or linear layers stay float32.
        calibration: Of int8: inputs whose values give the ranges of activations.
    """

    precision: Precision = "float32"
    preprocess: bool = False
    dynamic_frames: bool = False
    float_layers: int = FLOAT_LAYERS
    calibration: Sequence[Arrays] = ()


def export(
    run: str,
    output: str,
    *,
    format: FormatName | None = None,
    precision: Precision = "float32",
    preprocess: bool = False,
    dynamic_frames: bool = False,
    table: str | None = None,
    split: str | None = None,
    root: str | None = None,
    calibration_samples: int = 64,
    float_layers: int = FLOAT_LAYERS,
    max_drop: float = 1.0,
    max_samples: int | None = None,
    licence: str | None = None,
    view: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a network as a file that predicts by itself; the entry of `stillmotion export`.

    Args:
        run: Run folder, or a name on the Hugging Face Hub.
        output: Where the file goes; its report is `OUTPUT.report.json`.
        format: onnx, openvino or torch-export; None follows from the suffix.
        precision, preprocess, dynamic_frames, float_layers: See `Settings`.
        table: On which the file is compared with the network, and calibrated; None: that of the run's training, if it
            is there still.
        split: That is compared on; None: the validation split, or else the test split.
        root: Folder that the table's relative paths start from.
        calibration_samples: Of int8: training samples whose frames give the ranges.
        max_drop: Points that the main metric may lose.
        max_samples: Compare on so many samples at most, spread evenly over the split.
        licence: Of the weights, for the metadata; None: what the library says of weights that it gave.
        view: Settings of `View` that differ from training.

    Returns:
        The file.

    Raises:
        NotDelivered: The file does not give the network's answers; nothing is written.
        ValueError: The network cannot be exported so, or a setting is wrong.
    """
    from stillmotion.export.check import Checked, check
    from stillmotion.export.frames import Frames
    from stillmotion.export.graph import Network
    from stillmotion.models.pretrained import find_pretrained, load_pretrained
    from stillmotion.run import environment

    target = Path(output)
    kind = _check(target, format, precision, calibration_samples, float_layers, max_samples)
    folder = find_pretrained(run)
    encoder, task, config = load_pretrained(folder, view=view)
    encoder = encoder.eval().float()
    if not encoder.num_classes:
        raise ValueError(f"{run}: gives no logits; export a trained student")
    if any(v.kind == "feature" for v in encoder.views.values()):
        raise ValueError(f"{run}: sees stored features; export the network that they came from")
    frames = Frames.find(folder, encoder, task, table=table, split=split, root=root, max_samples=max_samples)
    settings = Settings(precision=precision, preprocess=preprocess, dynamic_frames=dynamic_frames,
                        float_layers=float_layers)  # fmt: skip
    facts = describe(folder, encoder, task, config, settings, licence)
    with tempfile.TemporaryDirectory() as name:
        staged = Path(name) / f"model{kind.suffix}"
        try:
            network = Network(encoder, preprocess=preprocess, dynamic_frames=dynamic_frames).eval()
            if precision == "int8":
                settings = replace(settings, calibration=frames.calibration(calibration_samples, facts))
            kind.backend.write(staged, network, facts, settings)
        except ValueError as error:
            raise ValueError(f"{run}: not exported; {error}") from error
        checked: Checked = check(staged, network, frames, precision=precision, max_drop=max_drop)
        if checked.fault:
            raise NotDelivered(f"{run}: not exported, {checked.fault}")
        target.parent.mkdir(parents=True, exist_ok=True)
        parts = [staged.with_suffix(suffix) for suffix in (*kind.beside, kind.suffix)]  # what names the others, last
        report = {
            "file": target.name,
            "bytes": sum(part.stat().st_size for part in parts),
            "precision": precision,
            "float_layers": float_layers,
            "training": facts["training"],
            **checked.report,
            "environment": environment(),
        }
        for part in parts:
            write_atomic(target.with_suffix(part.suffix), part.read_bytes())
        write_atomic(report_path(target), json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return target


def report_path(target: Path) -> Path:
    """Where the report of a file lies."""
    return target.with_name(target.name + REPORT)


def _check(
    target: Path, format: str | None, precision: str, samples: int, float_layers: int, max_samples: int | None
) -> Format:
    """Refuses settings before any work.

    Raises:
        ValueError: Naming one, and what there is.
    """
    kind = choose_format(target, format)
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r}: choose one of {', '.join(get_args(Precision))}")
    if precision not in kind.precisions:
        raise ValueError(f"precision={precision}: {kind.suffix} files are {', '.join(kind.precisions)}; "
                         "export as .onnx or .xml")  # fmt: skip
    for name, value, least in (("calibration_samples", samples, 1), ("float_layers", float_layers, 0),
                               ("max_samples", max_samples, 1)):  # fmt: skip
        if value is not None and value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    return kind


def describe(
    folder: Path, encoder: "Encoder", task: "Task", config: Mapping[str, Any], settings: Settings, licence: str | None
) -> dict[str, Any]:
    """What travels in a file: plain data."""
    from stillmotion.models.cost import count_cost
    from stillmotion.run import fingerprint

    trained = folder / "settings.json"
    given = json.loads(trained.read_text(encoding="utf-8")) if trained.is_file() else {}
    return {
        "format": VERSION,
        "task": task.to_dict(),
        "views": {name: v.to_dict() for name, v in encoder.views.items()},
        "short_side": encoder.short_side,
        "joins_moments": encoder.joins_moments,
        "dynamic_frames": settings.dynamic_frames,
        "preprocess": settings.preprocess,
        "precision": settings.precision,
        "model": config["model"],
        "gmacs": count_cost(encoder).gmacs,
        "licence": licence or _licence(given),
        "training": {
            "weights": fingerprint(str(folder), None),
            "settings": hashlib.sha256(trained.read_bytes()).hexdigest()[:16] if given else None,
            "table": given.get("table_hash"),
            **config.get("trained", {}),
        },
    }


def _licence(settings: Mapping[str, Any]) -> str | None:
    """Of weights that a library gave, as it states it."""
    student = settings.get("student", {})
    if student.get("weights") != "default":
        return None
    from stillmotion.models.catalogue import list_models

    return next((m.licence for m in list_models(student["name"]) if m.name == student["name"]), None)
