"""Students beside teachers on real videos, from file to prediction; and C3D beside VGG-11, as in the HalluciNet paper.

    python benchmarks/cost_card.py --data ../shared/data [--parts card table1] [--rounds 5] [--output FOLDER]

`card`: a one-frame MobileNetV3-small (in torch, ONNX, INT8, and ONNX on the nearest keyframe) against resnext3d_101,
r2plus1d_18 and two streams (ResNet-18 on a frame and on ten fields of DIS or TV-L1 flow). Random weights, which time
does not depend on. `table1`: the paper's Table 1, measured here. Both are `stillmotion benchmark --videos` on networks
that are made on the spot. Takes minutes on two idle cores, most of them for TV-L1 (`--models` leaves it out).
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillmotion.config import ModelConfig
from stillmotion.cost_card import Card, Costs, cost_card
from stillmotion.files import csv_text, write_atomic
from stillmotion.report.cost import Cells, resource_rows, time_rows, write_card_files
from stillmotion.tasks import Classification

CLIPS = ("samples/flipping_a_pancake.mkv", "ucf101_mini/ApplyEyeMakeup/test.avi", "samples/arm_wrestling.mp4")
TASK = Classification(tuple(f"class{i:03}" for i in range(101)))
STUDENT = "timm/mobilenetv3_small_100"
PAPER = {"c3d": (734, 200.0), "torchvision/vgg11_bn": (112, 90.0)}
"""FLOPs per parameter and milliseconds, HalluciNet's Table 1 (quoted there from Hadidi et al., 2019)."""


def save(folder: Path, label: str, name: str, **settings: Any) -> str:
    """A run folder with random weights."""
    # Not on top: the processes whose memory is measured import this file, and those of exported files need no torch.
    from stillmotion.models.factory import create_model
    from stillmotion.models.pretrained import save_pretrained

    encoder = create_model(name, num_classes=TASK.num_outputs, **settings)
    return str(save_pretrained(encoder.eval(), TASK, folder / label))


def two_stream(folder: Path, method: str) -> str:
    """ResNet-18 on a frame, and on ten fields of flow at 224x224."""
    flow = {"kind": "flow", "num_frames": 10, "size": 224, "clip": "middle", "flow": {"method": method}}
    streams = {"appearance": {"name": "timm/resnet18"}, "motion": {"name": "timm/resnet18", "view": flow}}
    return save(folder, f"two_stream_{method}", "two_stream", connect="none", **streams)


def builders(folder: Path, table: Path) -> dict[str, Callable[[], object]]:
    """What is compared, by name; each makes its run folder or file. The others are compared with the first."""
    from stillmotion.export import export

    keyframe = {"size": 112, "moment": "keyframe"}
    files = {name: str(folder / name) for name in ("student.onnx", "student_int8.onnx", "student_keyframe.onnx")}
    return {
        "student.onnx": lambda: export(save(folder, "student", STUDENT, view={"size": 112}), files["student.onnx"]),
        "student_int8.onnx": lambda: export(
            save(folder, "student", STUDENT, view={"size": 112}),
            files["student_int8.onnx"], precision="int8", table=str(table), max_drop=100.0,
        ),
        "student_keyframe.onnx": lambda: export(
            save(folder, "keyframe", STUDENT, view=keyframe), files["student_keyframe.onnx"]
        ),
        "student": lambda: save(folder, "student", STUDENT, view={"size": 112}),
        "resnext3d_101": lambda: save(folder, "resnext3d_101", "resnext3d_101"),
        "r2plus1d_18": lambda: save(folder, "r2plus1d_18", "torchvision/r2plus1d_18"),
        "two_stream_dis": lambda: two_stream(folder, "dis"),
        "two_stream_tvl1": lambda: two_stream(folder, "tvl1"),
    }  # fmt: skip


NAMES = tuple(builders(Path(), Path()))


def make_models(folder: Path, names: Sequence[str], clips: Sequence[str]) -> list[ModelConfig]:
    """The networks that are asked for; INT8 is calibrated with frames of the clips."""
    table = folder / "clips.csv"
    write_atomic(table, csv_text(("path",), [(Path(clip).resolve(),) for clip in clips]))
    make = builders(folder, table)
    return [ModelConfig(name=str(make[name]())) for name in names]


def show(cells: Cells) -> None:
    """A Markdown table."""
    heads, rows = cells
    print("\n| " + " | ".join(heads) + " |\n| --- |" + " ---: |" * (len(heads) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def by_video(card: Card) -> Cells:
    """Total of every network on every video, and in brackets times the first."""
    totals = [{video: sum(parts.values()) for video, parts in m.videos.items()} for m in card.models]
    rows = [
        [m.name, *(f"{found[v]:.1f} ({found[v] / totals[0][v]:.1f})" for v in card.videos)]
        for m, found in zip(card.models, totals, strict=True)
    ]
    return ["total ms (times the first)", *(Path(v).name for v in card.videos)], rows


def table1(models: list[Costs]) -> Cells:
    """In the form of the paper: what C3D costs beside VGG-11."""
    heads = ["", *(m.name for m in models), "C3D / VGG-11", "paper"]
    flops = [2e9 * (m.gmacs or 0.0) / (m.params or 1) for m in models]
    paper = [PAPER[m.model] for m in models]
    lines: list[tuple[str, list[float], str]] = [
        ("M parameters", [(m.params or 0) / 1e6 for m in models], ""),
        ("GMACs", [m.gmacs or 0.0 for m in models], ""),
        ("FLOPs per parameter", flops, " / ".join(f"{p[0]}" for p in paper)),
        ("MB of weights", [m.megabytes or 0.0 for m in models], ""),
        ("network, ms", [m.ms["network"] for m in models], " / ".join(f"{p[1]:g}" for p in paper)),
        ("file to prediction, ms", [m.total_ms for m in models], ""),
        ("frames", [m.frames for m in models], ""),
        ("KiB of video", [m.kilobytes for m in models], ""),
    ]
    rows = [[name, *(f"{v:.4g}" for v in values), f"{values[0] / values[1]:.2f}", said] for name, values, said in lines]
    return heads, rows


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared videos")
    parser.add_argument("--parts", nargs="*", default=["card", "table1"], choices=["card", "table1"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu on a machine that is busy")
    parser.add_argument("--clips", nargs="*", default=[*CLIPS], help="paths below the data folder")
    parser.add_argument("--models", nargs="*", default=[*NAMES], choices=NAMES, help="of the card")
    parser.add_argument("--output", type=Path, help="also write JSON, CSV and picture there")
    args = parser.parse_args()
    clips = [str(args.data / clip) for clip in args.clips]
    settings = {"rounds": args.rounds, "threads": args.threads, "clock": args.clock}
    if "card" in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            card = cost_card(make_models(Path(folder), args.models, clips), clips, **settings)
        for cells in (time_rows(card), resource_rows(card), by_video(card)):
            show(cells)
        if args.output:
            write_card_files(card, args.output / "cost_card.json")
    if "table1" in args.parts:
        card = cost_card([ModelConfig(name=name) for name in PAPER], clips, **settings)
        show(table1(card.models))
        if args.output:
            write_card_files(card, args.output / "table1.json")
    print("\n", asdict(card)["environment"], sep="")


if __name__ == "__main__":
    main()
