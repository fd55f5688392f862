"""The whole job on rendered videos: teacher, students, controls, one table, a prediction (`stillmotion demo`).

The videos follow `data.render.actions`. Their settings, the trainings' and lambda were chosen with other seeds than
the table in the README shows.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stillmotion.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RowConfig, TrainerConfig
from stillmotion.data.table import Sample, Table, read_table
from stillmotion.view import Augment

WEIGHT = 400.0
"""Lambda of the hallucination loss."""
EPOCHS = 30
"""Over all training videos, two thirds of which have no label and teach nothing without a teacher."""

TEACHER = ModelConfig(
    name="resnet3d_10",
    options={"width": 8, "stem_kernel": [3, 7, 7]},
    # Differences of frames: a backdrop that stands still cannot be seen, as it cannot by a network that sees flow.
    view={"kind": "difference", "size": 48, "num_frames": 16, "moment": "first", "std": [0.24, 0.24, 0.24]},
)
STUDENT = ModelConfig(
    name="timm/resnet10t",
    options={"channels": [16, 32, 64, 128], "stem_width": 16},
    view={"size": 48, "moment": "first"},
)
OF_ROW = ModelConfig(name="row:teacher")


def rows() -> dict[str, RowConfig]:
    """What is trained, by the name in the table."""

    def student(**options: object) -> RowConfig:
        method = MethodConfig(name="hallucinate", options={"weight": WEIGHT, **options})
        return RowConfig(student=STUDENT, teacher=OF_ROW, method=method)

    as_many_steps = {"epochs": 3 * EPOCHS}  # over the labelled third
    return {
        "teacher": RowConfig(student=TEACHER, optim={"lr": 3e-3, "epochs": 20}),
        "plain": RowConfig(student=STUDENT, optim=as_many_steps),
        "plain_with_branch": replace(student(weight=0.0), optim=as_many_steps),
        "hallucinet": student(),
        "hallucinet_no_fusion": student(fuse="none"),
        "shuffled": student(control="shuffled"),
    }


def demo(output: Path, *, seeds: Sequence[int] = (0, 1, 2), workers: int = 2) -> int:
    """Renders, trains, compares, predicts; the entry of `stillmotion demo`.

    Args:
        output: Gets `videos/` (with `table.csv`), what `compare` writes, `samples_train.png`, `samples_test.png` and
            `prediction.mp4`.
        seeds: Of the trainings. The videos are the same for all.
        workers: Trainings side by side.

    Returns:
        Exit code: 0, or 1 if a training failed.
    """
    from stillmotion.compare import compare
    from stillmotion.data.pack import pack
    from stillmotion.data.render.actions import render_actions

    began = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    done = output / "videos" / "complete"
    if not done.exists():
        _say("rendering videos")
        render_actions(output / "videos", workers=workers)
        done.touch()
    table = read_table(output / "videos" / "table.csv")
    packed = output / "videos" / "packed"
    pack(table, packed, short_side=None, codec="raw", workers=workers, progress=False)
    _draw_samples(table, output)
    code = compare(
        table,
        output=output,
        rows=rows(),
        seeds=seeds,
        subsets={"top1_no_shortcut": {"hint": "none"}},
        reference=["plain", "plain_with_branch", "shuffled"],
        data=DataConfig(num_draws=4, augment=Augment(min_area=0.7, flip=0.5), packed=str(packed), workers=0),
        optim=OptimConfig(optimiser="adamw", lr=2e-3, weight_decay=1e-4, schedule="cosine", warmup_steps=60,
                          epochs=EPOCHS, batch_size=24),
        trainer=TrainerConfig(accelerator="cpu"),
        workers=workers,
    )  # fmt: skip
    _predict(table.select("test")[0], output, seeds[0])
    _say(f"{time.monotonic() - began:.0f} s; table, curves, confusion matrices, samples and runs: {output}")
    return code


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _draw_samples(table: Table, output: Path) -> None:
    """Sheets of what the videos show: what the student sees of each stands first."""
    from stillmotion.data.decode import decode_frames
    from stillmotion.report.plots import plot_samples

    for split in ("train", "test"):
        chosen = table.select(split).samples[:12]
        sheet = [(_caption(sample), decode_frames(sample.path, [0, 4, 8, 12, 16])) for sample in chosen]
        plot_samples(sheet, output / f"samples_{split}.png", columns=2, title=f"{split}: first frame and what follows")


def _caption(sample: Sample) -> str:
    return f"{sample.targets.get('label', 'no label')}, at: {sample.targets['place']}"


def _predict(sample: Sample, output: Path, seed: int) -> None:
    """Shows the student at work on one test video."""
    from stillmotion.predict import predict

    run = output / "runs" / "hallucinet" / "test" / f"seed{seed}"
    if run.exists():
        _say(f"prediction of {sample.name}, which shows: {sample.targets['label']}")
        predict(str(run), [str(sample.path)], top=3, overlay=str(output / "prediction.mp4"))
