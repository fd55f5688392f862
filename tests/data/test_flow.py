"""Flow: end-point errors on pictures moved by known amounts, geometry of the vectors, coding, odd videos."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stillmotion.data.dataset import VideoDataset
from stillmotion.data.flow import METHODS, flow_of_pairs, from_bytes, grey_frames, optical_flow, to_bytes
from stillmotion.data.sampling import frame_indices
from stillmotion.data.source import Videos, show
from stillmotion.data.table import Sample, read_table
from stillmotion.data.transforms import render_view
from stillmotion.models.encoder import prepare
from stillmotion.view import NO_DRAW, Augment, Draw, FlowConfig, View
from tests.conftest import MakeVideo


def texture(height: int = 120, width: int = 160, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3.0)
    return np.asarray(cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX), np.uint8)  # type: ignore[call-overload]


def moved(picture: NDArray[np.uint8], dx: float, dy: float) -> NDArray[np.uint8]:
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REFLECT), np.uint8)


def rgb(*grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([np.repeat(frame[..., None], 3, 2) for frame in grey])


def flow_view(**settings: Any) -> View:
    flow = FlowConfig(bound=8.0, **settings.pop("flow", {}))
    return View(**{"kind": "flow", "size": (120, 160), "num_frames": 1, "flow": flow, **settings})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dx", "dy"), [(2.5, -1.0), (-3.0, 0.5)])
def test_end_point_error_of_every_method(method: str, dx: float, dy: float) -> None:
    first = texture()
    (flow,) = optical_flow([(first, moved(first, dx, dy))], method)
    inner = flow[16:-16, 16:-16]
    error = np.hypot(inner[..., 0] - dx, inner[..., 1] - dy).mean()
    assert error < 0.15, f"{error:.3f} pixels"
    assert flow.dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
def test_nothing_moves_between_equal_frames_and_in_specks(method: str) -> None:
    first = texture()
    speck = texture(15, 40)
    assert not optical_flow([(first, first.copy())], method)[0].any()
    assert not optical_flow([(speck, moved(speck, 1, 0))], method)[0].any()
    with pytest.raises(ValueError, match="flow method 'raft2': choose one of dis, tvl1, farneback"):
        optical_flow([(first, first)], "raft2")


def test_bytes_and_back() -> None:
    flow = np.linspace(-5.0, 5.0, 4001, dtype=np.float32)
    back = from_bytes(to_bytes(flow, 4.0), 4.0)
    inside = np.abs(flow) <= 4.0
    assert np.abs(back - flow)[inside].max() <= 4.0 / 254 + 1e-6
    assert (back[flow > 4.0] == 4.0).all()
    assert (back[flow < -4.0] == -4.0).all()
    assert from_bytes(to_bytes(np.zeros(3, np.float32), 4.0), 4.0).tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_array_equal(to_bytes(-flow, 4.0).astype(int) - 128, 128 - to_bytes(flow, 4.0).astype(int))


def test_vectors_are_stretched_with_the_picture() -> None:
    first = texture()
    pair = rgb(first, moved(first, 2.0, -1.0))
    whole = from_bytes(render_view(pair, flow_view(), NO_DRAW), 8.0)[0, 0, :, 16:-16, 16:-16]
    assert whole.mean((1, 2)) == pytest.approx([2.0, -1.0], abs=0.1)
    wide = from_bytes(render_view(pair, flow_view(size=(60, 320)), NO_DRAW), 8.0)[0, 0]
    assert wide.mean((1, 2)) == pytest.approx([4.0, -0.5], abs=0.2)
    box = Draw(box=(0.25, 0.25, 0.5, 0.5))
    near = from_bytes(render_view(pair, flow_view(), box), 8.0)[0, 0]
    assert near.mean((1, 2)) == pytest.approx([4.0, -2.0], abs=0.2)
    own = from_bytes(render_view(pair, flow_view(size=(56, 56), resize=60), box), 8.0)[0, 0]
    assert own.mean((1, 2)) == pytest.approx([1.0, -0.5], abs=0.1)


def test_a_mirror_image_moves_the_other_way() -> None:
    first = texture()
    pair = rgb(first, moved(first, 2.0, -1.0))
    plain = render_view(pair, flow_view(size=(60, 80)), NO_DRAW)[0, 0].astype(int) - 128
    mirrored = render_view(pair, flow_view(size=(60, 80)), Draw(flip=True))[0, 0].astype(int) - 128
    np.testing.assert_array_equal(mirrored[0], -plain[0, :, ::-1])
    np.testing.assert_array_equal(mirrored[1], plain[1, :, ::-1])
    ten = render_view(pair, flow_view(size=(50, 50), resize=60, num_crops=10), NO_DRAW).astype(int) - 128
    np.testing.assert_array_equal(ten[6, 0, 0], -ten[0, 0, 0, :, ::-1])  # of the mirrored picture the other corner
    np.testing.assert_array_equal(ten[6, 0, 1], ten[0, 0, 1, :, ::-1])


def test_relative_motion_is_that_of_the_clip() -> None:
    first = texture()
    frames = rgb(first, moved(first, 1.0, 0.0), first, moved(first, 3.0, -1.5))
    vectors = np.stack(flow_of_pairs(frames, FlowConfig()))
    size = np.sqrt((vectors.astype(np.float64) ** 2).mean())  # of both fields, so that they keep their proportion
    view = flow_view(num_frames=2, flow={"relative": True})  # bound 8 times that
    seen = from_bytes(render_view(frames, view, NO_DRAW), 8.0)[0].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(seen, vectors / (size + 120 * 3e-4), atol=8.0 / 254 + 1e-4)
    still = render_view(rgb(first, first, first, first), view, NO_DRAW)
    assert (still == 128).all(), "nothing is not blown up"


def test_pairs_stay_inside_the_sample() -> None:
    view = View(kind="flow", num_frames=3, flow=FlowConfig(step=2), moment="last", clip="middle")
    assert frame_indices(view, 6, None, NO_DRAW).tolist() == [[3, 5, 3, 5, 3, 5]]
    assert frame_indices(view, 2, None, NO_DRAW).tolist() == [[0, 1, 0, 1, 0, 1]]
    assert frame_indices(view, 1, None, NO_DRAW).tolist() == [[0] * 6]
    still = View(kind="flow", num_frames=2, stride=0)
    assert frame_indices(still, 9, None, NO_DRAW).tolist() == [[4, 4, 4, 4]], "a clip without motion"
    shifted = View(kind="flow", num_frames=3, moment="last", end="shift")
    assert frame_indices(shifted, 9, None, NO_DRAW).tolist() == [[5, 6, 6, 7, 7, 8]]
    many = View(kind="flow", num_frames=2, stride=3, num_moments=2, moment="uniform")
    assert frame_indices(many, 16, None, NO_DRAW).tolist() == [[4, 5, 7, 8], [12, 13, 14, 15]]


def test_dark_videos_are_stretched() -> None:
    first = (texture() // 25).astype(np.uint8)  # eleven values of grey
    pair = rgb(first, moved(first, 2.0, 0.0))
    assert max(frame.max() for frame in grey_frames(pair, stretch=True)) > 200
    (flow,) = flow_of_pairs(pair, FlowConfig(stretch=True))
    assert flow[16:-16, 16:-16, 0].mean() == pytest.approx(2.0, abs=0.3)


def test_what_the_network_sees() -> None:
    view = View(kind="flow", num_frames=1, size=(1, 3))
    assert (view.channels, view.mean, view.std) == (2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    coded = torch.tensor([[1, 128, 255], [128, 128, 192]], dtype=torch.uint8).reshape(1, 1, 2, 1, 3)
    found = prepare(coded, view)
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 64 / 127]))
    assert View.from_dict(json.loads(json.dumps(view.to_dict()))) == view
    with pytest.raises(ValueError, match=r"setting flow.bounds; known: bound, method, relative, step, stretch"):
        View.from_dict({"kind": "flow", "flow": {"bounds": 3}})


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (10, 14)])
def test_videos_of_any_shape(size: tuple[int, int], tmp_path: Path, make_video: MakeVideo) -> None:
    """Not square, upright, tiny, of one frame, and one that is none."""
    height, width = size
    first = texture(height, width)
    clip = rgb(*(moved(first, 1.5 * t, 0.0) for t in range(6)))
    make_video(tmp_path / "clip.mp4", clip)
    make_video(tmp_path / "one.mp4", clip[:1])
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "table.csv").write_text("path,label\nclip.mp4,a\none.mp4,b\nbroken.mp4,a\n")
    view = View(kind="flow", num_frames=4, size=size, flow=FlowConfig(bound=4.0))
    dataset = VideoDataset(
        read_table(tmp_path / "table.csv"), None, {"student/clip": view}, random=True, augment=Augment(flip=0.5)
    )
    items = [dataset[row] for row in range(3)]
    assert items[0]["student/clip"].shape == (1, 4, 2, height, width)
    assert (items[1]["student/clip"] == 128).all(), "a single frame does not move"
    assert "broken.mp4" in items[2]["error"]
    if min(size) > 16:
        sample = Sample(tmp_path / "clip.mp4", "clip.mp4")
        shown = show(Videos(), sample, {"flow": view}, NO_DRAW)["flow"]
        inner = from_bytes(shown, 4.0)[0, :, 0, 8:-8, 16:-16]
        assert inner.mean() == pytest.approx(1.5, abs=0.3)
