"""Videos of people who bow, jump, kick, squat, throw or wave: only the motion tells the action for sure.

What a video shows follows three rules, so that the claim of HalluciNet (arXiv:1912.04430) can be tested:

- The video begins just as the action does: its first frame holds a weak cue (`World.onset`), blurred by the posture
  that everybody has anyway (`World.habit`).
- In the labelled training videos, most people are seen at the place that goes with their action (`PLACE_OF`): a
  shortcut. The others are in the studio, which goes with nothing.
- Further training videos have no label, as footage has that nobody looked through. There, as in the test, half of the
  people are in the studio and the others at a place that was drawn without looking at the action.
- Nobody (`group`) is in training and in test.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from stillmotion.data.render.figure import Body, Pose, draw_figure, pose
from stillmotion.data.render.scenery import draw_scenery
from stillmotion.data.table import Table, read_table
from stillmotion.files import csv_text, write_atomic

PLACE_OF = {"bow": "room", "jump": "beach", "kick": "gym", "squat": "forest", "throw": "snow", "wave": "street"}
"""Every action, and the place where it is mostly seen in training."""
NEUTRAL_PLACE = "studio"
FPS = 12
ACTORS = 24

_STAND = pose()
_CROUCH = pose(lean=30, arm=-50, elbow=10, arm2=-42, elbow2=10, thigh=55, knee=95, thigh2=48, knee2=92)
_FLIGHT = pose(lean=2, arm=165, elbow=8, arm2=172, elbow2=8, thigh=6, knee=14, thigh2=-8, knee2=20, lift=0.17)
_SQUAT = pose(lean=32, arm=82, elbow=4, arm2=90, elbow2=4, thigh=100, knee=122, thigh2=92, knee2=118)
_BOW = pose(lean=82, head=12, arm=8, elbow=6, arm2=14, elbow2=6, thigh=-8, knee=3, thigh2=-12, knee2=2)
_BACKSWING = pose(lean=10, arm=34, elbow=34, arm2=-34, elbow2=24, thigh=-32, knee=62, thigh2=8, knee2=12)
_KICK = pose(lean=-20, arm=-42, elbow=24, arm2=48, elbow2=36, thigh=98, knee=6, thigh2=-4, knee2=8)
_COCKED = pose(lean=-16, arm=-112, elbow=108, arm2=62, elbow2=14, thigh=-8, knee=26, thigh2=18, knee2=10)
_RELEASE = pose(lean=34, arm=74, elbow=8, arm2=-34, elbow2=28, thigh=-28, knee=16, thigh2=36, knee2=32, shift=0.1)
_WAVE_BACK = pose(lean=-3, arm=142, elbow=-14, thigh2=-3)
_WAVE_FRONT = pose(lean=-3, arm=132, elbow=78, thigh2=-3)

CHOREOGRAPHY: dict[str, tuple[tuple[float, Pose], ...]] = {
    "bow": ((0.0, _STAND), (0.45, _BOW), (0.6, _BOW), (1.0, _STAND)),
    "jump": ((0.0, _STAND), (0.3, _CROUCH), (0.5, _FLIGHT), (0.6, _FLIGHT), (0.8, _CROUCH), (1.0, _STAND)),
    "kick": ((0.0, _STAND), (0.28, _BACKSWING), (0.52, _KICK), (0.62, _KICK), (1.0, _STAND)),
    "squat": ((0.0, _STAND), (0.45, _SQUAT), (0.6, _SQUAT), (1.0, _STAND)),
    "throw": ((0.0, _STAND), (0.34, _COCKED), (0.55, _RELEASE), (0.7, _RELEASE), (1.0, _STAND)),
    "wave": (
        (0.0, _STAND), (0.26, _WAVE_BACK), (0.38, _WAVE_FRONT), (0.5, _WAVE_BACK), (0.62, _WAVE_FRONT),
        (0.74, _WAVE_BACK), (1.0, _STAND),
    ),
}  # fmt: skip
"""Poses by phase (0 begins, 1 ends)."""


@dataclass(frozen=True, kw_only=True)
class World:
    """How hard it is to see what comes.

    Args:
        onset: Range of the phase at which a video begins: how much of the action the first frame gives away.
        habit: Spread of everybody's posture, degrees, standard deviation for each joint.
        agreement: Share of the labelled training videos that are at the place of their action; the others are in the
            studio.
        num_frames: Frames of a video, at `FPS`.
    """

    onset: tuple[float, float] = (0.1, 0.3)
    habit: float = 5.0
    agreement: float = 0.9
    num_frames: int = 20


@dataclass(frozen=True)
class Take:
    """One video to be: who does what, where and how."""

    action: str
    place: str
    body: Body
    facing: int
    onset: float
    amplitude: float
    duration: float
    habit: Pose
    at: tuple[float, float]
    scale: float
    drift: tuple[float, float]
    seed: int

    @classmethod
    def of(cls, action: str, place: str, body: Body, world: World, seed: int) -> "Take":
        """A take with everything else at random.

        Args:
            seed: Decides everything that is left open.
        """
        rng = np.random.default_rng(seed)
        loose = np.array([0.5, 0.8, 1.6, 1.6, 1.6, 1.6, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
        habit = world.habit * loose * rng.normal(size=len(loose))
        habit[[7, 9]] = np.abs(habit[[7, 9]])  # knees bend one way only
        return cls(
            action, place, body,
            facing=int(rng.choice([-1, 1])), onset=rng.uniform(*world.onset), amplitude=rng.uniform(0.75, 1.15),
            duration=rng.uniform(0.6, 1.0) * world.num_frames, habit=habit,
            at=(rng.uniform(0.44, 0.56), rng.uniform(0.92, 0.95)), scale=rng.uniform(0.96, 1.04),
            drift=(rng.normal(0, 0.02), rng.normal(0, 0.008)), seed=seed,
        )  # fmt: skip

    def pose_at(self, frame: int) -> Pose:
        """Pose at a frame, (12,)."""
        phase = min(1.0, self.onset + frame / self.duration)
        keys = CHOREOGRAPHY[self.action]
        after = next(i for i, (p, _) in enumerate(keys) if p >= phase)
        (p0, a), (p1, b) = keys[max(0, after - 1)], keys[max(1, after)]
        share = (phase - p0) / (p1 - p0)
        share = share * share * (3 - 2 * share)
        return _STAND + self.amplitude * ((1 - share) * a + share * b - _STAND) + self.habit


def draw_take(take: Take, *, size: int = 64, num_frames: int = 20) -> NDArray[np.uint8]:
    """Draws the frames of a take.

    Args:
        take: What is seen.
        size: Height and width in pixels.
        num_frames: How many.

    Returns:
        (T, H, W, 3) uint8, RGB.
    """
    rng = np.random.default_rng([take.seed, 1])
    canvas, margin = 3 * size, round(0.09 * size) * 3  # three times as large, for smooth edges
    backdrop = draw_scenery(take.place, canvas + 2 * margin, rng)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    for i in range(num_frames):
        x, y = (take.drift[k] * (i / num_frames - 0.5) for k in (0, 1))
        left, top = margin + round(x * canvas), margin + round(y * canvas)
        image = backdrop[top : top + canvas, left : left + canvas].copy()
        at = (take.at[0] - x, take.at[1] - y)
        draw_figure(image, take.body, take.pose_at(i), at=at, facing=take.facing, scale=take.scale)
        frames[i] = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    noise = rng.normal(0, 2, frames.shape).astype(np.float32)
    return (frames + noise).clip(0, 255).astype(np.uint8)


ENCODER = {"preset": "veryfast", "crf": "18", "x264-params": "asm=0"}
"""What x264 writes with AVX-512 differs from run to run (seen on a Zen 4); its plain code always writes the same."""


def write_video(path: Path, frames: NDArray[np.uint8], *, fps: int = FPS) -> None:
    """Writes frames as an ordinary H.264 file.

    Args:
        path: Ends in `.mp4`.
        frames: (T, H, W, 3) uint8, RGB; even height and width.
        fps: Frames a second.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options=ENCODER)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@dataclass(frozen=True)
class Planned:
    """A video to be, with what the table will say of it."""

    split: str
    group: str
    labelled: bool
    take: Take


def plan_actions(*, num_labelled: int, num_unlabelled: int, num_test: int, seed: int, world: World) -> list[Planned]:
    """Who does what and where; classes in turn."""
    rng = np.random.default_rng([seed, 2])
    actions = list(PLACE_OF)
    plan = []
    for split, counts in (("train", (num_labelled, num_unlabelled)), ("test", (num_test, 0))):
        actors = [Body.of(rng) for _ in range(ACTORS)]
        for i in range(sum(counts)):
            labelled = i < counts[0]
            action, actor = actions[i % len(actions)], int(rng.integers(ACTORS))
            if split == "train" and labelled:
                place = PLACE_OF[action] if rng.random() < world.agreement else NEUTRAL_PLACE
            else:
                place = NEUTRAL_PLACE if rng.random() < 0.5 else PLACE_OF[actions[rng.integers(len(actions))]]
            take = Take.of(action, place, actors[actor], world, int(rng.integers(2**31)))
            plan.append(Planned(split, f"{split}{actor:02d}", labelled, take))
    return plan


def hint(take: Take) -> str:
    """What the place says about the action: `right`, `wrong` or `none`."""
    if take.place == NEUTRAL_PLACE:
        return "none"
    return "right" if PLACE_OF[take.action] == take.place else "wrong"


def render_actions(
    folder: str | Path,
    *,
    num_labelled: int = 144,
    num_unlabelled: int = 288,
    num_test: int = 300,
    seed: int = 0,
    size: int = 64,
    world: World = World(),
    workers: int = 1,
) -> Table:
    """Renders a set of videos and its table.

    Args:
        folder: Gets `table.csv` and the videos.
        num_labelled, num_unlabelled: Training videos with and without a label.
        num_test: Test videos, all with a label.
        seed: Decides everything.
        size: Height and width in pixels.
        world: How hard it is.
        workers: Processes that draw.

    Returns:
        The table, with the columns path, label, split, group, place, hint.
    """
    folder = Path(folder)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    plan = plan_actions(
        num_labelled=num_labelled, num_unlabelled=num_unlabelled, num_test=num_test, seed=seed, world=world
    )
    names = [f"videos/{planned.split}_{i:04d}.mp4" for i, planned in enumerate(plan)]
    render = partial(_render, size=size, num_frames=world.num_frames)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(render, [folder / name for name in names], [p.take for p in plan], chunksize=16))
    rows = [
        [name, p.take.action if p.labelled else "", p.split, p.group, p.take.place, hint(p.take)]
        for name, p in zip(names, plan, strict=True)
    ]
    write_atomic(folder / "table.csv", csv_text(["path", "label", "split", "group", "place", "hint"], rows))
    return read_table(folder / "table.csv")


def _render(path: Path, take: Take, *, size: int, num_frames: int) -> None:
    write_video(path, draw_take(take, size=size, num_frames=num_frames))
