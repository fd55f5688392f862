"""Bytes from a client to a service: one frame against sixteen, as pictures and as video.

    python benchmarks/bandwidth.py --data ../shared/data [--each 3] [--output FILE.json]

HalluciNet argues that a client which sends one frame in place of sixteen needs a sixteenth of the bandwidth. Measured
on the frames around the middle of real clips: one JPEG; sixteen JPEGs; the sixteen frames as H.264, at the lowest
quality that is no worse (PSNR) than that of the JPEGs; one frame as H.264 likewise; and the packets that the file
itself has, sent as they are: the nearest keyframe, those for the frame (the part of its group of pictures up to it),
those for the sixteen. Each at the size that was filmed and at 112 lines.
"""

import argparse
import io
import json
import statistics
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillmotion.data.decode import decode_frames, probe
from stillmotion.data.packets import decoded_bytes
from stillmotion.data.rows import media_files
from stillmotion.data.sampling import spread_evenly
from stillmotion.run import environment

Frame = NDArray[np.uint8]
SETS = ("samples", "ucf101_mini", "arid6", "fight_surv", "ut_interaction", "kth_sample")
NUM_FRAMES = 16
CRFS = range(10, 41)
SIZES = {"as filmed": None, "112 lines": 112}


def jpeg(frame: Frame, quality: int) -> tuple[int, Frame]:
    """Bytes of a frame as JPEG, and what it looks like then."""
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=quality, optimize=True)
    return out.tell(), np.asarray(Image.open(out).convert("RGB"))


def h264(frames: Sequence[Frame], crf: int) -> tuple[int, list[Frame]]:
    """Bytes of frames as a bare H.264 stream, and what they look like then. Both sides must be even."""
    out = io.BytesIO()
    with av.open(out, "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": str(crf), "preset": "medium"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
        container.close()
        size = len(out.getvalue())
    with av.open(io.BytesIO(out.getvalue()), format="h264") as container:
        return size, [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def psnr(frames: Sequence[Frame], coded: Sequence[Frame]) -> float:
    """Of all frames together, in dB."""
    error = np.mean([np.square(a.astype(np.float32) - b).mean() for a, b in zip(frames, coded, strict=True)])
    return float(10.0 * np.log10(255.0**2 / max(float(error), 1e-9)))


def cheapest(frames: Sequence[Frame], wanted: float) -> int:
    """Bytes as H.264 at the highest CRF that is no worse than the wanted PSNR; at the best one if none is."""
    low, high = 0, len(CRFS) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if psnr(frames, h264(frames, CRFS[middle])[1]) >= wanted else (low, middle - 1)
    return h264(frames, CRFS[low])[0]


def even(frames: Frame) -> Frame:
    """Without the last line or column where their number is odd, which H.264 at 4:2:0 does not take."""
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def measure(path: Path, quality: int) -> dict[str, dict[str, float]]:
    """Bytes by way of sending, at each size.

    Raises:
        ValueError: The file cannot be read, or is shorter than sixteen frames.
    """
    info = probe(path)
    num_frames = info.num_frames
    first = (num_frames - NUM_FRAMES) // 2
    if first < 0:
        raise ValueError(f"{path}: {num_frames} frames; {NUM_FRAMES} are wanted")
    wanted = np.arange(first, first + NUM_FRAMES)
    found: dict[str, dict[str, float]] = {}
    for size, lines in SIZES.items():
        frames = list(even(decode_frames(path, wanted, short_side=lines)))
        pictures = [jpeg(frame, quality) for frame in frames]
        good = psnr(frames, [picture for _, picture in pictures])
        one = pictures[NUM_FRAMES // 2]
        found[size] = {
            "1 JPEG": one[0],
            "16 JPEGs": sum(count for count, _ in pictures),
            "H.264 of 16": cheapest(frames, good),
            "H.264 of 1": cheapest(frames[NUM_FRAMES // 2 : NUM_FRAMES // 2 + 1], psnr(frames[8:9], [one[1]])),
        }
    nearest = min(info.keyframes, key=lambda number: abs(number - int(wanted[NUM_FRAMES // 2])))
    found["as filmed"] |= {
        "nearest keyframe": decoded_bytes(path, np.array([nearest])),
        "packets for 1": decoded_bytes(path, wanted[NUM_FRAMES // 2 : NUM_FRAMES // 2 + 1]),
        "packets for 16": decoded_bytes(path, wanted),
    }
    return found


def main() -> None:
    """Prints KiB by way of sending, medians over the clips of each set, and the factor to one JPEG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared videos")
    parser.add_argument("--sets", nargs="*", default=[*SETS])
    parser.add_argument("--each", type=int, default=3, help="clips of a set, spread evenly")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    clips: dict[str, dict[str, dict[str, float]]] = {}
    for name in args.sets:
        files = [f for f in sorted(media_files(args.data / name)) if f.is_file() and f.suffix != ".jpg"]
        for row in spread_evenly(len(files), args.each):
            try:
                clips[str(files[row].relative_to(args.data))] = measure(files[row], args.quality)
            except ValueError as error:
                print(f"left out: {error}")
    for size in SIZES:
        ways = list(next(iter(clips.values()))[size])
        print(f"\n{size}: KiB, and in brackets times one JPEG (median over clips, and their range)")
        print("| clips of | " + " | ".join(ways) + " |\n| --- |" + " ---: |" * len(ways))
        for name in (*args.sets, "all"):
            rows = [found[size] for clip, found in clips.items() if name == "all" or Path(clip).parts[0] == name]
            if rows:
                print(f"| {name} ({len(rows)}) | " + " | ".join(cell(rows, way) for way in ways) + " |")
    if args.output:
        facts = {"quality": args.quality, "bytes": clips, "environment": environment()}
        args.output.write_text(json.dumps(facts, indent=1))


def cell(rows: Sequence[dict[str, float]], way: str) -> str:
    """Median KiB; median and range of the factor."""
    factors = [row[way] / row["1 JPEG"] for row in rows]
    size = statistics.median(row[way] for row in rows) / 1024
    return f"{size:.1f} ({statistics.median(factors):.1f}; {min(factors):.1f}-{max(factors):.1f})"


if __name__ == "__main__":
    main()
