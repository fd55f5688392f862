"""Optical flow: pairs a second against OpenCV called plainly, and what storing it costs in bytes, error and time.

    python benchmarks/flow.py [--data FOLDER] [--frames 49] [--rounds 3] [--parts speed workers storage]

FOLDER holds `arid6`, `ut_interaction` and `samples`. Speed is CPU time on one thread, everything in turns within a
round, so that ratios hold on a machine that others use too; workers are timed by the clock, without their start.
"""

import argparse
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Grid

from stillmotion.data.compute_flow import compute_flow
from stillmotion.data.decode import decode_frames, probe
from stillmotion.data.flow import METHODS, RAFT, Vectors, flow_of_pairs
from stillmotion.data.flow_store import FlowSettings, FlowStore
from stillmotion.data.raft import raft_function
from stillmotion.data.table import Sample, Table
from stillmotion.view import FlowConfig

Fields = NDArray[np.float32]
CLIP = 16
LIMITS = {"dis": None, "farneback": None, "tvl1": 2, "raft_small": 2}
"""Frames of a clip that slow methods get."""


def samples_of(data: Path, frames: int) -> Table:
    """Eleven clips, dark, cropped to people, and from films; each to its first frames."""
    paths = sorted((data / "arid6/train").rglob("*.mp4"))[::40][:4]
    paths += sorted((data / "ut_interaction/set1").rglob("*.avi"))[::15][:4]
    paths += [data / "samples" / name for name in ("flipping_a_pancake.mkv", "arm_wrestling.mp4", "basketball.mp4")]
    return Table(tuple(Sample(path, path.name, end=min(frames, probe(path).num_frames)) for path in paths))


def shorter(table: Table, frames: int | None) -> Table:
    """The same clips to fewer frames."""
    return Table(tuple(Sample(s.path, s.name, end=min(int(s.end or 0), frames or 10**9)) for s in table))


def cpu_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Of one call."""
    begin = time.process_time()
    function(*arguments)
    return time.process_time() - begin


def plain(table: Table, method: str, weights: str) -> None:
    """Decode, turn to grey, call; nothing is stored."""
    calculate = raft_function(method, weights, "cpu") if method in RAFT else METHODS[method]()
    for sample in table:
        frames = decode_frames(sample.path, range(int(sample.end or 0)))
        seen = list(frames) if method in RAFT else [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        for first, second in itertools.pairwise(seen):
            calculate(first, second)  # type: ignore[arg-type]


def decode(table: Table) -> None:
    """The frames alone."""
    for sample in table:
        decode_frames(sample.path, range(int(sample.end or 0)))


def add(store: FlowStore, table: Table) -> None:
    """What a worker does."""
    for sample in table:
        store.add(sample)


def speed(table: Table, rounds: int) -> Grid:
    """Pairs a second of each method."""
    grid = Grid("method", "pairs/s", "of plain OpenCV or torch", "of decoding alone", title="one worker, CPU time")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/raft.pt"
        from torchvision.models.optical_flow import raft_small

        torch.save(raft_small().state_dict(), weights)  # untrained ones take as long
        for method, limit in LIMITS.items():
            part = shorter(table, limit)
            pairs = sum(int(s.end or 0) - 1 for s in part)
            times: dict[str, list[float]] = {"ours": [], "plain": [], "decode": []}
            for number in range(rounds):
                settings: Any = {"method": method, "weights": "untrained" if method in RAFT else None}
                place = f"{folder}/{method}{number}"
                store = FlowStore.create(place, FlowSettings(**settings), weights=weights, device="cpu")
                times["ours"].append(cpu_seconds(add, store, part))
                times["plain"].append(cpu_seconds(plain, part, method, weights))
                times["decode"].append(cpu_seconds(decode, part))
            ours, bare, frames = (statistics.median(times[name]) for name in ("ours", "plain", "decode"))
            grid.add_row(method, f"{pairs / ours:.1f}", f"{bare / ours:.2f}", f"{frames / ours:.3f}")
    return grid


def workers(table: Table, rounds: int) -> Grid:
    """Two workers over one, by the clock; and what a second one costs the first, in CPU time."""
    head = ("method", "1 worker, pairs/s", "2 workers, pairs/s", "ratio (range)", "CPU time a pair, 2 workers over 1")
    grid = Grid(*head, title="processes")
    # In short pieces: of eleven clips one worker gets six.
    pieces = [(s, k, min(k + 12, int(s.end or 0))) for s in table for k in range(0, int(s.end or 0) - 1, 11)]
    whole = Table(tuple(Sample(s.path, s.name, start=first, end=last) for s, first, last in pieces))
    pairs = sum(last - first - 1 for _, first, last in pieces)
    clock: dict[int, list[float]] = {1: [], 2: []}
    spent: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for count in (1, 2):
                found = []
                for part in (shorter(Table(table.samples[:2]), 1), whole):  # one frame has no field: only the start
                    before = os.times()
                    done = compute_flow(part, f"{folder}/{number}-{count}-{len(part)}", workers=count, progress=False)
                    after = os.times()
                    cpu = after.children_user + after.children_system - before.children_user - before.children_system
                    found.append((done.seconds, cpu))
                clock[count].append(found[1][0] - found[0][0])
                spent[count].append(found[1][1] - found[0][1])
    ratios = [one / two for one, two in zip(clock[1], clock[2], strict=True)]
    one, two = (f"{pairs / statistics.median(clock[count]):.1f}" for count in (1, 2))
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    cost = statistics.median(spent[2]) / statistics.median(spent[1])
    grid.add_row("dis", one, two, ratio, f"{cost:.2f}")
    return grid


class Coded:
    """Fields of a clip in some coding: bytes, and how a run of fields is read back."""

    def __init__(self, size: int, read: Callable[[int, int], Fields]) -> None:
        self.size, self.read = size, read


def read_all(coded: Coded, places: list[int], count: int) -> None:
    """Runs of so many fields that begin there."""
    for place in places:
        coded.read(place, count)


def stored(folder: str, sample: Sample, **settings: Any) -> Coded:
    """One of our layouts, from its files; every read opens them anew, as a loader does."""
    FlowStore.create(folder, FlowSettings(**settings)).add(sample)
    size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file() and file.name != "header.json")

    def read(first: int, count: int) -> Fields:
        numbers = np.arange(first, first + count)
        return np.stack(FlowStore(folder).read(sample, np.stack([numbers, numbers + 1], 1)))

    return Coded(size, read)


def stacked(field: Vectors) -> NDArray[np.float32]:
    return np.concatenate([field[..., 0], field[..., 1]])


def pictures(fields: Fields, suffix: str, options: list[int]) -> Coded:
    """u above v, scaled by the field's largest motion, in a format of still pictures."""
    scales = [float(np.abs(field).max()) or 1.0 for field in fields]
    coded = [
        cv2.imencode(suffix, np.uint8(np.rint(stacked(f) / s * 127 + 128)), options)[1]  # type: ignore[call-overload]
        for f, s in zip(fields, scales, strict=True)
    ]

    def read(first: int, count: int) -> Fields:
        out = []
        for k in range(first, first + count):
            grey = cv2.imdecode(coded[k], cv2.IMREAD_GRAYSCALE)
            assert grey is not None
            out.append(np.stack(np.split((grey.astype(np.float32) - 128) * (scales[k] / 127), 2), -1))
        return np.stack(out)

    return Coded(sum(map(len, coded)), read)


def video(fields: Fields, codec: str, options: dict[str, str]) -> Coded:
    """u above v as a video of 10-bit grey, scaled by the clip's largest motion; a read seeks."""
    scale, (height, width) = float(np.abs(fields).max()), stacked(fields[0]).shape
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream: Any = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "gray10le"
        stream.codec_context.color_range, stream.codec_context.thread_count = 2, 1
        for number, field in enumerate(fields):
            levels = np.rint(stacked(field) / scale * 511 + 512).astype(np.uint16)
            levels = np.pad(levels, ((0, height % 2), (0, width % 2)), mode="edge")
            frame = av.VideoFrame.from_ndarray(levels, format="gray10le")
            frame.pts, frame.color_range = number, 2
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    data = file.getvalue()

    def read(first: int, count: int) -> Fields:
        found: list[NDArray[np.float32]] = []
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            container.seek(round(first / 25 / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if round(frame.pts * stream.time_base * 25) >= first:
                    grey = frame.to_ndarray(format="gray10le")[:height, :width].astype(np.float32)
                    found.append(np.stack(np.split((grey - 512) * (scale / 511), 2), -1))
                if len(found) == count:
                    break
        return np.stack(found)

    return Coded(len(data), read)


def codings(fields: Fields, sample: Sample, folder: str) -> dict[str, Callable[[], Coded]]:
    """What is compared; the papers' pictures come first."""
    quality = {"jpeg": cv2.IMWRITE_JPEG_QUALITY, "webp": cv2.IMWRITE_WEBP_QUALITY}
    short = {"g": "8", "bf": "0", "x264-params": "log-level=error"}
    return {
        "mars (JPEG pairs, 95, bound 20)": lambda: stored(f"{folder}/m", sample, layout="mars"),
        "two-stream (JPEG pairs, 95, bound 20)": lambda: stored(f"{folder}/t", sample, layout="two-stream"),
        "video (zip of JPEG, 75)": lambda: stored(f"{folder}/v", sample),
        "video, quality 85": lambda: stored(f"{folder}/v85", sample, quality=85),
        "video, quality 90": lambda: stored(f"{folder}/v90", sample, quality=90),
        "WebP 75": lambda: pictures(fields, ".webp", [quality["webp"], 75]),
        "PNG": lambda: pictures(fields, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 6]),
        "H.264 10 bit, intra, crf 16": lambda: video(fields, "libx264", {**short, "g": "1", "crf": "16"}),
        "H.264 10 bit, GOP 8, crf 16": lambda: video(fields, "libx264", {**short, "crf": "16"}),
        "HEVC 10 bit, GOP 8, crf 16": lambda: video(
            fields,
            "libx265",
            {"crf": "16", "preset": "fast", "x265-params": "keyint=8:bframes=0:log-level=none:pools=none"},
        ),
        "FFV1 10 bit": lambda: video(fields, "ffv1", {"g": "1"}),
    }


def storage(table: Table) -> Grid:
    """Bytes, error and reading time of each coding, over the papers' pictures."""
    head = ("coding", "bytes a field", "of the papers'", "most", "error, px", "of the papers'", "most", "1 field, ms",
            f"{CLIP} in a row, ms a field", "writing, ms")  # fmt: skip
    rows: dict[str, list[tuple[float, ...]]] = {}
    for sample in table:
        frames = decode_frames(sample.path, range(int(sample.end or 0)))
        pairs = np.stack([np.arange(len(frames) - 1), np.arange(1, len(frames))], 1)
        fields = np.stack(flow_of_pairs([frames[k] for k in pairs.ravel()], FlowConfig()))
        places = np.random.default_rng(0).integers(0, len(fields) - CLIP, 6).tolist()
        live = cpu_seconds(flow_of_pairs, [frames[k] for k in pairs.ravel()], FlowConfig())
        with tempfile.TemporaryDirectory() as folder:
            for name, make in codings(fields, sample, folder).items():
                begin = time.process_time()
                coded = make()
                # Ours compute the flow as well, which is taken off.
                writing = time.process_time() - begin - (live if name.startswith(("mars", "two", "video")) else 0.0)
                error = float(np.linalg.norm(coded.read(0, len(fields)) - fields, axis=-1).mean())
                one = cpu_seconds(read_all, coded, places, 1) / len(places)
                many = cpu_seconds(read_all, coded, places, CLIP) / len(places) / CLIP
                count = len(fields)
                rows.setdefault(name, []).append((coded.size / count, error, one, many, writing / count))
    grid = Grid(*head, title="storage, DIS flow")
    base = np.array(next(iter(rows.values())))
    for name, values in rows.items():
        found = np.array(values)
        ratio = found[:, :2] / base[:, :2]
        mean, over = found.mean(0), found.mean(0) / base.mean(0)
        grid.add_row(name, f"{mean[0]:.0f}", f"{over[0]:.2f}", f"{ratio[:, 0].max():.2f}", f"{mean[1]:.3f}",
                     f"{over[1]:.2f}", f"{ratio[:, 1].max():.2f}", *(f"{1e3 * x:.1f}" for x in mean[2:]))  # fmt: skip
    return grid


def main() -> None:
    """Prints a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared videos")
    parser.add_argument("--frames", type=int, default=49, help="of each clip")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts")
    parser.add_argument("--parts", nargs="*", default=["speed", "workers", "storage"])
    args = parser.parse_args()
    cv2.setNumThreads(1)
    table, console = samples_of(args.data, args.frames), Console(width=160)
    if "speed" in args.parts:
        console.print(speed(table, args.rounds))
    if "workers" in args.parts:
        console.print(workers(table, args.rounds))
    if "storage" in args.parts:
        console.print(storage(table))


if __name__ == "__main__":
    main()
