import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stillmotion.baseline_features import read_crop_size
from stillmotion.baselines import BASELINES, _folds, run_baseline
from stillmotion.config import ModelConfig
from stillmotion.data.table import Sample, Table, TableError
from stillmotion.flow_histogram import (
    DIRECTIONS,
    MAX_PAIRS,
    flow_histogram,
    frame_pairs,
    pool_histogram,
    read_flow_histogram,
)
from stillmotion.tasks import Classification
from tests.conftest import MakeVideo

RIGHT, DOWN, LEFT, UP = 0, 2, 4, 6
STEPS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}


def square(way: str, *, num_frames: int = 9, speed: int = 4, seed: int = 0, size: int = 96) -> NDArray[np.uint8]:
    """A textured square that passes the middle of a textured ground, `speed` pixels a frame."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(60, 255, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    ground = rng.integers(0, 90, (size // 4, size // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    frames = np.stack([ground] * num_frames)
    dy, dx = STEPS[way]
    for t, frame in enumerate(frames):
        top = 32 + dy * speed * (t - num_frames // 2) + 2 * (seed % 3)
        left = 32 + dx * speed * (t - num_frames // 2) - 2 * (seed % 3)
        frame[top : top + 32, left : left + 32] = texture
    return frames


@pytest.mark.parametrize(("way", "direction"), [("right", RIGHT), ("down", DOWN), ("left", LEFT), ("up", UP)])
def test_a_moving_square_votes_for_its_direction(way: str, direction: int) -> None:
    frames = square(way)
    pairs = np.stack([np.arange(8), np.arange(1, 9)], 1)
    # 4 of 96 pixels in 1/15 s are 0.625 sides a second: fast
    histogram = flow_histogram(frames, pairs, 1 / 15)
    assert histogram.shape == (6, 3, 3, 2, DIRECTIONS)
    votes = histogram.sum((0, 1, 2))
    assert votes[:, direction].sum() > 0.95 * votes.sum()
    # the square covers a ninth of the picture, one cell; the flow bleeds over its edges, more slowly further out
    assert 0.9 < votes[1, direction] / 6 < 2.5
    assert histogram[:, 1, 1].sum() > 2 * histogram[:, 0, 0].sum()


def test_reversed_time_turns_the_direction_round_and_swaps_the_segments() -> None:
    frames = square("down", num_frames=13, speed=2)
    pairs = np.stack([np.arange(12), np.arange(1, 13)], 1)
    ahead, back = flow_histogram(frames, pairs, 0.1), flow_histogram(frames[::-1], pairs, 0.1)
    assert ahead.sum((0, 1, 2, 3)).argmax() == DOWN
    assert back.sum((0, 1, 2, 3)).argmax() == UP
    assert ahead[0, 0].sum() > ahead[-1, 0].sum()  # the square starts above and ends below
    assert back[0, 0].sum() < back[-1, 0].sum()


def test_slow_motion_and_no_motion() -> None:
    pairs = np.stack([np.arange(8), np.arange(1, 9)], 1)
    slow = flow_histogram(square("right", speed=1), pairs, 0.1)  # 1/96 side in 0.1 s: 0.104 a second
    assert slow[..., 0, RIGHT].sum() > 5 * slow[..., 1, :].sum()
    assert flow_histogram(square("right", speed=0), pairs, 0.1).sum() == 0
    dark = (square("right") // 12).astype(np.uint8)
    assert flow_histogram(dark, pairs, 1 / 15)[..., 1, RIGHT].sum() > 3.0


def test_pairs_follow_the_frame_rate_the_range_and_the_limit(tmp_path: Path, make_video: MakeVideo) -> None:
    frames = np.zeros((150, 32, 32, 3), np.uint8)
    fast = make_video(tmp_path / "fast.mp4", frames, fps=30)
    pairs, seconds = frame_pairs(Sample(fast, "fast.mp4", start=10, end=21))
    assert (pairs.tolist(), seconds) == ([[10, 12], [12, 14], [14, 16], [16, 18], [18, 20]], 2 / 30)
    pairs, _ = frame_pairs(Sample(fast, "fast.mp4"))
    assert len(pairs) == MAX_PAIRS
    assert (pairs[0].tolist(), pairs[-1].tolist()) == ([0, 2], [146, 148])
    slow = make_video(tmp_path / "slow.mp4", frames[:3], fps=10)
    assert frame_pairs(Sample(slow, "slow.mp4"))[0].tolist() == [[0, 1], [1, 2]]
    two = frame_pairs(Sample(fast, "fast.mp4", start=0, end=2))
    assert (two[0].tolist(), two[1]) == ([[0, 1]], 1 / 30)
    still = Sample(fast, "fast.mp4", start=5, end=6)
    assert read_flow_histogram(still).sum() == 0


def test_pooling_by_hand() -> None:
    row = np.zeros((6, 3, 3, 2, DIRECTIONS), np.float32)
    row[0, 0, 0, 0, UP], row[1, 0, 0, 1, UP], row[5, 2, 2, 1, LEFT] = 0.6, 1.2, 0.6
    both = pool_histogram(row.reshape(1, -1), 3, "both").reshape(3, 3, 3, 2, DIRECTIONS)
    total = (0.6 + 1.2 + 0.6) / 2 + 1e-3  # means over two segments
    assert both[0, 0, 0, 0, UP] == pytest.approx(math.sqrt(0.3 / total))
    assert both[0, 0, 0, 1, UP] == pytest.approx(math.sqrt(0.6 / total))
    assert both[2, 2, 2, 1, LEFT] == pytest.approx(math.sqrt(0.3 / total))
    summed = pool_histogram(row.reshape(1, -1), 1, "sum").reshape(3, 3, DIRECTIONS)
    assert summed[0, 0, UP] == pytest.approx(math.sqrt(0.3 / (0.4 + 1e-3)))
    fast = pool_histogram(row.reshape(1, -1), 6, "fast").reshape(6, 3, 3, DIRECTIONS)
    assert np.count_nonzero(fast) == 2
    assert pool_histogram(np.zeros((1, row.size), np.float32)).sum() == 0


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, Table]:
    """Squares that go left or right, in four training groups and one test group; only motion tells the classes."""
    root = tmp_path_factory.mktemp("moving")
    samples = []
    for seed in range(10):
        for way in ("left", "right"):
            name = f"{way}{seed}.mp4"
            _make(root / name, square(way, seed=seed), 15)
            split, group = ("test", "t") if seed >= 8 else ("train", f"g{seed % 4}")
            samples.append(Sample(root / name, name, {"label": way}, split, group))
    table = Table(tuple(samples), "moving.csv")
    return table.select("train"), table.select("test")


def _make(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        assert hasattr(stream, "pix_fmt")
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


TASK = Classification(("left", "right"))


def top1(train: Table, test: Table, name: str, **options: object) -> float:
    result = run_baseline(name, train, test, TASK, workers=1, **options)  # type: ignore[arg-type]
    assert result.ids == [s.id for s in test]
    assert result.logits.shape == (len(test), 2)
    return TASK.metrics(result.logits, result.targets)["top1"]


def test_only_motion_tells_left_from_right(moving: tuple[Table, Table]) -> None:
    train, test = moving
    assert top1(train, test, "crop_size") == 0.5
    assert top1(train, test, "majority") == 0.5
    result = run_baseline("flow_histogram", train, test, TASK, workers=1)
    assert TASK.metrics(result.logits, result.targets)["top1"] == 1.0
    assert result.groups == ["t"] * 4
    assert result.cost["frames"] == 9
    assert result.cost["ms_per_video"] > 0  # type: ignore[operator]
    assert result.chosen["accuracy_in_folds"] == 1.0


def test_majority_knows_the_frequencies() -> None:
    labels = ["b", "b", "b", "a", None]
    train = Table(
        tuple(Sample(Path(str(i)), str(i), {} if x is None else {"label": x}) for i, x in enumerate(labels)), "t.csv"
    )
    test = Table((Sample(Path("x"), "x", {"label": "a"}, group="g"), Sample(Path("y"), "y")), "t.csv")
    result = run_baseline("majority", train, test, Classification(("a", "b", "c")))
    np.testing.assert_allclose(np.exp(result.logits), [[0.25, 0.75, 0.0]] * 2, atol=1e-3)
    assert result.targets.tolist() == [0, -1]
    assert result.groups == ["g", None]
    assert result.cost == {"params": 0, "gmacs": 0.0, "ms_per_video": 0.0, "frames": 0}
    with pytest.raises(TableError, match=r"^t.csv: no training sample has a value in column `label`$"):
        run_baseline("majority", test.select(lambda s: s.name == "y"), test, TASK)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, Table]:
    """Upright and wide pictures, in five training groups and one test group; the crop tells the classes."""
    root = tmp_path_factory.mktemp("crops")
    samples = []
    for k in range(6):
        for label, (width, height) in {"left": (64, 96 + 2 * k), "right": (96 + 2 * k, 64)}.items():
            name = f"{label}{k}.mp4"
            _make(root / name, np.zeros((2, height, width, 3), np.uint8), 10)
            samples.append(Sample(root / name, name, {"label": label}, "test" if k == 5 else "train", f"g{k}"))
    table = Table(tuple(samples), "crops.csv")
    return table.select("train"), table.select("test")


def test_crop_size_sees_the_crop(crops: tuple[Table, Table]) -> None:
    train, test = crops
    np.testing.assert_allclose(read_crop_size(train[0]), np.log([64, 96, 64 / 96, 64 * 96]), rtol=1e-6)
    assert top1(train, test, "crop_size") == 1.0


def test_frame_linear_reads_the_centre_frame(moving: tuple[Table, Table], tmp_path: Path) -> None:
    train, test = moving
    model = ModelConfig(name="timm/resnet18", view={"size": [32, 32]})
    result = run_baseline("frame_linear", train, test, TASK, model=model, cache=tmp_path, workers=0)
    assert result.cost["frames"] == 1
    assert result.cost["params"] == 11_176_512 + 512 + 1  # the frozen body and a linear classifier of two classes
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = replace(test[0], path=tmp_path / "broken.mp4", name="broken.mp4")
    more = replace(test, samples=(broken, *test.samples))
    again = run_baseline("frame_linear", train, more, TASK, model=model, cache=tmp_path, workers=0)
    assert again.ids == result.ids
    assert list(again.errors) == ["broken.mp4"]  # the only one that is not stored
    with pytest.raises(ValueError, match=r"^baseline frame_linear needs a network"):
        run_baseline("frame_linear", train, test, TASK)


def test_unreadable_videos_are_listed_and_the_others_go_on(crops: tuple[Table, Table], tmp_path: Path) -> None:
    train, test = crops
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = Sample(tmp_path / "broken.mp4", "broken.mp4", {"label": "left"}, "test", "t")
    gone = Sample(tmp_path / "gone.mp4", "gone.mp4", {"label": "left"}, "train", "g0")
    result = run_baseline(
        "crop_size",
        replace(train, samples=(gone, *train.samples)),
        replace(test, samples=(broken, *test.samples)),
        TASK,
        workers=2,
    )
    assert result.ids == [s.id for s in test]
    assert set(result.errors) == {"broken.mp4", "gone.mp4"}
    assert all("\n" not in reason and name in reason for name, reason in result.errors.items())
    assert TASK.metrics(result.logits, result.targets)["top1"] == 1.0
    with pytest.raises(ValueError, match=r"crops.csv: no sample to predict; the first that cannot be read: .*broken"):
        run_baseline("crop_size", train, replace(test, samples=(broken,)), TASK, workers=1)


def test_cached_features_are_used_until_a_file_changes(
    crops: tuple[Table, Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = crops
    first = run_baseline("crop_size", train, test, TASK, cache=tmp_path / "cache", workers=1)
    read: list[str] = []

    def count(sample: Sample) -> NDArray[np.float32]:
        read.append(sample.name)
        return read_crop_size(sample)

    monkeypatch.setattr("stillmotion.baselines.read_crop_size", count)
    monkeypatch.setattr("stillmotion.baselines.milliseconds", lambda *_: 1.0)
    again = run_baseline("crop_size", train, test, TASK, cache=tmp_path / "cache", workers=1)
    assert read == []
    np.testing.assert_array_equal(again.logits, first.logits)
    _make(tmp_path / "other.mp4", np.zeros((2, 64, 106, 3), np.uint8), 10)
    moved = tuple(replace(s, path=tmp_path / "other.mp4") if s.name == "left5.mp4" else s for s in test)
    third = run_baseline("crop_size", train, replace(test, samples=moved), TASK, cache=tmp_path / "cache", workers=1)
    assert read == ["left5.mp4"]
    assert (first.logits[0].argmax(), third.logits[0].argmax()) == (0, 1)


def test_a_class_that_training_lacks_is_never_predicted(crops: tuple[Table, Table]) -> None:
    train, test = crops
    three = Classification(("left", "other", "right"))
    result = run_baseline("crop_size", train, test, three, workers=1)
    assert result.logits.shape == (2, 3)
    assert (result.logits[:, 1] < result.logits[:, [0, 2]].min(1)).all()
    assert three.metrics(result.logits, result.targets)["top1"] == 1.0


def test_test_labels_play_no_part(crops: tuple[Table, Table]) -> None:
    train, test = crops
    swapped = tuple(replace(s, targets={"label": "left" if "right" in s.name else "right"}) for s in test)
    plain = run_baseline("crop_size", train, test, TASK, workers=1)
    other = run_baseline("crop_size", train, replace(test, samples=swapped), TASK, workers=1)
    np.testing.assert_array_equal(plain.logits, other.logits)
    assert (plain.targets != other.targets).all()


def test_mistakes_are_explained(moving: tuple[Table, Table]) -> None:
    train, test = moving
    with pytest.raises(ValueError, match=r"^unknown baseline 'flow'; known: majority, alike:COLUMN\+COLUMN"):
        run_baseline("flow", train, test, TASK)
    with pytest.raises(ValueError, match=r"^moving.csv: no samples of two classes to train on$"):
        run_baseline("crop_size", train.select(lambda s: "left" in s.name), test, TASK, workers=1)
    apart = tuple(replace(s, group=s.targets["label"]) for s in train)
    with pytest.raises(
        ValueError, match=r"^2 training groups: each class stands in one alone; more groups are needed$"
    ):
        run_baseline("crop_size", replace(train, samples=apart), test, TASK, workers=1)
    assert all(baseline.__doc__ for baseline in BASELINES.values())


def test_few_samples_of_each_class_make_fewer_folds() -> None:
    folds = _folds(np.array([0, 1, 0, 1, 0]), list("abcde"), 0)
    assert len(folds) == 6, "three folds, twice over"
    assert all(len(set(train) | set(test)) == 5 and not set(train) & set(test) for train, test in folds)
    with pytest.raises(ValueError, match="2 training groups: each class stands in one alone; more groups are needed"):
        _folds(np.array([0, 1]), ["a", "b"], 0)
