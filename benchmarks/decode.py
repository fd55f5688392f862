"""Time to read frames at 112 lines, against PyAV read naively, OpenCV and (where they import) torchcodec and decord.

    python benchmarks/decode.py --data ../shared/data

All readers of a case run in mixed order, round after round, in one process; the least CPU time counts (of all threads,
so that neither threads nor a busy machine flatter anybody). `x` is the ratio to the fastest peer whose frames are all
exact; `wrong` counts frames that are not the wanted one.
"""

import argparse
import importlib
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from stillmotion.data import decode
from stillmotion.data.picture import reduced_size

Frames = NDArray[np.uint8]
Reader = Callable[[str, list[int], tuple[int, int]], Frames]
SHORT_SIDE = 112
CLIPS = {
    "pancake": "samples/flipping_a_pancake.mkv",
    "mm_test": "ucf101_mini/ApplyEyeMakeup/test.avi",
    "mm_demo": "samples/arm_wrestling.mp4",
}


def stillmotion_first(path: str, indices: list[int], size: tuple[int, int]) -> Frames:
    """Nothing known of the file: the index is built first."""
    decode._known.clear()
    return decode.decode_frames(path, indices, short_side=SHORT_SIDE)


def stillmotion_again(path: str, indices: list[int], size: tuple[int, int]) -> Frames:
    """The file was read before in this process (a later epoch)."""
    return decode.decode_frames(path, indices, short_side=SHORT_SIDE)


def pyav_naive(path: str, indices: list[int], size: tuple[int, int]) -> Frames:
    """Decode from the start, convert what is wanted."""
    wanted, out = set(indices), []
    with av.open(path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                out.append(frame.to_ndarray(format="rgb24", width=size[0], height=size[1]))
            if number == indices[-1]:
                break
    return np.stack(out)


def opencv_grab(path: str, indices: list[int], size: tuple[int, int]) -> Frames:
    """Grab from the start, retrieve what is wanted."""
    capture, wanted, out = _opencv_open(path), set(indices), []
    for number in range(indices[-1] + 1):
        capture.grab()
        if number in wanted:
            out.append(_opencv_frame(capture.retrieve(), size))
    capture.release()
    return np.stack(out)


def opencv_seek(path: str, indices: list[int], size: tuple[int, int]) -> Frames:
    """Set the position before every frame that does not follow the last."""
    capture, out, position = _opencv_open(path), [], 0
    for number in indices:
        if number != position:
            capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        out.append(_opencv_frame(capture.read(), size))
        position = number + 1
    capture.release()
    return np.stack(out)


def _opencv_open(path: str) -> cv2.VideoCapture:
    return cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def _opencv_frame(result: tuple[bool, Any], size: tuple[int, int]) -> Frames:
    ok, picture = result
    if not ok:
        return np.zeros((size[1], size[0], 3), np.uint8)
    frame: Frames = cv2.cvtColor(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
    return frame


def _readers() -> dict[str, Reader]:
    readers: dict[str, Reader] = {
        "stillmotion, first": stillmotion_first,
        "stillmotion, again": stillmotion_again,
        "PyAV from start": pyav_naive,
        "OpenCV grab": opencv_grab,
        "OpenCV seek": opencv_seek,
    }
    try:
        video_decoder = importlib.import_module("torchcodec.decoders").VideoDecoder

        def torchcodec(path: str, indices: list[int], size: tuple[int, int]) -> Frames:
            batch = video_decoder(path, num_ffmpeg_threads=1).get_frames_at(indices).data
            frames = batch.permute(0, 2, 3, 1).numpy()
            return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])

        readers["torchcodec"] = torchcodec
    except (ImportError, RuntimeError, OSError) as error:  # it needs FFmpeg's libraries on the system
        print(f"torchcodec left out: {str(error).splitlines()[0]}")
    try:
        decord = importlib.import_module("decord")

        def decord_batch(path: str, indices: list[int], size: tuple[int, int]) -> Frames:
            reader = decord.VideoReader(path, width=size[0], height=size[1], num_threads=1)
            frames: Frames = reader.get_batch(indices).asnumpy()
            return frames

        readers["decord"] = decord_batch
    except ImportError as error:
        print(f"decord left out: {error}")
    return readers


def count_wrong(frames: Frames, indices: list[int], truth: Frames) -> int:
    """Frames that look more like a neighbour of the wanted frame than like it (or like none of them)."""
    wrong = 0
    for frame, number in zip(frames, indices, strict=True):
        near = range(max(0, number - 3), min(len(truth), number + 4))
        distance = {i: float(np.abs(truth[i].astype(np.int16) - frame).mean()) for i in near}
        wrong += distance[number] > 8 or distance[number] > min(distance.values()) + 0.02
    return wrong


def synthesise(source: Path, target: Path, *, seconds: int = 60) -> None:
    """A 720p clip at 30 fps: the source enlarged, with noise, in H.264 (CRF 23), its packets repeated to a minute."""
    with av.open(str(source)) as container:
        frames = [f.reformat(1280, 720, "yuv420p") for f in container.decode(video=0)]
    rng = np.random.default_rng(0)
    part = target.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream(
            "libx264", rate=30, options={"preset": "medium", "crf": "23", "g": "56", "sc_threshold": "0"}
        )
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.time_base = Fraction(1, 30)
        packets = []
        for number, source_frame in enumerate(frames):
            planes = source_frame.to_ndarray()
            noisy = planes[:720] + rng.integers(-6, 7, (720, 1280), np.int16)
            planes[:720] = noisy.clip(0, 255)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            packets += stream.encode(frame)
        packets += stream.encode()
        copies = [(bytes(p), p.pts or 0, p.dts or 0, p.is_keyframe) for p in packets]
        for turn in range(seconds * 30 // len(frames)):
            for data, pts, dts, is_keyframe in copies:
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 30), is_keyframe
                packet.pts, packet.dts = pts + turn * len(frames), dts + turn * len(frames)
                container.mux(packet)
    part.rename(target)


def cases(num_frames: int) -> dict[str, list[int]]:
    """Frame numbers of each case."""
    centre = num_frames // 2
    start = max(0, min(centre - 48, num_frames - 96))
    return {
        "centre frame": [centre],
        "16 frames": list(range(centre, min(centre + 16, num_frames))),
        "6 of 96": [start + 16 * i + 8 for i in range(6)],
        "whole video": list(range(num_frames)),
    }


def measure(path: str, indices: list[int], readers: dict[str, Reader], truth: Frames, rounds: int) -> list[str]:
    """One line a reader."""
    size = (truth.shape[2], truth.shape[1])
    best, wrong = dict.fromkeys(readers, float("inf")), {}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(readers)).tolist():  # whoever follows the same code finds warm caches
            reader = readers[name]
            begin = time.process_time()
            frames = reader(path, indices, size)
            best[name] = min(best[name], time.process_time() - begin)
            if name not in wrong:
                wrong[name] = count_wrong(frames, indices, truth)
    base = min(best[name] for name in readers if not wrong[name] and not name.startswith("stillmotion"))
    return [f"{name:20} {best[name] * 1e3:8.1f} ms {best[name] / base:5.2f}x {wrong[name]:6} wrong" for name in readers]


def main() -> None:
    """Prints a table for each clip and case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared videos")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the least time of each reader counts")
    parser.add_argument("--clips", nargs="*", default=[*CLIPS, "syn720"], help="which clips")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    readers = _readers()
    paths = {name: args.data / path for name, path in CLIPS.items()}
    paths["syn720"] = Path(tempfile.gettempdir()) / "stillmotion_syn720.mp4"
    if "syn720" in args.clips and not paths["syn720"].exists():
        synthesise(paths["mm_demo"], paths["syn720"])
    for name in args.clips:
        path = str(paths[name])
        info = decode.probe(path)
        size = reduced_size((info.width, info.height), SHORT_SIDE)
        truth = pyav_naive(path, list(range(info.num_frames)), size)
        for case, indices in cases(info.num_frames).items():
            print(f"\n{name}, {case} ({len(indices)} of {info.num_frames}, {size[0]}x{size[1]})")
            print("\n".join(measure(path, indices, readers, truth, args.rounds)))
        centre = info.num_frames // 2
        nearest = min(info.keyframes, key=lambda number: abs(number - centre))
        print(f"\n{name}, nearest keyframe (frame {nearest} instead of {centre}, {len(info.keyframes)} keyframes)")
        print("\n".join(measure(path, [nearest], readers, truth, args.rounds)))


if __name__ == "__main__":
    main()
