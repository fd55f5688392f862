"""Features of a table's videos in a file: equal to the network run on one video, resumable, broken videos listed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillmotion.__main__ import main
from stillmotion.data.source import Videos, show
from stillmotion.data.table import Table, read_table
from stillmotion.measure import Reading, measure
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import create_model
from stillmotion.models.pretrained import save_pretrained
from stillmotion.protocols import features as module
from stillmotion.protocols.feature_file import read_features
from stillmotion.protocols.features import extract_features
from stillmotion.tasks import Classification
from stillmotion.view import NO_DRAW
from tests.conftest import MakeVideo, write_table

HERE: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 2}
TAPS = ["prob", "embedding", "layer3", "layer2:map"]


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Table:
    return read_table(write_table(tmp_path, make_video, train=3, test=2, num_frames=14))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = create_model("resnet3d_10", num_classes=2, width=4, view={"size": 16, "num_frames": 4})
    return save_pretrained(net, Classification(("a", "b")), tmp_path / "run")


def live(run: Path, table: Table, row: int, moments: int) -> dict[str, np.ndarray]:
    """The slow way: one video alone, clip by clip."""
    view = {"moment": "uniform", "num_moments": moments}
    net: Encoder = create_model(str(run), num_classes=2, taps=["layer3", "layer2:map"], view=view).eval()
    clips = torch.from_numpy(show(Videos(), table[row], {"clip": net.views["clip"]}, NO_DRAW)["clip"])
    with torch.no_grad():
        outputs = [net(clip[None]) for clip in clips]
    rows = {
        "prob": torch.cat([o["logits"].softmax(1) for o in outputs]),
        "embedding": torch.cat([o["embedding"] for o in outputs]),
        "layer3": torch.cat([o["layer3"].mean((2, 3, 4)) for o in outputs]),
        "layer2:map": torch.cat([o["layer2:map"].flatten(1) for o in outputs]),
    }
    return {name: values.numpy() for name, values in rows.items()}


def test_videos_are_the_mean_of_their_clips(run: Path, table: Table, tmp_path: Path) -> None:
    done = extract_features(str(run), table, tmp_path / "v.parquet", taps=TAPS, num_clips=3, **HERE)
    assert (done.videos, done.unreadable) == (5, {})
    videos = read_features(tmp_path / "v.parquet")
    assert videos.clips is None
    extract_features(str(run), table, tmp_path / "c.npz", taps=TAPS, num_clips=3, level="clip", split="test", **HERE)
    clips = read_features(tmp_path / "c.npz")
    assert clips.ids == ["3.mp4"] * 3 + ["4.mp4"] * 3
    expected = live(run, table, 3, 3)
    for tap in TAPS:
        np.testing.assert_allclose(clips.arrays[tap][:3], expected[tap], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(videos.arrays[tap][3], expected[tap].mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(clips.videos().arrays[tap], videos.arrays[tap][3:], rtol=1e-4, atol=1e-5)
    assert videos.info["level"] == "video"
    assert not list(tmp_path.glob("*.part"))


def test_a_stopped_call_goes_on(run: Path, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "f.npz", []
    forward = Encoder.forward

    def counting(self: Encoder, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(len(inputs[0]))
        return forward(self, *inputs)

    monkeypatch.setattr(Encoder, "forward", counting)
    with monkeypatch.context() as stopping:
        stopping.setattr(module, "write_features", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extract_features(str(run), table, path, num_clips=2, **HERE)
    assert sum(seen) == 10
    assert not path.exists()
    seen.clear()
    with pytest.raises(ValueError, match=r"num_moments is 2 in the store and 3 here; delete .*f\.npz\.part"):
        extract_features(str(run), table, path, num_clips=3, **HERE)
    assert extract_features(str(run), table, path, num_clips=2, **HERE).videos == 5
    assert not seen


def test_broken_videos_are_listed_and_left_out(
    run: Path, table: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table[1].path.write_bytes(b"nothing")
    arguments = ["features", str(run), str(tmp_path / "table.csv"), "--output", str(tmp_path / "f.parquet")]
    arguments += ["--taps", '["embedding"]', "--num_clips", "2", "--workers", "0", "--device", "cpu"]
    assert main(arguments) == 1
    assert "4 videos; 1 unreadable, listed in" in capsys.readouterr().out
    assert read_features(tmp_path / "f.parquet").ids == ["0.mp4", "2.mp4", "3.mp4", "4.mp4"]
    assert "1.mp4" in (tmp_path / "f_broken.csv").read_text()
    with pytest.raises(ValueError, match=r"none of 1 samples can be read; the first: 1\.mp4"):
        extract_features(str(run), table.select(lambda s: s.id == "1.mp4"), tmp_path / "g.npz", **HERE)


def test_mistakes_are_one_line(run: Path, table: Table, tmp_path: Path) -> None:
    for options, message in [
        ({"taps": []}, "taps is empty"),
        ({"taps": ["layer9"]}, "unknown tap 'layer9'; close names"),
        ({"taps": ["id"]}, "'id' is the name of another column"),
        ({"split": "val"}, "no sample in split 'val'"),
    ]:
        with pytest.raises(ValueError, match=message):
            extract_features(str(run), table, tmp_path / "f.npz", **options, **HERE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"give a name that ends in \.parquet or \.npz"):
        extract_features(str(run), table, tmp_path / "f.txt", **HERE)
    with pytest.raises(ValueError, match=r"'prob' needs the classifier of resnet3d_10; pass num_classes="):
        extract_features("resnet3d_10", table, tmp_path / "f.npz", taps=["prob"], view={"size": 16}, **HERE)


def test_evaluation_joins_scores(run: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillmotion.measure.measure_cost", lambda *_: {})
    test, view = table.select("test"), {"moment": "uniform", "num_moments": 3}
    net, task = create_model(str(run), num_classes=2, view=view), Classification(("a", "b"))
    found = measure("run", net, test, task, Reading(), "scores").predictions.logits
    expected = np.stack([live(run, table, row, 3)["prob"].mean(0) for row in (3, 4)])
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-4)
