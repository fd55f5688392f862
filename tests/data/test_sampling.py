"""Which frames a view sees; every expected list is worked out by hand."""

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import pytest

from stillmotion.data.sampling import frame_indices
from stillmotion.view import NO_DRAW, Augment, Draw, FlowConfig, Moment, View


def indices(
    view: View, n: int, fps: float | None = None, draw: Draw = NO_DRAW, keys: tuple[int, ...] = ()
) -> list[list[int]]:
    result = frame_indices(view, n, fps, draw, keyframes=keys)
    assert result.shape == (view.num_moments, view.num_frames)
    assert result.dtype == "int64"
    return result.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("moment", "n", "expected"),
    [
        ("centre", 1, 0),
        ("centre", 2, 1),
        ("centre", 9, 4),
        ("centre", 10, 5),
        ("first", 10, 0),
        ("last", 10, 9),
        ("uniform", 9, 4),
        ("random", 10, 5),
    ],
)
def test_one_moment(moment: Moment, n: int, expected: int) -> None:
    assert indices(View(moment=moment), n) == [[expected]]


def test_uniform_takes_the_middles_of_equal_parts() -> None:
    # n = 10, N = 4: parts of 2.5 frames, middles 1.25, 3.75, 6.25, 8.75.
    view = View(moment="uniform", num_moments=4)
    assert indices(view, 10) == [[1], [3], [6], [8]]
    assert indices(view, 2) == [[0], [0], [1], [1]]


def test_random_lies_in_its_part() -> None:
    assert indices(View(moment="random"), 10, draw=Draw(time=0.0)) == [[0]]
    assert indices(View(moment="random"), 10, draw=Draw(time=0.37)) == [[3]]
    assert indices(View(moment="random"), 10, draw=Draw(time=1.0 - 2.0**-53)) == [[9]]
    # (k + 0.9) * 10 / 4 = 2.25, 4.75, 7.25, 9.75
    view = View(moment="random", num_moments=4)
    assert indices(view, 10, draw=Draw(time=0.9)) == [[2], [4], [7], [9]]
    assert indices(view, 10) == indices(replace(view, moment="uniform"), 10)


def test_keyframe_is_the_nearest_one_inside() -> None:
    view = View(moment="keyframe")
    assert indices(view, 10, keys=(0, 3, 9)) == [[3]]
    assert indices(view, 10, keys=(3, 7)) == [[3]]  # both two frames from the anchor 5: the earlier
    assert indices(view, 10, keys=(-4, 9, 12)) == [[9]]
    assert indices(view, 10, keys=(-4, 12)) == [[5]]
    assert indices(view, 10) == [[5]]


def test_clip_lies_after_around_or_before_its_moment() -> None:
    view = View(num_frames=4)
    assert indices(view, 20) == [[10, 11, 12, 13]]
    assert indices(replace(view, clip="middle"), 20) == [[8, 9, 10, 11]]
    assert indices(replace(view, clip="end"), 20) == [[7, 8, 9, 10]]
    assert indices(replace(view, stride=3), 20) == [[10, 13, 16, 19]]
    assert indices(replace(view, stride=0), 20) == [[10] * 4]


@pytest.mark.parametrize("moment", ["centre", "first", "random", "uniform", "keyframe"])
def test_student_frame_is_the_first_of_the_teacher_clip(moment: Moment) -> None:
    draw = Draw.of(0, "a", 3, Augment())
    frame, clip = View(moment=moment, num_moments=3), View(moment=moment, num_moments=3, num_frames=16)
    shown = indices(frame, 200, 25.0, draw, keys=(0, 90))
    assert [row[:1] for row in indices(clip, 200, 25.0, draw, keys=(0, 90))] == shown
    assert [row[:1] for row in indices(replace(clip, stride=2), 200, 25.0, draw, keys=(0, 90))] == shown


def test_repeat_beyond_the_ends() -> None:
    view = View(num_frames=6)
    assert indices(view, 6) == [[3, 4, 5, 5, 5, 5]]
    assert indices(replace(view, clip="end"), 6) == [[0, 0, 0, 1, 2, 3]]
    assert indices(view, 1) == [[0] * 6]


def test_shift_moves_the_clip_inside() -> None:
    view = View(num_frames=6, end="shift")
    assert indices(view, 8) == [[2, 3, 4, 5, 6, 7]]
    assert indices(replace(view, clip="end"), 8) == [[0, 1, 2, 3, 4, 5]]
    assert indices(view, 20) == [[10, 11, 12, 13, 14, 15]]
    assert indices(view, 4) == [[0, 1, 2, 3, 3, 3]]  # longer than the video: all of it, then its last frame
    assert indices(replace(view, stride=2), 12) == [[1, 3, 5, 7, 9, 11]]


@pytest.mark.parametrize(
    ("n", "start"),
    [
        (33, 16),  # 16 + 16 < 33: as shown
        (32, 15),  # 16 + 16 >= 32: 32 - 17, though frames 16..31 would fit
        (31, 14),  # 15 + 16 >= 31: 31 - 17
        (18, 1),
        (17, 0),
        (100, 50),
    ],
)
def test_official_hallucinet_clip(n: int, start: int) -> None:
    view = View(num_frames=16, end="hallucinet")
    assert indices(view, n) == [list(range(start, start + 16))]
    assert indices(View(), n) == [[n // 2]]  # the student's frame stays


def test_official_hallucinet_clip_of_a_short_video() -> None:
    # Start 10 - 17 is before the video: all ten frames, then the last one.
    assert indices(View(num_frames=16, end="hallucinet"), 10) == [[*range(10), 9, 9, 9, 9, 9, 9]]
    assert indices(View(num_frames=16, end="hallucinet", stride=0), 10) == [[5] * 16]


def test_whole_takes_a_frame_out_of_each_part() -> None:
    view = View(num_frames=4, clip="whole", stride=9, end="shift")
    assert indices(view, 10) == [[1, 3, 6, 8]], "middles of parts of 2.5 frames: 1.25, 3.75, 6.25, 8.75"
    assert indices(view, 2) == [[0, 0, 1, 1]]
    drawn = replace(view, moment="random")
    assert indices(drawn, 10, draw=Draw(time=0.9)) == [[2, 4, 7, 9]], "2.25, 4.75, 7.25, 9.75"
    assert indices(drawn, 10) == indices(view, 10)
    assert indices(view, 10, draw=Draw(time=0.9)) == indices(view, 10), "only random moments are drawn"
    # Two clips: 8 places of 1.25 frames in turn, their middles 0.625, 1.875, 3.125, ...
    assert indices(replace(view, num_moments=2), 10) == [[0, 3, 5, 8], [1, 4, 6, 9]]
    # Fields of flow over two frames each: the first one of 10 - 2 frames, parts of 2.
    flow = replace(view, kind="flow", flow=FlowConfig(step=2))
    assert frame_indices(flow, 10, None, NO_DRAW).tolist() == [[1, 3, 3, 5, 5, 7, 7, 9]]
    assert frame_indices(flow, 1, None, NO_DRAW).tolist() == [[0] * 8]


def test_rate_of_its_own() -> None:
    view = View(num_frames=5, fps=10.0, moment="first")
    # 25 fps: steps of 2.5 frames: 0, 2.5, 5, 7.5, 10; halves go up.
    assert indices(view, 100, 25.0) == [[0, 3, 5, 8, 10]]
    # 5 fps: every frame twice: 0, 0.5, 1, 1.5, 2.
    assert indices(view, 100, 5.0) == [[0, 1, 1, 2, 2]]
    assert indices(replace(view, stride=2), 100, 25.0) == [[0, 5, 10, 15, 20]]
    assert indices(replace(view, moment="centre", clip="middle"), 100, 25.0) == [[45, 48, 50, 53, 55]]
    ntsc = float(Fraction(30000, 1001))
    assert indices(replace(view, fps=ntsc), 100, ntsc) == [[0, 1, 2, 3, 4]]
    # 29.97 -> 25: 1.1988 frames a step: 0, 1.20, 2.40, 3.60, 4.80.
    assert indices(replace(view, fps=25.0), 100, ntsc) == [[0, 1, 2, 4, 5]]


def test_rate_needs_the_rate_of_the_video() -> None:
    with pytest.raises(ValueError, match="no frame rate, and a view asks for 10 frames a second"):
        indices(View(num_frames=4, fps=10.0), 100)
    assert indices(View(fps=10.0), 100) == [[50]]  # one frame needs none


def test_data_modules_of_the_runtime_import_no_torch() -> None:
    code = "import sys, stillmotion.data.source, stillmotion.data.store; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


OFFICIAL = View(moment="spaced", num_moments=6, spacing=16, lead=103, jitter=3, outside=True)


def spaced(view: View, n: int, around: tuple[int, int], draw: Draw = NO_DRAW) -> list[list[int]]:
    return frame_indices(view, n, None, draw, around=around).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("n", "start"),
    [
        (54, -49),  # shorter than the window: 49 frames of the board before the dive
        (103, 0),
        (273, 170),
    ],
)
def test_official_window_of_mtl_aqa(n: int, start: int) -> None:
    """103 frames before the dive's end, and every 16th from there; a dive of n frames, 200 before it and 300 behind."""
    moments = [start + 16 * k for k in range(6)]
    assert spaced(OFFICIAL, n, (200, 300)) == [[i] for i in moments]
    # (2 * 3 + 1) * 0.0 = 0 -> -3; 3.5 -> 0; 6.99 -> 3
    for time, shift in ((0.0, -3), (0.5, 0), (0.999, 3)):
        assert spaced(OFFICIAL, n, (200, 300), Draw(time=time)) == [[i + shift] for i in moments]
    clips = spaced(replace(OFFICIAL, num_frames=16), n, (200, 300), Draw(time=0.999))
    assert clips == [list(range(i + 3, i + 19)) for i in moments], "the teacher's clips start at the student's frames"


def test_every_jitter_is_drawn_alike() -> None:
    shifts = [spaced(OFFICIAL, 103, (9, 9), Draw.of(0, str(k), 0, Augment()))[0][0] for k in range(7000)]
    assert {shift: 900 < shifts.count(shift) < 1100 for shift in sorted(set(shifts))} == dict.fromkeys(
        range(-3, 4), True
    )


def test_window_at_the_ends_of_video_and_sample() -> None:
    # 40 frames of video before the dive: its first frame -40 stands for -49.
    assert spaced(OFFICIAL, 54, (40, 0)) == [[-40], [-33], [-17], [-1], [15], [31]]
    # The sample alone: its first frame stands for the moments before it.
    assert spaced(replace(OFFICIAL, outside=False), 54, (40, 9)) == [[0], [0], [0], [0], [15], [31]]
    clips = spaced(replace(OFFICIAL, num_frames=16, jitter=0), 54, (200, 2))
    assert clips[-1] == [*range(31, 47)]
    annotated = View(moment="spaced", num_moments=6, spacing=16)
    assert spaced(annotated, 54, (200, 300)) == [[0], [16], [32], [48], [53], [53]], "the last frame is repeated"
    assert spaced(replace(annotated, outside=True, num_frames=2), 54, (7, 12))[4:] == [[64, 65], [65, 65]]
    assert spaced(replace(annotated, num_frames=3, end="shift"), 54, (0, 0))[3:] == [
        [48, 49, 50],
        [51, 52, 53],
        [51, 52, 53],
    ]
    assert spaced(OFFICIAL, 1, (0, 0)) == [[0]] * 6
    flow = replace(annotated, kind="flow", num_frames=1, flow=FlowConfig(step=2), outside=True)
    assert spaced(flow, 54, (3, 1))[2:5] == [[32, 34], [48, 50], [52, 54]]
    assert spaced(replace(flow, lead=55), 54, (3, 1))[0] == [-1, 1]


def test_dense_and_slower_moments() -> None:
    assert spaced(View(moment="spaced", num_moments=4), 9, (0, 0)) == [[0], [1], [2], [3]]
    # 50 fps, counted at 25: spacing 32, lead 206 frames of the video.
    view = replace(OFFICIAL, fps=25.0)
    assert frame_indices(view, 206, 50.0, NO_DRAW).tolist() == [[32 * k] for k in range(6)]
    assert frame_indices(view, 206, 50.0, Draw(time=0.999)).tolist() == [[32 * k + 6] for k in range(6)]
    with pytest.raises(ValueError, match="no frame rate"):
        frame_indices(view, 206, None, NO_DRAW)


def test_moments_of_other_kinds_may_lie_outside_too() -> None:
    view = View(num_frames=6, outside=True)
    assert spaced(view, 6, (0, 1)) == [[3, 4, 5, 6, 6, 6]]
    assert spaced(replace(view, clip="end"), 6, (1, 0)) == [[-1, -1, 0, 1, 2, 3]]
