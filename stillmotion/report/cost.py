"""The cost card as a person reads it: tables, `cost_card.json`, `.csv` and `.png`. matplotlib waits until needed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillmotion.files import csv_text, write_atomic
from stillmotion.journey import PARTS
from stillmotion.results import head_of, is_accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stillmotion.cost_card import Card, Costs

FILE = "cost_card.json"
NOT_MEASURED = "not measured"
Cells = tuple[list[str], list[list[str]]]


def time_rows(card: "Card") -> Cells:
    """Heads and cells of where the milliseconds go; the last column compares with the first model."""
    first = card.models[0].total_ms
    heads = ["model", "kind", *PARTS, "total ms", *(f"p{p}" for p in card.models[0].percentiles), "decode %", "times"]
    rows = [
        [m.name, m.kind, *(_number(m.ms[part]) for part in PARTS), _number(m.total_ms),
         *(_number(value) for value in m.percentiles.values()), f"{100 * m.ms['decode'] / m.total_ms:.0f}",
         f"{m.total_ms / first:.2f}x"]
        for m in card.models
    ]  # fmt: skip
    return heads, rows


def resource_rows(card: "Card") -> Cells:
    """Heads and cells of what else a network takes, and what it is worth."""
    heads = ["model", "frames", "KiB read", "GMACs", "M params", "MB on disk", "peak MiB", "videos/s", "J", "accuracy"]
    rows = [
        [m.name, f"{m.frames:.4g}", f"{m.kilobytes:.1f}", _or(m.gmacs, "{:.3g}"),
         _or(None if m.params is None else m.params / 1e6, "{:.2f}"), _or(m.megabytes, "{:.1f}"),
         _or(m.memory_mib, "{:.0f}"), _number(m.videos_per_s), _or(m.joules, "{:.2f}", NOT_MEASURED), _told(m)]
        for m in card.models
    ]  # fmt: skip
    return heads, rows


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _or(value: float | None, form: str, otherwise: str = "–") -> str:
    return otherwise if value is None else form.format(value)


def _told(costs: "Costs") -> str:
    if costs.accuracy is None or costs.metric is None:
        return "–"
    scaled = f"{100 * costs.accuracy:.1f} %" if is_accuracy(costs.metric) else f"{costs.accuracy:.3f}"
    return f"{costs.metric} {scaled} ({costs.accuracy_on})"


def write_card_files(card: "Card", output: str | Path) -> Path:
    """Writes the card as JSON, CSV and picture; and what could not be read, if anything.

    Args:
        card: The measurement.
        output: A `.json` file, beside which the others lie; or a folder (of a run: its model card shows the picture),
            in which they are called `cost_card`.

    Returns:
        The JSON file.
    """
    target = card_path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = [_flat(asdict(m)) for m in card.models]
    write_atomic(target.with_suffix(".csv"), csv_text(rows[0], (row.values() for row in rows)))
    listed = [(name, reason, used) for found, used in ((card.broken, "no"), (card.faults, "in part"))
              for name, reason in found.items()]  # fmt: skip
    broken = target.with_name(f"{target.stem}.broken.csv")
    if listed:
        write_atomic(broken, csv_text(("file", "reason", "used"), listed))
    else:
        broken.unlink(missing_ok=True)
    write_atomic(target, json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n")
    plot_card(card, target.with_suffix(".png"))
    return target


def card_path(output: str | Path) -> Path:
    """Where the JSON file goes.

    Raises:
        ValueError: The name is neither a `.json` file nor a folder.
    """
    path = Path(output)
    if path.is_dir() or not path.suffix:
        return path / FILE
    if path.suffix != ".json":
        raise ValueError(f"output={output}: give a folder, or a name that ends in .json")
    return path


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """A model's line of the CSV file: nested values get columns of their own."""
    plain = {k: v for k, v in data.items() if not isinstance(v, dict)}
    return {**plain, **{f"{part}_ms": v for part, v in data["ms"].items()},
            **{f"p{p}_ms": v for p, v in data["percentiles"].items()}}  # fmt: skip


def plot_card(card: "Card", png: str | Path) -> Path:
    """Accuracy over milliseconds from file to prediction; GMACs in its place unless every network has the accuracy."""
    from stillmotion.report.plots import COLOURS, MARKERS, TITLE, log_axis, new_figure, save_figure

    metrics = {m.metric for m in card.models if m.accuracy is not None}
    accurate = len(metrics) == 1 and all(m.accuracy is not None for m in card.models)
    figure, (axis,) = new_figure(6.4, 4.2)
    clock = "CPU ms" if card.settings["clock"] == "cpu" else "ms"
    if accurate:
        metric = str(metrics.pop())
        scale = 100 if is_accuracy(metric) else 1
        heights = [scale * float(m.accuracy or 0.0) for m in card.models]
        axis.set_ylabel(head_of(metric))
    else:
        heights = [float(m.gmacs or 0.0) for m in card.models]
        axis.set_ylabel("GMACs a video")
        if min(heights) > 0:
            axis.set_yscale("log")
            low, high = min(heights), max(heights)
            axis.set_ylim(low / 4, high * 4)  # room for names above and below
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.minorticks_off()
    times = [m.total_ms for m in card.models]
    dots = list(zip(times, heights, strict=True))
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(dots))]
    for i, (x, y) in enumerate(dots):
        axis.plot(x, y, MARKERS[i % len(MARKERS)], ms=8, color=colours[i], alpha=0.9)
    log_axis(axis, times)
    axis.set_xlim(min(times) / 2, max(times) * 8)  # room for the names
    _label(axis, [m.name for m in card.models], colours, dots)
    axis.set_xlabel(f"{clock} a video, from file to prediction")
    count = f"{len(card.videos)} video{'s' if len(card.videos) != 1 else ''}"
    axis.set_title(f"{'Accuracy' if accurate else 'Size'} over time, {count}", **TITLE)
    return save_figure(figure, png)


def _label(axis: "Axes", names: Sequence[str], colours: Sequence[str], dots: Sequence[tuple[float, float]]) -> None:
    """Names beside their dots, in their colours; one that would cover a dot or another name moves up or down."""
    figure: Any = axis.figure
    figure.draw_without_rendering()
    places = [tuple(axis.transData.transform(dot)) for dot in dots]
    line, points = 15.0, 72.0 / figure.dpi
    taken = [(x - 6.0, x + 6.0, y) for x, y in places]
    for i in sorted(range(len(names)), key=lambda i: places[i]):
        x, y = places[i][0] + 9.0, places[i][1]
        right = x + 7.5 * len(names[i])
        for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5):
            shift = step * line
            if not any(abs(y + shift - b) < line and x < r and left < right for left, r, b in taken):
                break
        taken.append((x, right, y + shift))
        axis.annotate(names[i], dots[i], (9.0 * points, shift * points), textcoords="offset points", va="center",
                      fontsize=8.5, color=colours[i])  # fmt: skip


def card_section(folder: Path) -> list[str]:
    """Lines for the model card of a run folder that holds a cost card; none if it does not."""
    path = folder / FILE
    if not path.is_file():
        return []
    data = json.loads(path.read_text(encoding="utf-8"))
    first = data["models"][0]["total_ms"]
    clock = "CPU milliseconds" if data["settings"]["clock"] == "cpu" else "Milliseconds"
    lines = ["", f"{clock} a video, each from its file to the prediction, on {len(data['videos'])} videos "
             f"({data['settings']['threads']} thread{'s' if data['settings']['threads'] > 1 else ''} of "
             f"{data['environment']['processor']}):", "",
             f"| model | frames | GMACs | {' | '.join(PARTS)} | total | times |",
             "| --- |" + " ---: |" * (len(PARTS) + 4)]  # fmt: skip
    for m in data["models"]:
        cells = [f"{m['frames']:.4g}", _or(m["gmacs"], "{:.3g}"), *(_number(m["ms"][part]) for part in PARTS),
                 _number(m["total_ms"]), f"{m['total_ms'] / first:.2f}"]  # fmt: skip
        lines.append(f"| {m['name']} | {' | '.join(cells)} |")
    picture = path.with_suffix(".png")
    return [*lines, *(["", f"![What it costs]({picture.name})"] if picture.is_file() else [])]
