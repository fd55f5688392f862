"""A student of six frames from the table to its use, on videos that are short, slow, turned, broken or one frame."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from stillmotion.__main__ import main
from stillmotion.data.sampling import frame_indices
from stillmotion.data.source import Videos, show
from stillmotion.data.table import Sample, read_table
from stillmotion.predict import Predictor
from stillmotion.protocols.feature_file import read_features
from stillmotion.view import NO_DRAW, Draw, View
from stillmotion.window import live_view, span
from tests.conftest import MakeVideo

pytestmark = pytest.mark.usefixtures("undrawn")

SIX = "{size: 32, num_moments: 6, moment: spaced, spacing: 4, lead: 24, jitter: 1, outside: true}"
CLIPS = "{size: 32, num_frames: 4, num_moments: 6, moment: spaced, spacing: 4, lead: 24, jitter: 1, outside: true}"


def pictures(num_frames: int, seed: int = 0) -> NDArray[np.uint8]:
    """Every frame a grey of its own, 5 t, in blocks of some noise."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 5, (num_frames, 6, 8, 3)).repeat(8, 1).repeat(8, 2)
    return (noise + 5 * np.arange(num_frames)[:, None, None, None]).clip(0, 255).astype(np.uint8)


def turned(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_matrix([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30])
        for frame in pictures(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Six training and six test videos; of the whole ones a range of ten frames is the sample."""
    for k in range(6):
        make_video(tmp_path / f"train{k}.mp4", pictures(40, k))
    make_video(tmp_path / "whole.mp4", pictures(40))
    make_video(tmp_path / "short.mp4", pictures(5))
    make_video(tmp_path / "slow.mp4", pictures(30), fps=7)
    make_video(tmp_path / "one.mp4", pictures(1))
    turned(tmp_path / "turned.mp4")
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:400])
    rows = [f"train{k}.mp4,{'ab'[k % 2]},train,20,30" for k in range(6)]
    rows += ["whole.mp4,a,test,20,30"] + [f"{n}.mp4,b,test,," for n in ("short", "slow", "one", "turned", "broken")]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split,start_frame,end_frame", *rows]) + "\n")
    return tmp_path / "table.csv"


def test_frames_of_a_window_come_from_around_the_sample(table: Path) -> None:
    """The sample is frames 20 to 29; the window begins 24 before its end, at frame 6."""
    (sample,) = [s for s in read_table(table) if s.name == "whole.mp4"]
    view = View(size=(8, 8), num_moments=6, moment="spaced", spacing=4, lead=24, jitter=1, outside=True)

    def greys(seen: View, sample: Sample, time: float | None = None) -> list[float]:
        shown = show(Videos(), sample, {"frames": seen}, Draw(time=time))["frames"]
        found: list[float] = (shown.mean((1, 2, 3, 4)) / 5.0).tolist()
        return found

    assert greys(view, sample) == pytest.approx([6.4, 10.4, 14.4, 18.4, 22.4, 26.4], abs=0.3)
    assert greys(view, sample, 0.999) == pytest.approx([7.4, 11.4, 15.4, 19.4, 23.4, 27.4], abs=0.3)
    inside = View.from_dict({**view.to_dict(), "outside": False})
    assert greys(inside, sample) == pytest.approx([20.4, 20.4, 20.4, 20.4, 22.4, 26.4], abs=0.3)
    clips = show(Videos(), sample, {"clip": View.from_dict({**view.to_dict(), "num_frames": 3})}, Draw())["clip"]
    assert (clips.mean((2, 3, 4)) / 5.0)[0].tolist() == pytest.approx([6.4, 7.4, 8.4], abs=0.3)


def train(table: Path, output: Path, *arguments: str) -> int:
    return main(["train", str(table), "--output", str(output), "--student.name", "sequence", "--student.view", SIX,
                 "--student.options", "{aggregate: lstm, hidden_dim: 8, backbone: {name: timm/test_resnet}}",
                 "--data.workers", "0", "--data.num_draws", "2", "--optim.epochs", "2", "--optim.batch_size", "3",
                 "--trainer.accelerator", "cpu", *arguments])  # fmt: skip


def test_from_the_table_to_its_use(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["--teacher.name", "resnet3d_10", "--teacher.options", "{width: 4}", "--teacher.view", CLIPS]
    # Features of other batch sizes differ by rounding, which Adam blows up to whole steps where a gradient is 0.
    hallucinate = ["--method.name", "hallucinate", "--optim.optimiser", "sgd"]
    live, stored, run = tmp_path / "live", tmp_path / "stored", str(tmp_path / "live")
    assert train(table, live, *hallucinate, *teacher) == 0
    assert main(["extract", str(table), *teacher, "--output", str(tmp_path / "features"), "--data.workers", "0",
                 "--data.num_draws", "2"]) == 1, "one video is broken"  # fmt: skip
    assert train(table, stored, *hallucinate, "--features", str(tmp_path / "features")) == 0
    a, b = (load_file(folder / "model.safetensors") for folder in (live, stored))
    assert all(np.allclose(a[name], b[name], atol=1e-6) for name in a), "stored features are those of the live teacher"

    (row,) = json.loads((live / "results.json").read_text())["rows"]
    assert {"top1", "hallucinated_r2"} <= row["metrics"].keys()
    assert row["metrics"]["unreadable"]["mean"] == 1.0
    assert row["cost"]["frames"] == 6  # the median; the short ones have fewer
    with (live / "broken.csv").open(newline="") as file:
        assert [r["file"] for r in csv.DictReader(file)] == ["broken.mp4"]

    capsys.readouterr()
    assert main(["evaluate", run, str(table), "--workers", "0", "--device", "cpu", "--num_moments", "4"]) == 1
    assert "top1" in capsys.readouterr().out
    assert main(["predict", run, str(table), "--device", "cpu", "--workers", "1"]) == 1
    said = {r["path"]: r for r in map(json.loads, capsys.readouterr().out.splitlines())}
    assert len(said) == 12
    assert [name for name, r in said.items() if "error" in r] == ["broken.mp4"]
    # 24 before the end of 30 frames: 6, 10, ..., 26; of five frames -19 to 1, four times the first, then frame 1.
    frames = {name: said[name]["frames"] for name in ("slow.mp4", "turned.mp4", "short.mp4", "one.mp4")}
    assert frames == {"slow.mp4": 6, "turned.mp4": 6, "short.mp4": 2, "one.mp4": 1}
    at_rate = Predictor.load(run, view={"fps": 3.5, "lead": 12, "spacing": 2})
    seen = at_rate.see(Sample(table.parent / "slow.mp4", "slow.mp4"))
    assert seen.frames.tolist() == [6, 10, 14, 18, 22, 26], "every second one at half the rate"

    out = tmp_path / "features.npz"
    assert main(["features", run, str(table), "--output", str(out), "--num_clips", "3", "--taps", "[embedding,prob]",
                 "--split", "train", "--device", "cpu"]) == 0  # fmt: skip
    assert {tap: x.shape for tap, x in read_features(out).arrays.items()} == {"embedding": (6, 96), "prob": (6, 2)}
    assert main(["extract", str(table), "--teacher.name", run, "--output", str(tmp_path / "taught"),
                 "--data.workers", "0", "--data.num_draws", "2"]) == 1  # fmt: skip
    assert json.loads((tmp_path / "taught" / "header.json").read_text())["fields"] == {
        "embedding": [6, 96], "logits": [6, 2]}  # fmt: skip


def test_live_frames_lie_as_far_apart_as_in_training() -> None:
    view = View(num_moments=3, moment="spaced", spacing=4, lead=20, jitter=1, outside=True)
    assert span(view, 25.0) == 9
    assert frame_indices(live_view(view, 8, 25.0), 12, 25.0, NO_DRAW).tolist() == [[3], [7], [11]]
    clips = replace(view, num_frames=3, fps=12.5)
    assert span(clips, 25.0) == 1 + 16 + 4
    assert frame_indices(live_view(clips, 8, 25.0), 30, 25.0, NO_DRAW)[[0, -1]].tolist() == [[8, 10, 12], [24, 26, 28]]


def test_packed_frames_have_nothing_around_them(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(table), "--output", str(tmp_path / "packed"), "--workers", "1"]) == 1
    capsys.readouterr()
    packed = ["--data.packed", str(tmp_path / "packed"), "--data.short_side", "128"]
    assert train(table, tmp_path / "run", *packed) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "student/frames looks outside of them; read the videos themselves, or set view.outside=false" in line
    assert train(table, tmp_path / "run", *packed, "--student.view.outside", "false") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "{aggregate: max, backbone: {name: timm/test_resnet}}",
            "aggregate='max': choose one of mean, lstm, attention",
        ),
        ("{aggregate: lstm}", "sequence needs backbone={name: ...}, the network that sees each moment"),
        ("{shift: both, backbone: {name: timm/test_vit}}", "no residual branches in which a shift is known to work"),
        ("{backbone: {name: timm/test_resnot}}", "unknown model 'timm/test_resnot'"),
    ],
)
def test_mistakes_are_one_line(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert train(table, tmp_path / "run", "--student.options", options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
