"""Pictures of how sure networks are: the reliability diagram, and what a cascade gives for what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stillmotion.report.plots import COLOURS, LEGEND, TITLE, new_figure, save_figure

if TYPE_CHECKING:
    from stillmotion.calibration import Reliability
    from stillmotion.cascade import Point

COSTS = {"share": "share that the teacher sees (%)", "ms": "ms / video", "kilobytes": "KiB decoded / video"}


def plot_reliability(found: "Mapping[str, Reliability]", png: str | Path) -> Path:
    """How often first guesses are right over how sure they are, above a histogram of the latter.

    Args:
        found: By metric, `ece` and `ece_calibrated`, of several columns `ece.COLUMN`.
        png: Where the picture goes.
    """
    figure, axes = new_figure(4.2 * len(found) + 0.4, 5.0, len(found), 2)
    for column, (name, bins) in enumerate(found.items()):
        upper, lower = axes[column], axes[len(found) + column]
        num = len(bins.samples)
        edges, filled = [i / num for i in range(num)], bins.samples > 0
        heights = [100 * float(a) if f else 0.0 for a, f in zip(bins.accuracy, filled, strict=True)]
        upper.bar(edges, heights, 1 / num, align="edge", color=COLOURS[column], alpha=0.75, edgecolor="white", lw=0.5)
        upper.plot([0, 1], [0, 100], color="#888888", lw=1)
        upper.plot(bins.confidence[filled], 100 * bins.accuracy[filled], "o", ms=4, color="#333333", clip_on=False)
        upper.set_ylim(0, 100)
        metric, _, target = name.partition(".")
        kind = "calibrated" if metric == "ece_calibrated" else "raw"
        upper.set_title(f"{target + ', ' if target else ''}{kind}: off by {100 * bins.error:.1f} points", **TITLE)
        shares = 100 * bins.samples / bins.samples.sum()
        lower.bar(edges, shares, 1 / num, align="edge", color="#999999", edgecolor="white", lw=0.5)
        lower.set_xlabel("probability of the first guess")
        for axis in (upper, lower):
            axis.set_xlim(0, 1)
        if column == 0:
            upper.set_ylabel("right (%)")
            lower.set_ylabel("samples (%)")
    return save_figure(figure, png)


def plot_cascade(points: "Sequence[Point]", chosen: "Point", png: str | Path, *, metric: str) -> Path:
    """Accuracy of a cascade over the share of samples that the teacher sees, over milliseconds and over bytes.

    Args:
        points: From the student alone to the teacher for all.
        chosen: The one whose threshold validation chose.
        png: Where the picture goes.
        metric: What accuracy is.
    """
    shown = [cost for cost in COSTS if all(getattr(point, cost) is not None for point in points)]
    figure, axes = new_figure(4.0 * len(shown) + 0.4, 3.6, len(shown))
    for axis, cost in zip(axes, shown, strict=True):
        factor = 100 if cost == "share" else 1
        line = [(factor * getattr(p, cost), 100 * p.accuracy) for p in points]
        axis.plot(*zip(*line, strict=True), color=COLOURS[0], lw=1.6)
        for point, label, marker, colour in (
            (points[0], "student", "o", COLOURS[2]),
            (points[-1], "student, then teacher for all", "s", COLOURS[1]),
            (chosen, f"threshold {chosen.threshold:.3f}", "D", COLOURS[3]),
        ):
            axis.plot(factor * getattr(point, cost), 100 * point.accuracy, marker, ms=8, color=colour, label=label)
        axis.set_xlabel(COSTS[cost])
        axis.set_ylabel(f"{metric} (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, **LEGEND)
    return save_figure(figure, png)
