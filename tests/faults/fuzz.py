"""Readers of files under coverage-guided mutation: `python -m tests.faults.fuzz RUNS SEED`.

Prints how many inputs were read and how many refused. Anything but a `ValueError` in one line ends it with a traceback.
"""

import io
import json
import os
import pickle
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

os.environ.setdefault("OMP_NUM_THREADS", "1")
try:
    import atheris
except ImportError:
    atheris = None

MEMORY_MIB = 2048
SECONDS = 30
"""For one input."""

warnings.simplefilter("ignore")
with atheris.instrument_imports(include=["stillmotion"]) if atheris else open(os.devnull):
    import numpy as np
    import torch
    from safetensors.torch import save_file

    import stillmotion.models.checkpoint as weights
    from stillmotion.__main__ import main
    from stillmotion.data.flow_files import OneFile
    from stillmotion.data.sets.plain_pickle import load_plain
    from stillmotion.data.store import FRAME, FeatureStore, FrameStore
    from stillmotion.data.table import Sample, read_table
    from stillmotion.models.pretrained import load_pretrained
    from stillmotion.predictions import read_predictions
    from stillmotion.protocols.feature_file import VideoFeatures, read_features, write_features
    from stillmotion.results import read_results
    from stillmotion.run import Run

Target = tuple[str, Callable[[Path], Any], Callable[[Path], None]]


def _features(path: Path) -> None:
    write_features(path, VideoFeatures(["a", "b"], {"embedding": np.ones((2, 3), np.float32)}, np.array([0, 1])))


def _store(path: Path) -> None:
    with FeatureStore.create(path.parent, {"k": 1}, {"embedding": (1, 2)}) as store:
        store.add([("a", 0, {"embedding": np.ones((1, 2), np.float32)})])
        store.add_errors([("b", "lost")])


def _read_store(path: Path) -> None:
    store = FeatureStore(path.parent)
    for field in store.fields:
        store.get("a", 0, field)
    dict(store.errors)


def _frames(path: Path) -> None:
    picture = bytes(range(12))
    data = np.array([(12, crc32(picture))], FRAME).tobytes() + picture
    path.parent.joinpath("data.bin").write_bytes(data)
    path.parent.joinpath("header.json").write_text(
        json.dumps({"format": 1, "kind": "frames", "short_side": 8, "codec": "raw"})
    )
    entry = {
        "id": "a",
        "bytes": 9,
        "num_frames": 1,
        "fps": 25.0,
        "keyframes": [0],
        "fault": None,
        "height": 2,
        "width": 2,
    }
    path.parent.joinpath("index.jsonl").write_text(
        json.dumps({**entry, "at": 0, "size": 20, "crc": crc32(data)}) + "\n"
    )


def _read_frames(path: Path) -> None:
    store = FrameStore(path.parent)
    sample = Sample(Path("a"), "a")
    if "a" not in store.rows:
        raise ValueError("not there")
    store.extent(sample)
    store.read(sample, np.array([0]))


def _flow(path: Path) -> None:
    OneFile(path.parent, None, 75).write(
        Sample(Path("a"), "a"),
        {"id": "a", "num_frames": 2, "keyframes": [0], "damaged": [], "fps": 25.0, "fault": None, "bytes": 1},
        [(0, np.ones((4, 4, 2), np.float32))],
    )


def _read_flow(path: Path) -> None:
    OneFile(path.parent, None, 75).open(Sample(Path("a"), "a")).read(0)


def _checkpoint(path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "stillmotion": {"position": (0, 0, 1)}}, path)


def _read_checkpoint(path: Path) -> None:
    Run(path.parent).read_checkpoint()


def _config(path: Path) -> None:
    task = {"kind": "classification", "class_names": ["a", "b"], "target": "label"}
    model = {"name": "resnet3d_10", "num_classes": 2, "width": 1, "view": {"size": 32, "num_frames": 4}}
    path.write_text(json.dumps({"format": 1, "model": model, "task": task, "views": {"clip": {"size": [32, 32]}}}))


def _read_config(path: Path) -> None:
    load_pretrained(path.parent, weights=False)


def _read_command(path: Path) -> None:
    """A file of settings of the command line; nothing is there to train on."""
    out, err, sys.stdout, sys.stderr = sys.stdout, sys.stderr, io.StringIO(), io.StringIO()
    try:
        main(["data", "check", "--config", str(path)])
    except SystemExit as end:
        if end.code not in (0, 2):
            raise AssertionError(f"exit code {end.code}") from end
    finally:
        said, sys.stdout, sys.stderr = sys.stderr.getvalue(), out, err
    assert "Traceback" not in said, said


def _predictions(path: Path) -> None:
    path.write_text("id,label,logits\na,x,0.5 1.0\n")
    path.with_name("per_class.csv").write_text("class\nx\ny\n")


def _table(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": ["a.mp4", "b.mp4"], "label": ["x", "y"], "start_s": [0.0, None]}), path)


def _text(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text) and None


ROW = {"name": "a", "metrics": {"top1": {"mean": 1.0, "std": 0.0, "values": [1.0]}}, "cost": {"gmacs": 1.0}}
TARGETS: dict[str, Target] = {
    "table.csv": ("t.csv", lambda p: read_table(p, check_files=False),
                  _text("path,label,split,group,start_s,end_s\na.mp4,x,train,g,0,1.5\n'b c.mp4',\"y,z\",test,h,,\n")),
    "table.parquet": ("t.parquet", lambda p: read_table(p, check_files=False), _table),
    "settings.json": ("settings.json", lambda p: Run(p.parent).settings, _text('{"seed": 0, "data": {"x": [null]}}')),
    "results.json": ("results.json", read_results, _text(json.dumps({"rows": [ROW]}))),
    "config.json": ("config.json", _read_config, _config),
    "config.yaml": ("c.yaml", _read_command, _text("table: t.csv\nroot: null\nworkers: 1\n")),
    "last.ckpt": ("last.ckpt", _read_checkpoint, _checkpoint),
    "weights.pt": ("w.pt", weights.read_weights, _checkpoint),
    "weights.npz": ("w.npz", weights.read_weights, lambda p: np.savez(p, w=np.ones(2, np.float32))),
    "weights.safetensors": ("w.safetensors", weights.read_weights,
                            lambda p: save_file({"w": torch.ones(2)}, p)),
    "features.npz": ("f.npz", read_features, _features),
    "features.parquet": ("f.parquet", read_features, _features),
    "feature store, index": ("index.jsonl", _read_store, _store),
    "feature store, header": ("header.json", _read_store, _store),
    "frame store, index": ("index.jsonl", _read_frames, _frames),
    "flow store, file": ("a.zip", _read_flow, _flow),
    "predictions": ("predictions.csv", lambda p: read_predictions(p.parent),
                    _predictions),
    "annotations.pkl": ("a.pkl", lambda p: load_plain(p, allow=("scalar", "array")),
                        lambda p: Path(p).write_bytes(pickle.dumps({(1, 2): [3.5]})) and None),
}  # fmt: skip


class Fuzz:
    """One target: what was read and what was refused."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, (file, self.read, write) = name, TARGETS[name]
        self.path = folder / file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write(self.path)
        self.seed = self.path.read_bytes()
        self.counts = {"read": 0, "refused": 0}

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(data)
        try:
            self.read(self.path)
        except ValueError as error:
            text = str(error)
            if not text or "\n" in text:
                raise AssertionError(f"not one line: {text!r}") from error
            self.counts["refused"] += 1
        else:
            self.counts["read"] += 1


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A copy with bits flipped, bytes overwritten, cut out, doubled, or the end cut off."""
    copy = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at, kind = int(rng.integers(0, max(1, len(copy)))), int(rng.integers(0, 6))
        if kind == 0 and copy:
            copy[at % len(copy)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            extreme = [b"\x00", b"\xff", b"\x7f", rng.bytes(1)][int(rng.integers(4))]
            copy[at : at + 4] = extreme * int(rng.integers(1, 5))
        elif kind == 2:
            del copy[at : at + int(rng.integers(1, 32))]
        elif kind == 3:
            copy[at:at] = copy[at : at + int(rng.integers(1, 32))]
        elif kind == 4:
            del copy[at:]
        else:
            copy[at : at + 8] = rng.bytes(int(rng.integers(1, 9)))
    return bytes(copy)


SLOW = {"config.yaml": 20, "config.json": 20}
"""A parser or a network is built every time: so many times fewer inputs."""


def run(name: str, runs: int, seed: int) -> None:
    """Fuzzes one target; with atheris guided by coverage, without it blindly. Prints what came of it."""
    folder = Path(tempfile.mkdtemp()) / "x"
    fuzz, runs = Fuzz(name, folder), runs // SLOW.get(name, 1)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def once(data: bytes) -> None:
        fuzz(data)
        if sum(fuzz.counts.values()) == runs:  # libFuzzer ends the process without a word
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began) // 1024
            told = {"target": name, **fuzz.counts, "mib": grown, "guided": atheris is not None}
            print(json.dumps(told), flush=True)

    if atheris is None:
        rng = np.random.default_rng(seed)
        for _ in range(runs):
            once(mutated(fuzz.seed, rng))
        return
    corpus = folder.parent / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(fuzz.seed)
    options = [f"-runs={runs + 5}", f"-seed={seed}", "-max_len=8192", f"-timeout={SECONDS}",
               f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={folder.parent}/", "-verbosity=0"]  # fmt: skip
    atheris.Setup(["fuzz", *options, str(corpus)], once)
    atheris.Fuzz()


def run_all(runs: int, seed: int) -> int:
    """Fuzzes every target in a process of its own, forked from this one, which has imported everything."""
    failed = 0
    for name in TARGETS:
        if not (pid := os.fork()):
            run(name, runs, seed)
            os._exit(0)
        failed |= os.waitpid(pid, 0)[1]
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(run_all(int(sys.argv[1]), int(sys.argv[2])))
