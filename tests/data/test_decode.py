"""Frames are exactly those of a sequential decode, proven by pixels; broken files are named with what is wrong."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stillmotion.data import decode, seek
from stillmotion.data.decode import VideoError, decode_frames, probe, read_frames
from stillmotion.data.index import Index
from tests.conftest import DATA, MakeVideo, needs_data

Frames = NDArray[np.uint8]


def naive(path: Path, stream: int = 0) -> Frames:
    """The slow reference: every frame in order, converted by PyAV alone, (T, H, W, 3)."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=stream))
    first = frames[0]
    return np.stack(
        [
            np.rot90(f.to_ndarray(format="rgb24", width=first.width, height=first.height), f.rotation // 90 % 4)
            for f in frames
        ]
    )


def moving(num_frames: int = 40, height: int = 48, width: int = 64) -> Frames:
    """A bright bar over noise; every frame differs from every other."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 90, (num_frames, height, width, 3)).astype(np.uint8)
    for i, frame in enumerate(frames):
        frame[:, i * width // num_frames : i * width // num_frames + 6] = (250, 3 * i % 256, 255 - 3 * i % 256)
    return frames


def assert_exact(path: Path, stream: int = 0, *, step: int = 1) -> decode.VideoInfo:
    """Single frames (every `step`-th), every third together, and a jumble are those of the reference."""
    truth = naive(path, stream)
    last = len(truth) - 1
    info = probe(path, stream=stream)
    assert info.num_frames == len(truth)
    assert (info.height, info.width) == truth.shape[1:3]
    assert info.fault is None
    for number in {0, last // 2, (last + 1) // 2, last, *range(0, last + 1, step)}:
        assert np.array_equal(decode_frames(path, [number], stream=stream)[0], truth[number]), number
    every = list(range(0, last + 1, 3))
    assert np.array_equal(decode_frames(path, every, stream=stream), truth[every])
    jumble = [last, 0, last // 2, last // 2, *info.keyframes[:3]]
    assert np.array_equal(read_frames(path, jumble, stream=stream), truth[jumble].transpose(0, 3, 1, 2))
    assert probe(path, stream=stream) == info  # no frame came out otherwise than the index said
    return info


def _real(*patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in sorted(DATA.glob(pattern))] if DATA else []


REAL = _real("samples/*", "quirks/*", "ut_interaction/set?/*[05]_1?_?.avi", "ut_interaction/set1/10_?_?.avi")
REAL += _real("ucf101_mini/A*/*.avi", "ucf101_mini/B*/*c03.avi", "kth_sample/walking/*", "arid6/train/Sit/*10_1.mp4")


@needs_data
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files_give_the_frames_of_a_sequential_decode(path: Path) -> None:
    assert_exact(path, step=151)


@needs_data
def test_second_video_stream_is_read_when_asked_for() -> None:
    assert DATA
    path = DATA / "samples" / "nasa_13013.mp4"
    assert (probe(path).width, probe(path, stream=1).width) == (320, 480)
    assert_exact(path, stream=1, step=200)
    with pytest.raises(VideoError, match=r"nasa_13013.mp4: no video stream 2; it has 2, counted from 0"):
        probe(path, stream=2)


@needs_data
@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("video_90.mov", (3, 30.0, 320, 568, True)),
        ("derived_h264_bframes_in_avi.avi", (60, 30000 / 1001, 320, 240, False)),
        ("derived_stream_copy_cut.mp4", (58, 28.0, 340, 256, False)),
        ("derived_1fps.mp4", (2, 1.0, 160, 120, True)),
        ("derived_mpeg1.mpg", (60, 30000 / 1001, 320, 240, False)),
    ],
)
def test_probe_tells_the_truth_where_headers_lie(name: str, facts: tuple[int, float, int, int, bool]) -> None:
    assert DATA
    info = probe(DATA / "quirks" / name)
    assert (info.num_frames, info.fps, info.width, info.height, info.seekable) == pytest.approx(facts)


BROKEN = {
    "corrupted.mp4": (28, "decoding fails after 28 of 50 frames"),
    "derived_truncated_half.avi": (61, "ends after 61 of 110 frames (149504 of 298916 bytes are there)"),
    "derived_bitflips.avi": (150, "98 of 150 frames are damaged"),
    "derived_truncated_faststart.mp4": (23, "ends after 23 of 58 frames (71426 of 142852 bytes are there)"),
    "derived_zeroed_header.avi": (22, "the .avi header is lost: read as a raw mpeg4 stream of 22 frames without times"),
    "derived_jpeg_named.mp4": (1, "a still image (JPEG) named .mp4"),
    "derived_truncated.mp4": (0, "cut short after 381323 of at least 631615 bytes, and its index (moov)"),
    "derived_header_only.mp4": (0, "cut short after 512 of at least 631615 bytes, and its index (moov)"),
    "derived_empty.mp4": (0, "empty file (0 bytes)"),
    "derived_text.mp4": (0, "not a video: plain text"),
    "derived_html_error_page.avi": (0, "not a video: HTML text"),
    "derived_audio_only.mp4": (0, "no video stream (it holds: audio)"),
}


@needs_data
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_with_what_is_wrong(name: str) -> None:
    assert DATA
    path, (num_frames, what) = DATA / "broken" / name, BROKEN[name]
    with pytest.raises(VideoError) as caught:
        read_frames(path, [200])
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert what in message
    assert "\n" not in message
    if num_frames == 0:
        with pytest.raises(VideoError):
            probe(path)
    else:
        info = probe(path)
        assert info.num_frames == num_frames
        assert what in (info.fault or "")
        assert info.fps is None or name not in ("derived_zeroed_header.avi", "derived_jpeg_named.mp4")


@needs_data
def test_all_broken_files_were_tried() -> None:
    assert DATA
    assert {path.name for path in (DATA / "broken").iterdir()} == set(BROKEN)


@needs_data
def test_readable_frames_of_a_broken_file_are_exact_and_the_others_refused() -> None:
    assert DATA
    path = DATA / "broken" / "derived_truncated_half.avi"
    truth = naive(path)
    assert np.array_equal(decode_frames(path, [0, 30, 60]), truth[[0, 30, 60]])
    with pytest.raises(VideoError, match=r"no frame 61; it has 61 frames, counted from 0; ends after 61 of 110"):
        decode_frames(path, [61])
    flipped = DATA / "broken" / "derived_bitflips.avi"
    with av.open(str(flipped)) as container:
        sound = [i for i, frame in enumerate(container.decode(video=0)) if not frame.is_corrupt]
    assert len(sound) == 150 - 98
    assert np.array_equal(decode_frames(flipped, sound), naive(flipped)[sound])
    with pytest.raises(VideoError, match=r"frame 0 is damaged; 98 of 150 frames are damaged"):
        decode_frames(flipped, [0, sound[0]])


OPEN_GOP = {"x264-params": "open-gop=1:keyint=9:min-keyint=4:bframes=3:b-pyramid=normal:scenecut=0"}
CLOSED_GOP = {"g": "12", "bf": "2"}


@pytest.mark.parametrize(
    ("name", "codec", "options", "seekable"),
    [
        ("closed.mp4", "libx264", CLOSED_GOP, True),
        ("open.mp4", "libx264", OPEN_GOP, True),
        ("open.mkv", "libx264", OPEN_GOP, True),
        ("pyramid.mkv", "libx264", {"g": "250", "bf": "5", "x264-params": "b-pyramid=strict"}, True),
        ("hevc.mp4", "libx265", {"x265-params": "keyint=8:open-gop=1:bframes=3:log-level=none"}, True),
        ("vp9.webm", "libvpx-vp9", {"g": "10", "deadline": "realtime", "cpu-used": "8"}, True),
        ("vp8.webm", "libvpx", {"g": "10", "auto-alt-ref": "1", "lag-in-frames": "8"}, None),
        ("simple.avi", "mpeg4", {"g": "12", "b": "4M"}, True),
        ("b.avi", "mpeg4", {"g": "12", "bf": "2"}, False),
        ("b.mp4", "mpeg4", {"g": "12", "bf": "2"}, False),
        ("h264.avi", "libx264", CLOSED_GOP, False),
        ("h264.ts", "libx264", CLOSED_GOP, False),
        ("mpeg2.mpg", "mpeg2video", {"g": "12", "bf": "2"}, False),
        ("intra.avi", "mjpeg", {}, True),
        ("wm.wmv", "wmv2", {"g": "12"}, False),
        ("flash.flv", "flv1", {"g": "12"}, False),
    ],
)
def test_every_frame_of_every_codec_is_exact(
    tmp_path: Path, make_video: MakeVideo, name: str, codec: str, options: dict[str, str], seekable: bool | None
) -> None:
    if codec == "mjpeg":
        options = {"strict": "unofficial"}
    path = make_video(tmp_path / name, moving(), codec=codec, options=options)
    info = assert_exact(path)
    assert seekable is None or info.seekable is seekable
    if info.seekable and codec not in ("mjpeg", "libvpx"):
        assert 1 <= len(info.keyframes) <= 10


def test_a_frame_before_its_keyframe_is_decoded_from_the_one_before() -> None:
    # Decoding order I0 P3 B1 B2 I6 B4 B5 P7: B4 and B5 are shown before I6 and may need P3.
    index = _index([0, 3, 1, 2, 6, 4, 5, 7], syncs=(0, 4))
    assert [index.start_for(position) for position in range(8)] == [0, 0, 0, 0, 4, 0, 0, 4]
    assert index.keyframes == (0, 6)
    assert seek.runs(index, [7]) == [(4, 7)]
    assert seek.runs(index, [1, 7]) == [(0, 2), (4, 7)]
    assert seek.runs(index, [2, 5, 7]) == [(0, 7)]
    assert seek.runs(index, [6, 4]) == [(0, 5)]  # B4 needs more than I6, which lies before it in the file


def _index(pts: list[int], syncs: tuple[int, ...]) -> Index:
    times = np.array(pts, np.int64)
    return Index(times, times, np.argsort(times), syncs, np.zeros(len(pts), bool))


def test_an_index_that_lies_is_found_out_and_replaced_by_counting(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "a.mp4", moving(), options=CLOSED_GOP)
    truth = naive(path)
    assert probe(path).seekable
    known = decode._known[decode._key(path, None)]
    assert known.index is not None
    known.index = replace(known.index, pts=known.index.pts + 1, seek_times=known.index.seek_times + 1)
    assert np.array_equal(decode_frames(path, [20, 3]), truth[[20, 3]])
    assert not probe(path).seekable
    assert probe(path).num_frames == 40


def test_one_frame_of_a_long_video_is_reached_by_seeking(
    tmp_path: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4", moving(200), options={"g": "10", "bf": "0", "sc_threshold": "0"})
    keyframe = probe(path).keyframes[12]
    decoded: list[int | None] = []
    run = seek._decode_run

    def watched(*args: Any) -> Iterator[av.VideoFrame]:
        for frame in run(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(seek, "_decode_run", watched)
    decode_frames(path, [keyframe])
    assert len(decoded) == 1
    decode_frames(path, [keyframe + 4])
    assert len(decoded) == 1 + 5


def test_frames_of_another_size_are_brought_to_the_first(tmp_path: Path, make_video: MakeVideo) -> None:
    small = make_video(tmp_path / "a.ts", moving(10), codec="mpeg2video")
    large = make_video(tmp_path / "b.ts", moving(10, 96, 96), codec="mpeg2video")
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    with av.open(str(both)) as container:
        sizes = [(f.width, f.height) for f in container.decode(video=0)]
    assert sizes[0] == (64, 48)
    assert sizes[-1] == (96, 96)
    frames = decode_frames(both, [0, len(sizes) - 1])
    assert frames.shape == (2, 48, 64, 3)
    assert np.array_equal(frames, naive(both)[[0, -1]])


RED_601, RED_709 = (81, 90, 240), (63, 102, 240)


@pytest.mark.parametrize(
    ("yuv", "colour_range", "matrix", "rgb"),
    [
        (RED_601, 1, 6, (254, 0, 0)),  # 1.164 * (Y - 16) + 1.596 * (V - 128), BT.601
        (RED_709, 1, 1, (255, 1, 0)),  # 1.164 * (Y - 16) + 1.793 * (V - 128), BT.709
        (RED_709, 1, 6, (233, 0, 4)),  # the wrong matrix would show: 1.164 * 47 + 1.596 * 112
        ((16, 128, 128), 1, 6, (0, 0, 0)),
        ((16, 128, 128), 2, 6, (16, 16, 16)),
        ((235, 128, 128), 1, 1, (255, 255, 255)),
        ((235, 128, 128), 2, 1, (235, 235, 235)),
    ],
)
def test_colours_follow_matrix_and_range(
    tmp_path: Path, yuv: tuple[int, int, int], colour_range: int, matrix: int, rgb: tuple[int, int, int]
) -> None:
    path = tmp_path / "colour.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.color_range, stream.codec_context.colorspace = colour_range, matrix
        planes = np.concatenate([np.full(n, v, np.uint8) for n, v in zip((1024, 256, 256), yuv, strict=True)])
        frame = av.VideoFrame.from_ndarray(planes.reshape(48, 32), format="yuv420p")
        frame.color_range, frame.colorspace = colour_range, matrix
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    picture = decode_frames(path, [0])[0]
    assert np.abs(picture.astype(int) - rgb).max() <= 3
    reduced = decode_frames(path, [0], short_side=16)[0]
    assert reduced.shape == (16, 16, 3)
    assert np.abs(reduced.astype(int) - rgb).max() <= 3


ONE = 1 << 16


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((ONE, 0, 0, ONE), lambda p: p),
        ((-ONE, 0, 0, -ONE), lambda p: p[::-1, ::-1]),
        ((0, ONE, -ONE, 0), lambda p: np.rot90(p, -1)),  # x' = -y, y' = x: clockwise
        ((0, -ONE, ONE, 0), lambda p: np.rot90(p, 1)),
        ((-ONE, 0, 0, ONE), lambda p: p[:, ::-1]),
        ((ONE, 0, 0, -ONE), lambda p: p[::-1]),
        ((0, ONE, ONE, 0), lambda p: p.swapaxes(0, 1)),
    ],
)
def test_display_matrix_turns_and_mirrors(
    tmp_path: Path, matrix: tuple[int, int, int, int], upright: Callable[[Frames], Frames]
) -> None:
    path = tmp_path / "turned.mp4"
    a, b, c, d = matrix
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(moving(30)[29], format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(np.uint8)
    picture = decode_frames(path, [0])[0]
    assert np.array_equal(picture, upright(stored))
    assert (probe(path).height, probe(path).width) == picture.shape[:2]


def test_variable_rate_and_negative_start_keep_their_frames(tmp_path: Path) -> None:
    path = tmp_path / "vfr.mp4"
    times = [0, 1, 2, 5, 6, 9, 15, 16, 17, 18, 30, 31]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for time, picture in zip(times, moving(12), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = assert_exact(path)
    assert info.seekable
    assert info.fps == pytest.approx(12 / 32 * 25, rel=0.1)


def test_short_side_reduces_and_never_enlarges(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "a.mp4", moving(10, 60, 80))
    full, small = decode_frames(path, range(10)), decode_frames(path, range(10), short_side=30)
    assert small.shape == (10, 30, 40, 3)
    blocks = full.reshape(10, 30, 2, 40, 2, 3).mean((2, 4))
    assert np.abs(small[:, 2:-2, 2:-2] - blocks[:, 2:-2, 2:-2]).mean() < 12  # the same picture, filtered a little wider
    assert np.array_equal(decode_frames(path, [7], short_side=30)[0], small[7])
    assert np.array_equal(decode_frames(path, range(10), short_side=61), full)


def test_indices_are_checked(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "a.mp4", moving(10))
    assert read_frames(path, []).shape == (0, 3, 48, 64)
    assert read_frames(path, np.array([9, 1, 1])).shape == (3, 3, 48, 64)
    for wrong in (-1, 10):
        with pytest.raises(VideoError, match=rf"a.mp4: no frame {wrong}; it has 10 frames, counted from 0$"):
            read_frames(path, [0, wrong])
    with pytest.raises(ValueError, match="whole numbers"):
        read_frames(path, [0.5])
    with pytest.raises(VideoError, match=r"none.mp4: not found"):
        read_frames(tmp_path / "none.mp4", [0])


def test_a_replaced_file_is_read_anew(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "a.mp4", moving(10))
    assert probe(path).num_frames == 10
    make_video(path, moving(14))
    os.utime(path, ns=(1, 1))
    assert probe(path).num_frames == 14
    assert np.array_equal(decode_frames(path, [13]), naive(path)[[13]])


@pytest.mark.parametrize("name", ["cut.mkv", "cut.avi", "cut.mp4"])
def test_cut_files_say_where_they_end(tmp_path: Path, make_video: MakeVideo, name: str) -> None:
    whole = make_video(tmp_path / f"whole_{name}", moving(60), codec="mpeg4", options={"b": "8M"})
    if name == "cut.mp4":
        whole = _index_first(whole, tmp_path / "index_first.mp4")
    path = tmp_path / name
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    info = probe(path)
    assert 10 < info.num_frames < 60
    assert f"ends after {info.num_frames}" in (info.fault or "")
    assert f"({len(data) * 2 // 3} of {len(data)} bytes are there)" in (info.fault or "")
    assert np.array_equal(decode_frames(path, [10]), naive(whole)[[10]])


def _index_first(source: Path, target: Path) -> Path:
    """The same packets with the index before them, so that a cut file still opens."""
    with av.open(str(source)) as old, av.open(str(target), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return target


def test_folder_of_images_is_a_video_in_numeric_order(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in (1, 2, 10, 9):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(folder / f"img_{number}.png")
    (folder / "notes.txt").write_text("not a frame")
    assert read_frames(folder, range(4))[:, 0, 5, 5].tolist() == [1, 2, 9, 10]
    info = probe(folder)
    assert (info.num_frames, info.fps, info.width, info.height) == (4, None, 20, 10)
    assert decode_frames(folder, [3], short_side=5).shape == (1, 5, 10, 3)
    with pytest.raises(VideoError, match=r"clip: no frame 4; it has 4 frames"):
        read_frames(folder, [4])
    (folder / "img_2.png").write_bytes(b"no image")
    with pytest.raises(VideoError, match=r"img_2.png: an image that cannot be read"):
        read_frames(folder, [1])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(VideoError, match=r"empty: a folder without images"):
        probe(empty)


def test_still_is_one_upright_frame(tmp_path: Path) -> None:
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[:, :10] = (200, 100, 0)  # left half
    image, exif = Image.fromarray(picture), Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: left becomes top
    image.save(tmp_path / "turned.png", exif=exif)
    frames = read_frames(tmp_path / "turned.png", [0, 0])
    assert frames.shape == (2, 3, 20, 10)
    assert frames[0, :, 2, 5].tolist() == [200, 100, 0]
    assert frames[0, :, 18, 5].tolist() == [0, 0, 0]
    info = probe(tmp_path / "turned.png")
    assert (info.num_frames, info.width, info.height) == (1, 10, 20)
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert read_frames(tmp_path / "deep.png", [0])[0, :, 0, 0].tolist() == [128, 128, 128]


def test_threads_that_read_the_same_and_other_files_get_their_own_frames(tmp_path: Path, make_video: MakeVideo) -> None:
    paths = [
        make_video(tmp_path / f"{i}.{suffix}", moving(20)[:: 1 - 2 * i], codec=codec, options={"bf": "2"})
        for i in (0, 1)
        for suffix, codec in (("avi", "mpeg4"), ("mp4", "libx264"))
    ]
    truths = {path: naive(path) for path in paths}

    def read(job: int) -> bool:
        path, number = paths[job % 4], job % 20
        probe(path)
        return np.array_equal(decode_frames(path, [number])[0], truths[path][number])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(80)))
