"""Samples and batches: equal for any number of workers, whole views from one decode, errors as rows."""

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stillmotion.data import decode
from stillmotion.data.dataset import VideoDataset, collate
from stillmotion.data.decode import decode_frames
from stillmotion.data.index import Index
from stillmotion.data.loader import EpochBatches, make_loader
from stillmotion.data.seek import NotAsIndexed
from stillmotion.data.source import Videos, show
from stillmotion.data.store import FeatureStore
from stillmotion.data.table import Sample, Table, TableError
from stillmotion.data.transforms import render_view
from stillmotion.tasks import UNLABELLED, Classification
from stillmotion.view import NO_DRAW, Augment, Draw, View
from tests.conftest import MakeVideo

TASK = Classification(("a", "b"))
VIEWS = {
    "student/frames": View(size=(24, 32), moment="random"),
    "teacher/clip": View(size=(16, 16), moment="random", num_frames=4, interpolation="random"),
}
AUGMENT = Augment(min_area=0.4, max_ratio=1.2, flip=0.5)


def moving_square(seed: int, num_frames: int = 12) -> NDArray[np.uint8]:
    frames = np.full((num_frames, 48, 64, 3), 40 + 20 * seed, np.uint8)
    for t in range(num_frames):
        frames[t, 8 + 2 * t : 20 + 2 * t, 10 + 3 * t : 24 + 3 * t] = (250, 30 * t % 256, 60)
    return frames


@pytest.fixture
def table(tmp_path: Path, make_video: MakeVideo) -> Table:
    samples = []
    for k in range(7):
        path = make_video(tmp_path / f"{k}.mp4", moving_square(k))
        samples.append(Sample(path, path.name, {"label": "ab"[k % 2]} if k < 6 else {}, line=k + 2))
    return Table(tuple(samples), "videos.csv")


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        else:
            assert value == second[key], key


def test_item_is_what_decoding_and_rendering_give(table: Table) -> None:
    dataset = VideoDataset(table, TASK, VIEWS, seed=3, augment=AUGMENT, random=True)
    draw = Draw.of(3, "2.mp4", 5, AUGMENT)
    assert draw.time is not None
    first = int(12 * draw.time)
    item = dataset[(5, 2)]
    frames = decode_frames(table[2].path, [min(first + t, 11) for t in range(4)])
    np.testing.assert_array_equal(item["teacher/clip"], render_view(frames, VIEWS["teacher/clip"], draw))
    np.testing.assert_array_equal(item["student/frames"], render_view(frames[:1], VIEWS["student/frames"], draw))
    assert item["target"] == 0
    assert item["index"] == 2
    dataset.set_epoch(5)
    assert_equal(dataset[2], item)


def test_nothing_is_random_without_being_asked_for(table: Table) -> None:
    dataset = VideoDataset(table, TASK, VIEWS, augment=AUGMENT)
    expected = render_view(decode_frames(table[1].path, [6]), VIEWS["student/frames"], NO_DRAW)
    for epoch in (0, 1):
        np.testing.assert_array_equal(dataset[(epoch, 1)]["student/frames"], expected)


def test_draws_come_round(table: Table) -> None:
    dataset = VideoDataset(table, TASK, VIEWS, augment=AUGMENT, random=True, num_draws=2)
    assert_equal(dataset[(0, 1)], dataset[(2, 1)])
    assert not torch.equal(dataset[(0, 1)]["teacher/clip"], dataset[(1, 1)]["teacher/clip"])


def test_ranges_and_keyframes_count_from_the_first_frame_of_the_sample(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "a.mp4", moving_square(0, 24), options={"g": "5", "sc_threshold": "0", "bf": "0"})
    views = {"x/centre": View(size=(48, 64)), "x/key": View(size=(48, 64), moment="keyframe")}
    dataset = VideoDataset(Table((Sample(path, "a", start=3, end=18),)), None, views)
    item = dataset[0]
    # Frames 3..17: n = 15, anchor 3 + 7 = 10, itself a keyframe (0, 5, 10, ...).
    np.testing.assert_array_equal(item["x/centre"][0, 0], decode_frames(path, [10])[0].transpose(2, 0, 1))
    np.testing.assert_array_equal(item["x/key"], item["x/centre"])
    early = VideoDataset(Table((Sample(path, "a", start=0, end=14),)), None, views)[0]
    # Anchor 7; nearest keyframe 5.
    np.testing.assert_array_equal(early["x/key"][0, 0], decode_frames(path, [5])[0].transpose(2, 0, 1))
    assert item["target"] == UNLABELLED


def test_batches_do_not_depend_on_workers(table: Table) -> None:
    runs = []
    for workers in (0, 2):
        dataset = VideoDataset(table, TASK, VIEWS, augment=AUGMENT, random=True, num_draws=3)
        batches = EpochBatches(len(table), 3, seed=1)
        loader = make_loader(dataset, batches, workers=workers)
        seen = []
        for epoch in (0, 1):  # the processes stay alive and are told nothing
            batches.set_epoch(epoch)
            seen += list(loader)
        runs.append(seen)
    assert len(runs[0]) == len(runs[1]) == 6
    for first, second in zip(*runs, strict=True):
        assert_equal(first, second)
    assert not torch.equal(runs[0][0]["index"], runs[0][3]["index"])


def test_unreadable_samples_are_rows_of_their_own(table: Table, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video\n" * 50)
    bad = Sample(tmp_path / "text.mp4", "text.mp4", {"label": "a"})
    late = Sample(table[0].path, "0.mp4", {"label": "a"}, start=500, end=600)
    gone = Sample(tmp_path / "gone.mp4", "gone.mp4", {"label": "a"})
    dataset = VideoDataset(Table((bad, table[1], late, gone)), TASK, VIEWS)
    batch = next(iter(make_loader(dataset, EpochBatches(4, 4, shuffle=False))))
    assert [row for row, _ in batch["errors"]] == [0, 2, 3]
    texts = [text for _, text in batch["errors"]]
    assert "text.mp4" in texts[0]
    assert "the video has 12 frames" in texts[1]
    assert "gone.mp4" in texts[2]
    assert not any("\n" in text for text in texts)
    assert batch["index"].tolist() == [1]
    assert batch["student/frames"].shape == (1, 1, 1, 3, 24, 32)
    nothing = collate([dataset[0], dataset[2]])
    assert nothing["target"].shape == nothing["index"].shape == (0,)
    assert len(nothing["errors"]) == 2


def test_batch_has_a_leading_axis(table: Table) -> None:
    dataset = VideoDataset(table, TASK, VIEWS)
    batch = collate([dataset[k] for k in (5, 6)])
    assert batch["teacher/clip"].shape == (2, 1, 4, 3, 16, 16)
    assert batch["teacher/clip"].dtype == torch.uint8
    assert batch["target"].tolist() == [1, UNLABELLED]
    assert batch["target"].dtype == batch["index"].dtype == torch.int64
    assert batch["errors"] == batch["faults"] == []


def test_unknown_label_is_refused_at_once(table: Table) -> None:
    with pytest.raises(TableError, match=r"line 3 \(1\.mp4\): unknown label 'b'; classes: a, c"):
        VideoDataset(table, Classification(("a", "c")), VIEWS)


def store(folder: Path, draws: list[int], names: list[str]) -> None:
    with FeatureStore.create(folder, {"weights": "w"}, {"embedding": (1, 2), "logits": (1, 3)}) as features:
        for k, name in enumerate(names):
            rows = [(name, d, {"embedding": np.full((1, 2), 10 * k + d), "logits": np.ones((1, 3))}) for d in draws]
            features.add(rows)


def test_stored_features_follow_the_draw(table: Table, tmp_path: Path) -> None:
    store(tmp_path / "store", [-1, 0, 1], [s.id for s in table])
    views = {
        "student/frames": VIEWS["student/frames"],
        "teacher/embedding": View(kind="feature", source=str(tmp_path / "store")),
        "teacher/logits": View(kind="feature", source=str(tmp_path / "store"), field="logits"),
    }
    dataset = VideoDataset(table, TASK, views, random=True, num_draws=2)
    item = dataset[(3, 2)]
    assert item["teacher/embedding"].tolist() == [[21.0, 21.0]]
    assert item["teacher/embedding"].dtype == torch.float32
    assert item["teacher/logits"].shape == (1, 3)
    assert VideoDataset(table, TASK, views)[4]["teacher/embedding"].tolist() == [[39.0, 39.0]]
    loader = make_loader(dataset, EpochBatches(7, 4, shuffle=False), workers=1)
    assert [b["teacher/embedding"][:, 0, 0].tolist() for b in loader] == [[0.0, 10.0, 20.0, 30.0], [40.0, 50.0, 60.0]]


def test_stored_features_must_be_complete(table: Table, tmp_path: Path) -> None:
    views = {"teacher/embedding": View(kind="feature", source=str(tmp_path / "store"))}
    store(tmp_path / "store", [0, 1], [s.id for s in table][:-1])
    with pytest.raises(ValueError, match=r"features of 2 of 14 sample draws are missing, the first of 6\.mp4 draw 0"):
        VideoDataset(table, TASK, views, random=True, num_draws=2)
    with pytest.raises(ValueError, match=r"set data\.num_draws"):
        VideoDataset(table, TASK, views, random=True)
    with pytest.raises(ValueError, match=r"draw -1; run `stillmotion extract`"):
        VideoDataset(table, TASK, views)
    with FeatureStore.create(tmp_path / "store", {"weights": "w"}, {"embedding": (1, 2), "logits": (1, 3)}) as features:
        features.add_errors([("6.mp4", "6.mp4: broken")])
    dataset = VideoDataset(table, TASK, views, random=True, num_draws=2)
    assert dataset[6] == {"index": 6, "error": "6.mp4: broken"}
    assert dataset[(1, 5)]["teacher/embedding"].tolist() == [[51.0, 51.0]]


def rows(batches: EpochBatches) -> list[list[int]]:
    return [[row for _, row in batch] for batch in batches]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    batches = EpochBatches(100, 8, seed=4)
    first = rows(batches)
    assert sorted(row for batch in first for row in batch) == list(range(100))
    assert len(first) == len(batches) == 13
    batches.set_epoch(1)
    assert rows(batches) != first
    assert next(iter(batches))[0][0] == 1  # the epoch travels with the row
    batches.set_epoch(0, start_batch=5)
    assert rows(batches) == first[5:]
    assert len(batches) == 13
    assert rows(EpochBatches(100, 8, seed=5)) != first


def test_last_batch() -> None:
    def sizes(size: int, *, drop_last: bool = False, steps: int | None = None, world: int = 1) -> list[int]:
        return [len(b) for b in EpochBatches(size, 4, shuffle=False, drop_last=drop_last, steps=steps, world=world)]

    assert sizes(10) == [4, 4, 2]
    assert sizes(10, drop_last=True) == [4, 4]
    assert sizes(3, drop_last=True) == [3]
    assert sizes(10, steps=1) == [4]
    assert sizes(8) == [4, 4]
    assert sizes(9, world=2) == [2, 2, 1]  # the batches do not depend on the number of processes


def test_processes_share_a_batch() -> None:
    whole = rows(EpochBatches(21, 6, seed=2))
    parts = [rows(EpochBatches(21, 6, seed=2, rank=rank, world=3)) for rank in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(row for share in shares for row in share) == sorted(batch)
        if len(batch) == 6:
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ValueError, match="do not give each of 3 processes one"):
        EpochBatches(2, 6, world=3)


def test_packets_that_lied_do_not_move_the_anchor(
    tmp_path: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index promises a frame too many, which shows only when frames are read: 11 frames, not 12, so frame 5."""
    frames = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    path = make_video(tmp_path / "a.mp4", frames)
    honest = decode.build_index

    def lying(*args: Any) -> Index | None:
        index = honest(*args)
        assert index is not None
        return Index(
            pts=np.append(index.pts, index.pts.max() + 1),
            seek_times=np.append(index.seek_times, index.seek_times[-1]),
            order=np.append(index.order, len(index.order)),
            syncs=index.syncs,
            disposable=np.append(index.disposable, True),
        )

    def refuse(*_: Any) -> NoReturn:
        raise NotAsIndexed

    monkeypatch.setattr(decode, "_known", {})
    monkeypatch.setattr(decode, "build_index", lying)
    monkeypatch.setattr(decode, "seek_frames", refuse)
    assert decode.timeline(path).num_frames == 12
    shown = show(Videos(), Sample(path=path, name="a"), {"frames": View(size=32)}, NO_DRAW)["frames"]
    monkeypatch.undo()
    np.testing.assert_array_equal(shown[0, 0].transpose(1, 2, 0), decode_frames(path, [5])[0])
