"""Stored teacher features: equal to the live teacher's, resumable, and refused where they do not match."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillmotion.config import DataConfig, MethodConfig, ModelConfig
from stillmotion.data.dataset import VideoDataset
from stillmotion.data.loader import EpochBatches, make_loader
from stillmotion.data.source import Videos, show
from stillmotion.data.store import FeatureStore
from stillmotion.data.table import Table, read_table
from stillmotion.extract import extract
from stillmotion.features import open_features
from stillmotion.methods import build_method
from stillmotion.models.encoder import Encoder
from stillmotion.models.factory import create_model
from stillmotion.tasks import Classification
from stillmotion.view import NO_DRAW, Augment, Draw, View
from tests.conftest import MakeVideo

DATA = DataConfig(num_draws=2, augment=Augment(min_area=0.5, flip=0.5), workers=0)
TRAIN, TEST = ("a0", "a1", "b0", "b1", "b2"), ("a2", "b3")


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Table:
    """Five training and two test videos of 14 frames."""
    rng, lines = np.random.default_rng(0), ["path,label,split"]
    for name in TRAIN + TEST:
        coarse = rng.integers(0, 256, (14, 6, 8, 3), np.uint8)
        make_video(tmp_path / f"{name}.mp4", coarse.repeat(8, 1).repeat(8, 2))
        lines.append(f"{name}.mp4,{name[0]},{'train' if name in TRAIN else 'test'}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return read_table(tmp_path / "table.csv")


def teacher_of(seed: int = 0, **options: Any) -> Encoder:
    torch.manual_seed(seed)
    view = {"size": 16, "num_frames": 4, **options.pop("view", {})}
    return create_model("resnet3d_10", num_classes=2, width=4, view=view, **options).eval()


def live(teacher: Encoder, table: Table, name: str, draw: Draw) -> dict[str, torch.Tensor]:
    """The slow way: one video alone."""
    sample = next(s for s in table if s.name == f"{name}.mp4")
    clip = show(Videos(), sample, {"clip": teacher.views["clip"]}, draw)["clip"]
    with torch.no_grad():
        outputs: dict[str, torch.Tensor] = teacher(torch.from_numpy(clip))
    return outputs


def test_rows_are_what_the_live_teacher_gives(table: Table, tmp_path: Path) -> None:
    teacher = teacher_of(taps=["layer3"])
    done = extract(table, teacher, tmp_path / "features", data=DATA, seed=3, batch_size=2)
    assert (done.rows, done.added, done.unreadable) == (7 + 2 * 5, 7 + 2 * 5, {})
    store = FeatureStore(tmp_path / "features")
    assert store.fields == {"embedding": (1, 32), "logits": (1, 2), "layer3": (1, 16)}
    for name, number in (("a0", -1), ("b3", -1), ("a0", 0), ("b1", 1)):
        draw = NO_DRAW if number < 0 else Draw.of(3, f"{name}.mp4", number, DATA.augment)
        expected = live(teacher, table, name, draw)
        for field in ("embedding", "logits"):
            found = store.get(f"{name}.mp4", number, field)
            np.testing.assert_allclose(found, expected[field].numpy(), rtol=1e-4, atol=1e-4)
        pooled = expected["layer3"].mean((2, 3, 4)).numpy()
        np.testing.assert_allclose(store.get(f"{name}.mp4", number, "layer3"), pooled, rtol=1e-4, atol=1e-4)
    assert not store.has("b3.mp4", 0)  # test videos are seen without anything random only
    assert extract(table, teacher, tmp_path / "features", data=DATA, seed=3, batch_size=2).added == 0
    more = replace(DATA, num_draws=3)
    assert extract(table, teacher, tmp_path / "features", data=more, seed=3, batch_size=2).added == 5


@pytest.mark.parametrize("name", ["hallucinate", "logits"])
def test_training_with_the_cache_equals_training_with_the_teacher(table: Table, tmp_path: Path, name: str) -> None:
    train, task = table.select("train"), Classification.of(table)
    extract(table, teacher_of(), tmp_path / "features", data=DATA, seed=3)

    def losses(teacher: Encoder) -> list[float]:
        torch.manual_seed(1)
        student = create_model("timm/resnet10t", num_classes=2, view={"size": 16})
        method = build_method(MethodConfig(name=name), student, {"teacher": teacher}, task)
        options: Any = {"seed": 3, "augment": DATA.augment, "random": True, "num_draws": DATA.num_draws}
        dataset = VideoDataset(train, task, method.views(), **options)
        batches, found = EpochBatches(len(dataset), 3, seed=5), []
        loader = make_loader(dataset, batches)
        optimiser = torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.01)
        method.train()
        for epoch in range(3):
            batches.set_epoch(epoch)
            for batch in loader:
                optimiser.zero_grad()
                loss = method(batch)["loss"]
                loss.backward()
                optimiser.step()
                found.append(loss.item())
        return found

    stored = open_features(tmp_path / "features", table=table, data=DATA, seed=3, teacher=teacher_of())
    assert losses(stored) == pytest.approx(losses(teacher_of()), rel=1e-5)


def test_draws_that_look_alike_are_computed_once(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still, teacher, seen = replace(DATA, augment=Augment()), teacher_of(), []
    teacher.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    extract(table, teacher, tmp_path / "features", data=still, seed=3)
    assert sum(seen) == 7
    store = FeatureStore(tmp_path / "features")
    assert np.array_equal(store.get("a0.mp4", 1), store.get("a0.mp4", -1))
    open_features(tmp_path / "features", table=table, data=still, seed=4, teacher=teacher)  # no draw, so any seed


def test_single_frame_teacher_is_a_view_without_motion(table: Table, tmp_path: Path) -> None:
    frozen = teacher_of(view={"stride": 0})
    extract(table, frozen, tmp_path / "features", data=DATA, seed=3)
    with pytest.raises(ValueError, match=r"views\.clip\.stride is 0 in the store and 1 here"):
        open_features(tmp_path / "features", table=table, data=DATA, seed=3, teacher=teacher_of())
    frame = show(Videos(), table[0], {"clip": View(size=(16, 16))}, NO_DRAW)["clip"]
    with torch.no_grad():
        expected = teacher_of()(torch.from_numpy(frame).expand(1, 4, 3, 16, 16))["embedding"].numpy()
    found = FeatureStore(tmp_path / "features").get("a0.mp4", -1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def features(table: Table, tmp_path: Path) -> Path:
    extract(table, teacher_of(), tmp_path / "features", data=DATA, seed=3)
    return tmp_path / "features"


@pytest.mark.parametrize(
    ("teacher", "data", "seed", "message"),
    [
        (lambda: teacher_of(seed=1), {}, 3, "weights is"),
        (lambda: teacher_of(view={"num_frames": 8}), {}, 3, "views.clip.num_frames is 4 in the store and 8 here"),
        (lambda: teacher_of(time_strides=[1, 2, 2, 2]), {}, 3, "model.time_strides is null in the store"),
        (teacher_of, {}, 4, "draws.seed is 3 in the store and 4 here"),
        (teacher_of, {"augment": Augment(min_area=0.6)}, 3, "draws.min_area is 0.5 in the store and 0.6 here"),
        (lambda: None, {"short_side": 24}, 3, "frames.short_side is null in the store and 24 here"),
    ],
)
def test_features_of_something_else_are_refused(
    features: Path, table: Table, teacher: Callable[[], Encoder | None], data: dict[str, Any], seed: int, message: str
) -> None:
    with pytest.raises(ValueError, match="these features do not match") as error:
        open_features(features, table=table, data=replace(DATA, **data), seed=seed, teacher=teacher())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_extraction_into_the_same_folder_is_refused(features: Path, table: Table) -> None:
    with pytest.raises(ValueError, match=r"weights is .* in the store"):
        extract(table, teacher_of(seed=1), features, data=DATA, seed=3)


def test_changed_video_is_refused(features: Path, table: Table) -> None:
    with table[0].path.open("ab") as file:
        file.write(b"more")
    for act in (
        lambda: open_features(features, table=table, data=DATA, seed=3),
        lambda: extract(table, teacher_of(), features, data=DATA, seed=3),
    ):
        with pytest.raises(ValueError, match=r"a0\.mp4 has \d+ bytes and had \d+ when its features were extracted"):
            act()


def test_samples_and_draws_that_are_missing_are_named(features: Path, table: Table) -> None:
    stored = open_features(features, table=table, data=DATA, seed=3)
    views = {f"teacher/{name}": view for name, view in stored.views.items()}
    with pytest.raises(ValueError, match=r"5 of 15 sample draws are missing, the first of a0\.mp4 draw 2"):
        VideoDataset(table.select("train"), None, views, random=True, num_draws=3)


def test_logits_are_served_only_with_their_classifier(features: Path, table: Table, tmp_path: Path) -> None:
    other = teacher_of()
    other.reset_classifier(2)
    stored = open_features(features, table=table, data=DATA, seed=3, teacher=other)
    assert (stored.embedding_dim, stored.num_classes) == (32, 0)
    assert open_features(features, table=table, data=DATA, seed=3, teacher=teacher_of()).num_classes == 2
    # A published file whose classes are others leaves the classifier at random: nothing worth storing.
    torch.save(teacher_of().state_dict(), tmp_path / "weights.pth")
    named = ModelConfig(
        name="resnet3d_10",
        weights=str(tmp_path / "weights.pth"),
        options={"width": 4},
        view={"size": 16, "num_frames": 4},
    )
    three = Table(tuple(replace(s, targets={"label": str(i % 3)}) for i, s in enumerate(table)), "three")
    extract(three, named, tmp_path / "three", data=DATA, seed=3)
    assert set(FeatureStore(tmp_path / "three").fields) == {"embedding"}


def test_unreadable_videos_are_listed_and_nothing_is_lost(table: Table, tmp_path: Path) -> None:
    table[1].path.write_bytes(table[1].path.read_bytes()[:300])
    done = extract(table, teacher_of(), tmp_path / "features", data=DATA, seed=3)
    assert list(done.unreadable) == ["a1.mp4"]
    assert done.rows == 6 + 2 * 4
    assert "1 unreadable" in done.summary()
    assert (tmp_path / "features" / "broken.csv").read_text().splitlines()[1].startswith("3,a1.mp4,")
    stored = open_features(tmp_path / "features", table=table, data=DATA, seed=3, teacher=teacher_of())
    views = {f"teacher/{name}": view for name, view in stored.views.items()}
    dataset = VideoDataset(table.select("train"), None, views, random=True, num_draws=2)
    assert ["error" in dataset[row] for row in range(5)] == [False, True, False, False, False]


def test_mistakes_are_one_line(table: Table, features: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.num_draws is not set"):
        extract(table, teacher_of(), tmp_path / "f", data=DataConfig(), seed=3)
    with pytest.raises(ValueError, match="no sample in split 'val'; splits here: train, test"):
        extract(table, teacher_of(), tmp_path / "f", data=replace(DATA, val="val"))
    with pytest.raises(ValueError, match="itself a store of features"):
        extract(table, open_features(features, table=table, data=DATA, seed=3), tmp_path / "f", data=DATA)
    with pytest.raises(ValueError, match="not a feature"):
        open_features(tmp_path, table=table, data=DATA, seed=3)


SLOW = """
import sys, time
from tests.test_extract import DATA, extract, read_table, teacher_of
teacher = teacher_of()
teacher.register_forward_hook(lambda *_: time.sleep(0.15))
extract(read_table(sys.argv[1]), teacher, sys.argv[2], data=DATA, seed=3, batch_size=2)
"""


def test_killed_extraction_goes_on_to_the_same_bytes(table: Table, tmp_path: Path) -> None:
    folder, index = tmp_path / "killed", tmp_path / "killed" / "index.jsonl"
    process = subprocess.Popen([sys.executable, "-c", SLOW, table.source, str(folder)])
    deadline = time.monotonic() + 60.0
    while not (index.exists() and index.read_text().count("\n") >= 5):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline, "no rows after a minute"
        time.sleep(0.01)
    process.kill()
    process.wait()
    held = len(index.read_text().splitlines())
    assert 5 <= held < 17
    with (folder / "data.bin").open("ab") as file:  # as if killed in the middle of a row
        file.write(b"torn")
    assert extract(table, teacher_of(), folder, data=DATA, seed=3, batch_size=2).added == 17 - held
    extract(table, teacher_of(), tmp_path / "undisturbed", data=DATA, seed=3, batch_size=2)
    for name in ("data.bin", "index.jsonl", "header.json", "files.json"):
        assert (folder / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name
    assert json.loads((folder / "files.json").read_text())["a0.mp4"] == table[0].path.stat().st_size
