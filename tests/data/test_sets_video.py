"""Readers of the sets of the P3D paper, on small files in the published form."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from stillmotion.data.sets import SETS, make_table
from stillmotion.data.sets.dynamic_scenes import CLASSES as MARYLAND
from stillmotion.data.sets.yup_plus_plus import CLASSES as YUP
from stillmotion.data.sets.yupenn import CLASSES as YUPENN
from stillmotion.data.table import Table, TableError, read_table
from tests.data.test_sets import counts, put, rows, touch

# ---- ActivityNet 1.3

ACTIVITYNET = {
    "version": "VERSION 1.3",
    "taxonomy": [{"nodeName": "Polo", "nodeId": 1, "parentName": "Sports", "parentId": 0}],
    "database": {
        "-a_BcdefghI": {
            "duration": 60.5,
            "subset": "training",
            "resolution": "640x480",
            "url": "https://www.youtube.com/watch?v=-a_BcdefghI",
            "annotations": [
                {"segment": [1.5, 20.25], "label": "Polo"},
                {"segment": [30, 40], "label": "Riding a horse"},
                {"segment": [50, 55], "label": "Polo"},
            ],
        },
        "-A_BcdefghI": {"subset": "validation", "annotations": [{"segment": [0.0, 9.0], "label": "Surfing"}]},
        "zzzzzzzzzzz": {"subset": "testing", "annotations": []},
    },
}


def activitynet(root: Path) -> Path:
    put(root / "activity_net.v1-3.min.json", json.dumps(ACTIVITYNET))
    return touch(
        root, "v1-3/train_val/v_-a_BcdefghI.mkv", "v1-3/train_val/v_-A_BcdefghI.mp4", "v1-3/test/zzzzzzzzzzz.mp4"
    )


def test_activitynet_videos(tmp_path: Path) -> None:
    table = SETS["activitynet"](activitynet(tmp_path))
    assert rows(table) == [
        ("v1-3/train_val/v_-a_BcdefghI.mkv", "Polo", "train", "-a_BcdefghI"),
        ("v1-3/train_val/v_-A_BcdefghI.mp4", "Surfing", "val", "-A_BcdefghI"),
        ("v1-3/test/zzzzzzzzzzz.mp4", None, "test", "zzzzzzzzzzz"),
    ]
    assert [s.targets.get("labels") for s in table] == ["Polo|Riding a horse", "Surfing", None]


def test_activitynet_segments(tmp_path: Path) -> None:
    table = SETS["activitynet"](activitynet(tmp_path), segments=True)
    assert [(s.targets["label"], s.start, s.end, s.unit, s.split) for s in table] == [
        ("Polo", 1.5, 20.25, "s", "train"),
        ("Riding a horse", 30.0, 40.0, "s", "train"),
        ("Polo", 50.0, 55.0, "s", "train"),
        ("Surfing", 0.0, 9.0, "s", "val"),
    ]
    table.write(tmp_path / "t.csv")
    assert next(s.id for s in read_table(tmp_path / "t.csv")) == "v1-3/train_val/v_-a_BcdefghI.mkv[1.5s:20.25s]"


def test_activitynet_missing_videos_and_errors(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no activity_net\*\.json here; pass annotations="):
        SETS["activitynet"](tmp_path)
    path = put(tmp_path / "activity_net.v1-3.min.json", json.dumps(ACTIVITYNET))
    touch(tmp_path, "v_zzzzzzzzzzz.mp4")
    with pytest.raises(TableError, match=r"2 of 3 samples .* the first 'v_-a_BcdefghI.mp4'"):
        SETS["activitynet"](tmp_path)
    assert counts(SETS["activitynet"](tmp_path, missing="skip")) == {"test": 1}
    put(path, '{"database": {"x": {"subset": "val", "annotations": []}}}')
    with pytest.raises(TableError, match=r"json video 'x': subset 'val' is none of training, validation, testing"):
        SETS["activitynet"](tmp_path)
    put(path, '{"database": {"x": {"subset": "training", "annotations": [{"label": "a", "segment": [3, 3]}]}}}')
    with pytest.raises(TableError, match="video 'x': segment 3 to 3 s holds nothing"):
        SETS["activitynet"](tmp_path)
    put(path, '{"database": {"x": {"subset": "training", "annotations": [{"label": "a"}]}}}')
    with pytest.raises(TableError, match="is not a label and a segment of two times"):
        SETS["activitynet"](tmp_path)
    for text in ("[]", "{", '{"database": 3}', '{"database": {"x": 3}}'):
        put(path, text)
        with pytest.raises(TableError, match="not a list of ActivityNet"):
            SETS["activitynet"](tmp_path)


# ---- Sports-1M

TRAIN = "https://www.youtube.com/watch?v=UDqivjS-lpI 1,2\nhttps://www.youtube.com/watch?v=_1234567890 0\n"
TEST = "https://www.youtube.com/watch?v=udqivjS-lpI 2\n"


def test_sports1m(tmp_path: Path) -> None:
    put(tmp_path / "lists/original/train_partition.txt", TRAIN)
    put(tmp_path / "lists/original/test_partition.txt", TEST)
    put(tmp_path / "lists/labels.txt", "boomerang\nfreestyle bmx\nmodel aircraft\n")
    videos = touch(tmp_path / "videos", "a/UDqivjS-lpI.mp4", "b/_1234567890.webm", "b/udqivjS-lpI.mkv")
    table = SETS["sports1m"](videos, annotations=tmp_path / "lists")
    assert rows(table) == [
        ("a/UDqivjS-lpI.mp4", "freestyle bmx", "train", "UDqivjS-lpI"),
        ("b/_1234567890.webm", "boomerang", "train", "_1234567890"),
        ("b/udqivjS-lpI.mkv", "model aircraft", "test", "udqivjS-lpI"),
    ]
    assert [s.targets["labels"] for s in table] == ["freestyle bmx|model aircraft", "boomerang", "model aircraft"]
    (tmp_path / "lists/labels.txt").unlink()
    numbers = SETS["sports1m"](videos, annotations=tmp_path / "lists/original")
    assert [s.targets["labels"] for s in numbers] == ["1|2", "0", "2"]


def test_sports1m_errors(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no train_partition.txt here; pass annotations="):
        SETS["sports1m"](tmp_path)
    put(tmp_path / "test_partition.txt", TEST)
    put(tmp_path / "train_partition.txt", TRAIN + "https://www.youtube.com/watch?v=x\n")
    with pytest.raises(TableError, match=r"train_partition.txt line 3: .* is not `address\?v=ID label,label`"):
        SETS["sports1m"](tmp_path)
    put(tmp_path / "train_partition.txt", TRAIN)
    put(tmp_path / "labels.txt", "boomerang\nfreestyle bmx\n")
    with pytest.raises(TableError, match=r"line 1: label 2 is not in .*labels.txt, whose last is 1"):
        SETS["sports1m"](tmp_path)


# ---- ASLAN

ASLAN = (
    "1\tpush up\\push-ups exercise-a_B-cdefghI-how to do - push ups-12-3.5\n"
    "2\tpush up\\push ups-a_B-cdefghI-how to-20.5-2\n3\tsit\\nothing else\n"
)


def test_aslan_samples(tmp_path: Path) -> None:
    put(tmp_path / "ASLAN_Samples_List.txt", ASLAN)
    touch(tmp_path, "ASLAN_MP4/0001.mp4", "ASLAN_MP4/0002.mp4", "ASLAN_MP4/0003.mp4")
    assert rows(SETS["aslan"](tmp_path)) == [
        ("ASLAN_MP4/0001.mp4", "push up", None, "a_B-cdefghI"),
        ("ASLAN_MP4/0002.mp4", "push up", None, "a_B-cdefghI"),
        ("ASLAN_MP4/0003.mp4", "sit", None, None),
    ]
    put(tmp_path / "other/Samples_Details.txt", "1 push up\n")
    with pytest.raises(TableError, match=r"Samples_Details.txt line 1: '1 push up' is not `number action"):
        SETS["aslan"](tmp_path, annotations=tmp_path / "other")
    with pytest.raises(TableError, match="no such file; pass annotations="):
        SETS["aslan"](touch(tmp_path / "none", "x"))


# ---- Scenes


@pytest.mark.parametrize(("name", "classes", "number"), [("yupenn", YUPENN, 14), ("dynamic_scenes", MARYLAND, 13)])
def test_scenes(tmp_path: Path, name: str, classes: tuple[str, ...], number: int) -> None:
    assert len(classes) == number
    folders = [c.replace("_", " ").title() if i % 2 else c for i, c in enumerate(classes)]
    touch(tmp_path, *(f"set/{folder}/{i}.avi" for folder in folders for i in range(2)), "set/code/demo.avi")
    touch(tmp_path, f"set/{folders[0]}/frames_3/0001.jpg", f"set/{folders[0]}/frames_3/0002.jpg")
    table = SETS[name](tmp_path)
    assert len(table) == 2 * number + 1
    assert table.classes() == sorted(classes)
    assert (table.splits, table.groups) == ([], [])
    assert f"set/{folders[0]}/frames_3" in [s.name for s in table]
    written = make_table(name, str(tmp_path), output=str(tmp_path / "t.csv"))
    assert [s.id for s in read_table(tmp_path / "t.csv")] == [s.id for s in written]


def test_scenes_that_are_not_complete(tmp_path: Path) -> None:
    touch(tmp_path, "Beach/1.avi", "Railway/1.avi")
    with pytest.raises(TableError, match=r"12 of 14 classes have no video, the first 'city_street'; complete the set"):
        SETS["yupenn"](tmp_path)
    assert SETS["yupenn"](tmp_path, missing="skip").classes() == ["beach", "railway"]
    with pytest.raises(TableError, match="12 of 14 classes have no video"):
        make_table("yupenn", str(tmp_path), output=str(tmp_path / "t.csv"))
    make_table("yupenn", str(tmp_path), output=str(tmp_path / "t.csv"), missing="skip")
    assert read_table(tmp_path / "t.csv").classes() == ["beach", "railway"]
    with pytest.raises(TableError, match="13 of 13 classes have no video, the first 'avalanche'; correct the folder"):
        SETS["dynamic_scenes"](touch(tmp_path / "empty", "x.txt"), missing="skip")
    with pytest.raises(TableError, match="no such folder; pass the one with the class folders"):
        SETS["yupenn"](tmp_path / "nowhere")


# ---- YUP++


PUBLISHED = [2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 16, 18, 22, 26, 28]
"""Training videos of beaches with a still camera in our static-YUP++."""


def yup(root: Path, number: int = 30) -> Path:
    names = [name.title().replace("_", "") for name in YUP]
    kinds = (("stationary", "static"), ("moving", "moving"))
    return touch(
        root,
        *(f"YUP++/camera_{f}/{n}/{n}_{k}_cam_{i}.mp4" for n in names for f, k in kinds for i in range(1, number + 1)),
    )


def cells(table: Table) -> Counter[tuple[str | None, str]]:
    return Counter((s.split, s.targets["camera"]) for s in table)


def test_yup_plus_plus_trains_on_a_tenth_of_every_class_and_camera(tmp_path: Path) -> None:
    assert len(YUP) == 20
    table = SETS["yup_plus_plus"](yup(tmp_path))
    assert len(table) == 1200
    assert set(Counter((s.targets["label"], s.targets["camera"]) for s in table.select("train")).values()) == {3}
    assert cells(table) == {(s, c): n for s, n in (("train", 60), ("test", 540)) for c in ("static", "moving")}
    assert len(table.notes) == 1
    assert "this draw is ours" in table.notes[0]
    draws = [{s.name for s in SETS["yup_plus_plus"](tmp_path, split=k).select("train")} for k in (1, 2, 1)]
    assert draws[0] == draws[2] != draws[1]
    moving = SETS["yup_plus_plus"](tmp_path, camera="moving")
    assert cells(moving) == {("train", "moving"): 60, ("test", "moving"): 540}
    assert {s.name for s in moving.select("train")} <= draws[0]
    with pytest.raises(ValueError, match="camera='still': choose static, moving or both"):
        SETS["yup_plus_plus"](tmp_path, camera="still")
    with pytest.raises(ValueError, match="split=11: choose one of 1, 2"):
        SETS["yup_plus_plus"](tmp_path, split=11)


def test_static_yup_plus_plus_is_the_published_half(tmp_path: Path) -> None:
    """The rule, written a second time, and its outcome for one class, so that the list never changes."""
    table = SETS["static_yup_plus_plus"](yup(tmp_path))
    assert cells(table) == dict.fromkeys([(s, c) for s in ("train", "test") for c in ("static", "moving")], 300)
    for camera in ("static", "moving"):
        names = [f"Ocean_{camera}_cam_{i}" for i in range(1, 31)]
        half = sorted(names, key=lambda n: hashlib.sha256(f"static-YUP++/{n}".encode()).hexdigest())[:15]
        found = [s for s in table.select("train") if s.targets == {"label": "ocean", "camera": camera}]
        assert {Path(s.name).stem for s in found} == set(half)
    numbers = sorted(int(Path(s.name).stem.split("_")[-1]) for s in table.select("train") if "Beach_static" in s.name)
    assert numbers == PUBLISHED
    assert "Table 6 cannot be compared" in table.notes[0]


def test_yup_plus_plus_that_is_not_complete(tmp_path: Path) -> None:
    table = SETS["yup_plus_plus"](yup(tmp_path, number=10))
    assert cells(table) == {(s, c): n for s, n in (("train", 20), ("test", 180)) for c in ("static", "moving")}
    assert table.notes[1] == "not 30 videos, so not the draw of the whole set: beach (moving) 10 and 39 more"
    touch(tmp_path, "YUP++/camera_moving/Beach/clip.mp4")
    with pytest.raises(TableError, match=r"clip.mp4: not named Class_static_cam_N or Class_moving_cam_N"):
        SETS["yup_plus_plus"](tmp_path)
    few = touch(tmp_path / "few", "camera_moving/Beach/Beach_moving_cam_1.mp4")
    with pytest.raises(TableError, match="19 of 20 classes have no video"):
        SETS["yup_plus_plus"](few)
    assert len(SETS["yup_plus_plus"](few, missing="skip")) == 1


def test_yup_plus_plus_with_a_list(tmp_path: Path) -> None:
    names = yup(tmp_path, number=2)
    stems = [p.stem for p in sorted(names.rglob("*.mp4"))]
    lines = [f"{n} {'static' if 'static' in n else 'moving'}_{'train' if n.endswith('1') else 'test'}" for n in stems]
    path = put(tmp_path / "10_90_randsplit_1.txt", "\n".join(lines))
    table = SETS["yup_plus_plus"](tmp_path, annotations=path)
    assert cells(table) == dict.fromkeys([(s, c) for s in ("train", "test") for c in ("static", "moving")], 20)
    assert all((s.split == "train") == Path(s.name).stem.endswith("1") for s in table)
    put(path, "\n".join(lines[1:]))
    with pytest.raises(TableError, match=r"randsplit_1.txt: 1 videos are in no split, the first '.*Beach_moving_cam_1"):
        SETS["yup_plus_plus"](tmp_path, annotations=path)
    put(path, "Beach_moving_cam_1 train\n")
    with pytest.raises(TableError, match=r"randsplit_1.txt line 1: .* is not `NAME static_train`"):
        SETS["yup_plus_plus"](tmp_path, annotations=path)
