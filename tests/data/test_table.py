import csv
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from stillmotion.data.splits import check_classes, check_labels, check_leaks
from stillmotion.data.table import Sample, Table, TableError, read_table
from tests.conftest import DATA, needs_data

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a table and empty files for a.mp4 .. d.mp4 beside it."""
    for name in "abcd":
        (tmp_path / f"{name}.mp4").touch()

    def make(text: str | bytes, name: str = "videos.csv") -> Path:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / name

    return make


def error_of(source: Path) -> str:
    with pytest.raises(TableError) as caught:
        read_table(source)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(source))
    return message.removeprefix(str(source)).strip()


def test_a_full_table_reads_as_written(write: Write, tmp_path: Path) -> None:
    table = read_table(
        write(
            "path,label,split,group,start_frame,end_frame,score\n"
            "a.mp4,jump,train,g1,0,10,3.5\n"
            "a.mp4,sit,train,g1,10,,\n"
            "b.mp4,,test,,,,\n"
        )
    )
    first, second, third = table
    assert first == Sample(
        tmp_path / "a.mp4", "a.mp4", {"label": "jump", "score": "3.5"}, "train", "g1", 0.0, 10.0, "frame", 2
    )
    assert [s.id for s in table] == ["a.mp4[0:10]", "a.mp4[10:]", "b.mp4"]
    assert (second.start, second.end, second.targets) == (10.0, None, {"label": "sit"})
    assert (third.targets, third.group, third.line) == ({}, None, 4)
    assert (table.splits, table.groups, table.classes()) == (["train", "test"], ["g1"], ["jump", "sit"])


@pytest.mark.parametrize(
    "text",
    [
        b"path,label\r\na.mp4,jump\r\nb.mp4,sit\r\n",
        b"path,label\ra.mp4,jump\rb.mp4,sit\r",
        b"\xef\xbb\xbfpath,label\na.mp4,jump\nb.mp4,sit",
        b"\n path , label \n\n a.mp4 , jump \n,\nb.mp4,sit\n\n",
        b'"path","label"\n"a.mp4","jump"\n"b.mp4","sit"\n',
        b",path,label,,\n0,a.mp4,jump,,\n1,b.mp4,sit,,\n,,,,\n",
    ],
    ids=["windows", "old mac", "byte order mark", "blank lines and spaces", "quotes", "unnamed columns"],
)
def test_every_dialect_gives_the_same_rows(write: Write, text: bytes) -> None:
    table = read_table(write(text))
    assert [(s.name, s.targets) for s in table] == [("a.mp4", {"label": "jump"}), ("b.mp4", {"label": "sit"})]


def test_a_quoted_cell_may_hold_commas_and_line_ends_and_lines_are_counted_right(write: Write) -> None:
    path = write('path,label\na.mp4,"stand up, slowly"\n\nb.mp4,"two\nlines"\nc.mp4,sit\n')
    assert [(s.targets["label"], s.line) for s in read_table(path)] == [
        ("stand up, slowly", 2),
        ("two\nlines", 4),
        ("sit", 6),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ": the table is empty; its first line names the columns, such as path,label"),
        ("\n\n", ": the table is empty; its first line names the columns, such as path,label"),
        ("path,label\n", ": the table has a header and no rows; add one row for each video"),
        ("filename,label\na.mp4,x\n", "line 1: no column `path` (columns: filename, label); rename `filename` to"),
        ("id,Video Path\n1,a.mp4\n", "line 1: no column `path` (columns: id, Video Path); rename `Video Path` to"),
        ("Path,label\na.mp4,x\n", "line 1: no column `path` (columns: Path, label); rename `Path` to `path`"),
        ("a,b\n1,2\n", "line 1: no column `path` (columns: a, b); name the column of file names `path`"),
        ("path;label\na.mp4;x\n", "line 1: columns are separated by ';'; save the table with commas"),
        ("path,x,x\na.mp4,1,2\n", "line 1: column `x` stands twice; rename one"),
        ("path,Split\na.mp4,train\n", "line 1: column `Split` would be ignored; rename it to `split`"),
        ("path,start\na.mp4,1\n", "line 1: frames or seconds? rename `start` to `start_frame` or `start_s`"),
        ("path,label\na.mp4\n", "line 2: 2 columns expected, 1 found; check for a missing comma"),
        ("path,label\na.mp4,sit, down\n", "line 2: 2 columns expected, 3 found; check for a missing comma"),
        ('path,label\na.mp4,x\n"b.mp4,x\nc.mp4,x\n', "line 3: unexpected end of data; check the quotes of this row"),
        ("path,label\n,sit\n", "line 2: empty path; fill it in or remove the row"),
        ("path,label\na.mp4,x\n./a.mp4,y\n", "line 3: './a.mp4' stands already in line 2; remove one"),
        ("path,end_frame\na.mp4,9\na.mp4,9\n", "line 3: 'a.mp4[:9]' stands already in line 2; remove one"),
        ("path,start_frame\na.mp4,1.5\n", "line 2: start_frame is '1.5'; give a whole frame number, 0 or more"),
        ("path,start_frame\na.mp4,inf\n", "line 2: start_frame is 'inf'; give a whole frame number, 0 or more"),
        ("path,end_frame\na.mp4,-3\n", "line 2: end_frame is '-3'; give a whole frame number, 0 or more"),
        ("path,start_s\na.mp4,nan\n", "line 2: start_s is 'nan'; give seconds, 0 or more"),
        ("path,start_s\na.mp4,0:10\n", "line 2: start_s is '0:10'; give seconds, 0 or more"),
        ("path,start_s,end_s\na.mp4,2,2\n", "line 2: end_s 2 is not after start_s 2; the end is exclusive"),
        ("path,start_s,end_frame\na.mp4,1,9\n", "line 2: range in frames and in seconds; keep start_frame/end_frame"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(write: Write, text: str, expected: str) -> None:
    assert error_of(write(text)).startswith(expected)


def test_a_missing_file_names_line_folder_and_remedy(write: Write, tmp_path: Path) -> None:
    path = write("path\na.mp4\nx.mp4\ny.mp4\n")
    assert error_of(path) == (
        f"line 3: 'x.mp4' not found under {tmp_path} (2 of 3 files are missing); correct the path, or say with --root "
        "where paths start"
    )
    assert len(read_table(path, check_files=False)) == 3
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.mp4").touch()
    assert error_of(write("path\nsub\\a.mp4\n")) == ("line 2: 'sub\\\\a.mp4' not found; write / instead of \\ in paths")


def test_root_moves_relative_paths_only(write: Write, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    path = write(f"path\na.mp4\n{tmp_path}/b.mp4\n", "tables/videos.csv")
    assert [s.path for s in read_table(path, root=tmp_path)] == [tmp_path / "a.mp4", tmp_path / "b.mp4"]


def test_no_table_at_all(write: Write, tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.csv").startswith(": no such file; give a CSV or Parquet table, or a folder of")
    assert error_of(tmp_path / "a.mp4").startswith(": this is a video, not a table; write a CSV")
    assert error_of(write(b"path\n\xff\xfe.mp4\n")) == (": not UTF-8 text (byte 5); save the table as UTF-8 CSV")
    assert error_of(write(b"PAR1", "videos.parquet")).startswith(": not a readable Parquet file (")


def test_parquet_with_typed_columns_reads_like_csv(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for name in "abc":
        (tmp_path / f"{name}.mp4").touch()
    columns = {
        "path": ["a.mp4", "b.mp4", "c.mp4"],
        "label": pa.array([3, None, 12], pa.int64()),
        "score": pa.array([0.1, float("nan"), 1234567.0]),
        "done": [True, None, False],
        "name": pa.array([b"x", None, "é".encode()]),
        "split": pa.array(["train", "train", "test"]).dictionary_encode(),
        "start_frame": pa.array([0.0, None, 1234567.0]),
        "__index_level_0__": [7, 8, 9],
    }
    path = tmp_path / "videos.parquet"
    pq.write_table(pa.table(columns), path)
    table = read_table(path)
    assert [s.targets for s in table] == [
        {"label": "3", "score": "0.1", "done": "True", "name": "x"},
        {},
        {"label": "12", "score": "1234567", "done": "False", "name": "é"},
    ]
    assert [s.id for s in table] == ["a.mp4[0:]", "b.mp4", "c.mp4[1234567:]"]
    assert table.classes() == ["3", "12"]

    pq.write_table(pa.table({"path": ["a.mp4", "x.mp4"]}), path)
    assert error_of(path).startswith("row 2: 'x.mp4' not found under")
    pq.write_table(pa.table({"path": ["a.mp4"], "box": [[1, 2]]}), path)
    assert error_of(path) == "row 1: a cell holds a list; write plain text or numbers"
    pq.write_table(pa.table({"video": ["a.mp4"]}), path)
    assert error_of(path) == ": no column `path` (columns: video); rename `video` to `path`"


def test_writing_and_reading_gives_the_same_table(write: Write, tmp_path: Path) -> None:
    head = "path,label,note,split,group,start_frame,end_frame,start_s,end_s\n"
    rows = 'a.mp4,"sit, slowly","says ""go""",train,g,0,1234567,,\nb.mp4,,,test,,,,0.1,1234.5678\nc.mp4,stand,é,,,,,,\n'
    table = read_table(write(head + rows))
    assert table[0].id == "a.mp4[0:1234567]"
    assert table[1].id == "b.mp4[0.1s:1234.5678s]"
    table.write(tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_text(encoding="utf-8") == head + rows
    table.write(tmp_path / "new/elsewhere.csv")
    with (tmp_path / "new/elsewhere.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(tmp_path / f"{n}.mp4") for n in "abc"]
    again = read_table(tmp_path / "copy.csv")
    assert again.hash == table.hash
    assert again.samples == table.samples


def test_a_linked_video_keeps_its_own_place(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/1.mp4").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.mp4").symlink_to(tmp_path / "store/1.mp4")
    Table((Sample(tmp_path / "set/a.mp4", "a.mp4", {"label": "x"}),)).write(tmp_path / "set/t.csv")
    assert (tmp_path / "set/t.csv").read_text() == "path,label\na.mp4,x\n"


def test_hash_tells_tables_apart() -> None:
    sample = Sample(Path("a.mp4"), "a.mp4", {"label": "x"}, "train", "g")
    changed = [
        Sample(Path("b.mp4"), "b.mp4", {"label": "x"}, "train", "g"),
        Sample(Path("a.mp4"), "a.mp4", {"label": "y"}, "train", "g"),
        Sample(Path("a.mp4"), "a.mp4", {"label": "x"}, "test", "g"),
        Sample(Path("a.mp4"), "a.mp4", {"label": "x"}, "train", "h"),
        Sample(Path("a.mp4"), "a.mp4", {"label": "x"}, "train", "g", 0.0, 5.0),
    ]
    assert len({Table((s,)).hash for s in [sample, *changed]}) == 6
    moved = Sample(Path("/other/a.mp4"), "a.mp4", {"label": "x"}, "train", "g", line=9)
    assert Table((moved,)).hash == Table((sample,)).hash


@pytest.mark.parametrize(
    ("start", "end", "unit", "fps", "expected"),
    [
        (None, None, "frame", None, (0, 100)),
        (10.0, 20.0, "frame", None, (10, 20)),
        (10.0, None, "frame", 25.0, (10, 100)),
        (None, 200.0, "frame", None, (0, 100)),
        (0.1, 0.5, "s", 30.0, (3, 15)),
        (0.5, 1.5, "s", 25.0, (13, 38)),  # 12.5 and 37.5 both go up: one second holds 25 frames
        (1.5, 2.5, "s", 25.0, (38, 63)),
        (1.001, 2.002, "s", 30000 / 1001, (30, 60)),
        (3.0, None, "s", 29.97, (90, 100)),
        (None, None, "s", None, (0, 100)),
    ],
)
def test_frame_range(start: float | None, end: float | None, unit: str, fps: float | None, expected: object) -> None:
    assert Sample(Path("a.mp4"), "a.mp4", start=start, end=end, unit=unit).frame_range(100, fps) == expected


@pytest.mark.parametrize(
    ("start", "end", "unit", "fps", "message"),
    [
        (100.0, 120.0, "frame", 25.0, "a.mp4[100:120]: the range starts at frame 100; the video has 100 frames"),
        (1.0, 2.0, "s", None, "a.mp4[1s:2s]: a range in seconds needs a frame rate, and a.mp4 has none"),
        (1.0, 1.01, "s", 25.0, "a.mp4[1s:1.01s]: the range holds no frame at 25 frames a second; make it longer"),
    ],
)
def test_frame_range_refuses(start: float, end: float, unit: str, fps: float | None, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("[", r"\[").replace("]", r"\]") + "$"):
        Sample(Path("a.mp4"), "a.mp4", start=start, end=end, unit=unit).frame_range(100, fps)


def test_ranges_that_meet_in_time_share_no_frame_and_lose_none() -> None:
    cuts = [0.0, 0.333, 0.71, 1.02, 1.9, 4.0]
    ranges = [Sample(Path("a"), "a", start=a, end=b, unit="s").frame_range(100, 23.976) for a, b in pairwise(cuts)]
    assert [i for a, b in ranges for i in range(a, b)] == list(range(96))


def test_classes_sort_numbers_by_value_and_explain_a_missing_column(write: Write) -> None:
    samples = tuple(Sample(Path(n), n, {"label": n, "class": "x"}) for n in ["10", "9", "-1"])
    table = Table(samples, "t.csv")
    assert table.classes() == ["-1", "9", "10"]
    assert Table((Sample(Path("a"), "a", {"label": "²"}),)).classes() == ["²"]
    unnamed = read_table(write("path,class,split\na.mp4,jump,train\n"))
    with pytest.raises(TableError, match=r"videos.csv: no row has a value in column `label` \(further columns: class"):
        unnamed.classes()
    with pytest.raises(TableError, match=r"rename `class` to `label`, or pass targets=class$"):
        unnamed.classes()
    assert unnamed.classes("class") == ["jump"]


def test_select_names_the_splits_there_are(write: Write) -> None:
    table = read_table(write("path,split\na.mp4,train\nb.mp4,test\n"))
    assert [s.name for s in table.select("test")] == ["b.mp4"]
    assert [s.name for s in table.select(lambda s: s.line == 2)] == ["a.mp4"]
    with pytest.raises(TableError, match=r"no sample in split 'val'; splits here: train, test$"):
        table.select("val")
    with pytest.raises(TableError, match=r"splits here: none: add a column `split`, as `stillmotion data split` does$"):
        read_table(write("path\na.mp4\n")).select("train")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def rows_of(root: Path) -> list[tuple[str, str, str | None]]:
    table = read_table(root)
    assert all(s.path == root / s.name and s.path.exists() for s in table)
    return [(s.name, s.targets["label"], s.split) for s in table]


def test_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "sit/b.AVI", "jump/a.mp4", "jump/deep/er/c.mkv", "jump/._a.mp4", "jump/notes.txt", ".cache/x.mp4")
    assert rows_of(tmp_path) == [
        ("jump/a.mp4", "jump", None),
        ("jump/deep/er/c.mkv", "jump", None),
        ("sit/b.AVI", "sit", None),
    ]


def test_split_folders_take_their_usual_names(tmp_path: Path) -> None:
    touch(tmp_path, "Train/jump/a.mp4", "validation/jump/b.mp4", "test/sit/c.mp4", "annotations/list.txt")
    assert rows_of(tmp_path) == [
        ("Train/jump/a.mp4", "jump", "train"),
        ("test/sit/c.mp4", "sit", "test"),
        ("validation/jump/b.mp4", "jump", "val"),
    ]


def test_a_folder_of_numbered_images_is_one_sample_and_a_still_is_one_too(tmp_path: Path) -> None:
    touch(tmp_path, *(f"dive/01/image_{i:05}.jpg" for i in range(3)), "dive/part/02/1.png", "dive/part/02/2.png")
    touch(tmp_path, "stand/me.jpg", "stand/img_1.jpg", "stand/more/portrait.jpg")
    assert rows_of(tmp_path) == [
        ("dive/01", "dive", None),
        ("dive/part/02", "dive", None),
        ("stand/img_1.jpg", "stand", None),
        ("stand/me.jpg", "stand", None),
        ("stand/more/portrait.jpg", "stand", None),
    ]


@pytest.mark.parametrize(
    ("files", "at", "expected"),
    [
        ([], "", ": no class folders; expected set/CLASS/video.mp4, or a CSV table"),
        (["a.mp4"], "", ": no class folders; expected set/CLASS/video.mp4, or a CSV table"),
        (["a.mp4", "jump/b.mp4"], "a.mp4", ": lies beside the class folders; move it into one, or write a CSV table"),
        (["jump/b.mp4", "sit/readme.txt"], "sit", ": a class folder without videos; add some, or remove the folder"),
        (["train/x/b.mp4", "val/1.mp4"], "val/1.mp4", ": lies beside the class folders; move it into one, or write"),
        (["train/x/b.mp4", "jump/1.mp4"], "", ": 'train' beside 'jump': split or class? give it split folders only"),
    ],
)
def test_folders_that_are_no_class_folders(tmp_path: Path, files: list[str], at: str, expected: str) -> None:
    root = tmp_path / "set"
    root.mkdir()
    touch(root, *files)
    with pytest.raises(TableError) as caught:
        read_table(root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{root / at}{expected}")


def test_leaks_name_group_splits_and_lines(write: Write) -> None:
    table = read_table(
        write(
            "path,split,group,end_frame\n"
            "a.mp4,train,g1,5\nb.mp4,train,g2,5\na.mp4,test,g1,6\nb.mp4,val,g2,6\n"
            "c.mp4,train,,5\nc.mp4,test,,6\nd.mp4,,g1,\n"
        )
    )
    assert [str(leak) for leak in check_leaks(table)] == [
        "group 'g1' is in train (line 2) and test (line 4); keep it in one split",
        "group 'g2' is in train (line 3) and val (line 5); keep it in one split",
        "file 'c.mp4' is in train (line 6) and test (line 7); keep it in one split",
    ]
    assert [leak.name for leak in check_leaks(table, ("train", "val"))] == ["g2"]
    assert check_leaks(table.select("train")) == []


def test_empty_classes(write: Write) -> None:
    head = "path,label,split\n"
    fine = read_table(write(head + "a.mp4,jump,train\nb.mp4,jump,test\nc.mp4,sit,train\nd.mp4,,test\n"))
    assert check_classes(fine, "train", "test") == [
        f"{fine.source}: class 'sit' has samples in split 'train' and none in 'test'"
    ]
    assert check_classes(fine, "train", None) == []
    rare = "".join(f"{k}.mp4,c{k},train\n" for k in range(10, 30))
    (said,) = check_classes(read_table(write(head + "a.mp4,c10,test\n" + rare), check_files=False), "train", "test")
    assert said.endswith("classes 'c11', 'c12', 'c13', 'c14', 'c15', 'c16', 'c17', 'c18' and 11 more have samples in "
                         "split 'train' and none in 'test'")  # fmt: skip
    wrong = read_table(write(head + "a.mp4,jump,train\nb.mp4,jump,test\nc.mp4,sit,test\nd.mp4,sit,test\n"))
    with pytest.raises(TableError) as caught:
        check_classes(wrong, "train", "test")
    assert str(caught.value) == (
        f"{wrong.source} lines 4, 5: class 'sit' has samples in split 'test' and none in 'train'; add training "
        "samples, correct the label, or remove these rows"
    )
    with pytest.raises(TableError, match="no row has a value in column `label`"):
        check_classes(read_table(write(head + "a.mp4,,train\nb.mp4,x,test\n")), "train", "test")


def test_unknown_labels_are_refused_and_no_label_is_fine(write: Write) -> None:
    table = read_table(write("path,label\na.mp4,jump\nb.mp4,\nc.mp4,Jump\nd.mp4,Jump\n"))
    check_labels(table, ["jump", "Jump"])
    with pytest.raises(TableError) as caught:
        check_labels(table, ["jump", "sit"])
    assert str(caught.value) == (
        f"{table.source} lines 4, 5: unknown label 'Jump'; classes: jump, sit; correct the label, or leave it empty "
        "for an unlabelled sample"
    )


@needs_data
def test_the_table_of_the_real_videos_in_the_dark() -> None:
    assert DATA is not None
    table = read_table(DATA / "arid6/labels.csv")
    assert (len(table.select("train")), len(table.select("val"))) == (150, 58)
    assert table.classes("class") == ["Jump", "Run", "Sit", "Stand", "Turn", "Walk"]
    assert check_leaks(table) == []
    assert check_classes(table, "train", "val", "class") == []
