"""Readers of dives: pickles that run nothing, windows by hand, splits that do not overlap."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from stillmotion.__main__ import main
from stillmotion.data.sets import SETS, make_table
from stillmotion.data.sets.mtl_aqa import Release, frame_window, small_sets
from stillmotion.data.sets.plain_pickle import load_plain
from stillmotion.data.splits import check_leaks
from stillmotion.data.table import TableError, read_table
from tests.conftest import DATA, MakeVideo, needs_data
from tests.data.test_sets import counts, touch

OFFICIAL = (DATA or Path()) / "annotations" / "mtl_aqa"
DIVE = {"primary_view": 0, "start_frame": 201, "end_frame": 300, "position": 1, "armstand": 0, "rotation_type": 3,
        "ss_no": 7, "tw_no": 2, "difficulty": 3.2, "final_score": 88.0}  # fmt: skip
SHORT = DIVE | {
    "start_frame": 447,
    "end_frame": 500,
    "position": 0,
    "armstand": 1,
    "rotation_type": 0,
    "final_score": 0.0,
}


def halves(words: str) -> int:
    """`2.5 somersaults` -> 5."""
    return round(2 * float(words.split()[0]))


def save(path: Path, data: Any, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(data, protocol))
    return path


def release(root: Path, **changed: Any) -> Path:
    """Four dives of two events, as the release lays them out. Returns the folder of the pickles."""
    folder = root / "Ready_2_Use/MTL-AQA_split_0_data"
    dives = {(1, 1): DIVE, (1, 2): SHORT, (26, 1): DIVE | changed, (26, 2): DIVE | {"end_frame": 310}}
    save(folder / "final_annotations_dict.pkl", dives)
    save(folder / "train_split_0.pkl", [(26, 1), (1, 1)])
    save(folder / "test_split_0.pkl", [(1, 2), (26, 2)])
    return folder


# ---- Pickles


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_that_runs_code_is_refused_in_one_line_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "ran"
    path = save(tmp_path / "evil.pkl", {(1, 1): Evil(trace)}, protocol)
    assert pickle.loads(path.read_bytes()) == {(1, 1): None}
    assert trace.exists()  # the pickle does work
    trace.unlink()
    with pytest.raises(TableError, match=r"evil\.pkl: refused, it would run code \([\w.]+\)") as caught:
        load_plain(path, allow=["scalar", "array"])
    assert not trace.exists()
    assert len(str(caught.value).splitlines()) == 1


def test_names_of_numpy_and_builtins_are_refused_unless_allowed(tmp_path: Path) -> None:
    scalar = save(tmp_path / "scalar.pkl", np.uint8(3))
    array = save(tmp_path / "array.pkl", np.array([9.5, 8.0]))
    for path, allow in ((scalar, []), (scalar, ["array"]), (array, []), (array, ["scalar"])):
        with pytest.raises(TableError, match=r"refused, it would run code \((numpy\.)"):
            load_plain(path, allow=allow)
    for code in (b"cbuiltins\neval\n(V1+1\ntR.", b"cnumpy\nload\n(Vx\ntR.", b"(Vx\nios\nsystem\n."):
        (tmp_path / "code.pkl").write_bytes(code)
        with pytest.raises(TableError, match=r"code\.pkl: refused"):
            load_plain(tmp_path / "code.pkl", allow=["scalar", "array"])


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize(
    "number", [np.uint8(200), np.int64(-5), np.float32(0.5), np.float64(1e300), np.dtype(">i4").type(7)]
)
def test_numbers_of_numpy_come_as_plain_ones(tmp_path: Path, protocol: int, number: Any) -> None:
    found = load_plain(save(tmp_path / "n.pkl", {(number, 1): [number]}, protocol), allow=["scalar"])
    assert found == {(number.item(), 1): [number.item()]}
    assert type(found[number.item(), 1][0]) is type(number.item())
    values = np.array([number, number])
    assert load_plain(save(tmp_path / "a.pkl", values, protocol), allow=["array"]) == values.tolist()


def test_a_number_of_numpy_as_python_2_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "two.pkl"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    path.write_bytes(b"\x80\x02cnumpy.core.multiarray\nscalar\n(" + dtype + b"U\x01\xc8tR.")
    assert pickle.loads(path.read_bytes(), encoding="latin1") == 200
    assert load_plain(path, allow=["scalar"]) == 200


def test_objects_within_numpy_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "o.pkl", np.array([None, {}], object), 3)
    with pytest.raises(TableError, match="numbers of type 'O8'"):
        load_plain(path, allow=["array"])


def test_what_is_no_pickle(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such file; pass annotations="):
        load_plain(tmp_path / "x.pkl")
    for content in (b"", b"<html>", pickle.dumps([1, 2])[:-3]):
        (tmp_path / "x.pkl").write_bytes(content)
        with pytest.raises(TableError, match=r"x\.pkl: not a readable pickle"):
            load_plain(tmp_path / "x.pkl")


# ---- MTL-AQA


@needs_data
def test_mtl_aqa_official_counts(tmp_path: Path) -> None:
    table = SETS["mtl_aqa"](OFFICIAL, missing="keep")
    assert counts(table) == {"train": 1059, "test": 353}
    assert len({s.id for s in table}) == 1412
    events = (1, 2, 3, 4, 5, 6, 7, 9, 10, 13, 14, 17, 18, 22, 26)
    assert sorted(table.groups) == [f"event{k:02d}" for k in events]
    assert len(check_leaks(table)) == 15  # split 0 is not disjoint in events
    column = {name: Counter(s.targets[name] for s in table) for name in ("position", "armstand", "rotation_type")}
    assert column == {
        "position": {"free": 152, "pike": 702, "tuck": 558},
        "armstand": {"standing": 1246, "armstand": 166},
        "rotation_type": {"back": 563, "forward": 359, "inward": 266, "reverse": 224},
    }
    somersaults = Counter(halves(s.targets["ss_no"]) for s in table)
    assert (somersaults[0], somersaults[8], max(somersaults)) == (27, 0, 9)
    assert max(halves(s.targets["tw_no"]) for s in table) == 7
    scores = np.array([float(s.targets["final_score"]) for s in table])
    assert (scores.min(), scores.max(), scores.mean().round(1), scores.std().round(1)) == (0, 104.5, 67.0, 16.9)
    assert (scores == 0).sum() == 2
    difficulty = [float(s.targets["difficulty"]) for s in table]
    assert (min(difficulty), max(difficulty)) == (1.5, 4.1)
    attributes = ("position", "armstand", "rotation_type", "ss_no", "tw_no")
    kinds = {split: {tuple(s.targets[a] for a in attributes) for s in table.select(split)} for split in table.splits}
    assert len(kinds["train"] | kinds["test"]) == 58
    assert kinds["test"] <= kinds["train"]


@needs_data
def test_mtl_aqa_windows_and_judges_of_the_official_files() -> None:
    table = SETS["mtl_aqa"](OFFICIAL, missing="keep")
    annotated = SETS["mtl_aqa"](OFFICIAL, missing="keep", window="annotated")
    lengths = np.array([(s.end or 0) - (s.start or 0) for s in annotated]) - 1  # last minus first frame
    assert (lengths.min(), lengths.max(), np.median(lengths)) == (54, 273, 100)
    assert ((lengths < 96).mean().round(3), (lengths < 103).mean().round(3)) == (0.399, 0.537)
    assert {(s.end or 0) - (s.start or 0) for s in table} == {96}
    assert {(t.end or 0) - (s.end or 0) for s, t in zip(table, annotated, strict=True)} == {7}
    exact = 0
    for s in table:
        judges = sorted(float(score) for score in s.targets["judge_scores"].split("|"))
        assert len(judges) == 7
        points = float(s.targets["difficulty"]) * sum(judges[2:5])
        exact += abs(points - float(s.targets["final_score"])) < 0.051
    assert exact == 1385


@needs_data
def test_mtl_aqa_leaves_an_event_out() -> None:
    table = SETS["mtl_aqa"](OFFICIAL, missing="keep", split=26)
    assert counts(table) == {"train": 1288, "test": 124}
    assert table.select("test").groups == ["event26"]
    assert check_leaks(table) == []
    with pytest.raises(ValueError, match=r"^split=8: choose one of 0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 13, 14"):
        SETS["mtl_aqa"](OFFICIAL, missing="keep", split=8)


@needs_data
def test_the_smaller_training_set_in_the_data_folder_is_in_the_test_split() -> None:
    found = small_sets(Release.of(OFFICIAL, "MTL-AQA_split_0_data"))
    assert found["UNLV_Dive_split_4"] == (279, 80)


def test_windows_by_hand() -> None:
    # Frames 201 to 300, counted from 1, are indices 200 to 299; the official window is the 103 frames 198 to 300, of
    # which the first 96 are 198 to 293, indices 197 to 292.
    assert frame_window(201, 300, "annotated") == (200, 300)
    assert frame_window(201, 300, "official") == (197, 293)
    assert frame_window(447, 500, "annotated") == (446, 500)  # 54 frames, shorter than the window
    assert frame_window(447, 500, "official") == (397, 493)


def test_mtl_aqa_rows_of_a_small_release(tmp_path: Path) -> None:
    folder = release(tmp_path)
    save(
        folder / "final_captions_dict.pkl",
        {(np.uint8(1), np.uint8(1)): ["<sos>", "three", "and", "a", "half", "<eos>"]},
        3,
    )
    more = {(1, 1): DIVE | {"judge_scores": np.array([9.5, 9.0, 8.0, 9, 9, 9, 9]), "dive_number": "407C"}}
    save(folder / "final_annotations_dict_with_dive_number.pkl", more, 4)
    touch(tmp_path, "whole_videos/01.mp4", "whole_videos_frames/26/000001.jpg", "whole_videos_frames/26/000002.jpg")
    touch(tmp_path, "whole_videos_frames/01/000001.jpg")
    table = SETS["mtl_aqa"](tmp_path)
    by_dive = {(s.group, s.targets["dive"]): s for s in table}
    first = by_dive["event01", "1"]
    assert first.name == "whole_videos/01.mp4"
    assert (first.start, first.end, first.split) == (197, 293, "train")
    assert first.targets == {
        "dive": "1", "position": "pike", "armstand": "standing", "rotation_type": "reverse",
        "ss_no": "3.5 somersaults", "tw_no": "1 twist", "difficulty": "3.2", "final_score": "88",
        "caption": "three and a half", "dive_number": "407C",
        "judge_scores": "9.5|9|8|9|9|9|9",
    }  # fmt: skip
    second = by_dive["event01", "2"].targets
    assert (second["position"], second["armstand"], second["rotation_type"]) == ("free", "armstand", "back")
    assert "caption" not in second
    assert by_dive["event26", "2"].name == "whole_videos_frames/26"


def test_mtl_aqa_ends_before_the_window_is_full(tmp_path: Path) -> None:
    release(tmp_path, start_frame=20, end_frame=102)
    with pytest.raises(TableError, match=r"dive \(26, 1\): ends at frame 102, .* pass window=annotated"):
        SETS["mtl_aqa"](tmp_path, missing="keep")
    table = SETS["mtl_aqa"](tmp_path, missing="keep", window="annotated")
    assert (table[0].start, table[0].end) == (19, 102)
    release(tmp_path, start_frame=20, end_frame=103)
    assert SETS["mtl_aqa"](tmp_path, missing="keep")[0].start == 0
    with pytest.raises(ValueError, match="window='all': choose official or annotated"):
        SETS["mtl_aqa"](tmp_path, missing="keep", window="all")


def test_mtl_aqa_smaller_sets_lose_their_test_dives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = release(tmp_path)
    save(folder.parent / "smaller_training_sets/size_140/train_split_0.pkl", [(1, 1), (1, 2), (26, 2)])
    touch(tmp_path, "01.mp4", "26.mp4")
    assert small_sets(Release.of(tmp_path, "MTL-AQA_split_0_data")) == {"size_140": (3, 2)}
    output = tmp_path / "t.csv"
    command = ["data", "table", "mtl_aqa", str(tmp_path), "--output", str(output), "--options.size", "140"]
    assert main(command) == 0
    assert counts(read_table(output)) == {"train": 1, "test": 2}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{output}: 3 samples, 2 groups; train 1, test 2"
    assert "2 of its 3 dives are in the test split and left out" in lines[1]
    assert "which we could not verify" in lines[2]
    assert main([*command, "--split", "1"]) == 2
    assert main([*command[:-1], "280"]) == 2
    assert main([*command[:-1], "100"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "the smaller sets belong to the official split" in errors[0]
    assert "size_280/train_split_0.pkl: no such file" in errors[1]
    assert "size=100: choose one of 140, 280, 450" in errors[2]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("position", 3, "position is 3, not one of 0 to 2"),
        ("armstand", None, "armstand is None, not one of 0 to 1"),
        ("tw_no", 2.0, "tw_no is 2.0, not one of 0 to 7"),
        ("ss_no", True, "ss_no is True, not one of 0 to 9"),
        ("final_score", "88", "final_score is '88', not a number of points"),
        ("difficulty", float("nan"), "difficulty is nan, not a number of points"),
        ("end_frame", 200, "start_frame 201 and end_frame 200 hold no frames"),
        ("start_frame", 0, "start_frame 0 and end_frame 300 hold no frames"),
    ],
)
def test_mtl_aqa_wrong_fields_are_named(tmp_path: Path, field: str, value: Any, message: str) -> None:
    release(tmp_path, **{field: value})
    with pytest.raises(TableError) as caught:
        SETS["mtl_aqa"](tmp_path, missing="keep")
    text = str(caught.value)
    assert f"final_annotations_dict.pkl dive (26, 1): {message}" in text
    assert len(text.splitlines()) == 1


def test_mtl_aqa_missing_and_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no final_annotations_dict.pkl here; pass annotations="):
        SETS["mtl_aqa"](touch(tmp_path / "empty", "x"))
    folder = release(tmp_path)
    with pytest.raises(
        TableError, match=r"4 of 4 samples .* 'whole_videos/26.mp4'; correct the folder, or pass missing="
    ):
        SETS["mtl_aqa"](tmp_path)
    touch(tmp_path, "26.mkv")
    assert counts(SETS["mtl_aqa"](tmp_path, missing="skip")) == {"train": 1, "test": 1}
    save(folder / "final_captions_dict.pkl", {(1, 1): [1, 2]})
    with pytest.raises(TableError, match=r"final_captions_dict.pkl dive \(1, 1\): TypeError: .*or remove it$"):
        SETS["mtl_aqa"](tmp_path, missing="skip")
    (folder / "final_captions_dict.pkl").unlink()
    save(folder / "test_split_0.pkl", [(5, 5)])
    with pytest.raises(TableError, match=r"test_split_0.pkl: dive \(5, 5\) is not in final_annotations_dict.pkl"):
        SETS["mtl_aqa"](tmp_path, missing="keep")
    save(folder / "test_split_0.pkl", {"a": 1})
    with pytest.raises(TableError, match=r"test_split_0.pkl: not a list of \(event, dive\)"):
        SETS["mtl_aqa"](tmp_path, missing="keep")
    (folder / "test_split_0.pkl").unlink()
    with pytest.raises(TableError, match=r"test_split_0.pkl: no such file"):
        SETS["mtl_aqa"](tmp_path, missing="keep")
    save(folder / "final_annotations_dict.pkl", {"1": DIVE})
    with pytest.raises(TableError, match=r"final_annotations_dict.pkl: not a dict by \(event, dive\)"):
        SETS["mtl_aqa"](tmp_path, missing="keep")


def test_a_dive_is_read_from_its_video(tmp_path: Path, make_video: MakeVideo) -> None:
    """Frame k (from 1) of the release is frame k - 1 of the reader: grey level tells the number."""
    release(tmp_path)
    frames = np.repeat(np.arange(500) // 2, 16 * 16 * 3).reshape(500, 16, 16, 3).astype(np.uint8)
    for event in ("01", "26"):
        make_video(tmp_path / f"{event}.mp4", frames, options={"crf": "0"})
    make_table("mtl_aqa", str(tmp_path), output=str(tmp_path / "t.csv"), options={"window": "annotated"})
    from stillmotion.data.decode import read_frames

    dive = next(s for s in read_table(tmp_path / "t.csv") if s.group == "event01" and s.targets["dive"] == "2")
    start, end = dive.frame_range(500, 25.0)
    seen = read_frames(dive.path, [start, end - 1]).mean((1, 2, 3))
    np.testing.assert_allclose(seen, [446 // 2, 499 // 2], atol=3)  # colours of a video are not exact


# ---- UNLV-Dive


@needs_data
def test_unlv_dive_official_splits() -> None:
    first = SETS["unlv_dive"](OFFICIAL, missing="keep")
    assert counts(first) == {"train": 279, "test": 93}
    assert sorted(first.groups) == ["event01", "event02", "event03"]
    fourth = SETS["unlv_dive"](OFFICIAL, missing="keep", split=4)
    assert counts(fourth) == {"train": 299, "test": 70}
    assert "1 of its 300 dives" in fourth.notes[0]
    tested = {s.id for s in SETS["mtl_aqa"](OFFICIAL, missing="keep").select("test")}
    overlap = [len({s.id for s in t.select("train")} & tested) for t in (first, fourth)]
    assert overlap == [80, 78]
    with pytest.raises(ValueError, match=r"^split=1: choose one of 0, 4$"):
        SETS["unlv_dive"](OFFICIAL, split=1)


# ---- AQA-7


def test_aqa7(tmp_path: Path) -> None:
    lists = tmp_path / "Split_4"
    lists.mkdir()
    savemat(lists / "split_4_train_list.mat", {"consolidated_train_list": [[1, 7, 80.5], [2, 7, 15.1], [7, 1, 50]]})
    savemat(lists / "split_4_test_list.mat", {"consolidated_test_list": [[6, 12, 90.18]]})
    touch(tmp_path, "diving-out/007/img_00001.jpg", "gym_vault-out/007/img_00001.jpg", "sync_diving_10m-out/012.avi")
    rows = [(s.name, s.targets, s.split) for s in SETS["aqa7"](tmp_path)]
    assert rows == [
        ("diving-out/007", {"label": "diving", "final_score": "80.5"}, "train"),
        ("gym_vault-out/007", {"label": "gym_vault", "final_score": "15.1"}, "train"),
        ("sync_diving_10m-out/012.avi", {"label": "sync_diving_10m", "final_score": "90.18"}, "test"),
    ]
    assert [s.name for s in SETS["aqa7"](tmp_path, action="gym_vault")] == ["gym_vault-out/007"]
    with pytest.raises(ValueError, match="action='judo': choose one of diving, gym_vault"):
        SETS["aqa7"](tmp_path, action="judo")
    savemat(lists / "split_4_test_list.mat", {"consolidated_test_list": [[8, 12, 90.18]]})
    with pytest.raises(TableError, match=r"split_4_test_list.mat row 1: 8, 12, 90.18 is not action \(1 to 7\)"):
        SETS["aqa7"](tmp_path)
    savemat(lists / "split_4_test_list.mat", {"other": [[8, 12, 90.18]]})
    with pytest.raises(TableError, match=r"split_4_test_list\.mat: no consolidated_test_list of action"):
        SETS["aqa7"](tmp_path)
    (lists / "split_4_test_list.mat").write_text("x")
    with pytest.raises(TableError, match=r"split_4_test_list\.mat: not a MATLAB file"):
        SETS["aqa7"](tmp_path)
