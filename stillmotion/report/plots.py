"""Pictures of results: curves, confusion matrices, accuracy over cost, sample sheets. matplotlib waits until needed."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stillmotion.results import Row

# Okabe and Ito: distinct for colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#444444")
MARKERS = "osD^vPX"
STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.edgecolor": "#888888",
    "figure.constrained_layout.use": True,
}
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "fontweight": "bold"}
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9}
Curve = dict[int, float]


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple["Figure", list["Axes"]]:
    """A figure in the style of all pictures here, without a display.

    Args:
        width, height: In inches.
        columns, rows: Of panels.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = STYLE  # matplotlib's stubs list every key as a literal
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        return figure, [axis for line in axes for axis in line]


def save_figure(figure: "Figure", png: str | Path, *, dpi: int = 150) -> Path:
    """Writes a figure, as SVG where the name ends so; the file is there whole or not at all."""
    import io

    import matplotlib

    from stillmotion.files import write_atomic

    png = Path(png)
    png.parent.mkdir(parents=True, exist_ok=True)
    out = io.BytesIO()
    look: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.1}  # constrained layout cuts labels
    if png.suffix == ".svg":
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None}, **look)
    else:
        figure.savefig(out, dpi=dpi, format="png", **look)
    write_atomic(png, out.getvalue())
    return png


def read_curve(path: str | Path, column: str) -> Curve:
    """One column of a `metrics.csv` over epochs: the mean of an epoch's rows; {} if there is no such column.

    Args:
        path: As Lightning's CSV logger writes it, with a column `epoch` and empty cells where nothing was logged.
        column: Its name.
    """
    sums: dict[int, list[float]] = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            value, epoch = row.get(column), row.get("epoch")
            if value and epoch and math.isfinite(float(value)):
                sums.setdefault(int(float(epoch)), []).append(float(value))
    return {epoch: sum(values) / len(values) for epoch, values in sorted(sums.items())}


def plot_curves(runs: Mapping[str, Sequence[str | Path]], columns: Mapping[str, str], png: str | Path) -> Path | None:
    """Curves over epochs: one panel a column, one line a row, a band from the lowest to the highest seed.

    Args:
        runs: `metrics.csv` files of the seeds, by name of the row.
        columns: Column of the files by title of the panel; panels without data are left out.
        png: Where the picture goes.

    Returns:
        The path; None if no file holds any of the columns.
    """
    from matplotlib.ticker import MaxNLocator

    panels: dict[str, dict[str, list[Curve]]] = {}
    for heading, column in columns.items():
        lines = {name: [c for f in files if (c := read_curve(f, column))] for name, files in runs.items()}
        if lines := {name: curves for name, curves in lines.items() if curves}:
            panels[heading] = lines
    if not panels:
        return None
    figure, axes = new_figure(max(5.5, 4.2 * len(panels)), 3.5, len(panels))
    for axis, (heading, lines) in zip(axes, panels.items(), strict=True):
        for i, name in enumerate(runs):
            if name in lines:
                dashes = ("-", "--", ":")[i // len(COLOURS) % 3]
                _draw_curves(axis, lines[name], name, COLOURS[i % len(COLOURS)], dashes)
        axis.set_title(heading, **TITLE)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    longest = max(axes, key=lambda a: len(a.get_lines()))
    if len(runs) > len(COLOURS):  # they would hide the curves
        handles = longest.get_legend_handles_labels()[0]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, **LEGEND)
    elif len(runs) > 1:
        longest.legend(**LEGEND)
    return save_figure(figure, png)


def _draw_curves(axis: "Axes", curves: Sequence[Curve], name: str, colour: str, dashes: str) -> None:
    epochs = sorted(set.intersection(*(set(c) for c in curves)))
    values = np.array([[c[e] for e in epochs] for c in curves])
    shown = [e + 1 for e in epochs]
    axis.plot(shown, values.mean(0), color=colour, label=name, lw=1.8, ls=dashes, ms=4,
              marker="o" if len(epochs) < 3 else None)  # fmt: skip
    if len(curves) > 1:
        axis.fill_between(shown, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)


def plot_confusion(matrix: NDArray[np.integer[Any]], names: Sequence[str], png: str | Path, *, title: str = "") -> Path:
    """A confusion matrix: colour is the share of the true class (row), the number counts samples.

    Args:
        matrix: (K, K), row = true class, column = prediction.
        names: Of the K classes.
        png: Where the picture goes.
        title: Above it, before the share of samples that are right.
    """
    matrix = np.asarray(matrix)
    num, total = len(names), matrix.sum(1, keepdims=True)
    share = matrix / np.maximum(total, 1)
    side = max(4.0, 1.6 + (0.42 if num <= 20 else 0.2) * num)
    figure, (axis,) = new_figure(side + 0.6, side)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axis.grid(False)
    small = 9 if num <= 20 else 6
    axis.set_xticks(range(num), names, rotation=90 if num > 8 or max(map(len, names)) > 8 else 0, fontsize=small)
    axis.set_yticks(range(num), names, fontsize=small)
    if num <= 30:
        for i, j in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if share[i, j] > 0.55 else "#333333"
            axis.text(j, i, f"{matrix[i, j]}", ha="center", va="center", color=colour, fontsize=small)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    bar = figure.colorbar(image, ax=axis, shrink=0.8, fraction=0.04, aspect=25, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"])
    bar.outline.set_visible(False)
    right = f"{100 * np.trace(matrix) / max(1, matrix.sum()):.1f} % of {matrix.sum()} right"
    axis.set_title(f"{title}: {right}" if title else right, **TITLE)
    return save_figure(figure, png)


def plot_scores(
    guesses: NDArray[np.floating[Any]], scores: NDArray[np.floating[Any]], name: str, png: str | Path
) -> Path:
    """Guessed over true scores, with the line on which they are equal.

    Args:
        guesses, scores: (S,).
        name: Of the score.
        png: Where the picture goes.
    """
    from stillmotion.metrics import spearman

    figure, (axis,) = new_figure(4.6, 4.4)
    axis.scatter(scores, guesses, s=14, alpha=0.6, color=COLOURS[0], linewidths=0)
    ends = [float(min(scores.min(), guesses.min())), float(max(scores.max(), guesses.max()))]
    axis.plot(ends, ends, color="#888888", lw=1)
    axis.set_xlabel(f"true {name}")
    axis.set_ylabel(f"guessed {name}")
    rank = spearman(guesses, scores)
    said = f"Spearman {rank:.3f}" if math.isfinite(rank) else "no ranking"
    axis.set_title(f"{said} of {len(scores)} samples", **TITLE)
    return save_figure(figure, png)


def plot_cost(
    rows: "Sequence[Row]", png: str | Path, *, metric: str = "top1", kinds: Sequence[str] = ("gmacs", "ms_per_video")
) -> Path:
    """Accuracy over cost: a panel for GMACs and one for milliseconds, rows without such a cost as dashed lines.

    Rows of almost equal cost stand side by side; the tables hold the exact numbers.

    Args:
        rows: As `make_row` gives them.
        png: Where the picture goes.
        metric: On the vertical axis; if no row has it, the first metric there is.
        kinds: Costs, each a panel.
    """
    from stillmotion.results import COST_HEADS, all_metrics, is_accuracy

    names = all_metrics(rows)
    metric = metric if metric in names or not names else names[0]
    shown = [r for r in rows if metric in r["metrics"] and r["metrics"][metric]["mean"] is not None]
    costs = [c for c in kinds if any((r["cost"].get(c) or 0) > 0 for r in shown)] or [kinds[0]]
    figure, axes = new_figure(5.2 * len(costs) + 0.6, 4.2, len(costs))
    for axis, cost in zip(axes, costs, strict=True):
        for i, x in enumerate(_beside([float(r["cost"].get(cost) or 0) for r in shown])):
            _draw_row(axis, shown[i], metric, x, i)
        axis.set_xlabel(COST_HEADS[cost])
        axis.set_ylabel(f"{metric} (%)" if is_accuracy(metric) else metric)
        if any((r["cost"].get(cost) or 0) > 0 for r in shown):
            log_axis(axis, [float(r["cost"].get(cost) or 0) for r in shown])
        else:
            axis.set_xticks([])
    if shown:
        by_name = {label: h for h, label in zip(*axes[0].get_legend_handles_labels(), strict=True)}
        labels = [row["name"] for row in shown]
        handles = [by_name[label] for label in labels]
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), **LEGEND)
    return save_figure(figure, png)


def _beside(values: Sequence[float]) -> list[float]:
    """Moves costs that differ by less than a tenth apart, by a few percent, to tell them apart on the log axis."""
    places = list(values)
    for value in sorted(values):
        near = [i for i, v in enumerate(values) if 0 < value <= v < 1.1 * value]
        if len(near) > 1 and all(places[i] == values[i] for i in near):
            for k, i in enumerate(near):
                places[i] = values[near[0]] * 1.07 ** (k - (len(near) - 1) / 2)
    return places


def _draw_row(axis: "Axes", row: "Row", metric: str, x: float, number: int) -> None:
    from stillmotion.results import is_accuracy

    value, scale = row["metrics"][metric], 100 if is_accuracy(metric) else 1
    mean, std = scale * (value["mean"] or 0.0), scale * (value["std"] or 0.0)
    look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "label": row["name"]}
    if x > 0:
        marker = MARKERS[number % len(MARKERS)]
        axis.errorbar([x], [mean], yerr=[std] if std else None, fmt=marker, ms=8, capsize=3, lw=1.5, alpha=0.9, **look)
    else:
        axis.axhline(mean, ls="--", lw=1.3, alpha=0.8, **look)


def log_axis(axis: "Axes", values: Sequence[float]) -> None:
    """A log axis with plain numbers, wide enough that at least one labelled tick is inside."""
    known = [v for v in values if v > 0]
    axis.set_xscale("log")
    axis.set_xlim(min(known) / 2, max(known) * 2)
    low, high = axis.get_xlim()
    steps = (1, 2, 5) if high / low < 200 else (1,)
    ticks = [s * 10.0**p for p in range(-6, 8) for s in steps if low <= s * 10.0**p <= high]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()


def plot_series(
    lines: Mapping[str, Mapping[str, tuple[float, float | None]]], png: str | Path, *, xlabel: str, ylabel: str
) -> Path:
    """Lines over an axis of names or numbers with error bars: accuracy over frames, moments, share of labels.

    Args:
        lines: Mean and deviation (None: unknown) at each position, by name of the line.
        png: Where the picture goes.
        xlabel, ylabel: Of the axes.
    """
    positions = list(dict.fromkeys(x for line in lines.values() for x in line))
    room = max(1.1, 0.1 * max(map(len, positions), default=0))  # inches for a name
    figure, (axis,) = new_figure(max(5.0, room * len(positions) + 2.5), 3.8)
    for i, (name, line) in enumerate(lines.items()):
        # Side by side, so that error bars do not cover each other.
        x = [positions.index(p) + 0.06 * (i - (len(lines) - 1) / 2) for p in line]
        means, stds = [v[0] for v in line.values()], [v[1] or 0.0 for v in line.values()]
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axis.errorbar(x, means, yerr=stds if any(stds) else None, ms=6, lw=1.6, capsize=3, label=name, **look)
    axis.set_xticks(range(len(positions)), positions)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    figure.legend(loc="outside right center", **LEGEND)
    return save_figure(figure, png)


def plot_samples(
    samples: Sequence[tuple[str, NDArray[np.uint8]]], png: str | Path, *, columns: int | None = None, title: str = ""
) -> Path:
    """A sample sheet: pictures in a grid, each with its label; several frames of a sample stand side by side.

    Args:
        samples: Label and frames, (T, H, W, 3) or (H, W, 3) RGB.
        png: Where the picture goes.
        columns: Samples in a row (default: about as wide as high).
        title: Above all.
    """
    assert samples, "a sheet needs at least one sample"
    strips = [(label, _strip(frames)) for label, frames in samples]
    ratio = max(s.shape[1] / s.shape[0] for _, s in strips)
    columns = columns or max(1, min(len(strips), round(math.sqrt(1.6 * len(strips) / ratio))))
    num_rows = -(-len(strips) // columns)
    width = min(14.0, columns * 2.0 * max(1.0, ratio / 1.5))
    cell = width / columns
    figure, axes = new_figure(width, num_rows * (cell / ratio + 0.3) + (0.4 if title else 0.1), columns, num_rows)
    for axis in axes:
        axis.set_axis_off()
    for axis, (label, strip) in zip(axes, strips, strict=False):
        axis.imshow(strip, interpolation="nearest" if strip.shape[0] < 100 else "antialiased")
        axis.set_title(label, fontsize=8, fontweight="normal")
    if title:
        figure.suptitle(title, fontsize=12)
    return save_figure(figure, png)


def _strip(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if frames.ndim == 3:
        return frames
    gap = np.full((frames.shape[1], 2, 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (gap, frame)][1:], axis=1)
