"""Draws docs/overview.png: python docs/overview.py."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from stillmotion.data.render.actions import World, draw_take, plan_actions

BLUE, GREY, ORANGE = "#2b6cb0", "#718096", "#c05621"


def box(axes: Axes, x: float, y: float, width: float, text: str, colour: str, *, dashed: bool = False) -> None:
    """A rounded box with text in its middle."""
    style = FancyBboxPatch((x, y), width, 0.17, boxstyle="round,pad=0.008", fc="white", ec=colour, lw=2,
                           ls="--" if dashed else "-")  # fmt: skip
    axes.add_patch(style)
    axes.text(x + width / 2, y + 0.085, text, ha="center", va="center", color=colour, fontsize=12)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """From one box to another."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2})


def main() -> None:
    """One frame above, the clip below, the loss between them."""
    plan = plan_actions(num_labelled=12, num_unlabelled=0, num_test=0, seed=0, world=World())
    frames = draw_take(next(p.take for p in plan if p.take.action == "kick"), size=160)
    figure = plt.figure(figsize=(12, 4.4), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    for i, frame in enumerate(frames[0:12:3]):
        figure.add_axes((0.03 + 0.075 * i, 0.10, 0.072, 0.22)).imshow(frame)
    figure.add_axes((0.13, 0.56, 0.13, 0.36)).imshow(frames[0])
    for picture in figure.axes[1:]:
        picture.axis("off")
    axes.text(0.195, 0.94, "one frame", ha="center", color=BLUE, fontsize=12)
    axes.text(0.18, 0.04, "the 16 frames that follow (training only)", ha="center", color=GREY, fontsize=12)
    box(axes, 0.36, 0.66, 0.17, "student\n2D network, cheap", BLUE)
    box(axes, 0.36, 0.12, 0.17, "teacher\n3D network, frozen", GREY, dashed=True)
    box(axes, 0.61, 0.66, 0.15, "hallucinated\nfeature", BLUE)
    box(axes, 0.61, 0.12, 0.15, "motion feature", GREY, dashed=True)
    box(axes, 0.84, 0.66, 0.13, "class: kick", BLUE)
    arrow(axes, (0.275, 0.745), (0.35, 0.745), BLUE)
    arrow(axes, (0.54, 0.745), (0.60, 0.745), BLUE)
    arrow(axes, (0.77, 0.745), (0.83, 0.745), BLUE)
    arrow(axes, (0.335, 0.205), (0.35, 0.205), GREY)
    arrow(axes, (0.54, 0.205), (0.60, 0.205), GREY)
    axes.annotate("", (0.685, 0.65), (0.685, 0.30), arrowprops={"arrowstyle": "<|-|>", "color": ORANGE, "lw": 2})
    axes.text(0.70, 0.475, "hallucination loss", va="center", color=ORANGE, fontsize=12)
    figure.savefig(Path(__file__).with_name("overview.png"), facecolor="white")


if __name__ == "__main__":
    main()
