"""The model card beside the weights of a run: `README.md` with a head that the Hugging Face Hub reads."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from stillmotion.data.faults import one_line
from stillmotion.files import write_atomic
from stillmotion.report.cost import card_section
from stillmotion.report.subject import Missing, Subject, read_subject
from stillmotion.results import format_cost, format_metric, head_of, is_accuracy, paired_bootstrap
from stillmotion.tasks import Classes
from stillmotion.view import View

FILE = "README.md"
HUB_METRICS = {"top1": "accuracy", "correct": "accuracy", "mAP": "mean_average_precision", "spearman": "spearmanr",
               "mae": "mae", "mse": "mse"}  # fmt: skip
"""How the Hub calls metrics; others keep their names."""


def write_card(folder: str | Path) -> Path | None:
    """Writes the card of a run; what goes wrong is one line, as the training is done.

    Args:
        folder: A finished run.

    Returns:
        The card; None if it could not be written.
    """
    target = Path(folder) / FILE
    try:
        write_atomic(target, model_card(folder))
    except Exception as error:
        print(f"warning: {folder}: no model card: {one_line(error)}", file=sys.stderr)
        return None
    return target


def model_card(folder: str | Path) -> str:
    """The card of a run: what it is for, what it costs, how right it is and how sure that is, what it learned from.

    Raises:
        ValueError: The folder holds no finished run.
    """
    subject = read_subject(folder)
    sections = [
        f"---\n{_head(subject).to_yaml()}\n---",
        f"# {subject.name}",
        _intro(subject),
        "## Use\n\n" + _use(subject),
        "## Results\n\n" + _results(subject),
        "## Cost\n\n" + _cost(subject),
        "## Training data\n\n" + _training_data(subject),
        "## Limits\n\n" + _limits(subject),
    ]
    return "\n\n".join(sections) + "\n"


def _data_name(subject: Subject) -> str:
    path = Path(str(subject.settings.get("table", "unknown")))
    return path.parent.name if path.stem == "table" and path.parent.name else path.stem


def _head(subject: Subject) -> ModelCardData:
    """What the Hub reads. The licence is the user's to say: it depends on the videos and on the starting weights."""
    row, data = subject.rows[0], _data_name(subject)
    known = {n: m["mean"] for n, m in row["metrics"].items() if m["mean"] is not None and not n.startswith("val_")}
    found = [
        EvalResult(task_type="video-classification", dataset_type=data, dataset_name=data, dataset_split="test",
                   metric_type=HUB_METRICS.get(name, name), metric_name=name, metric_value=round(value, 5))
        for name, value in known.items() if name != "unreadable"
    ]  # fmt: skip
    method = subject.settings["method"]["name"]
    tags = ["video", "stillmotion", *(["distillation", method] if method != "supervised" else [])]
    return ModelCardData(
        license="unknown",
        library_name="stillmotion",
        pipeline_tag="video-classification",
        tags=tags,
        datasets=[data],
        metrics=sorted({result.metric_type for result in found}) or None,
        model_name=subject.name if found else None,
        eval_results=found or None,
        ignore_metadata_errors=False,
    )


def _views(subject: Subject) -> dict[str, View]:
    from stillmotion.models.pretrained import read_config

    return {name: View.from_dict(data) for name, data in read_config(subject.folder)["views"].items()}


def _seen(view: View) -> str:
    """What a view shows, in words."""
    what = {"rgb": "colour", "difference": "differences of colour", "flow": "optical flow"}.get(view.kind, view.kind)
    frames = "one frame" if view.num_frames == 1 else f"{view.num_frames} frames"
    moments = f" at {view.num_moments} moments" if view.num_moments > 1 else ""
    return f"{frames}{moments} ({view.moment}), {what}, {view.size[1]}x{view.size[0]} pixels"


def _intro(subject: Subject) -> str:
    settings = subject.settings
    name, method = settings["student"]["name"], settings["method"]["name"]
    taught = ""
    if method != "supervised":
        teacher = (settings.get("teacher") or {}).get("name") or ""
        source = f"`{Path(teacher).name}`" if teacher else "a teacher's stored features"
        taught = f" It learned beside its own task from {source} by the method `{method}`."
    seen = "; ".join(_seen(view) for view in _views(subject).values())
    return f"A `{name}` trained with stillmotion.{taught} It sees of a video: {seen}."


def _use(subject: Subject) -> str:
    parts = [f"`{part.target}`: one of {part.num_outputs} classes ({_some(part.class_names)})"
             if isinstance(part, Classes) else f"`{part.target}`: a number"
             for _, part in subject.task.parts]  # fmt: skip
    lines = ["It tells of a video or a still:", "", *(f"- {part}" for part in parts), "",
             "```sh", "stillmotion predict FOLDER clip.mp4", "```", "", "```python",
             "from stillmotion.models.encoder import Encoder", "", 'encoder = Encoder.from_pretrained("FOLDER")', "```",
             "", "It is meant for videos like those that it was trained on."]  # fmt: skip
    return "\n".join(lines)


def _some(names: tuple[str, ...], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _results(subject: Subject) -> str:
    metrics = {n: m for n, m in subject.rows[0]["metrics"].items() if m["mean"] is not None and n != "unreadable"}
    if not metrics:
        return "Nothing was tested: the training had no test split."
    sure = intervals(subject)
    lines = ["| metric | value | 95 % interval |", "| --- | ---: | ---: |"]
    for name, metric in metrics.items():
        low, high = sure.get(name, (None, None))
        scale, digits = (100, 1) if is_accuracy(name) else (1, 3)
        interval = "" if low is None or high is None else f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"
        lines.append(f"| {head_of(name)} | {format_metric(name, metric)} | {interval} |")
    said = subject.said(subject.rows[0]["name"])
    if said is not None:
        groups = len({g for g in said.groups if g is not None})
        by = f"{groups} groups" if groups else "samples"
        lines += ["", f"On {len(said.ids)} test samples; intervals by bootstrap over {by}. They say how the result "
                      "would vary with other test samples, not with another seed."]  # fmt: skip
    return "\n".join(lines)


def intervals(subject: Subject) -> dict[str, tuple[float, float]]:
    """95 % interval of every metric that is a mean over test samples, whole groups drawn; empty without a test."""
    try:
        said = subject.said(subject.rows[0]["name"])
    except Missing:
        return {}
    if said is None:
        return {}
    found = {}
    for name, (values, known) in subject.task.points(said.logits, said.targets).items():
        known = np.asarray(known, bool)
        if not known.any():
            continue
        each, groups = np.asarray(values, float)[known], [g for g, k in zip(said.groups, known, strict=True) if k]
        spread = paired_bootstrap(each, np.zeros_like(each), groups)
        if spread.low is not None and spread.high is not None:
            found[name] = (spread.low, spread.high)
    return found


def _cost(subject: Subject) -> str:
    cost = subject.rows[0]["cost"]
    words = {"params": "parameters", "gmacs": "GMACs a video", "frames": "frames read",
             "ms_per_video": "milliseconds from the file to its prediction, decoding included"}  # fmt: skip
    lines = [f"- {text}: {format_cost(n, cost[n])}" for n, text in words.items() if cost.get(n) is not None]
    compared = card_section(subject.folder)
    try:
        machine = subject_environment(subject)
    except (OSError, ValueError):
        return "\n".join([*lines, *compared]).strip() or "Not measured."
    if lines:
        lines.append(f"- measured on {machine.get('gpus') or machine.get('processor')}")
    return "\n".join([*lines, *compared]).strip() or "Not measured: the training had no test split."


def subject_environment(subject: Subject) -> dict[str, Any]:
    """`environment.json` of a run."""
    from stillmotion.run import Run

    return Run(subject.folder).read_json("environment.json")


def _training_data(subject: Subject) -> str:
    data, settings = subject.data, subject.settings
    lines = [
        f"- table `{Path(str(settings['table'])).name}` (hash `{settings['table_hash']}`), split `{data['train']}`"
    ]
    try:
        samples = subject.trained_on()
        labelled = sum(subject.task.has_label(s) for s in samples)
        lines.append(f"- {len(samples)} samples, {labelled} of them with a label")
    except Missing:
        pass
    if data.get("label_fraction", 1.0) < 1.0:
        lines.append(f"- {100 * data['label_fraction']:g} % of the labels were used")
    if (subject.folder / "broken.csv").is_file():
        lines.append("- some files could not be read, or only in part: `broken.csv`")
    weights = settings["student"].get("weights") or "random weights"
    return "\n".join(
        [*lines, f"- started from `{weights}`" if weights != "random weights" else f"- started from {weights}"]
    )


def _limits(subject: Subject) -> str:
    lines = ["- One training with one seed; others differ by some points."]
    if max(view.num_frames * view.num_moments for view in _views(subject).values()) == 1:
        lines.append("- It sees one frame: actions that only motion tells apart it guesses from what stands still.")
    if subject.said(subject.rows[0]["name"]) is not None:
        lines.append(
            "- The results hold for the test split of this table, and other cameras, places and people may differ."
        )
    lines.append("- The licence is not stated: it depends on the videos and on the weights that training started from. "
                 "Set `license` in the head of this file before you share it.")  # fmt: skip
    return "\n".join(lines)
