"""From file to prediction in a warm process: a one-frame student beside 3D networks and a flow network.

    python benchmarks/prediction.py --data ../shared/data [--rounds 7] [--threads 2] [--output FILE.json]

All take turns in every round; the median counts; with `--threads 1` it is CPU time, which other work on the machine
disturbs less. Each reads the file as if it had never seen it (what is known of it
is forgotten before every prediction). Networks have random weights: time does not depend on them. The student is an
exported MobileNet (ONNX); the teacher is `resnext3d_101` on one clip of 16 frames, exported too and as it trains; the
flow network is the same with two input channels behind TV-L1 flow of OpenCV at 112x112, with its default settings.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch

from stillmotion.data import decode
from stillmotion.data.table import Sample
from stillmotion.export import export
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.predict import Predictor
from stillmotion.run import environment
from stillmotion.tasks import Classification

CLIPS = {
    "pancake": "samples/flipping_a_pancake.mkv",
    "mm_test": "ucf101_mini/ApplyEyeMakeup/test.avi",
    "mm_demo": "samples/arm_wrestling.mp4",
}
TASK = Classification(tuple(f"class{i:03}" for i in range(101)))
STUDENT = "timm/mobilenetv3_small_100"
Predict = Callable[[str], object]


def save(folder: Path, name: str, **settings: object) -> Path:
    """A run folder with random weights."""
    encoder = create_model(name, num_classes=TASK.num_outputs, **settings)  # type: ignore[arg-type]
    return save_pretrained(encoder.eval(), TASK, folder / name.replace("/", "_"))


def flow_network() -> Predict:
    """TV-L1 flow of 16 pairs, then the 3D network on two channels."""
    torch.manual_seed(0)
    network = create_model("resnext3d_101", num_classes=TASK.num_outputs, in_chans=2).eval()
    tvl1 = cv2.optflow.DualTVL1OpticalFlow_create()

    def predict(path: str) -> object:
        half = decode.probe(path).num_frames // 2
        frames = decode.decode_frames(path, range(half, half + 17))
        grey = [
            cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (112, 112), interpolation=cv2.INTER_AREA) for f in frames
        ]
        flow = np.stack([tvl1.calc(a, b, None) for a, b in pairwise(grey)])
        clip = torch.from_numpy((flow / 20.0).clip(-1.0, 1.0)).permute(0, 3, 1, 2)[None]
        with torch.no_grad():
            return network.forward_views(clip)["logits"]

    return predict


def make_predictors(folder: Path, threads: int) -> dict[str, Predict]:
    """What is compared, by name."""
    student = save(folder, STUDENT, view={"size": 112})
    teacher = save(folder, "resnext3d_101")
    fast, slow = folder / "student.onnx", folder / "teacher.onnx"
    export(str(student), str(fast))
    export(str(teacher), str(slow))
    return {
        "student, 1 frame, ONNX": Predictor.load(fast, threads=threads),
        "student, keyframe, ONNX": Predictor.load(fast, view={"moment": "keyframe"}, threads=threads),
        "student, 1 frame, torch": Predictor.load(student),
        "resnext3d_101, ONNX": Predictor.load(slow, threads=threads),
        "resnext3d_101, torch": Predictor.load(teacher),
        "TV-L1 + resnext3d_101, torch": flow_network(),
    }


def reading(path: str, moment: str) -> Predict:
    """Only what the student reads: the limit."""
    predictor = Predictor(lambda inputs: np.zeros(1, np.float32), TASK, create_model(STUDENT, num_classes=1, view={
        "size": 112, "moment": moment}).views)  # fmt: skip
    return lambda p: predictor.see(Sample(Path(p), p))


def decoding(path: str) -> Predict:
    """Only the frame in the middle, whose number is known, from the file to RGB."""
    middle = decode.timeline(path).num_frames // 2
    return lambda p: decode.decode_frames(p, [middle])


def main() -> None:
    """Prints milliseconds and ratios for each clip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared videos")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clips", nargs="*", default=[*CLIPS])
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        predictors = make_predictors(Path(folder), args.threads)
        for name in args.clips:
            path = str(args.data / CLIPS[name])
            todo = {
                **predictors,
                "reading 1 frame alone": reading(path, "centre"),
                "reading a keyframe alone": reading(path, "keyframe"),
                "decoding 1 frame alone": decoding(path),
            }
            seconds: dict[str, list[float]] = {key: [] for key in todo}
            for number in range(args.rounds + 1):
                for key, predict in todo.items():
                    decode._known.clear()
                    begin = clock()
                    predict(path)
                    if number:  # the first round warms up
                        seconds[key].append(clock() - begin)
            result[name] = {key: 1e3 * statistics.median(values) for key, values in seconds.items()}
            base = result[name]["student, 1 frame, ONNX"]
            print(name)
            for key, value in result[name].items():
                print(f"  {key:30} {value:9.2f} ms  {value / base:7.2f}x")
    if args.output:
        args.output.write_text(json.dumps({"ms": result, "environment": environment()}, indent=1))


if __name__ == "__main__":
    main()
