"""Memory of `stillmotion predict` over a long corpus: resident MiB of the command and its children over time.

    python benchmarks/memory.py --data ../shared/data [--minutes 30] [--model FILE.onnx] [--output FILE.json]

The corpus is the shared clips over and over (hard links in one folder), every twentieth file a broken one. The
command is the real one; it is stopped with Ctrl-C when the time is over. Of an exported MobileNetV3-small with random
weights unless --model names another.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from stillmotion.run import environment

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov")
BROKEN_EVERY = 20
MIB = 2**20


def corpus(data: Path, folder: Path, count: int) -> None:
    """Fills a folder with links to the shared clips in turn."""
    (folder / "originals").mkdir(parents=True)
    (folder / "videos").mkdir()
    groups = []
    for kind, names in (("good", ("samples", "ucf101_mini", "kth_sample", "arid6")), ("broken", ("broken",))):
        found = [path for name in names for path in sorted((data / name).rglob("*"))
                 if path.is_file() and path.suffix in SUFFIXES and path.stat().st_size < 4 * MIB][:40]  # fmt: skip
        copies = [folder / "originals" / f"{kind}{k}{path.suffix}" for k, path in enumerate(found)]
        for path, copy in zip(found, copies, strict=True):
            shutil.copyfile(path, copy)
        groups.append(copies)
    for k in range(count):
        group = groups[k % BROKEN_EVERY == 0]
        source = group[k % len(group)]
        os.link(source, folder / "videos" / f"{k:07}{source.suffix}")


def made_model(folder: Path) -> str:
    """An exported network with random weights, made in a process of its own."""
    code = (
        "import sys\n"
        "from stillmotion.export import export\n"
        "from stillmotion.models.factory import create_model\n"
        "from stillmotion.models.pretrained import save_pretrained\n"
        "from stillmotion.tasks import Classification\n"
        "task = Classification(tuple(f'class{i:03}' for i in range(101)))\n"
        "network = create_model('timm/mobilenetv3_small_100', num_classes=101, view={'size': 112}).eval()\n"
        "export(str(save_pretrained(network, task, sys.argv[1] + '/run')), sys.argv[1] + '/student.onnx')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    return str(folder / "student.onnx")


def resident(pid: int) -> float:
    """MiB of a process and its children."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(entry.parent.name) == pid or int(fields[1]) == pid:
            total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return total / MIB


def main() -> None:
    """Prints a line every half minute, and the range of the second half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared videos")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", help="run folder or exported file")
    parser.add_argument("--rate", type=float, default=150.0, help="files a second that the corpus is made for")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, seconds = Path(name), 60.0 * args.minutes
        corpus(args.data, folder, int(args.rate * seconds))
        model = args.model or made_model(folder)
        lines = folder / "predictions.jsonl"
        command = [sys.executable, "-m", "stillmotion", "predict", model, str(folder / "videos"),
                   "--output", str(lines)]  # fmt: skip
        heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts with & ignores it
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
        began, rows = time.monotonic(), list[dict[str, float]]()
        while process.poll() is None and time.monotonic() - began < seconds:
            time.sleep(min(30.0, seconds / 20.0))
            if not (size := resident(process.pid)):
                break
            rows.append({"seconds": round(time.monotonic() - began, 1), "mib": round(size, 1)})
            print(f"{rows[-1]['seconds']:7.0f} s {rows[-1]['mib']:8.1f} MiB", flush=True)
        ended = process.poll() is not None
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1].strip()
        written = [json.loads(line) for line in lines.read_text().splitlines()]
    half = [row["mib"] for row in rows if row["seconds"] > rows[-1]["seconds"] / 2]
    result = {"files": len(written), "unreadable": sum("error" in row for row in written), "rows": rows,
              "second_half_mib": [min(half), max(half)], "corpus_was_too_short": ended, "said": said,
              "environment": environment()}  # fmt: skip
    print(f"{result['files']} files, {result['unreadable']} unreadable; memory in the second half "
          f"{min(half):.1f} to {max(half):.1f} MiB; exit: {said}")  # fmt: skip
    if args.output:
        args.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
