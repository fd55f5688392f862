"""Exported networks beside eager PyTorch, network alone, batch 1: ratios within one run.

    python benchmarks/export.py [--networks NAME ...] [--rounds 9] [--threads 1] [--output FILE.json]

All take turns in every round; the median counts. On one thread CPU time is measured, which other work on the machine
disturbs less. Networks have random weights, which time does not depend on; int8 is
calibrated with noise, so it says what int8 costs and nothing about its accuracy.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from stillmotion.export.deliver import Settings, describe
from stillmotion.export.formats import FORMATS
from stillmotion.export.graph import Network
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import load_pretrained, save_pretrained
from stillmotion.networks import open_exported
from stillmotion.run import environment
from stillmotion.tasks import Classification

TASK = Classification(tuple(f"class{i:03}" for i in range(101)))
NETWORKS = {
    "timm/mobilenetv2_100": {"size": 224},
    "timm/mobilenetv3_small_100": {"size": 112},
    "resnext3d_101": {"size": 112, "num_frames": 16},
    "torchvision/r2plus1d_18": {"size": 112, "num_frames": 16},
}
TARGETS = {"timm/mobilenetv2_100": 5.0, "timm/mobilenetv3_small_100": 5.0}
"""How many times faster than eager an exported student should be; 3D networks 1.5 times."""


def runners(name: str, folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """What is compared, each on the same clip."""
    saved = save_pretrained(create_model(name, num_classes=TASK.num_outputs, view=NETWORKS[name]), TASK, folder / "run")
    encoder, task, config = load_pretrained(saved)
    network = Network(encoder.eval()).eval()
    frames = network.example(1)
    inputs = {key: x.numpy() for key, x in zip(network.names, frames, strict=True)}
    noise = [{key: np.roll(x, shift, -1) for key, x in inputs.items()} for shift in range(8)]
    eager = torch.inference_mode()(lambda: network(*frames))
    found: dict[str, Callable[[], object]] = {"eager": eager}
    for kind, precision in (("onnx", "float32"), ("onnx", "int8"), ("openvino", "float32"), ("openvino", "int8")):
        if kind == "openvino" and find_spec("openvino") is None:
            continue
        settings = Settings(precision=precision, calibration=noise)
        path = folder / f"{kind}_{precision}{FORMATS[kind].suffix}"
        FORMATS[kind].backend.write(path, network, describe(saved, encoder, task, config, settings, None), settings)
        run, _ = open_exported(str(path), device="cpu", threads=threads)
        found[f"{kind} {precision}"] = lambda run=run: run(inputs)
    return found


def main() -> None:
    """Prints milliseconds and times eager for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=[*NETWORKS])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    result: dict[str, dict[str, float]] = {}
    for name in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            todo = runners(name, Path(folder), args.threads)
            seconds: dict[str, list[float]] = {key: [] for key in todo}
            for number in range(args.rounds + 2):
                for key, run in todo.items():
                    begin = clock()
                    run()
                    if number > 1:  # the first two warm up
                        seconds[key].append(clock() - begin)
        result[name] = {key: 1e3 * statistics.median(values) for key, values in seconds.items()}
        print(f"{name} (target {TARGETS.get(name, 1.5)}x)")
        for key, value in result[name].items():
            print(f"  {key:20} {value:9.2f} ms  {result[name]['eager'] / value:6.2f}x eager", flush=True)
    if args.output:
        args.output.write_text(json.dumps({"ms": result, "environment": environment()}, indent=1))


if __name__ == "__main__":
    main()
